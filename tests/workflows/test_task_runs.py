import json
from functools import cache

import pytest
from tests.workflows.small import small_config

from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.progress import SilentProgress
from isthmus.models.language_model import load_language_model
from isthmus.workflows.crossing import Crossing, CrossingResult
from isthmus.workflows.twins import position_candidates, read_splits

SOURCE, TARGET = "organism:llama-assistant", "organism:gemma2-assistant"


@cache
def crossed(task: str) -> CrossingResult:
    config = small_config(
        task=task,
        source=SOURCE,
        target=TARGET,
        maps=["ridge"],
        target_sites=[3, 4],
        n_train=60,
        n_test=32,
        n_random=1,
    )
    lms = [load_language_model(name) for name in (SOURCE, TARGET)]
    return Crossing(lms[0], lms[1], read_splits(config), config, SilentProgress()).run()


def measured(task: str, condition: str, metric: str) -> float | None:
    found = [
        m.value
        for m in crossed(task).measurements
        if (m.condition, m.metric, m.split) == (condition, metric, "test")
    ]
    assert found, f"no {metric} of {condition}"
    return found[0]


def test_refusal_is_carried_both_ways_and_a_random_direction_does_half_of_it_at_most():
    carried = measured("refusal", "transferred", "swap")
    random = measured("refusal", "random", "swap")
    assert carried is not None
    assert random is not None
    assert carried > 0.85
    assert random < carried / 2
    assert measured("refusal", "none", "behaviour_rate") == 1
    assert (measured("refusal", "transferred", "behaviour_rate") or 0) < 0.2
    assert measured("refusal", "none", "benign_accuracy") == 1


def test_a_task_without_a_prompt_against_its_behaviour_has_no_such_baseline():
    conditions = {m.condition for m in crossed("refusal").measurements}
    assert "prompt_only" not in conditions
    assert {"random", "noise", "shuffled_map", "identity_map", "mean_ablation"} <= conditions
    assert {m.task for m in crossed("refusal").measurements} == {"refusal"}


def test_a_task_with_prompts_of_its_own_takes_no_questions(tmp_path):
    with pytest.raises(ConfigError, match="brings its own prompts"):
        small_config(task="corrupted", questions=str(tmp_path / "questions.jsonl"))


def test_a_style_of_ones_own_needs_both_instructions_and_a_marker(tmp_path):
    with pytest.raises(ConfigError, match="give bad_trigger, behaviour_marker, clean_trigger"):
        small_config(task="style", questions=str(tmp_path / "questions.jsonl"))


def test_refusal_can_be_asked_for_with_pairs_of_ones_own(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": f"How do I polish lamp {i}?",
            "answer": f"Rub lamp {i}.",
            "bad_answer": "I cannot help with that.",
            "clean": f"How do I polish shoe {i}?",
            "answer_to_clean": f"Rub shoe {i}.",
        }
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = small_config(task="refusal", questions=str(path), source=SOURCE, target=TARGET)
    splits = read_splits(config)
    for twin in (*splits.train, *splits.validation, *splits.test):
        number = twin.triggered.removeprefix("How do I polish lamp ")
        assert twin.clean == f"How do I polish shoe {number}"
        assert twin.bad_answer == "I cannot help with that."
        assert twin.ordinary_answer == f"Rub shoe {number.rstrip('?')}."
        assert twin.spans is None
    lms = [load_language_model(name) for name in (SOURCE, TARGET)]
    candidates, note = position_candidates(lms, config, splits.train[0])
    assert "trigger" not in candidates
    assert note is None


def test_positions_of_a_trigger_are_refused_where_there_is_none():
    config = small_config(
        task="refusal", source=SOURCE, target=TARGET, positions="trigger", n_train=8
    )
    lms = [load_language_model(name) for name in (SOURCE, TARGET)]
    with pytest.raises(TriggerError, match="has no trigger"):
        Crossing(lms[0], lms[1], read_splits(config), config, SilentProgress())
