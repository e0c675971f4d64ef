"""The closed-form maps equal scikit-learn's and scipy's on the same rows."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from tests.unit.maps.pairs import linear_pairs, moments_of, random_weight

from isthmus.maps import (
    ProcrustesFitter,
    ReducedRankFitter,
    RidgeFitter,
    held_out_quality,
    held_out_quality_on_rows,
)


@pytest.mark.parametrize(("n", "d_source", "d_target"), [(200, 8, 5), (30, 50, 4)])
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 100.0])
def test_ridge_equals_scikit_learn(n: int, d_source: int, d_target: int, alpha: float):
    x, y = linear_pairs(n, random_weight(d_source, d_target), noise=2.0)
    moments = moments_of(x, y)
    strength = alpha / (moments.source_scatter.trace().item() / d_source)
    fitted = RidgeFitter((strength,)).fit(moments, moments)
    reference = Ridge(alpha=alpha, solver="svd").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(fitted.weight.numpy(), reference.coef_.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        fitted(x).numpy(), reference.predict(x.numpy()), rtol=1e-5, atol=1e-5
    )


def test_procrustes_equals_scipy():
    x, y = linear_pairs(100, random_weight(6, 6), noise=1.0)
    dx, dy = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    rotation, total = orthogonal_procrustes(dx, dy)
    plain = ProcrustesFitter(is_scaled=False).fit(moments_of(x, y))
    scaled = ProcrustesFitter().fit(moments_of(x, y))
    np.testing.assert_allclose(plain.weight.numpy(), rotation, atol=1e-6)
    scale = total / np.square(dx).sum()
    np.testing.assert_allclose(scaled.weight.numpy(), scale * rotation, atol=1e-6)


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
def test_held_out_r2_equals_scikit_learn(noise: float):
    weight = random_weight(7, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    x, y = linear_pairs(300, weight, noise)
    train, held_out = moments_of(x[:150], y[:150]), moments_of(x[150:], y[150:])
    fitted = RidgeFitter().fit(train, held_out)
    predicted = fitted(x[150:]).numpy()
    expected = r2_score(y[150:].numpy(), predicted, multioutput="variance_weighted")
    assert held_out_quality(fitted, held_out, 150).r2_held_out == pytest.approx(expected, abs=1e-6)
    by_rows = held_out_quality_on_rows(fitted, x[150:], y[150:], 150)
    assert by_rows.r2_held_out == pytest.approx(expected, abs=1e-9)


def test_reduced_rank_equals_the_truncated_svd_of_the_augmented_regression():
    x, y = linear_pairs(80, random_weight(6, 5), noise=3.0)
    moments = moments_of(x, y)
    alpha = 0.2 * moments.source_scatter.trace().item() / 6
    rows = np.vstack([(x - x.mean(0)).numpy(), np.sqrt(alpha) * np.eye(6)])
    targets = np.vstack([(y - y.mean(0)).numpy(), np.zeros((6, 5))])
    full = np.linalg.lstsq(rows, targets)[0]
    _, _, principal = np.linalg.svd(rows @ full)
    expected = full @ principal[:2].T @ principal[:2]
    fitted = ReducedRankFitter(2, (0.2,)).fit(moments, moments)
    np.testing.assert_allclose(fitted.weight.numpy(), expected, atol=1e-5)
