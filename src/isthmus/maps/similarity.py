"""How alike two spaces of activations are on matched rows, without any map between them.

1. Rows are centred in float64; row i of both sides belongs to one and the same token or prompt.
2. Linear CKA compares which rows are alike in either space; debiased CKA does so without counting a
   row's likeness to itself, which makes plain CKA large whenever rows are few and spaces wide.
3. SVCCA keeps the principal components that hold nearly all variance of either side and averages
   the canonical correlations between them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError, NonFiniteError, ShapeError

_FEWEST_ROWS = 4
"""Debiased CKA divides by n - 3."""


def linear_cka(x: Float[Tensor, "row d_x"], y: Float[Tensor, "row d_y"]) -> float:
    """Measures linear centred kernel alignment, |XᵀY|² / (|XᵀX| |YᵀY|) in Frobenius norms.

    It does not change under orthogonal maps, shifts and one scale of either side. On few rows of
    wide spaces it is far above 0 even for unrelated spaces: use `debiased_cka` there.

    Refuses other numbers of rows (`ShapeError`) and rows that are NaN or infinite
    (`NonFiniteError`).

    Source: Kornblith et al. 2019, arXiv 1905.00414, section 3.

    Args:
        x: Activations of one side; left unchanged.
        y: Activations of the other, row by row; left unchanged.

    Returns:
        From 0 to 1; 1 for spaces that an orthogonal map and a scale turn into each other.

    Raises:
        FitError: If there are fewer than two rows or a side never varies.
    """
    a, b = _centred(x, y, 2)
    own = float((a.T @ a).norm() * (b.T @ b).norm())
    return min(1.0, float((a.T @ b).square().sum()) / own)


def debiased_cka(x: Float[Tensor, "row d_x"], y: Float[Tensor, "row d_y"]) -> float:
    """Measures linear CKA with the unbiased estimator of HSIC in place of the plain one.

    HSIC(K, L) = [tr KL + (1ᵀK1)(1ᵀL1) / ((n - 1)(n - 2)) - 2 (1ᵀKL1) / (n - 2)] / (n (n - 3)), and
    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), K and L the Gram matrices with a zero diagonal.
    Holds n × n numbers: give it at most a few thousand rows.

    Refuses other numbers of rows (`ShapeError`) and rows that are NaN or infinite
    (`NonFiniteError`).

    Source: Song et al. 2012, JMLR 13, equation 5; Nguyen, Raghu and Kornblith 2021,
    arXiv 2010.15327, section 3.

    Args:
        x: Activations of one side; left unchanged.
        y: Activations of the other, row by row; left unchanged.

    Returns:
        At most 1, about 0 for unrelated spaces however few the rows; may be below 0 by chance.

    Raises:
        FitError: If there are fewer than four rows, or a side varies too little for the estimator.
    """
    a, b = _centred(x, y, _FEWEST_ROWS)
    k, m = (_hollow(side @ side.T) for side in (a, b))
    own = _unbiased_hsic(k, k), _unbiased_hsic(m, m)
    if min(own) <= 0:
        raise FitError(
            f"debiased CKA on {len(x)} rows: a side varies too little to be compared, give more or "
            "other rows"
        )
    return min(1.0, _unbiased_hsic(k, m) / math.sqrt(own[0] * own[1]))


def svcca(x: Float[Tensor, "row d_x"], y: Float[Tensor, "row d_y"], share: float = 0.99) -> float:
    """Returns the mean canonical correlation between the main components of both sides.

    Of either side the fewest principal components are kept that hold `share` of its variance; the
    canonical correlations are the singular values of QxᵀQy, Q the orthonormal scores of the rows.
    With `share` 1 it does not change under any invertible linear map; below, under orthogonal ones
    and scale. It is 1 for any two sides with as many components as rows: give many more rows.

    Refuses other numbers of rows (`ShapeError`) and rows that are NaN or infinite
    (`NonFiniteError`).

    Source: Raghu et al. 2017, arXiv 1706.05806, section 2.

    Args:
        x: Activations of one side; left unchanged.
        y: Activations of the other, row by row; left unchanged.
        share: Share of the variance to keep, above 0 and at most 1.

    Returns:
        From 0 to 1, over as many correlations as the narrower side has components.

    Raises:
        FitError: If there are fewer than two rows or a side never varies.
        ConfigError: If the share is not within its range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share {share} of the variance: expected above 0 and at most 1")
    scores = [_main_scores(side, share) for side in _centred(x, y, 2)]
    correlations = torch.linalg.svdvals(scores[0].T @ scores[1])
    return float(correlations.clamp(max=1.0).mean())


def _centred(x: Tensor, y: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    if len(x) != len(y):
        raise ShapeError(f"{len(x)} and {len(y)} rows are not matched: give one of each per token")
    if len(x) < fewest:
        raise FitError(f"{len(x)} rows cannot be compared: give at least {fewest}")
    sides = []
    for rows in (x.double(), y.double()):
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError("rows hold NaN or infinity: read them in float32 or bfloat16")
        centred = rows - rows.mean(0)
        # What is left of equal rows after rounding is no variation.
        if float(centred.norm()) <= 1e-6 * float(rows.norm()):
            raise FitError(f"{len(rows)} equal rows have no likeness: give rows that differ")
        sides.append(centred)
    return sides[0], sides[1]


def _hollow(gram: Tensor) -> Tensor:
    return gram - torch.diag(gram.diagonal())


def _unbiased_hsic(k: Tensor, m: Tensor) -> float:
    n = len(k)
    rows_of_k, rows_of_m = k.sum(0), m.sum(0)
    whole = (
        (k * m).sum()
        + rows_of_k.sum() * rows_of_m.sum() / ((n - 1) * (n - 2))
        - 2 * (rows_of_k @ rows_of_m) / (n - 2)
    )
    return float(whole) / (n * (n - 3))


def _main_scores(rows: Tensor, share: float) -> Tensor:
    scores, values, _ = torch.linalg.svd(rows, full_matrices=False)
    variances = values.square()
    is_there = values > values[0] * max(rows.shape) * torch.finfo(rows.dtype).eps
    held = variances.cumsum(0) / variances.sum()
    # The component that reaches the share is kept, too.
    n_kept = min(int((held < share - 1e-12).sum()) + 1, int(is_there.sum()))
    kept: Tensor = scores[:, :n_kept]
    return kept
