import pytest
import torch
from tests.unit.directions.states import identity_of
from tests.unit.maps.pairs import seeded

from isthmus.carrying import carry_probe, carry_probe_along
from isthmus.carrying.model_probes import recalibrated
from isthmus.carrying.probes import push_forward_probe
from isthmus.core.certificate import CertifiedNumber
from isthmus.core.errors import ConfigError, IdentityError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site
from isthmus.directions import ModelProbe
from isthmus.directions.probe import Probe
from isthmus.maps import AffineMap, AutoencoderMap, FittedMap, MapQuality

OLD, NEW, THIRD = identity_of("old", 5), identity_of("new", 4), identity_of("third", 6)


def a_map(
    source: ModelIdentity,
    target: ModelIdentity,
    source_sites: tuple[Site, ...],
    target_sites: tuple[Site, ...],
    r2: float = 0.9,
) -> FittedMap:
    d_from, d_to = source.d_model * len(source_sites), target.d_model * len(target_sites)
    drawn = torch.randn(d_from, d_to, generator=seeded(d_from + d_to))
    means = (torch.randn(width, generator=seeded(width)) for width in (d_from, d_to))
    return FittedMap(
        AffineMap(drawn, *means, "ridge"),
        source,
        target,
        source_sites,
        target_sites[0],
        MapQuality(r2, 1 - r2, 100, 20),
        {"n_texts": 9, "texts_sha256": "abc", "seed": 4},
        target_sites[1:],
    )


def a_probe(*sites: Site, model: ModelIdentity = OLD) -> ModelProbe:
    drawn = torch.randn(len(sites) * model.d_model, generator=seeded(9))
    held_out = {"auroc": CertifiedNumber(1.0, 1.0, 1.0, 24)}
    return ModelProbe(Probe(drawn / drawn.norm(), 0.7), sites, "last:1", model, held_out)


def states(width: int) -> torch.Tensor:
    return torch.randn(200, width, generator=seeded(1))


