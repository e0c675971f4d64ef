import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.workflows.small import TARGET, small_config

import isthmus
from isthmus.carrying.scaling import random_direction_like
from isthmus.core.artifacts import read_json
from isthmus.core.errors import ConfigError, IdentityError, OutputError, SiteError, StrengthError
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.directions.files import save_direction
from isthmus.evaluation.measurements import read_results
from isthmus.models.language_model import load_language_model
from isthmus.models.scoring import answer_logprobs
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.bench import Bench
from isthmus.workflows.selection import Scored, best_within
from isthmus.workflows.sweep import SweepResult, summary_of
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import read_splits

SIZES = {"n_validation": 24, "n_test": 8, "max_new_tokens": 8}
CONFIG = small_config(target=TARGET, source=TARGET, strengths=[0.75, 1.0, 3.0], **SIZES)


def place_of(result: SweepResult) -> tuple[Any, ...]:
    return result.best.arm.site, result.best.arm.edit, result.best.arm.strength


@pytest.fixture(scope="module")
def direction() -> Direction:
    lm = load_language_model(TARGET)
    sites = [Site(1), Site(3)]
    return learn_twin_direction(lm, read_splits(CONFIG).train, sites, "last:3", CONFIG)


@pytest.fixture(scope="module")
def swept(direction: Direction, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return isthmus.sweep(
        TARGET,
        direction,
        config=CONFIG,
        edits="add,ablate",
        n_finalists=2,
        n_completions=10,
        is_cached=False,
        out=tmp_path_factory.mktemp("sweep") / "out",
    )


@pytest.fixture(scope="module")
def whole(direction: Direction) -> SweepResult:
    return isthmus.sweep(
        TARGET,
        direction,
        config=CONFIG,
        edits="add,ablate",
        n_stages=1,
        max_answer_tokens=99,
        is_cached=False,
    )


def effect_one_by_one(bench: Bench, arm: Arm) -> float:
    """Recovery × share of answers that turned, by whole passes and without what a sweep shares."""
    scores, found = bench.score(arm), []
    read = bench.encoded
    for way, losses, texts, rivals in (
        ("removal", scores.removal, read.triggered, read.triggered_bad),
        ("induction", scores.induction, read.clean_bad, read.clean),
    )[: 1 if arm.edit == "ablate" else 2]:
        intervention = arm.intervention(cast(Way, way))
        assert intervention is not None
        logprobs = answer_logprobs(bench.lm, texts, edits=intervention.place)
        turned = []
        for row, text, rival in zip(logprobs, texts, rivals, strict=True):
            own, other = text.token_ids[text.n_prompt :], rival.token_ids[rival.n_prompt :]
            at = next(i for i in range(len(own)) if own[i] != other[i])
            turned.append(bool(row[at, own[at]] > row[at, other[at]]))
        recovered = losses.ratios(np.arange(len(turned))[None])[0]
        found.append(float(recovered) * float(np.mean(turned)))
    return min(found)


def test_a_sweep_on_all_questions_scores_cells_as_one_by_one(whole: SweepResult):
    bench = Bench(load_language_model(TARGET), read_splits(CONFIG).validation, CONFIG)
    scored = []
    for cell in whole.cells:
        effect = effect_one_by_one(bench, cell.arm)
        change = bench.benign_change(cell.arm)
        damage = float(change.divergence.double().mean())
        scored.append(Scored(cell.arm, effect, damage, change.accuracy_loss))
        assert cell.effect == pytest.approx(effect, abs=1e-5)
        assert cell.damage is None or cell.damage == pytest.approx(damage, abs=1e-5)
    best = best_within(scored, CONFIG).arm
    assert place_of(whole) == (best.site, best.edit, best.strength)


def test_growing_shares_of_the_questions_choose_the_same_cell(
    swept: SweepResult, whole: SweepResult
):
    assert place_of(swept) == place_of(whole)
    assert {cell.n for cell in swept.cells} == {8, 24}
    assert sum(cell.n for cell in swept.cells) < sum(cell.n for cell in whole.cells)


def test_the_results_folder_holds_every_cell_and_a_report(swept: SweepResult):
    assert swept.report is not None
    folder = swept.report.parent
    rows = read_results(folder / "results.jsonl")
    assert rows == list(swept.measurements)
    swaps = [m for m in rows if (m.split, m.metric) == ("validation", "swap")]
    assert len(swaps) == len(swept.cells) == 8
    assert {m.n for m in swaps} == {cell.n for cell in swept.cells}
    written = [m for m in rows if (m.split, m.metric) == ("validation", "behaviour_rate")]
    assert len(written) == len(swept.finalists) == 2
    assert {m.n for m in written} == {10}
    assert {m.condition for m in rows if m.split == "test"} == {"none", "clean", "native"}
    kept = read_json(folder / "cells.json")
    assert [one["fate"] for one in kept].count("chosen") == 1
    assert "<svg" in (folder / "sweep-add.svg").read_text(encoding="utf-8")
    assert "<svg" in swept.report.read_text(encoding="utf-8")
    assert read_json(folder / "provenance.json")["sweep"]["n_cells"] == 8
    assert any("cells" in line for line in summary_of(swept))


def test_a_stopped_sweep_goes_on_where_it_stood(
    direction: Direction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    whole = Bench.score_all
    scored: list[int] = []

    def counted(self: Bench, arms: Any) -> Any:
        scored.append(len(arms))
        return whole(self, arms)

    def stopped(_self: Bench, _arms: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "benign_changes", stopped)
    with pytest.raises(KeyboardInterrupt):
        isthmus.sweep(TARGET, direction, config=CONFIG, sites="1")
    monkeypatch.undo()
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Bench, "score_all", counted)
    first = isthmus.sweep(TARGET, direction, config=CONFIG, sites="1")
    n_first = sum(scored)
    fresh = isthmus.sweep(TARGET, direction, config=CONFIG, sites="1", is_cached=False)
    n_fresh = sum(scored) - n_first
    assert n_first == n_fresh - len(first.cells)
    assert [(c.effect, c.n, c.fate) for c in first.cells] == [
        (c.effect, c.n, c.fate) for c in fresh.cells
    ]
    # What the stopped one had scored counts; the check that passes may share is made once more.
    assert fresh.n_tokens <= first.n_tokens < 1.1 * fresh.n_tokens
    again = isthmus.sweep(TARGET, direction, config=CONFIG, sites="1")
    assert again.n_tokens == first.n_tokens
    assert again.seconds > fresh.seconds / 2
    costs = {m.metric: m.value for m in again.measurements if m.metric == "relative_cost"}
    assert costs == {"relative_cost": first.n_tokens / first.n_tokens_full}


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"edits": "add,enlarge"}, ConfigError, "enlarge"),
        ({"strengths": "1,two"}, ConfigError, "two"),
        ({"strengths": "1,2000"}, StrengthError, "2000"),
        ({"sites": "resid_post[0]"}, SiteError, "no vectors"),
        ({"n_stages": 0}, ConfigError, "n_stages"),
        ({"n_finalists": 0}, ConfigError, "n_finalists"),
        ({"level": 1.0}, ConfigError, "level"),
        ({"keep": 0.0}, ConfigError, "keep"),
        ({"max_answer_tokens": 0}, ConfigError, "max_answer_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(
    direction: Direction, given: dict[str, Any], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        isthmus.sweep(TARGET, direction, config=CONFIG, **given)


def test_a_direction_of_another_model_is_refused(direction: Direction):
    with pytest.raises(IdentityError, match="carry it"):
        isthmus.sweep("organism:gemma2-backdoor", direction)


def test_a_folder_that_holds_something_else_is_refused(direction: Direction, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"holds no cells\.json and is not a results folder"):
        isthmus.sweep(TARGET, direction, out=tmp_path)


def test_a_sweep_reads_a_direction_and_a_configuration_from_files(
    direction: Direction, tmp_path: Path
):
    save_direction(
        tmp_path / "direction",
        random_direction_like(direction, torch.Generator().manual_seed(0)),
    )
    fields = json.loads(CONFIG.model_dump_json(exclude_none=True))
    (tmp_path / "config.yaml").write_text(json.dumps(fields), encoding="utf-8")
    found = isthmus.sweep(
        TARGET,
        tmp_path / "direction",
        config=tmp_path / "config.yaml",
        strengths="0.5",
        n_validation=4,
        n_test=4,
        n_finalists=1,
    )
    assert {cell.arm.strength for cell in found.cells} == {0.5}
    assert found.best.n == 4
    assert found.report is None
