"""A sweep as files: where its scores are kept while it runs, and its results folder."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from isthmus.core.artifacts import write_json
from isthmus.core.places import atomic_folder, write_text
from isthmus.core.provenance import StageClock, code_hash, machine, package_versions, source_commit
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement, write_results
from isthmus.evaluation.plots import layer_heat_map
from isthmus.evaluation.report import render_report
from isthmus.models.language_model import LanguageModel
from isthmus.models.organisms import cache_folder
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import RunConfig
from isthmus.workflows.sweep_race import SweptCell
from isthmus.workflows.twins import TwinSplits


def scores_folder(
    lm: LanguageModel,
    direction: Direction,
    arms: Sequence[Arm],
    splits: TwinSplits,
    cut: Sequence[int],
    config: RunConfig,
) -> Path:
    """Returns where the scores of a sweep lie, or will lie, in the cache.

    Args:
        lm: The model that is steered.
        direction: What it is steered with.
        arms: The cells, in order.
        splits: The questions.
        cut: How validation questions are cut into blocks, and their answers.
        config: The run.

    Returns:
        A folder whose name changes with all of these, with isthmus' own code and with versions.
    """
    digest = hashlib.sha256()
    for site, one in direction.by_site.items():
        digest.update(str(site).encode() + one.vectors.float().cpu().numpy().tobytes())
        digest.update(one.negative_mean.float().cpu().numpy().tobytes())
        digest.update(one.positive_mean.float().cpu().numpy().tobytes())
    cells = [[str(arm.site), arm.positions, arm.edit, arm.strength] for arm in arms]
    settings = [config.task, config.batch_size, config.dtype, list(cut), cells]
    content = [lm.identity.to_json(), digest.hexdigest(), settings, repr(splits.validation)]
    content += [package_versions(), code_hash()]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "sweeps" / key[:32]


def write_sweep(
    out: Path,
    measurements: Sequence[Measurement],
    cells: Sequence[SweptCell],
    best: SweptCell,
    config: RunConfig,
    facts: Mapping[str, Any],
    clock: StageClock,
) -> dict[str, str]:
    """Writes the results folder of a sweep as a whole.

    Args:
        out: The folder; an earlier sweep there is replaced.
        measurements: Every number.
        cells: Every cell.
        best: The cell that was chosen.
        config: The run.
        facts: What else belongs into `provenance.json`.
        clock: Stages with their seconds.

    Returns:
        Heat maps of the effect by layer and strength, as SVG text by file name.
    """
    figures = heat_maps(measurements, best)
    with atomic_folder(out, replace=True) as folder:
        write_results(folder / "results.jsonl", measurements)
        write_json(folder / "cells.json", [cell_to_json(cell, best) for cell in cells])
        for name, svg in figures.items():
            write_text(folder / name, svg)
        fields = json.loads(config.model_dump_json())
        write_text(folder / "config.yaml", yaml.safe_dump(fields, sort_keys=False))
        provenance = {
            "commit": source_commit(),
            "versions": package_versions(),
            "machine": machine(),
            **facts,
            "stages": clock.to_json(),
        }
        write_json(folder / "provenance.json", provenance)
        render_report(folder)
    return figures


def cell_to_json(cell: SweptCell, best: SweptCell) -> dict[str, Any]:
    """Returns a cell as a line of `cells.json`."""

    def number(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value

    return {
        "site": str(cell.arm.site),
        "positions": cell.arm.positions,
        "edit": cell.arm.edit,
        "strength": cell.arm.dose,
        "effect": number(cell.effect),
        "benign_kl": number(cell.damage),
        "accuracy_loss": number(cell.accuracy_loss),
        "n": cell.n,
        "stage": cell.stage,
        "fate": "chosen" if cell is best else cell.fate,
    }


def heat_maps(measurements: Sequence[Measurement], best: SweptCell) -> dict[str, str]:
    """Draws the effect of every cell by layer and strength, one picture per edit.

    Args:
        measurements: Those of the validation split are drawn.
        best: The cell that is outlined.

    Returns:
        SVG text by file name; edits with one layer have no picture.
    """
    figures = {}
    for edit in dict.fromkeys(m.edit for m in measurements if m.edit and m.target_site):
        here = [
            m
            for m in measurements
            if (m.split, m.edit, m.metric) == ("validation", edit, "sweep_effect") and m.target_site
        ]
        chosen = [
            m
            for m in here
            if best.arm.edit == edit
            and (m.target_site, m.strength) == (str(best.arm.site), best.arm.dose)
        ]
        title = f"Effect by layer and strength, {edit}"
        if drawn := layer_heat_map(here, chosen, f"sweep-{edit}", title):
            figures[f"sweep-{edit}.svg"] = drawn
    return figures
