from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.directions.states import a_direction, identity_of
from tests.unit.maps.pairs import random_weight, seeded
from torch import Tensor

from isthmus.carrying import (
    at_several_sites,
    average_directions,
    carry_along,
    carry_direction,
    cosine,
    steps_of,
)
from isthmus.core.certificate import Certificate
from isthmus.core.errors import ConfigError, FitError, IdentityError, SiteError
from isthmus.core.sites import Site
from isthmus.directions import Direction, load_direction, save_direction
from isthmus.maps import ActivationMap, AffineMap, AutoencoderMap, FittedMap, MapQuality

WIDTHS = {"small": 5, "middle": 6, "large": 4, "twin": 5}


def affine(weight: Tensor, seed: int = 0) -> AffineMap:
    generator = seeded(seed)
    means = (torch.randn(size, generator=generator) for size in weight.shape)
    return AffineMap(weight.float(), *means, "ridge")


def fitted(
    made: ActivationMap,
    source: str,
    target: str,
    sites: tuple[Site, ...],
    to: Site,
    r2: float = 0.9,
) -> FittedMap:
    ends = (identity_of(name, WIDTHS[name]) for name in (source, target))
    return FittedMap(made, *ends, sites, to, MapQuality(r2, 1 - r2, 100, 20))


def step(source: str, target: str, to: int = 1, seed: int = 0, r2: float = 0.9) -> FittedMap:
    weight = random_weight(WIDTHS[source], WIDTHS[target], seed)
    return fitted(affine(weight, seed), source, target, (Site(1),), Site(to), r2)


def orthogonal(width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=seeded(3), dtype=torch.float64))[0]


def pointing(vectors: Tensor, name: str = "large") -> Direction:
    like = a_direction(Site(1), pooled=True, d_model=vectors.shape[1], name=name)
    return replace(like, by_site={Site(1): replace(like.at(Site(1)), vectors=vectors)})


def certificate_of(direction: Direction) -> Certificate:
    assert direction.certificate is not None
    return direction.certificate


def test_through_affine_maps_a_direction_arrives_by_the_product_of_their_linear_parts():
    start = a_direction(Site(1))
    steps = [step("small", "middle"), step("middle", "large", seed=1)]
    product = random_weight(5, 6, 0) @ random_weight(6, 4, 1)
    for rule in ("auto", "difference"):
        arrived = carry_along(start, steps, rule).at(Site(1)).vectors
        expected = (start.at(Site(1)).vectors.double() @ product).float()
        torch.testing.assert_close(arrived, expected, rtol=1e-3, atol=1e-3)


def test_a_round_trip_through_an_orthogonal_map_and_its_transpose_returns_everything():
    start, weight = a_direction(Site(1)), orthogonal(5)
    there = affine(weight)
    back = AffineMap(weight.T.float(), there.target_mean, there.source_mean, "ridge")
    returned = carry_along(
        start,
        [
            fitted(there, "small", "twin", (Site(1),), Site(2)),
            fitted(back, "twin", "small", (Site(2),), Site(1)),
        ],
    )
    assert returned.model.is_same_model(start.model)
    for name, value in start.at(Site(1)).tensors.items():
        torch.testing.assert_close(returned.at(Site(1)).tensors[name], value, rtol=1e-4, atol=1e-4)


def test_a_step_to_several_sites_feeds_a_map_that_reads_them_side_by_side():
    start = a_direction(Site(1))
    out = [step("small", "middle", to=0), step("small", "middle", to=2, seed=1)]
    weight = random_weight(12, 4, 2)
    last = fitted(affine(weight), "middle", "large", (Site(2), Site(0)), Site(3))
    arrived = carry_along(start, [out, last]).at(Site(3)).vectors
    vectors = start.at(Site(1)).vectors.double()
    sides = [vectors @ random_weight(5, 6, 1), vectors @ random_weight(5, 6, 0)]
    expected = (torch.cat(sides, dim=1) @ weight).float()
    torch.testing.assert_close(arrived, expected, rtol=1e-3, atol=1e-3)


