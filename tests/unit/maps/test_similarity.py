import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.maps.pairs import without_shape_checks
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError
from isthmus.maps.similarity import debiased_cka, linear_cka, svcca

MEASURES = (linear_cka, debiased_cka, svcca)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sides that share a part."""
    shared = normal(n, 4, seed=seed)
    return (
        torch.cat([shared, normal(n, 3, seed=seed + 1)], dim=1) @ normal(7, 7, seed=seed + 2),
        shared @ normal(4, 5, seed=seed + 3) + 0.3 * normal(n, 5, seed=seed + 4),
    )


def orthogonal(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.mark.parametrize("measure", MEASURES)
def test_a_space_is_wholly_like_itself_in_either_order(measure):
    x, y = related()
    assert measure(x, x) == pytest.approx(1)
    assert measure(x, y) == pytest.approx(measure(y, x))
    assert 0.05 < measure(x, y) < 0.95


@pytest.mark.parametrize("measure", MEASURES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_turning_scaling_and_shifting_a_side_changes_nothing(measure, seed, scale, shift):
    x, y = related(seed=seed)
    turned = scale * (x @ orthogonal(7, seed + 9)) + shift
    assert measure(turned, y) == pytest.approx(measure(x, y), abs=1e-8)


def test_few_rows_of_unrelated_wide_spaces_look_alike_unless_debiased():
    plain, debiased = [], []
    for seed in range(20):
        x, y = normal(24, 200, seed=2 * seed), normal(24, 200, seed=2 * seed + 1)
        plain.append(linear_cka(x, y))
        debiased.append(debiased_cka(x, y))
    assert np.mean(plain) > 0.8
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / 20**0.5
    assert np.abs(debiased).max() < 0.3


def test_both_kinds_of_cka_agree_on_many_rows():
    x, y = related(n=1500)
    assert debiased_cka(x, y) == pytest.approx(linear_cka(x, y), abs=0.01)


def test_svcca_of_everything_does_not_change_under_an_invertible_map():
    x, y = related()
    bent = x @ normal(7, 7, seed=5)
    assert svcca(bent, x, share=1.0) == pytest.approx(1)
    assert svcca(bent, y, share=1.0) == pytest.approx(svcca(x, y, share=1.0))
    assert linear_cka(bent, x) < 0.99


def test_svcca_keeps_only_what_holds_the_variance():
    shared, other = normal(80, 2), normal(80, 2, seed=1)
    x = torch.cat([shared, 1e-3 * other], dim=1)
    y = torch.cat([shared, 1e-3 * normal(80, 2, seed=2)], dim=1)
    assert svcca(x, y) == pytest.approx(1, abs=1e-4)
    assert svcca(x, y, share=1.0) < 0.8


def test_each_measure_is_that_of_plain_numpy():
    x, y = related(n=30)
    a, b = (side.numpy() - side.numpy().mean(0) for side in (x, y))
    n = len(a)
    centre = np.eye(n) - 1 / n
    k, m = a @ a.T, b @ b.T
    plain = np.trace(k @ centre @ m @ centre) / np.sqrt(
        np.trace(k @ centre @ k @ centre) * np.trace(m @ centre @ m @ centre)
    )
    assert linear_cka(x, y) == pytest.approx(plain)

    def u_centred(gram):
        """Székely and Rizzo's centring: another road to the unbiased estimator."""
        gram = gram.copy()
        np.fill_diagonal(gram, 0)
        rows = gram.sum(0) / (n - 2)
        made = gram - rows[:, None] - rows[None] + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(made, 0)
        return made

    u, v = u_centred(k), u_centred(m)
    unbiased = (u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum())
    assert debiased_cka(x, y) == pytest.approx(unbiased)

    def inverse_root(scatter):
        values, vectors = np.linalg.eigh(scatter)
        return vectors / np.sqrt(values) @ vectors.T

    correlations = np.linalg.svd(inverse_root(a.T @ a) @ a.T @ b @ inverse_root(b.T @ b))[1]
    assert svcca(x, y, share=1.0) == pytest.approx(correlations.mean())


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_compared_is_refused(measure):
    x, y = related()
    with without_shape_checks(), pytest.raises(ShapeError, match="60 and 59 rows"):
        measure(x, y[:-1])
    with pytest.raises(FitError, match="rows cannot be compared"):
        measure(x[:1], y[:1])
    with pytest.raises(FitError, match="equal rows"):
        measure(x, y[:1].expand(60, -1) + 100)
    with pytest.raises(NonFiniteError, match="NaN"):
        measure(x, y * float("nan"))


def test_a_share_of_the_variance_is_above_none_and_at_most_all():
    x, y = related()
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="share"):
            svcca(x, y, share=share)
