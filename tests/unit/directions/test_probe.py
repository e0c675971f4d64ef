import pytest
import torch
from tests.unit.directions.states import two_classes

from isthmus.core.errors import FitError, ShapeError
from isthmus.directions import Probe, fit_probe


def rows(n: int = 200, gap: float = 4.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    positive, negative, _ = two_classes(n=n, n_positions=1, gap=gap, seed=seed)
    return positive[:, 0], negative[:, 0]


def test_a_probe_separates_held_out_states_at_its_threshold():
    positive, negative = rows(gap=8.0)
    probe = fit_probe(positive[:100], negative[:100])
    assert (probe.scores(positive[100:]) > 0).float().mean() > 0.95
    assert (probe.scores(negative[100:]) < 0).float().mean() > 0.95
    assert probe.auroc(positive[100:], negative[100:]) > 0.99


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    probe = Probe(torch.tensor([1.0, 0.0]), 0.5)
    positive = torch.tensor([[1.0, 0.0], [3.0, 9.0]])
    negative = torch.tensor([[2.0, 0.0], [0.0, 9.0]])
    assert probe.auroc(positive, negative) == pytest.approx(3 / 4)


def test_coordinates_on_very_different_scales_do_not_hide_the_difference():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 3, generator=generator) * torch.tensor([1000.0, 1.0, 0.0])
    positive, negative = states[:200] + torch.tensor([0.0, 4.0, 0.0]), states[200:]
    probe = fit_probe(positive, negative)
    assert probe.unit_direction[1] > 0.999
    assert probe.threshold == pytest.approx(2.0, abs=0.5)
    assert probe.unit_direction[2] == 0


def test_the_threshold_is_where_both_classes_are_equally_likely():
    positive, negative = rows()
    probe = fit_probe(positive, negative)
    moved = fit_probe(positive + 7, negative + 7)
    shift = float(7 * probe.unit_direction.sum())
    assert moved.threshold == pytest.approx(probe.threshold + shift, abs=1e-2)


def test_a_probe_that_is_not_of_norm_one_is_refused():
    with pytest.raises(ShapeError, match="norm 2, expected 1"):
        Probe(torch.tensor([2.0, 0.0]), 0.0)
    with pytest.raises(FitError, match="found no difference in 6 states"):
        fit_probe(torch.ones(3, 2), torch.ones(3, 2))
