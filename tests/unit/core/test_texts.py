from itertools import accumulate, combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText, length_buckets, pad_batch

PAD = 7


def encoded(token_ids):
    n = len(token_ids)
    return EncodedText("x" * n, tuple(token_ids), tuple(range(1, n + 1)), (False,) * n, n)


# The pad id may occur as an ordinary token: the mask decides what is padding.
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=6)


@given(rows=ROWS, side=st.sampled_from(["left", "right"]))
@settings(deadline=None)
def test_a_padded_batch_holds_every_text_once_at_its_offset_and_padding_elsewhere(rows, side):
    texts = [encoded(row) for row in rows]
    batch = pad_batch(texts, PAD, side)
    assert batch.texts == tuple(texts)
    assert batch.token_ids.shape == batch.is_real.shape == (len(rows), max(map(len, rows)))
    for row, ids, is_real, offset in zip(
        rows, batch.token_ids, batch.is_real, batch.offsets, strict=True
    ):
        assert ids[is_real].tolist() == ids[offset : offset + len(row)].tolist() == row
        assert bool(is_real[offset : offset + len(row)].all())
        assert set(ids[~is_real].tolist()) <= {PAD}


@given(rows=ROWS)
@settings(deadline=None)
def test_texts_end_together_with_padding_on_the_left_and_begin_together_on_the_right(rows):
    texts = [encoded(row) for row in rows if row] or [encoded([1])]
    assert bool(pad_batch(texts, PAD, "left").is_real[:, -1].all())
    assert bool(pad_batch(texts, PAD, "right").is_real[:, 0].all())


def test_ids_are_integers_even_where_a_text_is_empty():
    assert pad_batch([encoded([]), encoded([3])], PAD, "left").token_ids.dtype == torch.long


def test_no_texts_are_refused():
    with pytest.raises(DataError, match="at least one"):
        pad_batch([], PAD, "left")


LENGTHS = st.lists(st.integers(0, 50), max_size=40)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
@settings(deadline=None)
def test_buckets_hold_every_index_once_longest_first_and_are_full_but_for_the_last(
    lengths, batch_size
):
    buckets = length_buckets(lengths, batch_size)
    order = [index for bucket in buckets for index in bucket]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(bucket) == batch_size for bucket in buckets[:-1])
    assert all(1 <= len(bucket) <= batch_size for bucket in buckets)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9))
@settings(deadline=None)
def test_full_buckets_never_need_more_padding_than_the_given_order(lengths, batch_size):
    lengths = lengths[: len(lengths) // batch_size * batch_size]

    def padded(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    indices = list(range(len(lengths)))
    as_given = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    assert padded(length_buckets(lengths, batch_size)) <= padded(as_given)


@given(
    lengths=st.lists(st.integers(0, 50), max_size=9),
    batch_size=st.integers(1, 9),
    pass_cost=st.integers(0, 60),
)
@settings(deadline=None)
def test_buckets_are_cut_where_passes_and_padding_together_cost_least(
    lengths, batch_size, pass_cost
):
    buckets = length_buckets(lengths, batch_size, pass_cost=pass_cost)
    order = [index for bucket in buckets for index in bucket]
    assert order == [i for bucket in length_buckets(lengths, batch_size) for i in bucket]
    assert all(1 <= len(one) <= batch_size for one in buckets)

    def cost(sizes):
        starts = accumulate((0, *sizes))
        heads = [lengths[order[start]] for start in starts if start < len(order)]
        return sum(pass_cost + n * head for n, head in zip(sizes, heads, strict=True))

    everything = (
        [*map(len, cut)]
        for n_cuts in range(len(order) or 1)
        for places in combinations(range(1, len(order)), n_cuts)
        if (cut := [order[i:j] for i, j in pairwise((0, *places, len(order))) if j > i])
    )
    best = min((cost(sizes) for sizes in everything if max(sizes) <= batch_size), default=0)
    assert cost([*map(len, buckets)]) == best


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_texts_is_refused(batch_size):
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size}"):
        length_buckets([3, 2], batch_size)


def test_the_length_of_a_text_is_its_number_of_tokens():
    assert len(encoded([4, 5, 6])) == 3
