import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight

from isthmus.core.errors import FitError
from isthmus.maps import ProcrustesFitter


def semi_orthogonal(d_source: int, d_target: int) -> torch.Tensor:
    left, _, right = torch.linalg.svd(random_weight(d_source, d_target), full_matrices=False)
    return left @ right


@pytest.mark.parametrize(("d_source", "d_target"), [(5, 5), (3, 6)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_procrustes_recovers_a_known_rotation_and_scale(d_source, d_target, scale):
    rotation = semi_orthogonal(d_source, d_target)
    x, y = linear_pairs(200, scale * rotation)
    fitted = ProcrustesFitter().fit(moments_of(x, y))
    assert fitted.details["scale"] == pytest.approx(scale)
    torch.testing.assert_close(fitted.weight.double(), scale * rotation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fitted(x), y, rtol=1e-5, atol=1e-5)


def test_a_wider_source_recovers_a_projection_when_its_coordinates_are_uncorrelated():
    # The two least-squares problems agree only for white sources, so the pairs are whitened.
    x, _ = independent_noise(100, 6, 1, seed=0)
    x, _ = torch.linalg.qr(x - x.mean(0))
    projection = semi_orthogonal(6, 3)
    fitted = ProcrustesFitter().fit(moments_of(x, 2 * x @ projection))
    torch.testing.assert_close(fitted.weight.double(), 2 * projection, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("d_source", "d_target"), [(4, 4), (3, 7), (7, 3)])
def test_the_unscaled_map_is_semi_orthogonal(d_source: int, d_target: int):
    x, y = independent_noise(100, d_source, d_target, seed=1)
    weight = ProcrustesFitter(is_scaled=False).fit(moments_of(x, y)).weight.double()
    narrow = weight @ weight.T if d_source <= d_target else weight.T @ weight
    torch.testing.assert_close(
        narrow, torch.eye(len(narrow), dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("d_source", "d_target"), [(4, 4), (3, 6), (6, 3)])
def test_no_other_scale_fits_better(d_source: int, d_target: int):
    x, y = linear_pairs(80, random_weight(d_source, d_target), noise=1.0)
    fitted = ProcrustesFitter().fit(moments_of(x, y))

    def error(factor: float) -> float:
        centred = (x - x.mean(0)) @ fitted.weight.double() * factor + y.mean(0)
        return (centred - y).square().sum().item()

    assert error(1.0) < min(error(0.99), error(1.01))


def test_procrustes_refuses_pairs_without_any_relation():
    with pytest.raises(FitError, match="no relation in 10 pairs"):
        ProcrustesFitter().fit(moments_of(torch.randn(10, 3), torch.ones(10, 2)))
    with pytest.raises(FitError, match="a Procrustes map needs at least 2 pairs"):
        ProcrustesFitter().fit(moments_of(torch.ones(1, 3), torch.ones(1, 2)))
