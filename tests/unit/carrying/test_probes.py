import pytest
import torch

from isthmus.carrying.probes import (
    pull_back_probe,
    push_forward_probe,
    random_map_like,
    random_rotation_like,
    with_positive_share,
)
from isthmus.core.errors import ConfigError, DataError, FitError, ShapeError
from isthmus.directions.probe import Probe
from isthmus.maps.base import AffineMap


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_map(d_from: int, d_to: int, weight: torch.Tensor | None = None) -> AffineMap:
    generator = seeded(d_from)
    drawn = torch.randn(d_from, d_to, generator=generator) if weight is None else weight
    means = (torch.randn(width, generator=generator) for width in (d_from, d_to))
    return AffineMap(drawn, *means, "ridge")


def a_probe(d_model: int, threshold: float = 0.7) -> Probe:
    drawn = torch.randn(d_model, generator=seeded(9))
    return Probe(drawn / drawn.norm(), threshold)


def test_a_pulled_back_probe_scores_as_the_probe_does_after_the_map_up_to_one_scale():
    back, probe = a_map(6, 4), a_probe(4)
    states = torch.randn(30, 6, generator=seeded())
    after = probe.scores(back(states))
    carried = pull_back_probe(probe, back).scores(states)
    scale = (back.weight @ probe.unit_direction).norm()
    torch.testing.assert_close(carried * scale, after, rtol=1e-4, atol=1e-4)


def test_through_a_rotation_both_ways_of_carrying_agree():
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=seeded())).Q
    forward = a_map(5, 5, rotation)
    back = AffineMap(rotation.T.clone(), forward.target_mean, forward.source_mean, "ridge")
    pulled, pushed = pull_back_probe(a_probe(5), back), push_forward_probe(a_probe(5), forward)
    torch.testing.assert_close(pulled.unit_direction, pushed.unit_direction)
    assert pulled.threshold == pytest.approx(pushed.threshold, abs=1e-4)


def test_a_stretched_space_keeps_pulled_back_decisions_but_not_pushed_forward_ones():
    stretch = torch.diag(torch.tensor([1.0, 1.0, 50.0]))
    forward = AffineMap(stretch, torch.zeros(3), torch.zeros(3), "ridge")
    back = AffineMap(stretch.inverse(), torch.zeros(3), torch.zeros(3), "ridge")
    unit = torch.tensor([0.8, 0.0, 0.6])
    states = torch.randn(200, 3, generator=seeded())
    decided = Probe(unit, 0.1).scores(states) > 0
    pulled = pull_back_probe(Probe(unit, 0.1), back).scores(forward(states)) > 0
    pushed = push_forward_probe(Probe(unit, 0.1), forward).scores(forward(states)) > 0
    assert torch.equal(pulled, decided)
    assert (pushed != decided).float().mean() > 0.05


def test_the_threshold_set_by_a_share_leaves_that_share_above_it():
    states = torch.randn(1000, 4, generator=seeded())
    moved = with_positive_share(a_probe(4), states, 0.25)
    assert (moved.scores(states) > 0).float().mean() == pytest.approx(0.25, abs=0.002)
    assert torch.equal(moved.unit_direction, a_probe(4).unit_direction)


def test_random_maps_keep_means_and_size_and_a_random_rotation_keeps_angles():
    fitted = a_map(4, 7)
    drawn, rotation = random_map_like(fitted, seeded()), random_rotation_like(fitted, seeded())
    for one in (drawn, rotation):
        assert one.weight.norm().item() == pytest.approx(fitted.weight.norm().item(), rel=1e-5)
        assert torch.equal(one.target_mean, fitted.target_mean)
    products = rotation.weight @ rotation.weight.T
    torch.testing.assert_close(products, products[0, 0] * torch.eye(4), rtol=1e-4, atol=1e-4)
    assert not torch.equal(random_map_like(fitted, seeded(1)).weight, drawn.weight)


def test_what_cannot_be_carried_is_refused():
    with pytest.raises(ShapeError, match="width 5 does not fit the map's output of width 4"):
        pull_back_probe(a_probe(5), a_map(6, 4))
    with pytest.raises(ShapeError, match="the map's input"):
        push_forward_probe(a_probe(5), a_map(6, 4))
    with pytest.raises(FitError, match="to zero"):
        pull_back_probe(a_probe(4), a_map(6, 4, torch.zeros(6, 4)))
    with pytest.raises(DataError, match="at least 2"):
        with_positive_share(a_probe(4), torch.ones(1, 4), 0.5)
    with pytest.raises(ConfigError, match=r"share of 1\.5"):
        with_positive_share(a_probe(4), torch.ones(3, 4), 1.5)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_a_share_of_one_leaves_all_above_the_threshold_and_a_share_of_zero_none(offset):
    states = offset + torch.randn(50, 4, generator=seeded(3))
    for given in (states, states[:1].repeat(20, 1)):
        counted = [
            int((with_positive_share(a_probe(4), given, share).scores(given) > 0).sum())
            for share in (0.0, 1.0)
        ]
        assert counted == [0, len(given)]
