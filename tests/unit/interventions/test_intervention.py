import math
from dataclasses import replace

import pytest
import torch

from isthmus.core.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    ShapeError,
    StrengthError,
    TriggerError,
)
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.addition import Addition
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions

D_MODEL = 6
SITE, OTHER = Site(1), Site(3)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(n_tokens, trigger=None):
    return EncodedText(
        "abcdefghij"[:n_tokens],
        tuple(range(n_tokens)),
        tuple(range(1, n_tokens + 1)),
        (False,) * n_tokens,
        n_tokens,
        trigger,
    )


BATCH = pad_batch([encoded(5, (1, 3)), encoded(8, (2, 4)), encoded(6)], 0, "left")
VECTORS = gaussian(2, D_MODEL, seed=1)


def applied(placed, activations):
    """What a forward pass would do with the given positions."""
    for one in placed:
        activations = torch.where(one.given[..., None], one.edit(activations), activations)
    return activations


def test_steering_adds_each_position_its_own_vector_and_nothing_elsewhere():
    steering = Intervention.steering({SITE: VECTORS}, parse_positions("trigger"), strength=2.0)
    before = gaussian(3, 8, D_MODEL)
    moved = applied(steering.place(BATCH), before) - before
    expected = torch.zeros_like(before)
    for row, start in ((0, BATCH.offsets[0] + 1), (1, BATCH.offsets[1] + 2)):
        expected[row, start : start + 2] = 2 * VECTORS
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-6)


def test_a_pooled_vector_is_one_edit_for_the_whole_span():
    steering = Intervention.steering({SITE: VECTORS[:1]}, parse_positions("trigger"))
    (placed,) = steering.place(BATCH)
    assert placed.given.sum(1).tolist() == [2, 2, 0]
    assert placed.edit.d_model == D_MODEL


@pytest.mark.parametrize(
    ("written", "generated"), [("prompt", False), ("generated", True), ("all", True)]
)
def test_a_pooled_vector_fits_positions_without_a_fixed_span(written, generated):
    (placed,) = Intervention.steering({SITE: VECTORS[:1]}, parse_positions(written)).place(BATCH)
    assert placed.generated.tolist() == [generated] * 3


@pytest.mark.parametrize("written", ["prompt", "generated", "all"])
def test_vectors_per_position_do_not_fit_positions_without_a_fixed_span(written):
    with pytest.raises(ConfigError, match="no fixed span"):
        Intervention.steering({SITE: VECTORS}, parse_positions(written))


def test_vectors_of_another_number_than_k_are_refused_before_any_batch():
    with pytest.raises(ConfigError, match="use last:2"):
        Intervention.steering({SITE: VECTORS}, parse_positions("last:3"))


def test_sites_come_in_the_order_of_the_forward_pass_whatever_the_order_given():
    streams = [Stream.RESID_POST, Stream.MLP_OUT, Stream.RESID_PRE, Stream.ATTN_OUT]
    given = {Site(3): VECTORS, **{Site(1, stream): VECTORS[:1] for stream in streams}}
    steering = Intervention.steering(given, parse_positions("trigger"))
    assert [str(site) for site in steering.sites] == [
        "resid_pre[1]",
        "attn_out[1]",
        "mlp_out[1]",
        "resid_post[1]",
        "resid_post[3]",
    ]
    assert [placed.site for placed in steering.place(BATCH)] == [*steering.sites, Site(3)]


def test_ablation_leaves_nothing_along_any_vector_whatever_its_length():
    ablation = Intervention.ablation({SITE: 7 * VECTORS}, parse_positions("last:2"))
    after = applied(ablation.place(BATCH), gaussian(3, 8, D_MODEL))
    along = torch.einsum("bpd,pd->bp", after[:, -2:], VECTORS)
    torch.testing.assert_close(along, torch.zeros(3, 2), atol=1e-5, rtol=0)


def test_set_coordinate_sets_each_position_to_its_own_coordinate():
    wanted = torch.tensor([2.0, -3.0])
    intervention = Intervention.set_coordinate(
        {SITE: VECTORS}, {SITE: wanted}, parse_positions("last:2")
    )
    after = applied(intervention.place(BATCH), gaussian(3, 8, D_MODEL))
    unit = VECTORS / VECTORS.norm(dim=-1, keepdim=True)
    along = torch.einsum("bpd,pd->bp", after[:, -2:], unit)
    torch.testing.assert_close(along, wanted.expand(3, 2), atol=1e-5, rtol=1e-5)


def test_replacement_overwrites_the_span_with_the_means():
    replacement = Intervention.replacement({SITE: VECTORS}, parse_positions("last:2"))
    after = applied(replacement.place(BATCH), gaussian(3, 8, D_MODEL))
    assert torch.equal(after[:, -2:], VECTORS.expand(3, 2, D_MODEL))


