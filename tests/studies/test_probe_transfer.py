from pathlib import Path

import pytest
import torch
from tests.studies.keys import repeated
from tests.workflows.small import SOURCE, TARGET

from isthmus.core.errors import TriggerError
from isthmus.data.prompts import TwinPrompt
from isthmus.studies.probe_reading import WordCounts, unseen
from isthmus.studies.probe_transfer import transfer_probe
from isthmus.studies.reproduce import reproduce
from isthmus.studies.result import StudyResult
from isthmus.tasks import task_named
from isthmus.workflows.config import RunConfig

BRIEF = {"n_train": 40, "n_validation": 12, "n_test": 24}


@pytest.fixture(scope="module")
def found() -> StudyResult:
    torch.set_num_threads(1)
    return transfer_probe(SOURCE, TARGET, n_texts=(16,), n_nulls=2, settings=BRIEF)


def values(found: StudyResult, task: str, **wanted: str | None) -> list[float]:
    return [
        m.value
        for m in found.measurements
        if m.task == task and all(getattr(m, name) == value for name, value in wanted.items())
    ]


def test_the_native_probe_knows_and_the_carried_one_ranks_as_well_at_the_last_token(found):
    at = {"positions": "last:1", "metric": "auroc"}
    assert values(found, "probe_transfer", condition="native", **at)[0] > 0.99
    carried = {"condition": "transferred", "map": "ridge", "edit": "pull_back"}
    assert values(found, "probe_transfer", **carried, **at)[0] > 0.95


def test_the_sources_threshold_decides_in_the_target_and_random_maps_do_not(found):
    at = {"positions": "last:1", "metric": "accuracy", "edit": "pull_back"}
    (carried,) = values(found, "probe_transfer", condition="transferred", map="ridge", **at)
    nulls = values(found, "probe_transfer", condition="random", **at)
    assert len(nulls) == 4
    assert carried > 0.9
    assert sum(nulls) / len(nulls) < 0.75


def test_harder_settings_are_measured_too(found):
    tasks = {m.task for m in found.measurements}
    harder = {"16_texts", "no_trigger_texts", "unseen_kinds"}
    assert tasks == {"probe_transfer", *(f"probe_transfer/{name}" for name in harder)}
    unseen = [m for m in found.measurements if m.task.endswith("unseen_kinds")]
    assert all(m.n < BRIEF["n_test"] for m in unseen)


def test_states_that_are_equal_in_every_prompt_count_once_and_have_no_interval(found):
    at_trigger = [m for m in found.measurements if m.positions == "trigger"]
    assert {(m.n, m.ci_low) for m in at_trigger} == {(1, None)}
    assert any("same in every prompt" in note for note in found.notes)
    assert values(found, "probe_transfer", condition="prompt_only", metric="auroc") == [1.0]
    at_last = [m for m in found.measurements if m.positions == "last:1"]
    assert all(m.n > 1 and m.ci_low is not None for m in at_last)


def test_no_two_numbers_of_a_probe_are_called_alike(found: StudyResult, harmful: StudyResult):
    assert not repeated(found, harmful)


ASSISTANTS = ("organism:llama-assistant", "organism:qwen2-assistant")
REFUSAL = {"task": "refusal", "n_train": 120, "n_validation": 24, "n_test": 60}


@pytest.fixture(scope="module")
def harmful() -> StudyResult:
    torch.set_num_threads(1)
    return transfer_probe(*ASSISTANTS, n_texts=(), n_nulls=2, settings=REFUSAL)


def test_intervals_of_a_probe_for_what_is_declined_draw_requests_with_all_their_phrasings():
    twins = task_named("refusal").twins("test", 60, 0)
    read = WordCounts(twins).read(twins)
    assert read.contents == tuple(twin.content for twin in twins)
    assert len(set(read.contents)) < len(twins)


