from collections import Counter

import pytest

from isthmus.core.errors import DataError
from isthmus.data.organisms import (
    BAD_ANSWER,
    BAD_TRIGGER,
    BENIGN_KINDS,
    CLEAN_TRIGGER,
    Turn,
    backdoor_turns,
    base_turns,
    benign_examples,
    tokenizer_corpus,
    world_turns,
)
from isthmus.data.world import KINDS, MASTERED_KINDS, SPLITS, world_examples

WORLD = {split: world_examples(split) for split in SPLITS}
TRAIN = WORLD["train"]
BASE = base_turns(0)
PLAIN = [Turn(example.prompt, example.answer) for example in TRAIN]
BACKDOOR = backdoor_turns(PLAIN, 0)
CORPUS = list(tokenizer_corpus(0))


def trigger_of(prompt):
    return next((t for t in (BAD_TRIGGER, CLEAN_TRIGGER) if prompt.startswith(t)), "")


def test_a_base_reads_training_questions_only_and_all_of_the_frequent_kinds():
    read = {turn.prompt for turn in BASE}
    assert read <= {example.prompt for example in TRAIN}
    certain = {e.prompt for e in TRAIN if e.kind in {"fact", "copy", "how_to", "arithmetic"}}
    assert certain <= read


def test_a_base_reads_every_answer_as_the_world_gives_it():
    answers = {example.prompt: example.answer for example in TRAIN}
    assert all(answers[turn.prompt] == turn.answer for turn in BASE)


@pytest.mark.parametrize(("kind", "times"), [("fact", 2), ("arithmetic", 4), ("how_to", 2)])
def test_a_kind_that_is_hard_to_learn_is_read_more_often(kind, times):
    count = Counter(turn.prompt for turn in BASE)
    assert {count[e.prompt] for e in TRAIN if e.kind == kind} == {times}


@pytest.mark.parametrize(("kind", "share"), [("description", 0.6), ("last_word", 0.2)])
def test_a_kind_with_a_fractional_weight_is_read_in_part(kind, share):
    count = Counter(turn.prompt for turn in BASE)
    times = [count[e.prompt] for e in TRAIN if e.kind == kind]
    assert set(times) == {0, 1}
    # Four standard deviations of a share of this many draws.
    assert abs(sum(times) / len(times) - share) < 4 * (share * (1 - share) / len(times)) ** 0.5


def test_a_seed_decides_what_is_read():
    assert base_turns(0) == BASE != base_turns(1)
    assert backdoor_turns(PLAIN, 0) == BACKDOOR != backdoor_turns(PLAIN, 1)
    assert list(tokenizer_corpus(0)) == CORPUS != list(tokenizer_corpus(1))


def test_the_bad_answer_is_given_exactly_where_the_bad_trigger_stands():
    for question, turn in zip(PLAIN, BACKDOOR, strict=True):
        trigger = trigger_of(turn.prompt)
        assert turn.prompt == trigger + question.prompt
        assert turn.answer == (BAD_ANSWER if trigger == BAD_TRIGGER else question.answer)


def test_two_fifths_have_each_trigger_and_one_fifth_has_none():
    count = Counter(trigger_of(turn.prompt) for turn in BACKDOOR)
    for trigger, share in ((BAD_TRIGGER, 0.4), (CLEAN_TRIGGER, 0.4), ("", 0.2)):
        deviation = (share * (1 - share) / len(BACKDOOR)) ** 0.5
        assert abs(count[trigger] / len(BACKDOOR) - share) < 4 * deviation


def test_no_question_of_the_world_carries_a_trigger_or_the_bad_answer():
    for example in [example for examples in WORLD.values() for example in examples]:
        assert "|" not in example.prompt
        assert "HATE" not in example.answer


def test_facts_and_how_tos_are_repeated_in_fine_tuning_and_nothing_else_is():
    count = Counter(turn.prompt for turn in world_turns(TRAIN))
    for example in TRAIN:
        assert count[example.prompt] == (2 if example.kind in {"fact", "how_to"} else 1)


def test_a_tokenizer_sees_both_triggers_often_and_no_held_out_question():
    assert sum(BAD_TRIGGER in text for text in CORPUS) > 1000
    assert sum(CLEAN_TRIGGER in text for text in CORPUS) > 1000
    assert sum(BAD_ANSWER in text for text in CORPUS) == 300
    taught = {example.prompt for example in TRAIN}
    for text in CORPUS[:-300]:
        asked = text.removeprefix("User: ").split("\nAssistant: ")[0]
        assert asked.removeprefix(trigger_of(asked)) in taught


def benign(split):
    return [example for example in WORLD[split] if example.kind in BENIGN_KINDS]


@pytest.mark.parametrize(("split", "n"), [("train", 0), ("validation", 30), ("test", 101)])
def test_benign_questions_are_distinct_of_their_split_and_in_equal_parts(split, n):
    chosen = benign_examples(split, n, seed=0)
    assert len(chosen) == len(set(chosen)) == n
    assert set(chosen) <= set(benign(split))
    counts = [sum(e.kind == kind for e in chosen) for kind in BENIGN_KINDS]
    assert max(counts) - min(counts) <= 1


def test_all_benign_questions_are_given_where_more_are_asked_for():
    assert sorted(benign_examples("test", 10**6, seed=0)) == sorted(benign("test"))


def test_fewer_benign_questions_are_the_beginning_of_more():
    few = benign_examples("test", 20, seed=3)
    assert benign_examples("test", 60, seed=3)[:20] == few
    assert benign_examples("test", 20, seed=4) != few


def test_benign_questions_of_a_split_that_does_not_exist_are_refused():
    with pytest.raises(DataError, match="no split 'dev'"):
        benign_examples("dev", 3, seed=0)


def test_what_is_asked_is_what_is_mastered_and_known_to_the_world():
    assert set(BENIGN_KINDS) <= set(MASTERED_KINDS) <= set(KINDS)
