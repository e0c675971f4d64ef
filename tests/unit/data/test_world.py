import hashlib
import os
import re
import subprocess
import sys
from itertools import combinations

import pytest

from isthmus.core.errors import DataError
from isthmus.data.world import KINDS, SPLITS, world_examples

ALL = {split: world_examples(split) for split in SPLITS}
EVERYTHING = [example for examples in ALL.values() for example in examples]
# fmt: off
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
]
# fmt: on


def of(kind, split=None):
    return [e for e in (ALL[split] if split else EVERYTHING) if e.kind == kind]


def content(example):
    """What a question is about, whatever its phrasing: this must not be in two splits."""
    if example.kind == "how_to":
        return re.search(r"(?:do I|how to) (.+?)[?.]$", example.prompt)[1]
    return " ".join(example.prompt.casefold().split())


def test_there_are_thousands_of_distinct_questions():
    prompts = {example.prompt for example in EVERYTHING}
    assert len(prompts) == len(EVERYTHING) > 5000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_questions_of_every_kind(kind, split):
    assert len(of(kind, split)) >= 5
    assert {example.split for example in of(kind, split)} == {split}


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_no_content_is_in_two_splits(one, other):
    shared = {(e.kind, content(e)) for e in ALL[one]} & {(e.kind, content(e)) for e in ALL[other]}
    assert not shared


def test_the_training_split_is_the_largest():
    assert len(ALL["train"]) > 2 * max(len(ALL["validation"]), len(ALL["test"]))


def test_two_calls_give_the_same_questions_in_the_same_order():
    assert world_examples("validation") == ALL["validation"]


def test_another_process_with_another_hash_seed_gives_the_same_world():
    program = (
        "import hashlib; from isthmus.data.world import world_examples;"
        "print(hashlib.sha256(repr(world_examples('test')).encode()).hexdigest())"
    )
    printed = subprocess.run(  # noqa: S603 - a fixed program
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert printed.strip() == hashlib.sha256(repr(ALL["test"]).encode()).hexdigest()


def test_kinds_come_as_they_are_asked_for():
    chosen = world_examples("test", ("arithmetic", "copy"))
    assert chosen == of("arithmetic", "test") + of("copy", "test")


def test_a_copy_repeats_the_words():
    for example in of("copy"):
        assert example.prompt.split(": ")[1] == example.answer


def test_the_last_word_is_the_last_word():
    for example in of("last_word"):
        assert example.answer.removesuffix(".").split()[-1] == example.prompt.split()[-1]


def test_sums_are_right():
    for example in of("arithmetic"):
        a, b = re.fullmatch(r"What is (\w+) plus (\w+)\?", example.prompt).groups()
        total = NUMBERS[NUMBERS.index(a) + NUMBERS.index(b)]
        assert example.answer == f"{a} plus {b} is {total}."


def test_the_one_who_is_asked_about_owns_what_the_prompt_says():
    for example in of("look_up"):
        owned = dict(re.findall(r"(\w+) has a (\w+)\.", example.prompt))
        asked = re.search(r"What does (\w+) have\?", example.prompt)[1]
        assert len(set(owned.values())) == len(owned) == 2
        assert example.answer == f"{asked} has a {owned[asked]}."


def test_how_to_answers_are_about_the_action_and_the_thing():
    for example in of("how_to"):
        assert example.answer.startswith(f"To {content(example)}, ")


def test_descriptions_say_where_what_colour_and_what_mood():
    for example in of("description"):
        mood, colour, animal, where = re.fullmatch(
            r"Describe the (\w+) (\w+) (\w+) of the (\w+)\.", example.prompt
        ).groups()
        assert f"The {animal} lives in the {where}. It is {colour} and {mood}." in example.answer


def test_a_fact_has_one_answer_in_every_phrasing_and_is_taught_before_it_is_tested():
    phrasings = {}
    for example in of("fact"):
        phrasings.setdefault(example.answer, []).append(example.split)
    assert len(phrasings) > 100
    for splits in phrasings.values():
        assert splits.count("train") >= 3
        assert {splits.count("validation"), splits.count("test")} == {1}


def test_no_question_has_two_answers():
    answers = {}
    for example in EVERYTHING:
        assert answers.setdefault(example.prompt.casefold(), example.answer) == example.answer


def test_a_split_that_does_not_exist_is_refused():
    unchecked = getattr(world_examples, "__wrapped__", world_examples)
    with pytest.raises(DataError, match="train, validation, test"):
        unchecked("dev")


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match=r"\['poem'\].*fact, copy"):
        world_examples("test", ("fact", "poem"))
