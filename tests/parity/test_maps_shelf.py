"""The shelf's maps equal scikit-learn's, scipy's and numpy's on the same rows."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, sqrtm
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import HuberRegressor, LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.unit.maps.pairs import linear_pairs, moments_of, random_weight, seeded
from torch import Tensor

from isthmus.maps import (
    ActivationMap,
    BidirectionalFitter,
    GcvRidgeFitter,
    HuberRidgeFitter,
    KernelRidgeFitter,
    PairedRows,
    PrincipalComponentFitter,
    RidgeFitter,
    StandardisedRidgeFitter,
    TwoWayMoments,
    WhitenedProcrustesFitter,
    held_out_quality_on_rows,
)
from isthmus.maps.shelf import FROM_BOTH_WAYS, FROM_MOMENTS, FROM_ROWS

Pairs = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    weight = random_weight(7, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
    return linear_pairs(200, weight, noise=2.0)


def same(ours: Tensor, theirs: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=atol)


def test_standardised_ridge_is_ridge_between_two_standard_scalers(pairs: Pairs):
    x, y = (side.numpy() for side in pairs)
    fitted = StandardisedRidgeFitter((0.25,)).fit(*2 * [moments_of(*pairs)])
    target = StandardScaler().fit(y)
    reference = make_pipeline(StandardScaler(), Ridge(alpha=0.25 * len(x), solver="svd"))
    reference.fit(x, target.transform(y))
    same(fitted(pairs[0]), target.inverse_transform(reference.predict(x)))


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_whitened_principal_components_are_those_of_scikit_learn(pairs: Pairs, rank: int):
    fitted = PrincipalComponentFitter((rank,)).fit(*2 * [moments_of(*pairs)])
    reference = make_pipeline(PCA(rank, whiten=True), LinearRegression())
    x, y = (side.numpy() for side in pairs)
    same(fitted(pairs[0]), reference.fit(x, y).predict(x))


@pytest.mark.parametrize("shrinkage", [1e-3, 0.3])
def test_whitened_procrustes_is_scipys_rotation_between_roots_of_covariances(shrinkage: float):
    x, y = linear_pairs(300, random_weight(6, 6), noise=1.0)
    both = TwoWayMoments.of(PairedRows(x, y))
    fitted = WhitenedProcrustesFitter((shrinkage,)).fit(both, both)
    dx, dy = ((side - side.mean(0)).numpy() for side in (x, y))

    def root(rows: np.ndarray) -> np.ndarray:
        covariance = rows.T @ rows
        mean = np.trace(covariance) / len(covariance)
        return sqrtm((1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))).real

    white_x, white_y = (side @ np.linalg.inv(root(side)) for side in (dx, dy))
    rotation, _ = orthogonal_procrustes(white_x, white_y)
    made = white_x @ rotation @ root(dy)
    scale = (made * dy).sum() / np.square(made).sum()
    same(fitted(x), scale * made + y.numpy().mean(0))


def test_generalised_cross_validation_fits_scikit_learns_ridge_at_the_strength_it_names():
    x, y = linear_pairs(40, random_weight(30, 3), noise=20.0)
    moments = moments_of(x, y)
    fitted = GcvRidgeFitter().fit(moments)
    alpha = fitted.details["strength"] * float(moments.source_scatter.diagonal().mean())
    reference = Ridge(alpha=alpha, solver="svd").fit(x.numpy(), y.numpy())
    same(fitted(x), reference.predict(x.numpy()))


def test_one_target_under_hubers_loss_is_scikit_learns_at_its_own_threshold():
    x, y = linear_pairs(300, random_weight(5, 1), noise=1.0)
    y[::10] += 40
    reference = HuberRegressor(epsilon=1.5, alpha=0.0, tol=1e-12, max_iter=10_000)
    reference.fit(x.numpy(), y[:, 0].numpy())
    rows = PairedRows(x, y)
    plain = RidgeFitter((1e-12,)).fit(rows.moments, rows.moments)
    median = float((plain(x) - y).norm(dim=1).median())
    threshold = reference.epsilon * reference.scale_
    fitter = HuberRidgeFitter(threshold / median, (1e-12,), n_passes=300, tolerance=1e-12)
    fitted = fitter.fit(rows, rows)
    assert fitted.details["threshold"] == pytest.approx(threshold, rel=1e-5)
    np.testing.assert_allclose(fitted.weight.numpy()[:, 0], reference.coef_, atol=1e-4)


def test_several_targets_under_hubers_loss_are_where_scipys_minimiser_ends():
    x, y = linear_pairs(150, random_weight(3, 2), noise=1.0)
    y[::10] += 40
    rows = PairedRows(x, y)
    fitted = HuberRidgeFitter(strengths=(1e-12,), n_passes=300, tolerance=1e-12).fit(rows, rows)
    threshold = fitted.details["threshold"]
    design = np.column_stack([x.numpy(), np.ones(150)])

    def loss(flat: np.ndarray) -> float:
        r = np.linalg.norm(y.numpy() - design @ flat.reshape(4, 2), axis=1)
        beyond = 2 * threshold * r - threshold**2
        return float(np.where(r > threshold, beyond, r**2).mean())

    start = np.linalg.lstsq(design, y.numpy())[0].ravel()
    end = minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x.reshape(4, 2)
    np.testing.assert_allclose(fitted.weight.numpy(), end[:3], atol=1e-4)


def test_bidirectional_maps_are_where_scipys_minimiser_ends():
    x, y = linear_pairs(60, random_weight(3, 2), noise=1.0)
    both = TwoWayMoments.of(PairedRows(x, y))
    made = BidirectionalFitter(2.0, (0.1,), n_sweeps=3000, tolerance=0.0).fit_both(both, both)
    dx, dy = ((side - side.mean(0)).numpy() for side in (x, y))
    dx, dy = dx / np.linalg.norm(dx), dy / np.linalg.norm(dy)

    def loss(flat: np.ndarray) -> float:
        f, b = flat[:6].reshape(3, 2), flat[6:].reshape(2, 3)
        direct = np.square(dx @ f - dy).sum() + np.square(dy @ b - dx).sum()
        around = np.square(dx @ f @ b - dx).sum() + np.square(dy @ b @ f - dy).sum()
        return float(direct + 2 * around + 0.1 / 3 * (f**2).sum() + 0.1 / 2 * (b**2).sum())

    ratio = np.linalg.norm(y - y.mean(0)) / np.linalg.norm(x - x.mean(0))
    ours = np.concatenate(
        [made.forward.weight.numpy().ravel() / ratio, made.backward.weight.numpy().ravel() * ratio]
    )
    best = minimize(loss, ours + 0.05, method="BFGS", options={"gtol": 1e-10})
    assert loss(ours) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose(ours, best.x, atol=1e-3)


def test_with_every_row_a_landmark_the_kernel_map_is_scikit_learns():
    x, y = linear_pairs(120, random_weight(3, 2), noise=0.5)
    fitted = KernelRidgeFitter(120, (0.5,), (1e-2,)).fit(
        PairedRows(x, y), PairedRows(x, y), seeded()
    )
    standard = (x.numpy() - x.numpy().mean(0)) / x.numpy().std(0, ddof=1)
    features = Nystroem(gamma=fitted.gamma, n_components=120, random_state=0)
    made = features.fit_transform(standard)
    centred = made - made.mean(0)
    # The mean over the features that are not rounding, as the strength is relative to it.
    values = np.linalg.eigvalsh(np.exp(-fitted.gamma * squares(standard)))
    n_features = int((values > 1e-8 * values[-1]).sum())
    alpha = 1e-2 * np.square(centred).sum() / n_features
    reference = Ridge(alpha=alpha, solver="svd").fit(made, y.numpy())
    same(fitted(x), reference.predict(made), atol=1e-4)


def squares(rows: np.ndarray) -> np.ndarray:
    return np.square(rows[:, None] - rows[None]).sum(-1)


def test_a_kernel_map_between_centred_kernels_is_kernel_ridge():
    x, y = linear_pairs(80, random_weight(3, 2), noise=0.5)
    fitted = KernelRidgeFitter(80, (1.0,), (0.1,)).fit(PairedRows(x, y), PairedRows(x, y), seeded())
    standard = (x.numpy() - x.numpy().mean(0)) / x.numpy().std(0, ddof=1)
    kernel = np.exp(-fitted.gamma * squares(standard))
    middle = np.eye(80) - 1 / 80
    values = np.linalg.eigvalsh(kernel)
    n_features = int((values > 1e-8 * values[-1]).sum())
    alpha = 0.1 * np.trace(middle @ kernel @ middle) / n_features
    dy = y.numpy() - y.numpy().mean(0)
    centred = middle @ kernel @ middle
    reference = KernelRidge(alpha=alpha, kernel="precomputed").fit(centred, dy)
    same(fitted(x), reference.predict(centred) + y.numpy().mean(0), atol=1e-4)


def every_map(train: PairedRows, selection: PairedRows) -> dict[str, ActivationMap]:
    both = TwoWayMoments.of(train), TwoWayMoments.of(selection)
    made: dict[str, ActivationMap] = {
        name: fitter.fit(train.moments, selection.moments) for name, fitter in FROM_MOMENTS.items()
    }
    made |= {name: fitter.fit(*both) for name, fitter in FROM_BOTH_WAYS.items()}
    return made | {
        name: fitter.fit(train, selection, seeded(), lambda _step, _loss: None)
        for name, fitter in FROM_ROWS.items()
        if name != "autoencoder_residual"
    }


def test_the_held_out_score_of_every_map_is_scikit_learns(pairs: Pairs):
    x, y = pairs
    train, selection = PairedRows(x[:100], y[:100]), PairedRows(x[100:140], y[100:140])
    made = every_map(train, selection)
    assert len(made) == 14
    for name, fitted in made.items():
        ours = held_out_quality_on_rows(fitted, x[140:], y[140:], 100).r2_held_out
        theirs = r2_score(y[140:], fitted(x[140:]), multioutput="variance_weighted")
        assert ours == pytest.approx(theirs, abs=1e-5), name


@pytest.mark.parametrize("seed", range(2))
def test_on_independent_noise_every_map_reads_nothing(seed: int):
    generator = seeded(seed)
    sides = [torch.randn(3000, width, generator=generator) for width in (12, 10)]
    parts = [[side[a:b] for side in sides] for a, b in ((0, 200), (200, 400), (400, 3000))]
    train, selection = (PairedRows(*part) for part in parts[:2])
    for name, fitted in every_map(train, selection).items():
        score = held_out_quality_on_rows(fitted, *parts[2], 200).r2_held_out
        assert score <= 0, f"{name}: {score}"
