import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.directions.states import two_classes
from tests.unit.maps.pairs import without_shape_checks

from isthmus.carrying import cosine
from isthmus.core.errors import ConfigError, DataError, FitError, NonFiniteError, ShapeError
from isthmus.directions import METHODS, learn_site_direction

every_method = pytest.mark.parametrize("method", METHODS)
pooled_or_not = pytest.mark.parametrize("pooled", [False, True])


@every_method
@pooled_or_not
def test_every_method_finds_the_direction_that_separates_the_classes(method, pooled):
    positive, negative, unit = two_classes(n=400)
    vectors = METHODS[method](positive, negative, pooled=pooled)
    assert vectors.shape == (1 if pooled else 2, 5)
    assert (cosine(vectors, unit.expand_as(vectors)) > 0.97).all()
    torch.testing.assert_close(
        vectors.norm(dim=1), torch.full((len(vectors),), 4.0).double(), rtol=0.05, atol=0
    )


@every_method
def test_swapping_the_classes_turns_the_direction_around(method: str):
    positive, negative, _ = two_classes()
    there = METHODS[method](positive, negative, pooled=False)
    back = METHODS[method](negative, positive, pooled=False)
    torch.testing.assert_close(back, -there, rtol=1e-3, atol=1e-3)


@every_method
def test_the_norm_is_the_distance_of_the_class_means_along_the_direction(method: str):
    positive, negative, _ = two_classes(gap=0.5, seed=3)
    vectors = METHODS[method](positive, negative, pooled=False)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    gap = ((positive.double().mean(0) - negative.double().mean(0)) * unit).sum(1)
    torch.testing.assert_close(vectors.norm(dim=1), gap, rtol=1e-5, atol=1e-6)
    assert (gap > 0).all()


@every_method
def test_positions_are_learned_one_by_one(method: str):
    positive, negative, _ = two_classes(n_positions=3)
    together = METHODS[method](positive, negative, pooled=False)
    for position in range(3):
        here = slice(position, position + 1)
        alone = METHODS[method](positive[:, here], negative[:, here], pooled=False)
        torch.testing.assert_close(together[here], alone)


@every_method
def test_pooling_treats_positions_as_more_prompts(method: str):
    positive, negative, _ = two_classes(n=30, n_positions=3)
    pooled = METHODS[method](positive, negative, pooled=True)
    listed = (states.reshape(90, 1, 5) for states in (positive, negative))
    torch.testing.assert_close(pooled, METHODS[method](*listed, pooled=False))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), shift=st.floats(-100, 100), method=st.sampled_from([*METHODS]))
def test_a_shift_of_both_classes_changes_no_direction(seed: int, shift: float, method: str):
    positive, negative, _ = (one.double() for one in two_classes(n=30, seed=seed))
    here = METHODS[method](positive, negative, pooled=False)
    there = METHODS[method](positive + shift, negative + shift, pooled=False)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["mean_difference", "probe"])
def test_classes_need_not_be_paired_for_means_and_probes(method: str):
    positive, negative, unit = two_classes(n=300)
    vectors = METHODS[method](positive[:200], negative, pooled=False)
    assert (cosine(vectors, unit.expand_as(vectors)) > 0.95).all()


def test_pca_keeps_what_all_pairs_share_however_much_they_vary_elsewhere():
    positive, negative, unit = two_classes(n=400, n_positions=1)
    other = torch.nn.functional.normalize(torch.linalg.cross(unit[:3], torch.ones(3)), dim=0)
    sizes = 2 * torch.randn(400, generator=torch.Generator().manual_seed(7))
    positive[:, 0, :3] += sizes[:, None] * other
    assert cosine(METHODS["pca"](positive, negative, pooled=True)[0], unit) > 0.98


def test_pca_refuses_classes_that_are_not_paired():
    positive, negative, _ = two_classes()
    with pytest.raises(DataError, match="pca needs pairs, got 59 positive and 60 negative"):
        METHODS["pca"](positive[1:], negative, pooled=False)


@every_method
@pooled_or_not
def test_a_learned_site_keeps_means_and_all_states(method, pooled):
    positive, negative, _ = two_classes(n=10, n_positions=3)
    learned = learn_site_direction(method, positive, negative, pooled=pooled)
    shape = (30, 1, 5) if pooled else (10, 3, 5)
    torch.testing.assert_close(learned.positive_states, positive.reshape(shape))
    torch.testing.assert_close(learned.negative_states, negative.reshape(shape))
    torch.testing.assert_close(learned.positive_mean, positive.reshape(shape).mean(0))
    assert learned.vectors.dtype == torch.float32
    torch.testing.assert_close(
        learned.vectors, METHODS[method](positive, negative, pooled=pooled).float()
    )


@every_method
def test_learning_from_bfloat16_leaves_the_states_unchanged(method: str):
    positive, negative, _ = (one.bfloat16() for one in two_classes())
    kept = positive.clone(), negative.clone()
    learn_site_direction(method, positive, negative, pooled=True)
    assert torch.equal(positive, kept[0])
    assert torch.equal(negative, kept[1])


@every_method
def test_classes_that_are_alike_are_refused(method: str):
    positive = torch.ones(4, 2, 3)
    with pytest.raises(FitError, match=r"zero at position|found no difference"):
        learn_site_direction(method, positive, positive.clone(), pooled=False)


@every_method
@pytest.mark.parametrize("side", [0, 1])
def test_states_that_are_empty_or_not_finite_are_refused(method: str, side: int):
    classes = list(two_classes()[:2])
    classes[side] = classes[side] * math.nan
    name = ("positive", "negative")[side]
    with pytest.raises(NonFiniteError, match=f"the {name} states"):
        learn_site_direction(method, *classes, pooled=False)
    classes[side] = classes[side][:0]
    with pytest.raises((DataError, NonFiniteError), match=f"no {name} states"):
        learn_site_direction(method, *classes, pooled=False)


def test_unknown_methods_and_unequal_positions_are_refused():
    positive, negative, _ = two_classes()
    with pytest.raises(ConfigError, match="no direction method 'lda': use one of mean_difference"):
        learn_site_direction("lda", positive, negative, pooled=False)
    with without_shape_checks(), pytest.raises(ShapeError, match="same site and positions"):
        learn_site_direction("probe", positive, negative[:, :1], pooled=False)
