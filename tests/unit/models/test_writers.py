import pytest
import torch
from tests.fakes import tiny_network, varied
from torch import nn

from isthmus.models.calls import Call
from isthmus.models.probing import find_layout
from isthmus.models.writers import find_writers


def recorded(**outputs):
    """Matrices with given outputs, and what was recorded of them."""
    modules = {name: nn.Linear(4, 6) for name in outputs}
    return {name: Call(made=made) for name, made in outputs.items()}, modules


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_smallest_set_of_matrices_that_gives_the_sum_is_found_with_its_factors():
    base, one, two, idle = (draw(2, 5, 6, seed=i) for i in range(4))
    calls, modules = recorded(idle=idle, one=one, two=two)
    found = find_writers(calls, modules, base, base + 0.25 * one + two)
    assert [w.name for w in found] == ["one", "two"]
    assert [w.scale for w in found] == pytest.approx([0.25, 1.0], rel=1e-5)


def test_a_factor_that_differs_by_position_is_a_gate():
    base, one = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    calls, modules = recorded(one=one)
    (writer,) = find_writers(calls, modules, base, base + draw(2, 5, 1, seed=2) * one)
    assert writer.scale is None
    assert writer.is_exact


def test_rows_that_all_texts_share_are_spread_over_the_batch():
    tokens, positions = draw(2, 5, 6), draw(5, 6, seed=1)
    calls, modules = recorded(tokens=tokens, positions=positions)
    found = find_writers(calls, modules, None, tokens + positions)
    assert {w.name for w in found} == {"tokens", "positions"}


def test_a_norm_behind_a_matrix_is_named_and_makes_it_inexact():
    base, made = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    calls, modules = recorded(matrix=made)
    modules["norm"] = nn.LayerNorm(6)
    calls["norm"] = Call(given=made, made=modules["norm"](made).detach())
    (writer,) = find_writers(calls, modules, base, base + calls["norm"].made)
    assert (writer.name, writer.norm, writer.is_exact) == ("matrix", "norm", False)


def test_a_norm_without_weights_is_no_gate():
    # It multiplies every position by a number, too, but by one that depends on the matrix.
    base, made = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    scaled = made / made.square().mean(-1, keepdim=True).sqrt()
    calls, modules = recorded(matrix=made)
    assert find_writers(calls, modules, base, base + scaled) == ()
    modules["norm"] = nn.RMSNorm(6, elementwise_affine=False)
    calls["norm"] = Call(given=made, made=scaled)
    (writer,) = find_writers(calls, modules, base, base + scaled)
    assert (writer.name, writer.norm, writer.is_exact) == ("matrix", "norm", False)


def test_nothing_is_found_where_no_matrices_give_the_sum():
    base, one = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    calls, modules = recorded(one=one)
    assert find_writers(calls, modules, base, base + one.tanh()) == ()


@pytest.mark.parametrize(
    ("family", "names", "scales"),
    [
        ("granite", ["o_proj", "down_proj"], [0.5, 0.5]),
        ("bloom", ["dense", "dense_4h_to_h"], [1.0, 1.0]),
        ("mamba", ["out_proj"], [1.0]),
        ("lfm2", ["out_proj", "w2"], [1.0, 1.0]),
        ("qwen2_moe", ["o_proj", "down_proj", "experts"], [1.0, None, 1.0]),
    ],
)
def test_writers_are_found_behind_multipliers_sums_gates_and_routers(family, names, scales):
    for block in find_layout(varied(tiny_network(family))).blocks:
        assert [w.name.split(".")[-1] for w in block.writers] == names
        for writer, scale in zip(block.writers, scales, strict=True):
            assert writer.scale == (None if scale is None else pytest.approx(scale, rel=1e-4))
        assert not block.missing


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ["transformer.wte", "transformer.wpe"]),
        ("opt", ["model.decoder.embed_tokens", "model.decoder.embed_positions"]),
        ("gemma", ["model.embed_tokens"]),
    ],
)
def test_the_matrices_that_begin_the_stream_are_the_embedding_and_learned_positions(family, names):
    found = find_layout(tiny_network(family)).stream_writers
    assert [w.name for w in found] == names
