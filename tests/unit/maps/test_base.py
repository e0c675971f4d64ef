import math

import pytest
import torch
from tests.unit.maps.pairs import random_weight, seeded, without_shape_checks

from isthmus.core.errors import NonFiniteError, ShapeError
from isthmus.maps import AffineMap, identity_map, shuffled_rows


def an_affine_map() -> AffineMap:
    return AffineMap(random_weight(4, 3).float(), torch.arange(4.0), torch.arange(3.0), "ridge")


def test_affine_map_sends_the_source_mean_to_the_target_mean():
    fitted = an_affine_map()
    assert torch.equal(fitted(fitted.source_mean), fitted.target_mean)


def test_linear_part_is_the_difference_of_two_images():
    fitted = an_affine_map()
    point, vector = torch.randn(2, 6, 4, generator=seeded(), dtype=torch.float64)
    difference = fitted(point + vector) - fitted(point)
    torch.testing.assert_close(fitted.linear(vector), difference)


@pytest.mark.parametrize("batch", [(), (2,), (2, 5), (2, 0, 3)])
def test_maps_take_points_with_any_batch_axes(batch: tuple[int, ...]):
    assert an_affine_map()(torch.zeros(*batch, 4)).shape == (*batch, 3)


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_narrow_points_are_mapped_in_float32_and_stay_unchanged(given, returned):
    points = torch.randn(5, 4, generator=seeded()).to(given)
    before = points.clone()
    image = an_affine_map()(points)
    assert image.dtype == returned
    assert torch.equal(points, before)
    torch.testing.assert_close(image, an_affine_map()(points.to(returned)))


def test_points_of_another_width_are_refused_with_both_widths():
    with pytest.raises(ShapeError, match="width 4, got width 5"):
        an_affine_map()(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="width 4, got width 3"):
        an_affine_map().linear(torch.zeros(3))


def test_means_that_do_not_fit_the_weight_are_refused():
    expected = r"\(4, 3\) does not fit means of widths \(3, 3\)"
    with without_shape_checks(), pytest.raises(ShapeError, match=expected):
        AffineMap(torch.zeros(4, 3), torch.zeros(3), torch.zeros(3), "ridge")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_refused(bad: float):
    with pytest.raises(NonFiniteError, match="1 NaN or infinite values in target_mean"):
        AffineMap(torch.zeros(2, 2), torch.zeros(2), torch.tensor([0.0, bad]), "ridge")


@pytest.mark.parametrize(
    ("d_target", "image"), [(3, [1.0, 2.0, 3.0]), (2, [1.0, 2.0]), (5, [1.0, 2.0, 3.0, 0.0, 0.0])]
)
def test_identity_map_copies_pads_and_truncates(d_target: int, image: list[float]):
    fitted = identity_map(3, d_target)
    assert fitted(torch.tensor([1.0, 2.0, 3.0])).tolist() == image


def test_identity_map_refuses_empty_spaces():
    with pytest.raises(ShapeError, match="widths start at 1"):
        identity_map(0, 3)


def test_shuffling_keeps_every_row_once_and_follows_the_generator():
    rows = torch.arange(200.0).reshape(100, 2)
    shuffled = shuffled_rows(rows, seeded(1))
    assert torch.equal(shuffled.sort(0).values, rows)
    assert (shuffled == rows).all(1).float().mean() < 0.1
    assert torch.equal(shuffled, shuffled_rows(rows, seeded(1)))
    assert not torch.equal(shuffled, shuffled_rows(rows, seeded(2)))