def test_through_other_maps_the_states_travel_and_the_difference_is_taken_at_the_end():
    start = a_direction(Site(1))
    generator = seeded(1)
    bent = AutoencoderMap(
        torch.full((5,), 10.0),
        torch.randn(5, 9, generator=generator),
        torch.randn(9, generator=generator),
        torch.randn(9, 6, generator=generator),
        torch.zeros(6),
    )
    last = step("middle", "large", seed=1)
    arrived = carry_along(start, [fitted(bent, "small", "middle", (Site(1),), Site(1)), last])
    states = [
        last.map(bent(start.at(Site(1)).tensors[f"{side}_states"])).double().mean(0)
        for side in ("positive", "negative")
    ]
    expected = (states[0] - states[1]).float()
    torch.testing.assert_close(arrived.at(Site(1)).vectors, expected, rtol=1e-3, atol=1e-3)


def test_the_whole_way_is_in_provenance_and_certificate_and_on_file(tmp_path: Path):
    steps = [step("small", "middle", r2=0.7), step("middle", "large", seed=1)]
    arrived = carry_along(a_direction(Site(1)), steps)
    certificate = certificate_of(arrived)
    assert (certificate.source.name, certificate.target.name) == ("small", "large")
    assert [(p.source.name, p.target.name) for p in certificate.way] == [
        ("small", "middle"),
        ("middle", "large"),
    ]
    assert certificate.map_quality["r2_held_out"] == 0.7
    assert not certificate.is_measured
    before = arrived.provenance["source_provenance"]
    assert (arrived.provenance["source_model"]["name"], before["source_model"]["name"]) == (
        "middle",
        "small",
    )
    save_direction(tmp_path / "d", arrived)
    assert load_direction(tmp_path / "d").certificate == certificate


def test_a_direction_at_several_sites_is_certified_at_all_of_them(tmp_path: Path):
    out = [step("small", "middle", to=2), step("small", "middle", to=0, seed=1, r2=0.5)]
    start = a_direction(Site(1))
    joined = at_several_sites([carry_direction(start, one) for one in out])
    assert joined.sites == (Site(2), Site(0))
    certificate = certificate_of(joined)
    assert certificate.target_site == "resid_post[2], resid_post[0]"
    assert certificate.map_quality["r2_held_out"] == 0.5
    assert len(certificate.way) == 2
    save_direction(tmp_path / "d", joined)
    loaded = load_direction(tmp_path / "d")
    assert loaded.certificate == certificate
    assert torch.equal(loaded.at(Site(0)).vectors, joined.at(Site(0)).vectors)


def test_neighbours_between_the_same_two_models_are_one_step():
    two, last = (
        [step("small", "middle", to=0), step("small", "middle", to=1)],
        step("middle", "large"),
    )
    assert steps_of([*two, last]) == (tuple(two), (last,))
    assert steps_of([]) == ()


@pytest.mark.parametrize("n_sources", [4, 16])
def test_averaging_shrinks_errors_that_have_nothing_to_do_with_each_other(n_sources: int):
    generator = seeded(2)
    truth = torch.nn.functional.normalize(torch.randn(1, 64, generator=generator), dim=-1)
    noisy = [truth + 0.1 * torch.randn(1, 64, generator=generator) for _ in range(n_sources)]
    averaged = average_directions([pointing(one) for one in noisy]).at(Site(1)).vectors

    def tangent(vectors: Tensor) -> float:
        return float((1 / cosine(vectors, truth).square() - 1).sqrt())

    alone = sum(tangent(one) for one in noisy) / n_sources
    assert tangent(averaged) == pytest.approx(alone / n_sources**0.5, rel=0.25)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_every_source_has_one_vote_and_the_length_is_the_mean_of_theirs(lengths: list[float]):
    units = torch.eye(5)
    parts = [pointing(n * units[i : i + 1]) for i, n in enumerate(lengths)]
    averaged = average_directions(parts)
    vector = averaged.at(Site(1)).vectors
    expected = torch.nn.functional.normalize(units[: len(lengths)].sum(0, keepdim=True), dim=-1)
    mean_length = sum(lengths) / len(lengths)
    torch.testing.assert_close(vector, mean_length * expected, rtol=1e-4, atol=1e-5)
    if len(lengths) > 1:
        (agreement,) = averaged.provenance["agreement"]["resid_post[1]"]
        assert agreement == pytest.approx(len(lengths) ** -0.5)


