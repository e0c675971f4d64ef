import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.maps.pairs import independent_noise, linear_pairs, random_weight

from isthmus.core.errors import FitError
from isthmus.maps import (
    AffineMap,
    PairedRows,
    RidgeFitter,
    choose_map,
    errors_by_text,
    held_out_quality_on_rows,
)
from isthmus.maps.automatic import MOST_GIVEN_UP, TextErrors

ORDER = ("a", "b", "c", "d")


def scored(r2: float, *, spread: float = 0.0, n: int = 100) -> TextErrors:
    """A map with this score, whose errors go up and down from text to text."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    return TextErrors((1 - r2) + spread * sign, torch.ones(n, dtype=torch.float64))


def test_of_maps_that_are_equally_good_the_simplest_is_chosen():
    errors = {"c": scored(0.8), "b": scored(0.799, spread=0.1), "a": scored(0.5)}
    chosen, scores = choose_map(errors, ORDER)
    assert chosen == "b"
    verdicts = {score.name: score.verdict for score in scores}
    assert verdicts == {
        "c": "as good, but b is simpler",
        "b": "chosen",
        "a": "worse than c",
    }
    assert [score.name for score in scores] == ["c", "b", "a"]


def test_a_difference_that_every_text_shows_is_no_tie():
    noisy = 0.3 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    flat = torch.ones(100, dtype=torch.float64)
    errors = {
        "b": TextErrors(0.2 + noisy, flat),
        "a": TextErrors(0.21 + noisy, flat),
    }
    chosen, (best, worse) = choose_map(errors, ORDER)
    assert chosen == "b"
    assert best.standard_error > 0.02
    assert worse.standard_error_to_best < 1e-6


def test_a_difference_of_rounding_is_a_tie_though_every_text_shows_it():
    flat = torch.ones(100, dtype=torch.float64)
    errors = {"b": TextErrors(0.2 * flat, flat), "a": TextErrors((0.2 + 1e-11) * flat, flat)}
    assert choose_map(errors, ORDER)[0] == "a"


def test_no_uncertainty_gives_up_more_than_the_most():
    errors = {"b": scored(0.8), "a": scored(0.77, spread=5.0)}
    assert choose_map(errors, ORDER)[0] == "b"
    assert choose_map({**errors, "a": scored(0.785, spread=5.0)}, ORDER)[0] == "a"


@settings(deadline=None, max_examples=50)
@given(
    scores=st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    spread=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_the_choice_is_never_worse_than_any_other_by_more_than_the_most(scores, spread, seed):
    noise = spread * torch.randn(4, 20, generator=torch.Generator().manual_seed(seed)).double()
    errors = {
        name: TextErrors(1 - r2 + one, torch.ones(20, dtype=torch.float64))
        for name, r2, one in zip(ORDER, scores, noise, strict=False)
    }
    chosen, ranked = choose_map(errors, ORDER)
    assert errors[chosen].r2 >= max(one.r2 for one in errors.values()) - MOST_GIVEN_UP - 1e-12
    assert len(ranked) == len(errors)


def test_scores_are_those_of_the_rows_however_they_are_cut_into_texts():
    x, y = linear_pairs(300, random_weight(5, 4), noise=2.0)
    fitted = RidgeFitter().fit(*2 * [PairedRows(x[:100], y[:100]).moments])
    expected = held_out_quality_on_rows(fitted, x[100:], y[100:], 100).r2_held_out
    for counts in ((), (50, 0, 149, 1), (100, 100)):
        found = errors_by_text(fitted, PairedRows(x[100:], y[100:], counts))
        assert found.r2 == pytest.approx(expected, abs=1e-9)
        assert len(found.error) == (len([c for c in counts if c]) or 7)


def with_a_massive_coordinate(y: torch.Tensor) -> torch.Tensor:
    """One coordinate that is the same ramp for everyone, ten thousand times as far."""
    ramp = 1e4 * torch.linspace(-1, 1, len(y), dtype=y.dtype)
    return torch.cat([y, ramp[:, None]], dim=1)


def test_a_massive_coordinate_does_not_make_maps_equal_that_differ_on_all_others():
    x, y = linear_pairs(400, random_weight(6, 5), noise=1.0)
    pairs = PairedRows(with_a_massive_coordinate(x), with_a_massive_coordinate(y), (20,) * 20)
    good = RidgeFitter().fit(*2 * [pairs.moments])
    weight = good.weight.clone()
    weight[:, :5] = 0
    blind = AffineMap(weight, good.source_mean, good.target_mean, "blind")
    assert held_out_quality_on_rows(blind, pairs.source, pairs.target, 1).r2_held_out > 0.999
    errors = {"a": errors_by_text(blind, pairs), "b": errors_by_text(good, pairs)}
    assert choose_map(errors, ORDER)[0] == "b"


def test_the_standard_error_is_how_far_scores_of_other_texts_scatter():
    generator = torch.Generator().manual_seed(0)
    # Errors grow with variation, as in long texts: a ratio of sums scatters less than its parts.
    variation = 1 + torch.rand(3000, 40, generator=generator, dtype=torch.float64)
    factor = 0.3 + 0.2 * torch.randn(3000, 40, generator=generator, dtype=torch.float64)
    samples = [TextErrors(f * v, v) for f, v in zip(factor, variation, strict=True)]
    scatter = torch.tensor([one.r2 for one in samples]).std().item()
    assert samples[0].standard_error_to(samples[0]) == 0
    told = torch.tensor([one.standard_error for one in samples]).mean().item()
    assert told == pytest.approx(scatter, rel=0.05)


def test_what_cannot_be_compared_is_refused():
    x, y = independent_noise(10, 3, 2, seed=0)
    fitted = AffineMap(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), "zero")
    with pytest.raises(FitError, match="at least 2 held-out texts"):
        errors_by_text(fitted, PairedRows(x, y, (10,)))
    with pytest.raises(FitError, match="different targets"):
        errors_by_text(fitted, PairedRows(x, torch.ones_like(y), (5, 5)))
    with pytest.raises(FitError, match="none of the maps a has a score"):
        choose_map({"a": scored(float("nan"))}, ORDER)
