"""The distilled-switch study: a source's switch to its base, carried to other fine-tuned models.

1. What the source changes between a prompt with the bad trigger and its clean twin goes through an
   all-layers map to each target, fitted on states and on differences of twins, and is refitted
   there as a low-rank function of the target's own state (`workflows/switch_distilling.py`). The
   target's own base is not read. Beside it: the same through a ridge map of states alone.
2. Beside it stand the native switch of the same rank, fitted on the target's own base, and the
   controls: the distilled one turned by a random rotation, a map of shuffled pairs, no map at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isthmus.carrying.switches import Switch, rotated_switch
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_arms import method_label
from isthmus.studies.switch_measuring import SwitchArm
from isthmus.studies.switch_questions import (
    SwitchBenchSettings,
    SwitchStudySizes,
    world_families,
)
from isthmus.studies.switch_study import table_rows
from isthmus.workflows.learn_switch import (
    SwitchRecipe,
    switch_from_texts,
    world_prompts,
    world_questions,
)
from isthmus.workflows.switch_distilling import DistillSettings, distil_switch, read_switch
from isthmus.workflows.switch_fitting import answered_texts
from isthmus.workflows.twin_reading import TwinReadingSettings

Pair = tuple[LanguageModel, LanguageModel]
Prompts = tuple[str, ...]

CONDITIONS = {
    "ridge_contrast": "transferred",
    "ridge": "transferred",
    "shuffled_map": "shuffled_map",
    "identity_map": "identity_map",
}
"""Maps between the models, and the condition of a switch that came through each."""

DISTILLED_SIZES = SwitchStudySizes(n_train=48, n_validation=12, n_test=80)
"""Closed-form switches need fewer questions than trained ones."""


@dataclass(frozen=True)
class _Run:
    """One draw of questions and controls, with what the source has learned on them."""

    sizes: SwitchStudySizes
    recipe: SwitchRecipe
    prompts: tuple[Prompts, Prompts]
    progress: Progress

    @property
    def seed(self) -> int:
        return self.recipe.seed


def study_distilled_switch(
    source: tuple[str | LanguageModel, str | LanguageModel],
    targets: Sequence[tuple[str | LanguageModel, str | LanguageModel]],
    *,
    rank: int = 16,
    sizes: SwitchStudySizes | None = None,
    seed: int = 0,
    n_seeds: int = 2,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well a source's switch to its base works in other fine-tuned models.

    Args:
        source: Base and fine-tuned model in which the switch is learned.
        targets: Bases and fine-tuned models that it is carried to; a base is read only for the
            native switch and to measure against.
        rank: Rank of every switch's edits.
        sizes: How many questions.
        seed: Questions, controls, resamples of the first repetition.
        n_seeds: How often everything is repeated, each time with the next seed.
        progress: Who shows progress.

    Returns:
        Measurements of every arm in every target, and a table.
    """
    shown, wanted = progress or SilentProgress(), sizes or DISTILLED_SIZES
    origin = _loaded(source)
    runs = [_run_of(SwitchRecipe(rank=rank, seed=seed + i), wanted, shown) for i in range(n_seeds)]
    learned = [_own_switch(origin, run) for run in runs]
    rows: list[Measurement] = []
    table: list[dict[str, str]] = []
    for target in targets:
        pair = _loaded(target)
        measured = [
            row
            for run, switch in zip(runs, learned, strict=True)
            for row in _one_target((switch, origin[1]), pair, run)
        ]
        rows += measured
        n_parameters = sum(value.numel() for value in pair[1].model.parameters())
        name = pair[1].identity.name
        table += [{"target": name, **line} for line in table_rows(measured, n_parameters)]
    notes = ("the target's own base was read for the native switch and the measurement only",)
    return StudyResult("distilled_switch", tuple(rows), notes, rows=tuple(table))


def _loaded(pair: tuple[str | LanguageModel, str | LanguageModel]) -> Pair:
    base, fine_tuned = (
        one if isinstance(one, LanguageModel) else load_language_model(one) for one in pair
    )
    return base, fine_tuned


def _run_of(recipe: SwitchRecipe, sizes: SwitchStudySizes, progress: Progress) -> _Run:
    train, validation = (
        world_prompts(world_questions(split, n, recipe.seed))
        for split, n in (("train", sizes.n_train), ("validation", sizes.n_validation))
    )
    return _Run(sizes, recipe, (train, validation), progress)


def _one_target(source: tuple[Switch, LanguageModel], target: Pair, run: _Run) -> list[Measurement]:
    base, carrier = target
    arms = [SwitchArm("none", "none", carrier, seed=run.seed)]
    arms += [
        SwitchArm(
            condition,
            label,
            carrier,
            switch.intervention().place,
            switch.n_parameters,
            ", ".join(map(str, switch.sites)),
            seed=run.seed,
        )
        for (condition, label), switch in _switches(source, target, run).items()
    ]
    settings = SwitchBenchSettings("distilled_switch", "test", run.sizes.max_new_tokens, run.seed)
    bench = settings.bench((carrier, base), world_families("test", run.sizes.n_test, run.seed))
    return [row for arm in arms for row in bench.measure(arm)]


def _switches(
    source: tuple[Switch, LanguageModel], target: Pair, run: _Run
) -> dict[tuple[str, str], Switch]:
    """Returns the native switch, carried ones and a turned one, by condition and label."""
    of_source, source_lm = source
    base, carrier = target
    rank = run.recipe.rank
    own = _own_switch(target, run)
    switches = {("native", method_label("sequential", rank)): own}
    wanted = TwinReadingSettings(
        triggers=(BAD_TRIGGER, CLEAN_TRIGGER), max_new_tokens=run.sizes.max_new_tokens
    )
    reading = read_switch((source_lm, carrier), run.prompts, wanted, of_source)
    for method, condition in CONDITIONS.items():
        settings = DistillSettings(rank, method, seed=run.seed)
        switches[condition, method] = distil_switch(
            reading, of_source, base.identity, settings, run.progress
        )
    carried = switches["transferred", "ridge_contrast"]
    generator = torch.Generator().manual_seed(run.seed)
    switches["random", "ridge_contrast"] = rotated_switch(carried, generator)
    return switches


def _own_switch(pair: Pair, run: _Run) -> Switch:
    texts = [
        answered_texts(pair[0], part, max_new_tokens=run.sizes.max_new_tokens, batch_size=64)
        for part in run.prompts
    ]
    return switch_from_texts(pair, (texts[0], texts[1]), "base", run.recipe, run.progress)
