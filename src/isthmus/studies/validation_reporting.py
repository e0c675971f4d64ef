"""What a validation reports beside its measurements: figures, completions, changes by question."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from isthmus.core.sites import Site
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.validation_plots import replacement_bars
from isthmus.maps.base import AffineMap
from isthmus.studies.replacement_measuring import TASK, Examined, Treatment
from isthmus.studies.text_sets import SETS, TextSet
from isthmus.workflows.arms import Arm
from isthmus.workflows.pairing import PairedRows

_N_SHOWN = 4

Changes = list[Float[np.ndarray, " text"]]
"""Per set, how a yes or no changed question by question: -1, 0 or 1."""


@dataclass(frozen=True)
class Tested:
    """One treatment on one set.

    Attributes:
        treatment: What was done.
        texts: The set.
        done: What came of it.
    """

    treatment: Treatment
    texts: TextSet
    done: Examined


def changes(tested: Sequence[Tested], steering: Arm, marker: str) -> tuple[Changes, Changes]:
    """Returns how an edit changes rightness and triggering on the benign sets.

    Args:
        tested: Every treatment on every set, the untouched target among them.
        steering: The arm whose effect is wanted.
        marker: What a completion with the behaviour holds.

    Returns:
        Per benign set the changes of rightness, and those of triggering.
    """
    right, triggered = [], []
    for before in tested:
        if before.treatment.arm.condition != "none" or before.texts.name == "bad_trigger":
            continue
        after = next(
            one
            for one in tested
            if one.treatment.arm is steering and one.texts.name == before.texts.name
        )
        sides = [
            (
                np.array([w == a.strip() for w, a in zip(c, before.texts.answers, strict=True)]),
                np.array([marker in w for w in c]),
            )
            for c in (before.done.completions, after.done.completions)
        ]
        right.append(sides[1][0].astype(float) - sides[0][0])
        triggered.append(sides[1][1].astype(float) - sides[0][1])
    return right, triggered


def mean_map(rows: PairedRows) -> AffineMap:
    """Returns the map that knows only the mean state of the training texts: mean ablation.

    Args:
        rows: Paired activations of the training texts.

    Returns:
        A constant map, so that ablation takes place at the same positions as replacement.
    """
    d_source = rows.source.shape[1]
    return AffineMap(
        torch.zeros(d_source, rows.target.shape[1]),
        torch.zeros(d_source),
        rows.target.double().mean(0).float(),
        "mean",
    )


def replacement_figures(measured: Sequence[Measurement], sites: Sequence[Site]) -> dict[str, str]:
    """Draws what replacement leaves of the target, per site and set.

    Args:
        measured: Every measurement.
        sites: The sites that were replaced.

    Returns:
        SVG text by title.
    """
    figures = {}
    for number, site in enumerate(sites):
        for name in SETS:
            shown = [
                m
                for m in measured
                if m.task == f"{TASK}/{name}"
                and (m.condition == "none" or (m.target_site == str(site) and m.edit == "replace"))
            ]
            title = f"All states of {site} replaced, {name.replace('_', ' ')}"
            if svg := replacement_bars(shown, f"replaced-{number}-{name.replace('_', '-')}", title):
                figures[title] = svg
    return figures


def side_by_side(tested: Sequence[Tested]) -> tuple[dict[str, str], ...]:
    """Returns the first completions of every set under every treatment.

    Args:
        tested: Every treatment on every set.

    Returns:
        One row per shown prompt.
    """
    rows = []
    for name in dict.fromkeys(one.texts.name for one in tested):
        here = [one for one in tested if one.texts.name == name and one.done.completions]
        for i in range(min(_N_SHOWN, *(len(one.done.completions) for one in here))):
            row = {"set": name, "prompt": here[0].texts.prompts[i]}
            row |= {_label(one.treatment.arm): one.done.completions[i] for one in here}
            rows.append(row)
    return tuple(rows)


def _label(arm: Arm) -> str:
    seed = str(arm.seed) if arm.condition == "random" else None
    site = None if arm.site is None else str(arm.site)
    return " ".join(part for part in (arm.condition, arm.map_method, arm.edit, site, seed) if part)
