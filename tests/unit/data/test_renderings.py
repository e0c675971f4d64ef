from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.core.errors import DataError
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_spans, pair_tokens
from isthmus.data.renderings import Stretch, shared_stretches


def rendered(before, message, between, answer="", *, special=()):
    """One token per character, except that each given marker is one special token."""
    text = before + message + between + answer
    n_prompt_characters = len(text) - len(answer)
    ends, is_special, n_prompt, at = [], [], 0, 0
    while at < len(text):
        marker = next((one for one in special if text.startswith(one, at)), text[at])
        at += len(marker)
        ends.append(at)
        is_special.append(marker in special)
        n_prompt += at <= n_prompt_characters
    span = len(before), len(before) + len(message)
    ids = tuple(range(len(ends)))
    return EncodedText(text, ids, tuple(ends), tuple(is_special), n_prompt, message=span)


def paired_characters(source, target):
    pairs = pair_tokens(source, target)
    return [
        (source.text[source.ends[i] - 1], target.text[target.ends[j] - 1])
        for i, j in zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)
    ]


CHATML = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
HEADERS = ("<|start|>user<|end|>\n\n", "<|eot|><|start|>assistant<|end|>\n\n")
INST = ("[INST] ", " [/INST]")
TURNS = ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n")
PLAIN = ("User: ", "\nAssistant:")
TEMPLATES = (CHATML, HEADERS, INST, TURNS, PLAIN)
MARKERS = (
    "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<start_of_turn>",
    "<end_of_turn>",
)  # fmt: skip


def test_equal_texts_share_everything():
    one = rendered(*("User: ", "hi", "\nAI:"), " yes")
    assert shared_stretches(one, one) == [Stretch(0, 0, len(one.text))]


def test_a_longer_beginning_moves_everything_and_loses_nothing():
    source = rendered("User: ", "hi", "\nAI:", " yes")
    target = rendered("<s>User: ", "hi", "\nAI:", " yes", special=("<s>",))
    assert shared_stretches(source, target) == [Stretch(0, 3, len(source.text))]


def test_of_different_templates_role_and_last_token_are_paired_and_no_marker():
    source = rendered(CHATML[0], "hi", CHATML[1], "yes", special=MARKERS)
    target = rendered(INST[0], "hi", INST[1], " yes", special=MARKERS)
    # Roles: use(r) and INS(T); before the message the line's end and the space.
    expected = [("r", "T"), ("\n", " "), *zip("hi", "hi", strict=True), ("t", "T"), ("\n", "]")]
    assert paired_characters(source, target) == [*expected, *zip("yes", "yes", strict=True)]


def test_roles_are_paired_across_names():
    source = rendered(HEADERS[0], "hi", HEADERS[1], special=MARKERS)
    target = rendered(TURNS[0], "hi", TURNS[1], special=MARKERS)
    pairs = paired_characters(source, target)
    assert [one for one in pairs if one[0].isalpha()] == [
        ("r", "r"), ("h", "h"), ("i", "i"), ("t", "l"),
    ]  # fmt: skip
    assert pairs[-1] == ("\n", "\n")


def test_a_system_prompt_on_one_side_is_left_out():
    source = rendered("<s>system: be kind\nUser: ", "hi", "\nAI:", special=("<s>",))
    target = rendered("User: ", "hi", "\nAI:")
    assert shared_stretches(source, target) == [Stretch(19, 0, len(target.text))]


def test_a_special_prompt_end_is_paired_with_an_ordinary_one_of_another_template():
    source = rendered("<u>", "hi", "<a>", "yes", special=("<u>", "<a>"))
    target = rendered("User: ", "hi", "\nAI:", " yes")
    assert ("a", "a") not in paired_characters(source, target)
    pairs = pair_tokens(source, target)
    assert (source.n_prompt - 1, target.n_prompt - 1) in list(zip(*pairs, strict=True))


def last_tokens(source, target):
    return source.n_prompt - 1, target.n_prompt - 1


def listed(pairs):
    return list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))


