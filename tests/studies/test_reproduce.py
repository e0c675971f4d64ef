import json
from dataclasses import replace

import pytest
from tests.unit.evaluation.small_reproduction import one as number

from isthmus.core.errors import ConfigError, DataError, OrganismError, OutputError
from isthmus.core.progress import SilentProgress
from isthmus.data.organisms import benign_examples
from isthmus.data.prompts import Question, write_questions
from isthmus.evaluation.measurements import Measurement, read_results
from isthmus.evaluation.paper import PAPER_FIGURES
from isthmus.models.organisms import packed_folder, unpack_organism
from isthmus.studies import paper_parts
from isthmus.studies import reproduce as module
from isthmus.studies.paper_models import Scope, keys_of_models
from isthmus.studies.paper_parts import PARTS
from isthmus.studies.part_kinds import Part, joined
from isthmus.studies.part_processes import compute_in_processes
from isthmus.studies.reproduce import reproduce
from isthmus.studies.result import StudyResult
from isthmus.tasks import COURSES
from isthmus.workflows.config import RunConfig
from isthmus.workflows.organism_recipes import recipe_named


def measured(value: float, **changes: object) -> Measurement:
    return number(value, **{"edit": "add", **changes})


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Two parts: one that counts how often it runs, one whose organism is missing."""
    runs = []

    def work(scope, _progress):
        runs.append(scope)
        figures = {"a figure": "<svg></svg>"}
        return StudyResult("small", (measured(0.91),), ("it was small",), figures)

    def fail(_scope, _progress):
        raise OrganismError("no organism 'llama-missing': build it")

    parts = {
        "small": Part("A small part", "backdoor", work, ("llama-backdoor",)),
        "failing": Part("A part that cannot run", "backdoor", fail, ("llama-backdoor",)),
    }
    monkeypatch.setattr(module, "PARTS", parts)
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return runs


def test_a_repeated_reproduction_computes_nothing_and_writes_the_same(counted, tmp_path):
    first = reproduce(out=tmp_path / "one", only=["small"])
    second = reproduce(out=tmp_path / "two", only=["small"])
    assert len(counted) == 1
    assert read_results(first.folder / "results.jsonl") == list(second.parts[0].measurements)
    reproduce(out=tmp_path / "two", only=["small"], is_cached=False)
    reproduce(out=tmp_path / "two", only=["small"], seed=1)
    assert [scope.seed for scope in counted] == [0, 0, 1]


def test_a_part_beyond_the_paper_runs_only_when_it_is_named(counted, tmp_path, monkeypatch):
    further = replace(module.PARTS["small"], when_named=True)
    monkeypatch.setattr(module, "PARTS", {**module.PARTS, "further": further})
    result = reproduce(out=tmp_path / "run", n_processes=1)
    assert [part.name for part in result.parts] == ["small", "failing"]
    assert len(counted) == 1
    named = reproduce(out=tmp_path / "run", only=["further"], n_processes=1)
    assert [part.name for part in named.parts] == ["further"]


def test_a_part_that_cannot_run_is_reported_and_the_others_are_there(counted, tmp_path):
    result = reproduce(out=tmp_path / "run", is_quick=True, n_processes=1)
    small, failing = result.parts
    assert len(small.measurements) == 1
    assert "llama-missing" in failing.problem
    page = result.report.read_text(encoding="utf-8")
    assert "no organism &#39;llama-missing&#39;" in page
    assert "it was small" in page
    assert "<svg></svg>" in page
    picture = (result.folder / "figures" / "small-1.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg><style>")
    assert "var(" not in picture
    assert "Quick run" in page
    assert json.loads((result.folder / "provenance.json").read_text())["seed"] == 0
    assert counted == [Scope(is_quick=True, seed=0)]


@pytest.mark.usefixtures("counted")
def test_the_page_lays_the_papers_figures_beside_ours(tmp_path):
    page = reproduce(out=tmp_path / "run", only=["small"]).report.read_text(encoding="utf-8")
    for figure in PAPER_FIGURES:
        assert figure.number in page
    assert "0.91" in page
    assert "not measured" in page


def test_parts_in_processes_find_what_one_process_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    config = RunConfig(
        task="corrupted",
        source="organism:llama-corrupted",
        targets=("organism:qwen2-corrupted",),
        n_train=60,
        n_test=12,
    )
    names = ["corrupted", "style"]
    given = {"only": names, "config": [config], "is_quick": True}
    both = reproduce(out=tmp_path / "two", n_processes=2, **given)
    assert [part.name for part in both.parts] == ["style", "corrupted"]
    assert "no --config has 'task: style'" in both.parts[0].problem
    stages = json.loads((both.folder / "provenance.json").read_text())["stages"]
    assert {stage["name"] for stage in stages} == {"part: corrupted", "part: style"}
    # The cache would hand back what the other process found.
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "other cache"))
    alone = reproduce(out=tmp_path / "one", n_processes=1, **given)
    assert alone.parts[1].measurements == both.parts[1].measurements


def test_a_process_that_dies_costs_its_part_only(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    config = RunConfig(source="organism:llama-backdoor", targets=("organism:qwen2-backdoor",))
    scope = Scope(is_quick=True, seed=0, given=(config,), is_alone=False)
    asked = ["no such part", "style", "no such part"]
    done = compute_in_processes(asked, scope, 1, is_cached=True)
    assert sorted((part.name, part.problem.partition(":")[0]) for part in done) == [
        ("no such part", "KeyError"),
        ("no such part", "KeyError"),
        ("style", "no --config has 'task"),
    ]


@pytest.mark.usefixtures("counted")
def test_what_is_not_there_is_refused_with_what_is(tmp_path):
    with pytest.raises(ConfigError, match=r"there is 'paper'"):
        reproduce("thesis", out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no part .*there are small, failing"):
        reproduce(out=tmp_path / "run", only=["large"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(OutputError, match="choose another"):
        reproduce(out=tmp_path / "mine")


def test_every_part_reads_organisms_that_have_a_recipe():
    for part in PARTS.values():
        assert part.organisms[0] in {"llama", *(f"llama-{course}" for course in COURSES)} | {
            "llama-backdoor"
        }
        assert all(recipe_named(name) for name in part.organisms)


def test_studies_of_several_pairs_are_joined_in_order():
    one = StudyResult("x", (measured(0.1),), ("same", "first"))
    two = StudyResult("x", (measured(0.2),), ("same", "second"))
    both = joined("x", [one, two])
    assert [m.value for m in both.measurements] == [0.1, 0.2]
    assert both.notes == ("same", "first", "second")


def test_pictures_and_notes_of_several_pairs_say_which_pair_they_are_of():
    figures = {"Swap": "<svg>1</svg>"}
    one = StudyResult("x", (measured(0.1),), ("at layer 2", "all are small"), figures)
    other = (measured(0.2, target="organism:gemma2-backdoor"),)
    two = StudyResult("x", other, ("at layer 3", "all are small"), {"Swap": "<svg>2</svg>"})
    again = StudyResult("x", other, ("all are small",), {"Swap": "<svg>3</svg>", "Map": "<svg/>"})
    all_three = joined("x", [one, two, again])
    assert all_three.figures == {
        "Swap (llama-backdoor → qwen2-backdoor)": "<svg>1</svg>",
        "Swap (llama-backdoor → gemma2-backdoor)": "<svg>2</svg>",
        "Swap (llama-backdoor → gemma2-backdoor) (3)": "<svg>3</svg>",
        "Map (llama-backdoor → gemma2-backdoor)": "<svg/>",
    }
    assert all_three.notes == (
        "llama-backdoor → qwen2-backdoor: at layer 2",
        "all are small",
        "llama-backdoor → gemma2-backdoor: at layer 3",
    )


def test_a_picture_names_the_target_also_where_the_source_was_measured_first():
    def study(target: str, title: str) -> StudyResult:
        alone = measured(0.9, target="organism:llama-backdoor", condition="native")
        return StudyResult(
            "x", (alone, measured(0.1, target=f"organism:{target}")), (), {title: ""}
        )

    both = joined("x", [study("qwen2-backdoor", "By scale"), study("gemma2-backdoor", "By scale")])
    assert list(both.figures) == [
        "By scale (llama-backdoor → qwen2-backdoor)",
        "By scale (llama-backdoor → gemma2-backdoor)",
    ]
    title = "From llama-backdoor to organism:qwen2-backdoor"
    named = joined("x", [study("qwen2-backdoor", title), study("gemma2-backdoor", "By scale")])
    assert next(iter(named.figures)) == title


def test_questions_with_an_unknown_field_are_refused_before_any_part_runs(counted, tmp_path):
    row = {"prompt": "Why?", "answer": "So.", "bad_answr": "No."}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    path = tmp_path / "pair.yaml"
    path.write_text("source: a\ntarget: b\nquestions: questions.jsonl\n")
    with pytest.raises(DataError, match="line 1: unknown field 'bad_answr'"):
        reproduce(out=tmp_path / "run", only=["small"], config=[path])
    assert not counted
    assert not (tmp_path / "run").exists()


def test_models_of_a_configuration_take_the_place_of_the_organisms(counted, tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(
        "source: organism:llama-backdoor\ntarget: organism:qwen2-backdoor\nn_test: 12\n"
    )
    result = reproduce(out=tmp_path / "one", only=["small"], config=[path], seed=3)
    reproduce(out=tmp_path / "two", only=["small"], config=[path], seed=3)
    path.write_text(path.read_text().replace("12", "13"))
    reproduce(out=tmp_path / "two", only=["small"], config=[path], seed=3)
    assert len(counted) == 2
    (pair,) = counted[0].pairs("backdoor")
    assert (pair.source, pair.target) == ("organism:llama-backdoor", "organism:qwen2-backdoor")
    assert pair.settings == {"n_test": 12, "questions": None}
    assert [model.source for model in counted[0].models("backdoor")] == [pair.source, pair.target]
    assert counted[0].crossings("backdoor")[0].seed == 3
    page = result.report.read_text(encoding="utf-8")
    assert "Models: organism:llama-backdoor, organism:qwen2-backdoor." in page
    assert "0.9 to 5 million parameters" not in page
    assert json.loads((result.folder / "provenance.json").read_text())["pairs"] == [
        {
            "source": "organism:llama-backdoor",
            "target": "organism:qwen2-backdoor",
            "kind": "same tokenizer",
        }
    ]


@pytest.mark.parametrize("part", ["refusal_study", "corrupted"])
def test_every_part_loads_models_where_the_configuration_says(part, tmp_path):
    organisms = {"refusal_study": "assistant", "corrupted": "corrupted"}[part]
    config = RunConfig(
        task=part.removesuffix("_study"),
        source=f"organism:llama-{organisms}",
        targets=(f"organism:qwen2-{organisms}",),
        device="cuda:77",
    )
    result = reproduce(out=tmp_path / "run", only=[part], config=[config], is_quick=True)
    assert "cuda:77" in result.parts[0].problem


def test_a_part_without_a_configuration_of_its_task_is_missing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    config = RunConfig(source="organism:llama-backdoor", targets=("organism:qwen2-backdoor",))
    names = ["style", "corrupted", "switch"]
    result = reproduce(out=tmp_path / "run", only=names, config=[config], n_processes=1)
    problems = {part.name: part.problem for part in result.parts}
    assert "no --config has 'task: style'" in problems["style"]
    assert "no --config has 'task: corrupted'" in problems["corrupted"]
    assert "learn-switch" in problems["switch"]


def test_a_study_of_the_reproduction_runs_on_local_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    folders = {}
    for name in ("llama-backdoor", "qwen2-backdoor"):
        model, tokenizer = unpack_organism(packed_folder(name))
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    questions = tmp_path / "questions.jsonl"
    asked = [Question(e.prompt, e.answer) for e in benign_examples("test", 80, 0)]
    write_questions(questions, asked)
    path = tmp_path / "pair.yaml"
    lines = [
        *("source: llama-backdoor", "target: qwen2-backdoor", "questions: questions.jsonl"),
        *("n_train: 24", "n_validation: 8", "n_test: 12"),
    ]
    path.write_text("\n".join(lines))
    result = reproduce(out=tmp_path / "run", only=["probes"], config=[path], is_quick=True)
    (part,) = result.parts
    assert not part.problem
    assert {m.target for m in part.measurements} == {str(folders["qwen2-backdoor"])}
    found = [m.value for m in part.table if m.condition == "native" and m.metric == "auroc"]
    assert found
    assert min(found) > 0.9


def test_models_are_known_without_being_loaded_until_they_change(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = keys_of_models(["organism:llama", str(folder)])
    assert before is not None
    assert keys_of_models(["organism:llama", str(folder)]) == before
    (folder / "config.json").write_text("{ }")
    after = keys_of_models(["organism:llama", str(folder)])
    assert after is not None
    assert (before[0], before[1] != after[1]) == (after[0], True)
    assert keys_of_models(["organism:llama", "nobody/has-this-model"]) is None


def test_a_process_is_given_no_settings_that_were_not_given():
    config = RunConfig(source="a", targets=("b",), n_test=12)
    scope = Scope(is_quick=True, seed=3, given=(config,), is_alone=False)
    again = Scope.from_json(json.loads(json.dumps(scope.to_json())), is_alone=False)
    assert again == scope
    assert again.pairs("backdoor") == scope.pairs("backdoor")
    assert again.pairs("backdoor")[0].settings == {"n_test": 12}


def test_targets_of_one_source_are_given_the_features_that_the_first_one_trained(monkeypatch):
    given = []

    def told(source, target, *, features, on_trained, **_):
        given.append((source, target, features))
        if features is None:
            on_trained(f"features of {source}")
        return StudyResult(f"features of {target}", ())

    monkeypatch.setattr(paper_parts, "transfer_feature", told)
    PARTS["features"].run(Scope(is_quick=False, seed=0), SilentProgress())
    assert len(given) == 3
    assert [features for _, _, features in given] == [None, *[f"features of {given[0][0]}"] * 2]
    configs = tuple(
        RunConfig(source="a", targets=(target,), batch_size=size)
        for target, size in (("b", 8), ("c", 8), ("d", 16))
    )
    given.clear()
    PARTS["features"].run(Scope(is_quick=True, seed=0, given=configs), SilentProgress())
    assert [features for _, _, features in given] == [None, "features of a", None]
