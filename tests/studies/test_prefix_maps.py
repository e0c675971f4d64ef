import torch

from isthmus.studies.prefix_maps import fit_prefix_map, fit_without


def pairs(n=120, n_tokens=2, d_source=6, d_target=4):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(n, n_tokens, d_source, generator=generator)
    weights = torch.randn(n_tokens, d_source, d_target, generator=generator)
    means = 10 * torch.randn(n_tokens, d_target, generator=generator)
    return source, torch.einsum("nts,tsd->ntd", source, weights) + means


def test_every_token_of_the_prefix_has_a_map_of_its_own():
    source, target = pairs()
    made = fit_prefix_map(source, target)
    assert made.r2_held_out > 0.999
    torch.testing.assert_close(made(source), target, atol=1e-2, rtol=1e-2)


def test_maps_of_shuffled_questions_know_the_mean_of_each_token_and_no_more():
    source, target = pairs()
    shuffled = fit_prefix_map(source, target, shuffled_seed=0)
    assert shuffled.r2_held_out < 0.1
    off = (shuffled(source) - target.mean(0)).square().mean()
    assert off < 0.2 * (target - target.mean(0)).square().mean()


def test_a_map_without_a_group_does_not_change_with_that_groups_states():
    source, target = pairs()
    groups = [f"group {i % 10}" for i in range(len(source))]
    spoiled = target.clone()
    is_three = torch.tensor([name == "group 3" for name in groups])
    spoiled[is_three] += 1000
    before = fit_without(source, target, groups)["group 3"]
    after = fit_without(source, spoiled, groups)
    torch.testing.assert_close(after["group 3"](source), before(source))
    assert not torch.allclose(after["group 4"](source), before(source))