def test_an_average_keeps_the_states_of_all_sources_and_counts_each_mean_once():
    large = [step("small", "large"), step("twin", "large", seed=1)]
    parts = [
        carry_direction(a_direction(Site(1), name=name), one)
        for name, one in zip(("small", "twin"), large, strict=True)
    ]
    averaged = average_directions(parts)
    here, first, second = (one.at(Site(1)) for one in (averaged, *parts))
    assert len(here.positive_states) == len(first.positive_states) + len(second.positive_states)
    torch.testing.assert_close(here.positive_mean, (first.positive_mean + second.positive_mean) / 2)
    assert [p.source.name for p in certificate_of(averaged).way] == ["small", "twin"]


def test_a_certificate_keeps_what_every_map_was_fitted_on_however_the_direction_travelled():
    def told(one: FittedMap, texts: str, seed: int) -> FittedMap:
        fit = {"n_texts": 9, "texts_sha256": texts, "pairing": "index", "seed": seed}
        return replace(one, provenance=fit)

    first = told(step("small", "middle"), "t1", 3)
    second = told(step("middle", "large", seed=1), "t2", 4)
    start = a_direction(Site(1))
    corpora = [{"n_texts": 9, "sha256": text, "pairing": "index"} for text in ("t1", "t2")]
    once = carry_along(start, [first])
    assert certificate_of(once).corpus == corpora[0]
    for arrived in (carry_along(start, [first, second]), carry_along(once, [second])):
        certificate = certificate_of(arrived)
        assert [dict(passage.corpus) for passage in certificate.way] == corpora
        assert [passage.seed for passage in certificate.way] == [3, 4]
        assert certificate.corpus == {"of_each_map": corpora}
        assert certificate.seed == 3
    other = told(step("small", "middle", seed=2), "t1", 3)
    averaged = average_directions([once, carry_along(start, [other])])
    assert certificate_of(averaged).corpus == corpora[0]


def test_one_direction_alone_stays_as_it_is():
    alone = a_direction(Site(1))
    assert average_directions([alone]) is alone
    assert at_several_sites([alone]) is alone


def test_a_way_that_does_not_hang_together_is_refused_before_anything_is_carried():
    start = a_direction(Site(1))
    first = step("small", "middle")
    with pytest.raises(ConfigError, match="at least one for every step"):
        carry_along(start, [])
    with pytest.raises(ConfigError, match="at least one for every step"):
        carry_along(start, [first, []])
    with pytest.raises(IdentityError, match="in the order of the way"):
        carry_along(start, [first, step("small", "large")])
    with pytest.raises(SiteError, match=r"reads resid_post\[1\], which no map"):
        carry_along(start, [step("small", "middle", to=0), step("middle", "large")])
    with pytest.raises(SiteError, match="one map per site"):
        carry_along(start, [[first, first]])
    with pytest.raises(IdentityError, match="direction belongs to"):
        carry_along(start, [step("middle", "large")])
    with pytest.raises(IdentityError, match="one model"):
        carry_along(start, [[first, step("small", "large", to=2)]])


@pytest.mark.parametrize("make", [at_several_sites, average_directions])
def test_directions_that_do_not_belong_together_are_refused(make):
    here = a_direction(Site(1))
    with pytest.raises(ConfigError, match="give at least one"):
        make([])
    with pytest.raises(IdentityError):
        make([here, a_direction(Site(1), name="other")])
    with pytest.raises(ConfigError, match="the same tokens"):
        make([here, replace(here, positions="last:5")])
    carried = carry_direction(here, step("small", "twin"))
    native = a_direction(Site(1), name="twin")
    with pytest.raises(ConfigError, match="the certificate is about all of it"):
        make([carried, native])


def test_sites_neither_repeat_where_they_are_joined_nor_differ_where_they_are_averaged():
    here = a_direction(Site(1))
    with pytest.raises(SiteError, match=r"two directions at resid_post\[1\]"):
        at_several_sites([here, here])
    with pytest.raises(SiteError, match="to the same sites"):
        average_directions([here, a_direction(Site(2))])


def test_directions_that_cancel_out_are_refused():
    vectors = torch.ones(1, 5)
    with pytest.raises(FitError, match="cancel out"):
        average_directions([pointing(vectors), pointing(-3 * vectors)])