def test_a_map_to_the_probes_model_pulls_it_back_and_keeps_every_decision():
    """A map that leads to more sites than the probe reads, in another order."""
    probe = a_probe(Site(2), Site(0))
    fitted = a_map(NEW, OLD, (Site(1), Site(3)), (Site(0), Site(1), Site(2)))
    carried = carry_probe(probe, fitted)
    assert (carried.model, carried.sites) == (NEW, (Site(1), Site(3)))
    given = states(8)
    parts = dict(zip(fitted.target_sites, fitted.map(given).chunk(3, dim=-1), strict=True))
    image = torch.cat([parts[site] for site in probe.sites], dim=-1)
    expected = probe.probe.scores(image)
    found = carried.probe.scores(given)
    torch.testing.assert_close(found * (expected / found).median(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found > 0, expected > 0)
    assert 0 < (found > 0).float().mean() < 1


def test_a_map_from_the_probes_model_pushes_it_forward_whatever_the_order_of_the_sites():
    probe = a_probe(Site(2), Site(0))
    fitted = a_map(OLD, NEW, (Site(0), Site(2)), (Site(1),))
    carried = carry_probe(probe, fitted)
    swapped = Probe(probe.probe.unit_direction.roll(5), probe.probe.threshold)
    expected = push_forward_probe(swapped, fitted.map)
    assert torch.equal(carried.probe.unit_direction, expected.unit_direction)
    assert carried.probe.threshold == expected.threshold
    assert carried.provenance["rule"] == "push_forward"


def test_a_chain_decides_as_the_first_probe_does_after_all_maps():
    first, second = (
        a_map(NEW, OLD, (Site(1),), (Site(2),)),
        a_map(THIRD, NEW, (Site(0),), (Site(1),), r2=0.5),
    )
    probe = a_probe(Site(2))
    carried = carry_probe_along(probe, [first, second])
    given = states(6)
    expected = probe.probe.scores(first.map(second.map(given)))
    assert torch.equal(carried.probe.scores(given) > 0, expected > 0)
    told = carried.certificate
    assert told is not None
    assert (told.source, told.target, told.source_sites) == (OLD, THIRD, ("resid_post[2]",))
    assert [one.source for one in told.way] == [NEW, THIRD]
    assert told.map_quality["r2_held_out"] == 0.5
    assert told.corpus["n_texts"] == 9


def test_a_carried_probe_says_where_it_is_from_and_claims_nothing_about_the_new_model():
    carried = carry_probe(a_probe(Site(2)), a_map(NEW, OLD, (Site(1),), (Site(2),)))
    assert carried.held_out == {}
    assert carried.provenance["rule"] == "pull_back"
    told = carried.certificate
    assert told is not None
    assert (told.target_site, told.seed, told.is_measured) == ("resid_post[1]", 4, False)


def test_within_one_model_a_map_that_reaches_the_probe_pulls_it_back():
    fitted = a_map(OLD, OLD, (Site(1),), (Site(2),))
    assert carry_probe(a_probe(Site(2)), fitted).sites == (Site(1),)
    assert carry_probe(a_probe(Site(1)), fitted).sites == (Site(2),)


def test_maps_that_cannot_take_it_are_refused_with_what_to_do():
    probe = a_probe(Site(2))
    with pytest.raises(IdentityError, match="at the probe's site resid_post"):
        carry_probe(probe, a_map(NEW, THIRD, (Site(0),), (Site(0),)))
    with pytest.raises(SiteError, match=r"--target-site resid_post\[2\]"):
        carry_probe(probe, a_map(NEW, OLD, (Site(0),), (Site(1),)))
    with pytest.raises(SiteError, match="pulled back"):
        carry_probe(probe, a_map(OLD, NEW, (Site(0), Site(2)), (Site(1),)))
    with pytest.raises(ConfigError, match="no map"):
        carry_probe_along(probe, [])
    relu = AutoencoderMap(
        torch.zeros(4), torch.eye(4), torch.zeros(4), torch.ones(4, 5), torch.zeros(5)
    )
    quality = MapQuality(0.9, 0.1, 100, 20)
    with pytest.raises(ConfigError, match="affine maps only"):
        carry_probe(probe, FittedMap(relu, NEW, OLD, (Site(0),), Site(2), quality))


def test_a_threshold_set_by_a_share_leaves_that_share_above_it_and_says_so():
    moved = recalibrated(a_probe(Site(2)), states(5), 0.25, {"unlabelled_sha256": "x"})
    assert (moved.probe.scores(states(5)) > 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert moved.provenance["recalibrated"] == {
        "positive_share": 0.25,
        "share_above": 0.25,
        "n_unlabelled": 200,
        "unlabelled_sha256": "x",
    }
    assert moved.held_out == {}


def test_of_equal_scores_it_says_which_share_does_lie_above_the_threshold():
    tied = states(5)[:1].repeat(10, 1)
    moved = recalibrated(a_probe(Site(2)), torch.cat([states(5)[:1] * 9, tied]), 0.5, {})
    told = moved.provenance["recalibrated"]
    assert told["positive_share"] == 0.5
    assert told["share_above"] in {0.0, 1 / 11}


def test_two_maps_between_the_same_two_models_do_not_carry_a_probe_there_and_back():
    there, again = (a_map(NEW, OLD, (site,), (Site(2),)) for site in (Site(0), Site(1)))
    with pytest.raises(ConfigError, match=r"between old.* and new.* back to where"):
        carry_probe_along(a_probe(Site(2)), [there, again])
    within = a_map(NEW, NEW, (Site(1),), (Site(0),))
    back = a_map(THIRD, NEW, (Site(0),), (Site(1),))
    assert carry_probe_along(a_probe(Site(2)), [there, within, back]).model == THIRD
    with pytest.raises(ConfigError, match="back to where"):
        carry_probe_along(a_probe(Site(2)), [there, within, again])