def test_prompt_ends_are_paired_where_one_template_goes_on_behind_the_end_of_the_other():
    # As Qwen3 told not to think, beside Qwen2.5.
    silent = CHATML[1] + "<think>\n\n</think>\n\n"
    source = rendered(CHATML[0], "hi", CHATML[1], "yes", special=MARKERS)
    target = rendered(CHATML[0], "hi", silent, "yes", special=MARKERS)
    pairs, spans = listed(pair_tokens(source, target)), pair_spans(source, target)
    assert last_tokens(source, target) in pairs
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert (source.ends.index(len(source.text)), target.ends.index(len(target.text))) == pairs[-1]
    assert pairs == [(j, i) for i, j in listed(pair_tokens(target, source))]
    for side, last in zip(spans, zip(*pairs, strict=True), strict=True):
        assert [side.tokens[side.spans == n][-1] for n in range(len(last))] == list(last)


def test_a_message_that_ends_a_prompt_is_paired_with_the_message_and_not_with_a_marker():
    source = rendered("", "hi.", "", " yes")
    target = rendered("<u>", "hi.", "<a>", "yes", special=("<u>", "<a>"))
    pairs = listed(pair_tokens(source, target))
    assert (2, target.ends.index(target.message[1])) in pairs
    # The other tokenizer ends no token with the message.
    ends = (*target.ends[:3], target.ends[4], *target.ends[5:])
    special = (*target.is_special[:3], *target.is_special[4:5], *target.is_special[5:])
    merged = EncodedText(
        target.text, tuple(range(len(ends))), ends, special, target.n_prompt - 1,
        message=target.message,
    )  # fmt: skip
    assert not any(merged.is_special[j] for _, j in listed(pair_tokens(source, merged)))


def test_white_space_that_a_template_puts_before_the_answer_does_not_matter():
    source = rendered("User: ", "hi", "\nAI:", " yes or no")
    target = rendered("User: ", "hi", "\nAI:\n", "yes or no")
    assert shared_stretches(source, target)[-1].length == len("yes or no")


def test_nothing_of_a_span_stands_outside_of_what_is_shared():
    source = rendered("[INST] ", "hi", " [/INST]", " yes")
    target = rendered("<u>", "hi", "<a>", "yes", special=("<u>", "<a>"))
    spans = pair_spans(source, target)
    words = [
        "".join(
            source.text[source.ends[t] - 1] for t in spans.source.tokens[spans.source.spans == n]
        )
        for n in range(int(spans.source.spans.max()) + 1)
    ]
    assert words == ["h", "i", "]", "y", "e", "s"]


@pytest.mark.parametrize("places", [("hello there", "goodbye"), ("abcdef", "uvwxef")])
def test_different_messages_are_refused(places):
    source, target = (rendered("User: ", message, "\nAI:") for message in places)
    with pytest.raises(DataError, match="give both models one text"):
        shared_stretches(source, target)


WORDS = st.text("ab é日😀.\n", min_size=1, max_size=12).filter(str.strip).map(str.strip)


@settings(deadline=None)
@given(WORDS, WORDS, st.sampled_from(TEMPLATES), st.sampled_from(TEMPLATES))
def test_between_any_two_templates_message_and_answer_are_paired_as_they_are(
    message, answer, one, other
):
    source, target = (
        rendered(before, message, between, answer, special=MARKERS)
        for before, between in (one, other)
    )
    pairs = pair_tokens(source, target)
    listed = list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
    starts = [text.message[0] for text in (source, target)]
    # A message may end like the template behind it: the same text, so paired as well.
    for n in range(1, len(message) + 1):
        assert (source.ends.index(starts[0] + n), target.ends.index(starts[1] + n)) in listed
    for n in range(1, len(answer) + 1):
        assert (len(source) - n, len(target) - n) in listed
    assert (source.n_prompt - 1, target.n_prompt - 1) in listed
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(listed))
    assert not any(source.is_special[i] or target.is_special[j] for i, j in listed)
    assert listed == [(i, j) for j, i in zip(*map(list, pair_tokens(target, source)), strict=True)]
