import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import ConfigError, DataError, TriggerError
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.positions import PositionSelector, parse_positions


def encoded(n_tokens, *, n_prompt=None, trigger=None, special=()):
    """A text of one letter per token."""
    return EncodedText(
        text="abcdefghijklmnopqrstuvwxyz"[:n_tokens],
        token_ids=tuple(range(5, 5 + n_tokens)),
        ends=tuple(range(1, n_tokens + 1)),
        is_special=tuple(i in special for i in range(n_tokens)),
        n_prompt=n_tokens if n_prompt is None else n_prompt,
        trigger=trigger,
    )


SHORT = encoded(4, special=(0,))
LONG = encoded(9, n_prompt=6, trigger=(1, 4), special=(0, 4))
SPELLINGS = ("trigger", "last:1", "last:3", "prompt", "generated", "all")


def chosen(masks, batch):
    """The chosen token indices of every row, padding taken off."""
    return [
        [int(column) - offset for column in row.nonzero()]
        for row, offset in zip(masks.given, batch.offsets, strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("written", "short", "long"),
    [
        ("trigger", [], [1, 2, 3]),
        ("last:1", [3], [5]),
        ("last:3", [1, 2, 3], [3, 4, 5]),
        ("prompt", [1, 2, 3], [1, 2, 3, 5]),
        ("generated", [], [6, 7, 8]),
        ("all", [1, 2, 3], [1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_each_selector_chooses_its_tokens_on_either_side_of_the_padding(side, written, short, long):
    batch = pad_batch([SHORT, LONG], 0, side)
    assert chosen(parse_positions(written).masks(batch), batch) == [short, long]


@pytest.mark.parametrize(
    ("written", "expected"),
    [("trigger", False), ("last:2", False), ("prompt", False), ("generated", True), ("all", True)],
)
def test_only_generated_and_all_go_on_after_the_prompt(written, expected):
    batch = pad_batch([SHORT, LONG], 0, "left")
    assert parse_positions(written).masks(batch).generated.tolist() == [expected, expected]


@st.composite
def descriptions(draw):
    # Descriptions, not texts: the run-time type checks draw random numbers, which hypothesis
    # does not allow while it draws its own.
    n_prompt = draw(st.integers(4, 8))
    start = draw(st.integers(0, 2))
    return {
        "n_tokens": n_prompt + draw(st.integers(0, 4)),
        "n_prompt": n_prompt,
        "trigger": draw(st.sampled_from([None, (start, start + 2)])),
        "special": draw(st.sets(st.integers(0, 11))),
    }


@settings(deadline=None, max_examples=60)
@given(
    st.lists(descriptions(), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
    st.sampled_from(SPELLINGS),
)
def test_padding_is_never_chosen_and_rows_do_not_depend_on_each_other(rows, side, written):
    texts = [encoded(**row) for row in rows]
    batch, selector = pad_batch(texts, 0, side), parse_positions(written)
    masks = selector.masks(batch)
    assert not (masks.given & ~batch.is_real).any()
    alone = [pad_batch([text], 0, side) for text in texts]
    assert chosen(masks, batch) == [chosen(selector.masks(one), one)[0] for one in alone]


@settings(deadline=None, max_examples=60)
@given(st.lists(descriptions(), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_all_is_prompt_and_generated_which_share_nothing(rows, side):
    batch = pad_batch([encoded(**row) for row in rows], 0, side)
    prompt, generated, both = (
        parse_positions(written).masks(batch).given for written in ("prompt", "generated", "all")
    )
    assert not (prompt & generated).any()
    assert torch.equal(prompt | generated, both)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(descriptions(), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
    st.sampled_from([("trigger", 2), ("last:3", 3), ("last:1", 1)]),
)
def test_the_single_positions_of_a_span_are_disjoint_and_together_the_span(rows, side, span):
    written, n_positions = span
    batch = pad_batch([encoded(**row) for row in rows], 0, side)
    selector = parse_positions(written)
    singles = torch.stack([m.given for m in selector.position_masks(batch, n_positions)])
    assert int(singles.sum(0).max()) <= 1
    assert torch.equal(singles.any(0), selector.masks(batch).given)


@pytest.mark.parametrize("side", ["left", "right"])
def test_single_positions_are_counted_in_text_order(side):
    batch = pad_batch([SHORT, LONG], 0, side)
    trigger = parse_positions("trigger").position_masks(batch, 3)
    assert [chosen(masks, batch) for masks in trigger] == [[[], [1]], [[], [2]], [[], [3]]]
    last = parse_positions("last:2").position_masks(batch, 2)
    assert [chosen(masks, batch) for masks in last] == [[[2], [4]], [[3], [5]]]


def test_a_trigger_of_another_length_than_the_direction_is_refused():
    batch = pad_batch([SHORT, LONG], 0, "left")
    with pytest.raises(TriggerError, match=r"trigger has 3 tokens .* direction has 2"):
        parse_positions("trigger").position_masks(batch, 2)


@pytest.mark.parametrize("written", ["prompt", "generated", "all"])
def test_positions_without_a_fixed_span_have_no_single_positions(written):
    with pytest.raises(ConfigError, match="no fixed span"):
        parse_positions(written).position_masks(pad_batch([LONG], 0, "left"), 2)


def test_last_k_has_exactly_k_single_positions():
    with pytest.raises(ConfigError, match="use last:3"):
        parse_positions("last:2").position_masks(pad_batch([LONG], 0, "left"), 3)


def test_a_prompt_shorter_than_k_is_refused_even_if_its_answer_is_long():
    selector = parse_positions("last:7")
    with pytest.raises(DataError, match="has 6 tokens"):
        selector.masks(pad_batch([LONG], 0, "left"))
    with pytest.raises(DataError, match="use a smaller K"):
        selector.token_indices(LONG)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("trigger", (1, 2, 3)), ("last:2", (4, 5)), ("prompt", (1, 2, 3, 5))],
)
def test_a_direction_is_read_where_it_is_applied(written, expected):
    selector, batch = parse_positions(written), pad_batch([LONG], 0, "left")
    assert selector.token_indices(LONG) == expected
    assert chosen(selector.masks(batch), batch) == [list(expected)]


@pytest.mark.parametrize("written", ["generated", "all"])
def test_no_direction_is_read_at_generated_positions(written):
    with pytest.raises(ConfigError, match="cannot read a direction"):
        parse_positions(written).token_indices(LONG)


def test_reading_at_a_trigger_that_is_not_there_is_refused():
    with pytest.raises(TriggerError, match="no trigger in 'abcd'"):
        parse_positions("trigger").token_indices(SHORT)


def test_reading_from_a_prompt_of_special_pieces_only_is_refused():
    with pytest.raises(DataError, match="no ordinary token"):
        parse_positions("prompt").token_indices(encoded(2, special=(0, 1)))


@pytest.mark.parametrize("written", SPELLINGS)
def test_a_selector_is_spelled_as_it_is_parsed(written):
    assert parse_positions(f" {written} ").spelling == written


@pytest.mark.parametrize(
    "written", ["", "last", "last:", "last:0", "last:-1", "last:x", "Trigger", "first:2", "all:1"]
)
def test_an_unknown_spelling_is_refused_with_the_known_ones(written):
    with pytest.raises(ConfigError, match="trigger, last:K with K at least 1, prompt, generated"):
        parse_positions(written)


@pytest.mark.parametrize(("kind", "k"), [("last", None), ("last", 0), ("trigger", 2)])
def test_only_last_has_a_count(kind, k):
    with pytest.raises(ConfigError):
        PositionSelector(kind, k)
