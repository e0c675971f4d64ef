import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from tests.unit.maps.pairs import (
    independent_noise,
    linear_pairs,
    moments_of,
    random_weight,
    seeded,
    without_shape_checks,
)

from isthmus.core.errors import FitError, NonFiniteError, ShapeError
from isthmus.maps import (
    ActivationMap,
    AffineMap,
    AutoencoderSettings,
    PairMoments,
    ProcrustesFitter,
    ReducedRankFitter,
    RidgeFitter,
    fit_autoencoder,
    held_out_quality,
    held_out_quality_on_rows,
    identity_map,
)

SETTINGS = {
    "paper": AutoencoderSettings.paper(),
    "paper_affine": AutoencoderSettings.paper_affine(),
    "well_trained": AutoencoderSettings.well_trained(n_steps=50),
}


def fit(name: str, x: torch.Tensor, y: torch.Tensor) -> ActivationMap:
    """Any map of the package, the strength chosen on the second half of the rows."""
    half = len(x) // 2
    train, selection = moments_of(x[:half], y[:half]), moments_of(x[half:], y[half:])
    closed_forms = {
        "ridge": lambda: RidgeFitter().fit(train, selection),
        "procrustes": lambda: ProcrustesFitter().fit(train),
        "rotation": lambda: ProcrustesFitter(is_scaled=False).fit(train),
        "reduced_rank": lambda: ReducedRankFitter(rank=2).fit(train, selection),
        "identity": lambda: identity_map(x.shape[1], y.shape[1]),
    }
    if name in closed_forms:
        return closed_forms[name]()
    return fit_autoencoder(x.float(), y.float(), SETTINGS[name], seeded(0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "name", ["ridge", "procrustes", "rotation", "reduced_rank", "identity", *SETTINGS]
)
def test_no_map_explains_independent_noise(name: str, seed: int):
    x, y = independent_noise(1200, 12, 8, seed)
    fitted = fit(name, x[:800], y[:800])
    quality = held_out_quality_on_rows(fitted, x[800:], y[800:], n_train=800)
    assert quality.r2_held_out <= 0
    if isinstance(fitted, AffineMap):
        streamed = held_out_quality(fitted, moments_of(x[800:], y[800:]), n_train=800)
        assert streamed.r2_held_out <= 0


@pytest.mark.parametrize("n", [30, 60])
def test_ridge_does_not_explain_noise_with_more_coordinates_than_pairs(n: int):
    x, y = independent_noise(3 * n, 80, 10, seed=n)
    train, selection, held_out = (
        moments_of(x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i in range(3)
    )
    fitted = RidgeFitter().fit(train, selection)
    assert held_out_quality(fitted, held_out, n_train=n).r2_held_out <= 0


@pytest.mark.parametrize("name", ["ridge", "procrustes", "reduced_rank", "identity"])
def test_quality_from_moments_equals_quality_from_rows(name: str):
    x, y = linear_pairs(600, random_weight(6, 5), noise=2.0)
    fitted = fit(name, x[:400], y[:400])
    moments = PairMoments(6, 5)
    for start in range(400, 600, 33):
        moments.update(x[start : min(start + 33, 600)], y[start : min(start + 33, 600)])
    by_moments = held_out_quality(fitted, moments, n_train=400)
    by_rows = held_out_quality_on_rows(fitted, x[400:], y[400:], n_train=400)
    assert by_moments.r2_held_out == pytest.approx(by_rows.r2_held_out, abs=1e-6)
    assert by_moments.fvu_held_out == pytest.approx(1 - by_moments.r2_held_out)
    assert (by_moments.n_train, by_moments.n_held_out) == (400, 200)


def with_a_sink(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every twentieth row is an attention sink: one huge coordinate on each side, else little."""
    x, y = x.clone(), y.clone()
    for side, coordinate in ((x, 1), (y, 2)):
        side[::20] *= 0.1
        side[::20, coordinate] += 1000
    return x, y


@pytest.mark.parametrize("name", ["ridge", "reduced_rank"])
def test_the_median_coordinate_reads_noise_as_noise_where_the_pooled_score_reads_sinks(name: str):
    x, y = with_a_sink(*independent_noise(1200, 12, 8, seed=0))
    fitted = fit(name, x[:800], y[:800])
    quality = held_out_quality_on_rows(fitted, x[800:], y[800:], n_train=800)
    assert quality.r2_held_out > 0.999
    assert quality.r2_median_coordinate <= 0
    by_moments = held_out_quality(fitted, moments_of(x[800:], y[800:]), n_train=800)
    assert by_moments.r2_median_coordinate == pytest.approx(quality.r2_median_coordinate, abs=1e-5)


def test_the_median_coordinate_is_scikit_learns_and_leaves_constant_ones_out():
    x, y = linear_pairs(300, random_weight(6, 5), noise=2.0)
    y = torch.cat([y, torch.full((300, 4), 0.1)], dim=1)
    fitted = fit("ridge", x[:200], y[:200])
    quality = held_out_quality_on_rows(fitted, x[200:], y[200:], n_train=200)
    each = r2_score(y[200:, :5], fitted(x[200:])[:, :5], multioutput="raw_values")
    assert quality.r2_median_coordinate == pytest.approx(float(np.median(each)), abs=1e-6)


def test_the_mean_of_other_pairs_explains_nothing_and_its_shift_counts():
    x, y = independent_noise(100, 2, 2, seed=0)
    shifted = AffineMap(torch.zeros(2, 2), torch.zeros(2), y.mean(0).float() + 3, "constant")
    expected = 1 + 100 * 18 / (y - y.mean(0)).square().sum().item()
    quality = held_out_quality(shifted, moments_of(x, y), n_train=100)
    assert quality.fvu_held_out == pytest.approx(expected, rel=1e-6)


def test_a_perfect_map_scores_one_and_never_more():
    x, y = linear_pairs(50, torch.eye(3, dtype=torch.float64))
    perfect = AffineMap(torch.eye(3), torch.full((3,), 3.0), torch.full((3,), -2.0), "exact")
    quality = held_out_quality(perfect, moments_of(x, y), n_train=50)
    assert 1 - 1e-12 <= quality.r2_held_out <= 1


def test_quality_is_refused_where_it_is_not_defined():
    fitted = identity_map(2, 2)
    with pytest.raises(FitError, match="at least 2 held-out pairs"):
        held_out_quality(fitted, moments_of(torch.ones(1, 2), torch.ones(1, 2)), n_train=5)
    with pytest.raises(FitError, match="total variation 0"):
        held_out_quality_on_rows(fitted, torch.randn(5, 2), torch.ones(5, 2), n_train=5)
    with pytest.raises(ShapeError, match="2 → 2 cannot be scored on pairs of widths 3 → 2"):
        held_out_quality(fitted, PairMoments(3, 2), n_train=5)
    with without_shape_checks(), pytest.raises(ShapeError, match="5 source rows and 6 target rows"):
        held_out_quality_on_rows(fitted, torch.zeros(5, 2), torch.zeros(6, 2), n_train=5)
    with pytest.raises(NonFiniteError, match="held-out"):
        held_out_quality_on_rows(
            fitted, torch.full((5, 2), torch.nan), torch.zeros(5, 2), n_train=5
        )