def test_noise_is_as_long_as_the_vectors_and_independent_between_positions_and_sites():
    width = 400
    vectors = torch.stack([torch.full((width,), 1.0), torch.full((width,), 0.1)])
    noise = Intervention.noise(
        {SITE: vectors, OTHER: vectors}, parse_positions("trigger"), seed=5, strength=-3.0
    )
    drawn = [placed.edit(torch.zeros(3, 8, width)) for placed in noise.place(BATCH)]
    lengths = torch.stack([one.norm(dim=-1).mean() for one in drawn])
    torch.testing.assert_close(lengths, torch.tensor([60.0, 6.0, 60.0, 6.0]), rtol=0.03, atol=0)
    unit = torch.stack([(one / one.norm()).flatten() for one in drawn])
    assert float((unit @ unit.T - torch.eye(4)).abs().max()) < 0.06


def test_noise_differs_between_seeds_and_not_between_calls():
    def drawn(seed):
        noise = Intervention.noise({SITE: VECTORS}, parse_positions("last:2"), seed=seed)
        return applied(noise.place(BATCH), torch.zeros(3, 8, D_MODEL))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_batches_of_one_shape_get_noise_of_their_own_and_answers_do_not_matter():
    noise = Intervention.noise({SITE: VECTORS[:1]}, parse_positions("last:2"), seed=1)

    def drawn(*texts):
        (placed,) = noise.place(pad_batch(texts, 0, "right"))
        return placed.edit(torch.zeros(len(texts), 8, D_MODEL))

    asked = encoded(5, (1, 3))
    other = replace(asked, token_ids=(9, 8, 7, 6, 5))
    answered = replace(
        asked,
        text=asked.text + "xy",
        token_ids=(*asked.token_ids, 3, 4),
        ends=(*asked.ends, 6, 7),
        is_special=(*asked.is_special, False, False),
    )
    assert torch.equal(drawn(asked), drawn(answered))
    cosine = torch.cosine_similarity(drawn(asked).flatten(), drawn(other).flatten(), dim=0)
    assert abs(float(cosine)) < 0.6


def test_placing_raises_when_a_prompt_does_not_have_the_positions():
    with pytest.raises(TriggerError):
        Intervention.steering({SITE: gaussian(3, D_MODEL)}, parse_positions("trigger")).place(BATCH)
    with pytest.raises(DataError):
        Intervention.steering({SITE: VECTORS[:1]}, parse_positions("last:6")).place(BATCH)


def test_an_intervention_cannot_be_changed_from_outside():
    edits = {SITE: (Addition(VECTORS[0]),)}
    intervention = Intervention(edits, parse_positions("trigger"))
    edits.clear()
    assert intervention.sites == (SITE,)
    with pytest.raises(TypeError):
        intervention.edits[OTHER] = ()


def test_an_intervention_without_edits_is_refused():
    with pytest.raises(ConfigError, match="without a site"):
        Intervention({}, parse_positions("trigger"))
    with pytest.raises(ConfigError, match=r"no edit at resid_post\[1\]"):
        Intervention({SITE: ()}, parse_positions("trigger"))


def test_broken_vectors_are_refused_with_their_site():
    positions = parse_positions("last:1")
    with pytest.raises(ShapeError, match=r"\[0, 6\] at resid_post\[1\]"):
        Intervention.steering({SITE: torch.zeros(0, D_MODEL)}, positions)
    with pytest.raises(ShapeError, match=r"direction at resid_post\[1\] is zero"):
        Intervention.ablation({SITE: torch.zeros(1, D_MODEL)}, positions)
    with pytest.raises(NonFiniteError):
        Intervention.noise({SITE: torch.full((1, D_MODEL), math.nan)}, positions, seed=0)
    with pytest.raises(StrengthError):
        Intervention.noise({SITE: torch.ones(1, D_MODEL)}, positions, seed=0, strength=math.nan)
    with pytest.raises(StrengthError):
        Intervention.steering({SITE: torch.ones(1, D_MODEL)}, positions, strength=1e6)


def test_coordinates_that_do_not_belong_to_the_vectors_are_refused():
    positions = parse_positions("last:1")
    with pytest.raises(ConfigError, match="same sites"):
        Intervention.set_coordinate(
            {SITE: torch.ones(1, D_MODEL)}, {OTHER: torch.ones(1)}, positions
        )
    vectors = {SITE: torch.ones(1, D_MODEL), OTHER: torch.ones(1, D_MODEL)}
    with pytest.raises(ShapeError, match=r"\[2\] at resid_post\[3\]: expected 1"):
        Intervention.set_coordinate(vectors, {SITE: torch.ones(1), OTHER: torch.ones(2)}, positions)