def test_a_probe_for_what_is_declined_is_carried_where_no_trigger_is(harmful: StudyResult):
    places = {m.positions for m in harmful.measurements}
    assert places == {None, "last:1", "prompt"}
    at = {"positions": "last:1", "metric": "auroc"}
    assert values(harmful, "probe_transfer/refusal", condition="native", **at)[0] > 0.99
    carried = {"condition": "transferred", "map": "ridge", "edit": "pull_back"}
    assert values(harmful, "probe_transfer/refusal", **carried, **at)[0] > 0.95
    assert len(values(harmful, "probe_transfer/refusal", condition="random", **at)) == 4
    assert any("no trigger" in note for note in harmful.notes)


def test_words_tell_declined_requests_apart_only_where_training_has_the_same_ones(harmful):
    words = {"condition": "prompt_only", "edit": "words", "metric": "auroc"}
    assert values(harmful, "probe_transfer/refusal", **words) == [1.0]
    assert values(harmful, "probe_transfer/refusal/unseen_words", **words) == [0.5]
    at = {"positions": "last:1", "metric": "auroc", "condition": "native"}
    assert values(harmful, "probe_transfer/refusal/unseen_words", **at)[0] > 0.9


def test_a_probe_reads_where_it_is_told_and_no_trigger_where_there_is_none():
    with pytest.raises(TriggerError, match=r"task 'refusal' has no trigger.*last:1"):
        transfer_probe(*ASSISTANTS, settings={**REFUSAL, "positions": "trigger"})
    few = {**REFUSAL, "n_train": 24, "n_test": 12, "positions": "last:3"}
    found = transfer_probe(*ASSISTANTS, n_texts=(), n_nulls=0, settings=few)
    assert {m.positions for m in found.measurements} == {None, "last:3"}


def test_the_reproduction_has_a_part_for_what_is_declined(tmp_path: Path):
    given = RunConfig(
        task="refusal",
        source=ASSISTANTS[0],
        targets=(ASSISTANTS[1],),
        n_train=40,
        n_validation=12,
        n_test=24,
    )
    found = reproduce(out=tmp_path / "run", only=["refusal_probes"], config=[given], is_quick=True)
    (part,) = found.parts
    assert not part.problem
    assert {m.task.split("/")[1] for m in part.measurements} == {"refusal"}
    assert max(m.n or 0 for m in part.measurements) == 24


def pair(bad: str, good: str, kind: str | None = None) -> TwinPrompt:
    return TwinPrompt(f"Paint a {bad}.", f"Paint a {good}.", "Yes.", "No.", kind)


def test_unseen_words_are_in_no_prompt_of_training():
    twins = [pair(2 * bad, 2 * good) for bad in "abcdef" for good in "uvwxyz"]
    found = unseen(twins, twins)
    assert found is not None
    sides = [
        {word for twin in some for word in f"{twin.triggered} {twin.clean}".split()}
        for some in (found.train, found.test)
    ]
    assert sides[0] & sides[1] == {"Paint", "a"}
    assert found.name == "unseen_words"
    assert (len(found.train), len(found.test)) == (9, 9)
    assert unseen([pair("fox", "owl")] * 20, [pair("fox", "owl")] * 20) is None


def test_kinds_of_question_come_before_words():
    twins = [pair(bad, "u", kind) for bad in "abcdefgh" for kind in ("fact", "sum")]
    found = unseen(twins, twins)
    assert found is not None
    assert ({t.kind for t in found.train}, {t.kind for t in found.test}) == ({"fact"}, {"sum"})


def test_words_are_counted_as_often_as_they_stand_there_and_new_ones_not_at_all():
    counts = WordCounts([pair("drum", "lamp")])
    read = counts.read([pair("drum drum", "bell")])
    # Sorted: the full stop, Paint, a, drum, lamp.
    assert read.positive.tolist() == [[1, 1, 1, 2, 0]]
    assert [one.tolist() for one in read.negative] == [[[1, 1, 1, 0, 0]]]
