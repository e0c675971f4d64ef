"""`sweep`: where and how strongly a direction works in one model, over layers, strengths, edits."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isthmus.core.identity import require_same_model
from isthmus.core.options import TaskName
from isthmus.core.places import require_replaceable
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import StageClock
from isthmus.directions.direction import Direction
from isthmus.directions.files import load_direction
from isthmus.evaluation.measurements import Measurement
from isthmus.models.calls import TokenMeter
from isthmus.models.hooks import metering
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import (
    Dtype,
    EditKind,
    RunConfig,
    make_config,
    read_config,
)
from isthmus.workflows.costs import Cost
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.generate import CARRY_FIRST
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.sweep_blocks import cut_into_blocks
from isthmus.workflows.sweep_cells import cells_of, edits_of, sites_of, strengths_of
from isthmus.workflows.sweep_files import scores_folder, write_sweep
from isthmus.workflows.sweep_race import RaceRules, SweepRace, SweptCell
from isthmus.workflows.sweep_scores import SweepScores
from isthmus.workflows.sweep_shards import SWEEP_WORKER, FarScores, NotesOnly, SweptPlaces
from isthmus.workflows.testing import measure_arms
from isthmus.workflows.twin_directions import origin_of
from isthmus.workflows.twins import read_splits

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Strengths that are tried where neither caller nor configuration names some."""

_RESAMPLES = 400


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        best: The chosen cell.
        finalists: The cells that completions were written for, best first.
        cells: Every cell, with the questions it was scored on and for what it was dropped.
        measurements: Every number: cells and finalists on validation, the chosen one on test.
        n_tokens: Positions that the model was run on to choose, padding included; also by sweeps
            that were stopped, for scores that are used here.
        n_tokens_full: What a completion per cell and question would take.
        seconds: Seconds that the choice took, those of such scores included.
        report: The HTML report; None when nothing was written.
    """

    best: SweptCell
    finalists: tuple[SweptCell, ...]
    cells: tuple[SweptCell, ...]
    measurements: tuple[Measurement, ...]
    n_tokens: int
    n_tokens_full: int
    seconds: float
    report: Path | None


def sweep(
    model: str | Path,
    direction: Direction | str | Path,
    *,
    config: RunConfig | str | Path | None = None,
    sites: str | Sequence[str | int | float] = "all",
    edits: str | Sequence[EditKind] = "add",
    positions: str | None = None,
    strengths: str | Sequence[float] | None = None,
    questions: str | Path | None = None,
    task: TaskName | None = None,
    out: str | Path | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    n_stages: int = 5,
    keep: float = 0.25,
    level: float = 0.995,
    n_finalists: int = 3,
    max_answer_tokens: int = 16,
    n_completions: int = 32,
    max_new_tokens: int | None = None,
    is_cached: bool = True,
    dtype: Dtype | None = None,
    device: str | None = None,
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Finds the layer, edit and strength at which a direction works best, without trying all fully.

    Cells are scored by the likelihood of given answers, on a growing share of the validation
    questions; of each stage the best share goes on, less what falls behind the leader beyond
    chance. Only finalists write completions. The chosen cell is measured once on the test
    questions. What is left out here comes from the configuration, and from the defaults of
    `RunConfig` without one.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        direction: A direction of this model, native or carried, or its folder.
        config: A run's configuration or its YAML file: questions, triggers, budgets of damage.
        sites: Where to try it: `all` of the direction's sites, or some of them.
        edits: One or more of `add`, `add_keeping_norm`, `ablate`, `set_coordinate`, `replace`, in
            one text with commas or as a list.
        positions: Where in the text; the positions at which the direction was learned when not
            given.
        strengths: In units of the direction's norm, above 0, in one text with commas or as a list.
        questions: JSONL of `prompt` and `answer`; the organisms' world when not given.
        task: What is measured: the backdoor, or a task of the package, which brings its prompts.
        out: Results folder to write; nothing is written when not given.
        n_validation: Questions that choose.
        n_test: Questions that the chosen cell is measured on.
        n_stages: Into how many growing shares the validation questions are cut; 1 scores every cell
            on all of them.
        keep: Share of the cells of a stage that goes on to the next, at most; 1 drops only what
            falls behind beyond chance.
        level: Share of paired resamples that must agree before a cell is dropped beyond chance.
        n_finalists: Cells that write completions.
        max_answer_tokens: How much of a given answer is scored, at least as far as the answers of
            a question differ.
        n_completions: Validation questions that finalists write completions to.
        max_new_tokens: Length of completions.
        is_cached: Whether scores of an earlier sweep that was stopped are used.
        dtype: Computation type.
        device: `auto`, `cpu`, `cuda`, …
        engine: Who scores cells: `local` is this process, `ray` workers of a Ray cluster, each with
            one thread and a model of its own; finalists answer here.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many workers.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        The chosen cell, all others, and what it cost.

    Raises:
        IdentityError: If the direction belongs to another model.
        SiteError: If the direction has no vector at a site.
        ConfigError: If an edit is unknown, there is none, or a number is out of range.
        StrengthError: If a strength is out of range.
        OutputError: If the place holds something else than a sweep.
    """
    chosen_engine = engine_named(engine, address, n_workers)
    rules = RaceRules(n_stages, keep, level, n_finalists, max_answer_tokens, n_completions)
    kinds = edits_of(edits)
    if out is not None:
        require_replaceable(Path(out), "cells.json")
    given = {
        "positions": positions,
        "strengths": None if strengths is None else strengths_of(strengths),
        "questions": None if questions is None else Path(questions),
        "task": task,
        "n_validation": n_validation,
        "n_test": n_test,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "device": device,
        "seed": seed,
    }
    base = _base(config, str(model), {name: one for name, one in given.items() if one is not None})
    lm = load_language_model(model, dtype=base.dtype, device=base.device)
    learned = direction if isinstance(direction, Direction) else load_direction(Path(direction))
    require_same_model("direction", learned.model, lm.identity, CARRY_FIRST)
    learned_in = origin_of(learned).model
    run = base.model_copy(update={"source": learned_in})
    where = learned.positions if run.positions == "auto" else run.positions
    splits = read_splits(run)
    cut = (tuple(rules.sizes(len(splits.validation))), rules.max_answer_tokens)
    tried = SweptPlaces(learned, sites_of(lm, learned, sites), kinds, where, run, splits, cut)
    clock = StageClock(progress or SilentProgress())
    chosen = _Choice(lm, tried, chosen_engine, clock)
    return chosen.result(rules, None if out is None else Path(out), is_cached=is_cached)


