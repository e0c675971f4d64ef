import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.directions.states import a_direction, identity_of
from tests.unit.maps.pairs import seeded

from isthmus.carrying import coordinate_targets, cosine, match_norm, random_direction_like
from isthmus.core.certificate import Certificate, CertifiedNumber
from isthmus.core.errors import FitError, NonFiniteError, ShapeError, SiteError
from isthmus.core.sites import Site
from isthmus.directions import Direction, load_direction, save_direction

SITES = (Site(0), Site(2))


def test_matched_norms_are_the_reference_and_nothing_turns():
    direction = a_direction(*SITES)
    reference = {Site(0): torch.tensor([1.0, 20.0]), Site(2): torch.tensor([0.01, 3.0])}
    matched = match_norm(direction, reference)
    for site in SITES:
        before, after = direction.at(site), matched.at(site)
        torch.testing.assert_close(after.norms, reference[site])
        torch.testing.assert_close(
            cosine(before.vectors, after.vectors), torch.ones(2, dtype=torch.float64)
        )
        assert torch.equal(after.positive_mean, before.positive_mean)
    assert matched.provenance == {"seed": 0, "norm": "matched"}
    assert direction.provenance == {"seed": 0}


def test_matching_its_own_norms_changes_nothing():
    direction = a_direction(*SITES)
    matched = match_norm(direction, direction.norms)
    for site in SITES:
        torch.testing.assert_close(matched.at(site).vectors, direction.at(site).vectors)


@pytest.mark.parametrize(
    ("norms", "error", "message"),
    [
        ([1.0], ShapeError, "1 reference norms for 2 positions"),
        ([1.0, math.nan], NonFiniteError, "NaN or infinite"),
        ([1.0, 0.0], FitError, "must be above 0"),
        ([1.0, -2.0], FitError, "must be above 0"),
    ],
)
def test_references_that_are_no_norms_are_refused(norms, error, message):
    with pytest.raises(error, match=message):
        match_norm(a_direction(Site(0)), {Site(0): torch.tensor(norms)})


def test_a_site_without_reference_is_refused():
    direction = a_direction(*SITES)
    with pytest.raises(SiteError, match=r"no reference norm for resid_post\[2\]"):
        match_norm(direction, {Site(0): torch.ones(2)})


def test_random_controls_have_the_norms_and_nothing_else_of_the_direction():
    direction = a_direction(*SITES, d_model=400)
    # Not seed 0: the states were drawn with it, and equal seeds draw equal vectors.
    control = random_direction_like(direction, seeded(99))
    assert control.method == "random"
    assert control.provenance["like"] == "mean_difference"
    vectors = []
    for site in SITES:
        torch.testing.assert_close(control.norms[site], direction.norms[site])
        assert (cosine(control.at(site).vectors, direction.at(site).vectors).abs() < 0.25).all()
        vectors += [*control.at(site).vectors]
    for index, one in enumerate(vectors):
        assert all(cosine(one, other).abs() < 0.25 for other in vectors[index + 1 :])


def measured(direction: Direction) -> Direction:
    passage = {"source_sites": ("resid_post[1]",), "map_method": "ridge", "map_quality": {}}
    norms = [norm for one in direction.norms_as_written.values() for norm in one]
    certificate = Certificate(
        identity_of("elsewhere", 3),
        direction.model,
        target_site=", ".join(direction.norms_as_written),
        norms={"vectors": norms, "states": 9.0},
        behaviour={"swap": CertifiedNumber(0.9, 0.8, 1.0, 64)},
        **passage,
    )
    return replace(direction, certificate=certificate)


def test_nothing_that_was_measured_of_a_direction_is_claimed_of_a_random_one():
    assert random_direction_like(measured(a_direction(*SITES)), seeded(99)).certificate is None


def test_a_direction_of_another_length_is_certified_as_that_and_as_not_measured(tmp_path: Path):
    carried = measured(a_direction(Site(0)))
    matched = match_norm(carried, {Site(0): torch.tensor([1.0, 2.0])})
    save_direction(tmp_path / "matched", matched)
    certificate = load_direction(tmp_path / "matched").certificate
    assert certificate is not None
    assert not certificate.is_measured
    assert certificate.norms["vectors"] == pytest.approx([1.0, 2.0])
    assert certificate.source == identity_of("elsewhere", 3)


def test_vectors_of_other_sites_are_certified_there_and_as_not_measured(tmp_path: Path):
    carried = measured(a_direction(*SITES))
    save_direction(tmp_path / "one", carried.with_vectors({SITES[1]: carried.at(SITES[1])}))
    one = load_direction(tmp_path / "one").certificate
    assert one is not None
    assert one.target_site == str(SITES[1])
    assert not one.is_measured


def test_random_controls_follow_the_generator():
    direction = a_direction(Site(0))
    first, again, other = (
        random_direction_like(direction, seeded(seed)).at(Site(0)).vectors for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    scales=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
)
def test_cosine_ignores_length_and_order(seed: int, scales: tuple[float, float]):
    first, second = torch.randn(2, 3, 4, generator=seeded(seed), dtype=torch.float64)
    plain = cosine(first, second)
    torch.testing.assert_close(cosine(second * scales[1], first * scales[0]), plain)
    torch.testing.assert_close(cosine(first, -first), -torch.ones(3, dtype=torch.float64))
    expected = torch.nn.functional.cosine_similarity(first, second, dim=-1)
    torch.testing.assert_close(plain, expected)


def test_the_cosine_with_zero_is_refused():
    with pytest.raises(FitError, match="zero vector"):
        cosine(torch.zeros(3), torch.ones(3))


def test_coordinates_lie_one_gap_apart_for_a_difference_of_means():
    one = a_direction(Site(0)).at(Site(0))
    targets = coordinate_targets(one)
    torch.testing.assert_close(targets.positive - targets.negative, one.norms, rtol=1e-4, atol=1e-4)


def test_setting_the_coordinate_moves_a_mean_onto_the_other_along_the_direction():
    one = a_direction(Site(0), method="probe").at(Site(0))
    unit, targets = one.unit_vectors, coordinate_targets(one)
    current = (one.negative_mean * unit).sum(-1)
    torch.testing.assert_close(current, targets.negative)
    moved = one.negative_mean + (targets.positive - current)[:, None] * unit
    torch.testing.assert_close((moved * unit).sum(-1), (one.positive_mean * unit).sum(-1))
