import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, random_weight, seeded

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import PairedRows, RelativeFitter


@pytest.mark.parametrize("d_target", [6, 9])
def test_a_rotated_and_scaled_copy_is_recovered_from_anchors(d_target: int):
    rotation = torch.linalg.qr(random_weight(d_target, 6)).Q.T
    x, y = linear_pairs(500, 75 * rotation)
    fitter = RelativeFitter(n_anchors=40, cutoff=1e-6)
    fitted = fitter.fit(PairedRows(x[:100], y[:100]), None, seeded())
    torch.testing.assert_close(fitted(x), y, rtol=1e-4, atol=1e-2)
    assert fitted.details["anchors"] == 40


def test_it_takes_angles_for_granted():
    stretch = torch.diag(torch.logspace(-1, 1, 6).double())
    x, y = linear_pairs(500, stretch)
    fitted = RelativeFitter(cutoff=1e-6).fit(PairedRows(x, y), None, seeded())
    assert float((fitted(x) - y).square().sum() / (y - y.mean(0)).square().sum()) > 0.05


def test_resemblance_to_the_anchors_is_kept():
    x, y = independent_noise(200, 12, 12, seed=0)
    fitted = RelativeFitter(n_anchors=10, cutoff=1e-6).fit(PairedRows(x, y), None, seeded())
    kept = torch.randperm(200, generator=seeded())[:10]
    units = [
        torch.nn.functional.normalize(side[kept] - side[kept].mean(0), dim=1) for side in (x, y)
    ]
    probe = x[:20] - x[kept].mean(0)
    arrived = fitted.linear(probe)
    before, after = probe @ units[0].T, arrived @ units[1].T
    # Ten centred anchors span nine directions: what they cannot tell is left out on both sides.
    span = torch.linalg.pinv(units[1].T, rtol=1e-6) @ units[1].T
    expected = fitted.details["scale"] * before @ span
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


def test_the_anchors_are_those_of_the_generator():
    rows = PairedRows(*linear_pairs(100, random_weight(4, 4), noise=1.0))
    made = [RelativeFitter(20).fit(rows, None, seeded(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].weight, made[1].weight)
    assert not torch.equal(made[0].weight, made[2].weight)


def test_what_cannot_be_fitted_is_refused():
    for make in (lambda: RelativeFitter(1), lambda: RelativeFitter(cutoff=1.0)):
        with pytest.raises(ConfigError, match="at least 2 and a cutoff"):
            make()
    one = PairedRows(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(FitError, match="at least 2 pairs, got 1"):
        RelativeFitter().fit(one, None, seeded())
    flat = PairedRows(torch.ones(9, 3), torch.ones(9, 2))
    with pytest.raises(FitError, match="all equal"):
        RelativeFitter().fit(flat, None, seeded())
