import json
import re
from pathlib import Path

import pytest
import torch
from tests.workflows.small import brief_config, save_tiny

from isthmus.evaluation.measurements import CONDITIONS, read_results
from isthmus.workflows.report import report
from isthmus.workflows.run import RunResult, run

EFFECTS = ("recovery", "swap")


def llama(folder: Path) -> str:
    """A tiny model with a chat template, float32."""
    return save_tiny(folder)


def gpt2(folder: Path) -> str:
    """Another family, width, depth, tokenizer and number format; no chat template."""
    return save_tiny(
        folder,
        "gpt2",
        kind="metaspace",
        dtype=torch.bfloat16,
        has_template=False,
        n_layers=3,
        hidden_size=24,
        seed=1,
    )


def qwen2(folder: Path) -> str:
    """A narrower target than source, in bfloat16, with a chat template."""
    return save_tiny(folder, "qwen2", dtype=torch.bfloat16, hidden_size=8, n_layers=1, seed=2)


@pytest.fixture(
    scope="module",
    params=[(llama, gpt2), (gpt2, llama), (gpt2, qwen2)],
    ids=["llama-gpt2", "gpt2-llama", "gpt2-qwen2"],
)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run between two folders of models that nobody has seen."""
    folder = tmp_path_factory.mktemp("unseen")
    make_source, make_target = request.param
    config = brief_config(
        make_source(folder / "source"),
        make_target(folder / "target"),
        maps=["ridge", "autoencoder", "identity"],
    )
    return run(config, out=folder / "run")


def test_two_models_nobody_has_seen_are_crossed_under_every_condition(result: RunResult):
    measured = read_results(result.folder / "results.jsonl")
    assert measured == list(result.measurements)
    # Where the identity map cuts a direction off, there is nothing left to compare.
    assert {m.condition for m in measured} >= set(CONDITIONS) - {"identity_map"}


def test_what_models_without_the_behaviour_leave_undefined_is_null_and_never_a_number(
    result: RunResult,
):
    written = (result.folder / "results.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    tested = [m for m in lines if m["split"] == "test" and m["metric"] in EFFECTS]
    assert tested
    for m in tested:
        assert (m["value"], m["ci_low"], m["ci_high"]) == (None, None, None)


def test_a_note_says_that_the_target_does_not_show_the_behaviour(result: RunResult):
    target = next(m.target for m in result.measurements)
    assert any(
        note.startswith(f"{target} does not show the behaviour") and "undefined" in note
        for note in result.notes
    )
    provenance = json.loads((result.folder / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["crossings"][0]["notes"] == list(result.notes)


def test_the_report_of_undefined_numbers_says_so_and_can_be_written_again(result: RunResult):
    page = result.report.read_text(encoding="utf-8")
    assert "undefined" in page
    # Plots may hold such letters within their encoded bytes.
    assert not re.search(r">\s*(nan|None)\b", page)
    result.report.unlink()
    assert report(result.folder) == result.report
    assert result.report.read_text(encoding="utf-8") == page
