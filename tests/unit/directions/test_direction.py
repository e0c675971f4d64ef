import math
from dataclasses import replace

import pytest
import torch
from tests.unit.directions.states import a_direction, identity_of
from tests.unit.maps.pairs import without_shape_checks

from isthmus.core.errors import DataError, FitError, NonFiniteError, ShapeError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.directions import Direction, SiteDirection


def test_norms_are_lengths_per_site_and_position():
    direction = a_direction(Site(0), Site(2))
    for site in (Site(0), Site(2)):
        expected = [
            math.sqrt(sum(x * x for x in row)) for row in direction.at(site).vectors.tolist()
        ]
        assert direction.norms[site].tolist() == pytest.approx(expected)
        torch.testing.assert_close(direction.at(site).unit_vectors.norm(dim=1), torch.ones(2))


def test_a_site_that_was_not_learned_is_refused_with_those_that_were():
    direction = a_direction(Site(0), Site(2, Stream.ATTN_OUT))
    with pytest.raises(SiteError, match=r"no direction at resid_post\[1\].*attn_out\[2\]"):
        direction.at(Site(1))


def test_a_direction_does_not_change_with_the_dictionary_it_was_made_from():
    one = a_direction(Site(0)).at(Site(0))
    by_site = {Site(0): one}
    direction = Direction(by_site, identity_of("small", 5), "probe", "trigger", pooled=False)
    by_site[Site(1)] = one
    assert direction.sites == (Site(0),)
    with pytest.raises(TypeError):
        direction.by_site[Site(1)] = one  # type: ignore[index]


def test_sites_that_do_not_fit_each_other_or_the_model_are_refused():
    two_positions, pooled = a_direction(Site(0)), a_direction(Site(1), pooled=True)
    wider = a_direction(Site(1), d_model=6)

    def with_sites(by_site: dict[Site, SiteDirection]) -> Direction:
        return replace(two_positions, by_site=by_site)

    with pytest.raises(ShapeError, match=r"sites differ in \(positions"):
        with_sites({**two_positions.by_site, **pooled.by_site})
    with pytest.raises(ShapeError, match="has width 6, small@weights- has width 5"):
        with_sites({**two_positions.by_site, **wider.by_site})
    with pytest.raises(SiteError, match="layers 0 to 3"):
        with_sites({Site(4): two_positions.at(Site(0))})
    with pytest.raises(SiteError, match="at least one site"):
        with_sites({})
    with pytest.raises(ShapeError, match="a pooled direction has one position, got 2"):
        replace(two_positions, pooled=True)


def test_a_direction_is_zero_nowhere():
    one = a_direction(Site(0)).at(Site(0))
    vectors = one.vectors.clone()
    vectors[1] = 0
    with pytest.raises(FitError, match=r"zero at position\(s\) \[1\]"):
        replace(one, vectors=vectors)


@pytest.mark.parametrize("name", ["vectors", "positive_mean", "negative_states"])
def test_values_that_are_not_finite_are_refused_by_name(name: str):
    one = a_direction(Site(0)).at(Site(0))
    with pytest.raises(NonFiniteError, match=f"{name} of a direction"):
        replace(one, **{name: getattr(one, name) * math.inf})


def test_shapes_that_do_not_fit_and_empty_classes_are_refused():
    one = a_direction(Site(0)).at(Site(0))
    with (
        without_shape_checks(),
        pytest.raises(ShapeError, match=r"must share \(position, d_model\)"),
    ):
        replace(one, positive_mean=torch.zeros(2, 6))
    with pytest.raises(DataError, match="0 positive and 12 negative"):
        replace(one, positive_states=torch.zeros(0, 2, 5))