def summary_of(result: SweepResult) -> list[str]:
    """Says in lines which cells are best and what the choice cost.

    Args:
        result: What a sweep found.

    Returns:
        A line per finalist, best first, one about the others, one about the cost, and one about
        the report if there is any.
    """
    lines = []
    for place, cell in enumerate(result.finalists, start=1):
        arm = cell.arm
        dose = "" if arm.dose is None else f" ×{arm.dose:g}"
        rates = [
            f"{m.metric} {m.value:.2f} [{m.ci_low:.2f}, {m.ci_high:.2f}] of {m.n}"
            for m in result.measurements
            if m.split == "validation"
            and m.metric in {"behaviour_rate", "answer_accuracy"}
            and (m.target_site, m.edit, m.strength) == (str(arm.site), arm.edit, arm.dose)
            and None not in (m.value, m.ci_low, m.ci_high)
        ]
        lines.append(
            f"{place}. {arm.site} {arm.positions} {arm.edit}{dose}: effect "
            f"{cell.effect:.3f} and benign KL {cell.damage or 0.0:.3f} of {cell.n} questions, "
            + ", ".join(rates)
        )
    fates = [cell.fate for cell in result.cells]
    lines.append(
        f"{len(fates)} cells: {fates.count('in')} stayed in, {fates.count('effect')} dropped for "
        f"their effect, {fates.count('damage')} for their damage, {fates.count('share')} because "
        "enough others were better"
    )
    lines.append(
        f"cost: {result.n_tokens} tokens, {result.seconds:.0f} s; a completion per cell and "
        f"question takes {result.n_tokens_full} tokens"
    )
    return lines if result.report is None else [*lines, f"report: {result.report}"]


