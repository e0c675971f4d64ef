import pytest
import torch
from tests.unit.maps.pairs import linear_pairs, moments_of, random_weight, seeded

from isthmus.core.errors import ConfigError, FitError
from isthmus.maps import ReducedRankFitter, RidgeFitter


def test_a_map_of_known_rank_is_recovered():
    weight = random_weight(8, 2, seed=1) @ random_weight(2, 6, seed=2)
    pairs = moments_of(*linear_pairs(300, weight))
    fitted = ReducedRankFitter(rank=2).fit(pairs, pairs)
    torch.testing.assert_close(fitted.weight.double(), weight, rtol=1e-4, atol=1e-4)
    assert fitted.details == {"strength": 1e-6, "rank": 2.0}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_linear_part_has_the_rank_asked_for(rank: int):
    pairs = moments_of(*linear_pairs(100, random_weight(7, 4), noise=1.0))
    weight = ReducedRankFitter(rank).fit(pairs, pairs).weight
    assert torch.linalg.matrix_rank(weight, rtol=1e-5) == rank


def test_full_rank_is_plain_ridge():
    x, y = linear_pairs(100, random_weight(5, 3), noise=1.0)
    train, selection = moments_of(x[:60], y[:60]), moments_of(x[60:], y[60:])
    full, plain = ReducedRankFitter(3).fit(train, selection), RidgeFitter().fit(train, selection)
    assert full.details["strength"] == plain.details["strength"]
    torch.testing.assert_close(full.weight, plain.weight)


def test_no_other_map_of_the_rank_lowers_the_penalised_error():
    x, y = linear_pairs(60, random_weight(6, 5), noise=3.0)
    x, y = x - x.mean(0), y - y.mean(0)
    pairs = moments_of(x, y)
    penalty = 0.5 * pairs.source_scatter.trace().item() / 6

    def objective(weight: torch.Tensor) -> float:
        return ((x @ weight - y).square().sum() + penalty * weight.square().sum()).item()

    best = ReducedRankFitter(2, (0.5,)).fit(pairs, pairs).weight.double()
    left, values, right = torch.linalg.svd(best)
    generator = seeded(3)
    for size in (1e-3, 1e-2, 1e-1) * 20:
        wiggle = torch.randn(11, 2, generator=generator, dtype=torch.float64) * size
        other = (left[:, :2] * values[:2] + wiggle[:6]) @ (right[:2] + wiggle[6:].T)
        assert objective(other) > objective(best) - 1e-4


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_ranks_outside_their_range_are_refused(rank: int):
    pairs = moments_of(*linear_pairs(100, random_weight(5, 3)))
    with pytest.raises(ConfigError, match=f"rank {rank} .*smaller width"):
        ReducedRankFitter(rank).fit(pairs, pairs)


def test_fits_without_enough_data_or_with_bad_strengths_are_refused():
    single = moments_of(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(FitError, match="a reduced-rank map needs at least 2 pairs, got 1"):
        ReducedRankFitter(1).fit(single, single)
    with pytest.raises(ConfigError, match="strengths"):
        ReducedRankFitter(1, (0.0,))
