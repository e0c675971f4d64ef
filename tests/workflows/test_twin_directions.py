from dataclasses import replace

from tests.unit.carrying.test_chains import step
from tests.unit.directions.states import a_direction

from isthmus.carrying import at_several_sites, average_directions, carry_along, carry_direction
from isthmus.core.sites import Site
from isthmus.workflows.twin_directions import at_one_site, origin_of

START = a_direction(Site(1))
STEP, BESIDE = step("small", "large"), step("small", "large", to=0, seed=1)


def test_a_direction_that_was_learned_in_its_model_came_through_no_map():
    assert origin_of(START) == ("small", None, None)


def test_whatever_its_way_a_direction_comes_from_where_it_was_learned():
    once = carry_direction(START, STEP)
    assert origin_of(once) == ("small", "ridge", "resid_post[1]")
    chain = carry_along(START, [step("small", "middle"), step("middle", "large")])
    assert origin_of(chain) == ("small", "ridge, ridge", "resid_post[1]")
    joined = at_several_sites([once, carry_direction(START, BESIDE)])
    assert origin_of(joined) == ("small", "ridge", "resid_post[1]")
    assert origin_of(at_one_site(joined, Site(0))) == ("small", "ridge", "resid_post[1]")
    again = carry_direction(START, replace(STEP, map=step("small", "large", seed=5).map))
    assert origin_of(average_directions([once, again])).model == "small"


def test_files_of_versions_before_certificates_tell_where_they_come_from_in_their_provenance():
    carried = replace(carry_direction(START, STEP), certificate=None)
    assert origin_of(carried) == ("small", "ridge", "resid_post[1]")


def test_one_site_of_a_direction_that_has_no_other_is_the_direction():
    assert at_one_site(START, Site(1)) is START