class _Choice:
    """One sweep over the cells of one direction."""

    def __init__(
        self, lm: LanguageModel, tried: SweptPlaces, engine: Engine, clock: StageClock
    ) -> None:
        self.lm, self.tried, self.engine, self.clock = lm, tried, engine, clock
        self.splits, self.config = tried.splits, tried.config
        places = tried.direction, tried.sites, tried.edits, tried.positions
        self.arms = cells_of(*places, tried.config)

    def result(self, rules: RaceRules, out: Path | None, *, is_cached: bool) -> SweepResult:
        """Chooses, measures the chosen cell on test, and writes the folder."""
        started = time.perf_counter()
        with metering(self.lm.layout) as meter:
            race, order = self._race(rules, meter, is_cached=is_cached)
            finalists = order[: rules.n_finalists]
            rows = self._validated(race, finalists, rules.n_completions)
        here = Cost(meter.n_tokens, time.perf_counter() - started)
        spent = race.scores.spent_before + here
        n_full = self._n_tokens_full()
        cells = race.cells()
        best = cells[order[0]]
        rows += self._costs(best, spent, n_full)
        rows += self._tested(best)
        if out is not None:
            facts = {
                "seeds": {"seed": self.config.seed},
                "models": {self.lm.identity.name: self.lm.identity.to_json()},
                "sweep": {**asdict(rules), "n_stages": race.n_stages, "n_cells": len(cells)},
            }
            write_sweep(out, rows, cells, best, self.config, facts, self.clock)
        return SweepResult(
            best,
            tuple(cells[cell] for cell in order[: rules.n_finalists]),
            tuple(cells),
            tuple(rows),
            spent.n_tokens,
            n_full,
            spent.seconds,
            None if out is None else out / "report.html",
        )

    def _race(
        self, rules: RaceRules, meter: TokenMeter, *, is_cached: bool
    ) -> tuple[SweepRace, list[int]]:
        sizes, n_tokens = self.tried.cut
        blocks = cut_into_blocks(self.lm, self.splits.validation, sizes, self.config, n_tokens)
        cut = (*sizes, n_tokens)
        folder = scores_folder(
            self.lm, self.tried.direction, self.arms, self.splits, cut, self.config
        )
        with ExitStack() as stack:
            far = None
            if not isinstance(self.engine, LocalEngine):
                quiet = NotesOnly(self.clock)
                held = self.engine.hold(SWEEP_WORKER, self.tried.to_json(), quiet)
                far = FarScores(stack.enter_context(held), meter)
            advance = stack.enter_context(self.clock.stage("score cells", None))
            kept = folder if is_cached else None
            race = SweepRace(SweepScores(blocks, self.arms, kept, advance, far), self.config, rules)
            return race, race.run()

    def _recorder(self, split: str, n_resamples: int = 2000) -> Recorder:
        name = self.lm.identity.name
        return Recorder(self.config, self.config.source, name, split, n_resamples)

    def _validated(
        self, race: SweepRace, finalists: Sequence[int], n_completions: int
    ) -> list[Measurement]:
        """Returns every cell's numbers on validation; finalists answer as well."""
        recorder = self._recorder("validation", _RESAMPLES)
        cells = race.cells()
        benign = [turn for block in race.scores.blocks for turn in block.benign_turns]
        rows: list[Measurement] = []
        for cell, arm in enumerate(self.arms):
            scores, damage = race.scores_of(cell)
            rows += recorder.effects(arm, scores.losses)
            ways = scores.ways(removal_only=arm.edit == "ablate")
            n, turned = len(scores.removal.turned), min((o.turned.tolist() for o in ways), key=sum)
            rows += [
                recorder.record(arm, "sweep_effect", cells[cell].effect, n),
                recorder.rate(arm, "turned_rate", turned, scores.losses.removal.contents),
            ]
            if damage is not None:
                known = benign[: len(damage.divergence)]
                rows.append(recorder.divergence(arm, damage.divergence, known))
        bench = Bench(self.lm, self.splits.validation[:n_completions], self.config)
        with self.clock.stage("let finalists answer", len(finalists)) as advance:
            for cell in finalists:
                arm = self.arms[cell]
                rows += recorder.behaviour(arm, bench.complete(arm), bench.asked(arm))
                advance(1)
        return rows

    def _tested(self, best: SweptCell) -> list[Measurement]:
        test = Bench(self.lm, self.splits.test, self.config)
        arms = [Arm("none"), Arm("clean"), best.arm]
        return measure_arms(test, self._recorder("test"), arms, best.arm, self.clock).measurements

    def _costs(self, best: SweptCell, spent: Cost, n_full: int) -> list[Measurement]:
        values = {
            "target_tokens": float(spent.n_tokens),
            "seconds": spent.seconds,
            "relative_cost": spent.n_tokens / n_full,
        }
        recorder = self._recorder("validation")
        return [recorder.record(best.arm, name, value, 1) for name, value in values.items()]

    def _n_tokens_full(self) -> int:
        """Counts what a completion per cell and question takes: prompts and new tokens."""
        bench = Bench(self.lm, self.splits.validation, self.config)
        n_prompt = sum(text.n_prompt for text in bench.encoded.triggered)
        n_new = bench.n_new_tokens * len(bench.twins)
        return len(self.arms) * (n_prompt + n_new)


def _base(config: RunConfig | str | Path | None, model: str, given: Mapping[str, Any]) -> RunConfig:
    if config is None:
        fields = {"source": model, "targets": [model], "strengths": STRENGTHS, **given}
        return make_config(fields)
    read = config if isinstance(config, RunConfig) else read_config(config)
    # Checked as a whole: an option may not fit what the file says.
    return make_config({**read.model_dump(), **given, "targets": [model]})
