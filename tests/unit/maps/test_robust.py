import math

import pytest
import torch
from tests.unit.maps.pairs import independent_noise, linear_pairs, moments_of, random_weight, seeded
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import (
    ClippedRidgeFitter,
    HuberRidgeFitter,
    NormClip,
    PairedRows,
    ProcrustesFitter,
    RidgeFitter,
    TrimmedRidgeFitter,
    held_out_quality,
    held_out_quality_on_rows,
)
from isthmus.maps.robust import weighted_moments


def massive_pairs(n: int, seed: int, share: float = 0.01) -> tuple[Tensor, Tensor]:
    """Linear pairs of which some hold huge activations that say nothing, as first tokens do."""
    x, y = linear_pairs(n, random_weight(8, 6), noise=0.5, seed=seed)
    hit = torch.rand(n, generator=seeded(seed + 1)) < share
    noise = independent_noise(n, 8, 6, seed + 2)
    x[hit, 0] += 300 * noise[0][hit, 0]
    y[hit] += 300 * noise[1][hit]
    return x, y


@pytest.mark.parametrize(
    # Huber's loss only sees errors: a row whose source is huge, too, still pulls the map to itself.
    ("fitter", "reached"),
    [(ClippedRidgeFitter(), 0.95), (HuberRidgeFitter(), 0.7)],
)
def test_massive_rows_ruin_plain_ridge_and_less_so_the_robust_maps(fitter, reached):
    x, y = massive_pairs(1500, seed=0)
    train, selection = PairedRows(x[:1000], y[:1000]), PairedRows(x[1000:], y[1000:])
    ordinary = linear_pairs(1000, random_weight(8, 6), noise=0.5, seed=9)
    plain = RidgeFitter().fit(train.moments, selection.moments)
    robust = fitter.fit(train, selection)
    scores = [held_out_quality_on_rows(m, *ordinary, 1000).r2_held_out for m in (plain, robust)]
    assert scores[0] < 0.5
    assert scores[1] > reached


@pytest.mark.parametrize("fitter", [ClippedRidgeFitter(1e6), HuberRidgeFitter(1e6)])
def test_with_a_wide_threshold_the_robust_maps_are_ridge(fitter):
    x, y = linear_pairs(200, random_weight(5, 3), noise=1.0)
    rows = PairedRows(x, y)
    plain = RidgeFitter().fit(rows.moments, rows.moments)
    robust = fitter.fit(rows, rows)
    torch.testing.assert_close(robust.weight, plain.weight)
    torch.testing.assert_close(robust.target_mean, plain.target_mean)


def test_clipping_moves_only_rows_outside_the_ball_and_keeps_their_direction():
    rows, _ = independent_noise(200, 4, 1, seed=0)
    clip = NormClip.of(rows, 1.0)
    clipped = clip(rows)
    before, after = ((one - clip.centre).norm(dim=1) for one in (rows, clipped))
    outside = before > clip.radius
    assert 80 <= int(outside.sum()) <= 120
    assert torch.equal(clipped[~outside], rows[~outside])
    torch.testing.assert_close(after[outside], torch.full_like(after[outside], clip.radius))
    cosine = torch.cosine_similarity(clipped - clip.centre, rows - clip.centre)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_stream_can_be_clipped_by_what_a_sample_showed():
    x, y = massive_pairs(4000, seed=3)
    clips = NormClip.of(x[:500], 2.0), NormClip.of(y[:500], 2.0)
    streamed = PairedRows(clips[0](x), clips[1](y)).moments
    raw = moments_of(x, y)
    assert float(streamed.source_scatter[0, 0]) < 0.05 * float(raw.source_scatter[0, 0])


def test_weighted_moments_with_whole_numbers_are_those_of_repeated_rows():
    x, y = linear_pairs(30, random_weight(4, 3), noise=1.0)
    counts = torch.arange(30) % 3
    repeated = moments_of(x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0))
    weighted = weighted_moments(PairedRows(x, y), counts.double())
    for name in ("source_mean", "target_mean", "source_scatter", "cross_scatter"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name))
    torch.testing.assert_close(weighted.target_scatter, repeated.target_scatter)


def test_a_map_is_scored_on_weighted_moments_as_on_weighted_rows():
    x, y = linear_pairs(200, random_weight(4, 3), noise=1.0)
    weights = torch.linspace(0.01, 0.6, 200, dtype=torch.float64)
    made = ProcrustesFitter().fit(moments_of(x[:20], y[:20] + 2))
    error = (weights @ (made(x) - y).square()).sum()
    mean = weights @ y / weights.sum()
    expected = float(error / (weights @ (y - mean).square()).sum())
    quality = held_out_quality(made, weighted_moments(PairedRows(x, y), weights), 20)
    assert quality.fvu_held_out == pytest.approx(expected, rel=1e-5)


def test_hubers_loss_falls_with_every_pass():
    x, y = massive_pairs(800, seed=5, share=0.05)
    rows, losses = PairedRows(x, y), []
    fitter = HuberRidgeFitter(strengths=(1e-9,), tolerance=0.0)
    fitted = fitter.fit(rows, rows, None, lambda _step, loss: losses.append(loss))
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert 0.02 < fitted.details["downweighted"] < 0.3


def test_pairs_without_any_error_are_fitted_exactly():
    weight = random_weight(5, 3)
    x, y = linear_pairs(100, weight)
    fitted = HuberRidgeFitter().fit(PairedRows(x, y), PairedRows(x, y))
    torch.testing.assert_close(fitted.weight.double(), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClippedRidgeFitter(0.0),
        lambda: ClippedRidgeFitter(math.nan),
        lambda: TrimmedRidgeFitter(-1.0),
        lambda: HuberRidgeFitter(math.inf),
        lambda: HuberRidgeFitter(n_passes=0),
        lambda: HuberRidgeFitter(strengths=()),
    ],
)
def test_settings_outside_their_range_are_refused(make):
    with pytest.raises(ConfigError, match="above 0"):
        make()


@pytest.mark.parametrize("fitter", [ClippedRidgeFitter(), HuberRidgeFitter(), TrimmedRidgeFitter()])
def test_one_pair_is_refused(fitter):
    one = PairedRows(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(FitError, match="at least 2 pairs"):
        fitter.fit(one, one)
