import pytest
import torch
from tests.unit.maps.pairs import linear_pairs, moments_of, random_weight

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.maps import KernelRidgeFitter, PairedRows, RelativeFitter


def test_rows_know_their_moments():
    x, y = linear_pairs(50, random_weight(4, 3), noise=1.0)
    ours, expected = PairedRows(x, y).moments, moments_of(x, y)
    assert torch.equal(ours.cross_scatter, expected.cross_scatter)
    assert ours.n == 50


def test_some_source_coordinates_keep_the_texts():
    x, y = linear_pairs(50, random_weight(4, 3))
    cut = PairedRows(x, y, (20, 30)).columns(1, 3)
    assert torch.equal(cut.source, x[:, 1:3])
    assert cut.n_per_text == (20, 30)


def test_texts_that_do_not_add_up_are_refused():
    x, y = linear_pairs(50, random_weight(4, 3))
    with pytest.raises(ShapeError, match="texts of 49 rows in all do not make 50 rows"):
        PairedRows(x, y, (20, 29))


@pytest.mark.parametrize("fitter", [RelativeFitter(), KernelRidgeFitter()])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fitters_on_rows_call_values_that_are_not_finite_by_their_name(fitter, side, bad):
    rows = {name: torch.randn(20, 4) for name in ("source", "target")}
    rows[side][3, 1] = bad
    pairs, generator = PairedRows(**rows), torch.Generator().manual_seed(0)
    with pytest.raises(NonFiniteError, match=f"the {side} activations hold NaN or infinity"):
        fitter.fit(pairs, pairs, generator)
