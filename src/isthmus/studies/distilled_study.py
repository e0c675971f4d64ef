"""The distilled-switch study: a source's switch to its base, carried to other fine-tuned models.

1. What the source changes between a prompt with the bad trigger and its clean twin goes through an
   all-layers ridge map to each target and is refitted there as a low-rank function of the target's
   own state (`distilled_switch.py`). The target's own base is not read.
2. Beside it stand the native switch of the same rank, fitted on the target's own base, and the
   controls: the distilled one turned by a random rotation, a map of shuffled pairs, no map at all.
"""

from collections.abc import Sequence

import torch

from isthmus.carrying.switches import Switch, rotated_switch
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.distilled_switch import DistillSettings, distil_switch
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_arms import method_label
from isthmus.studies.switch_measuring import SwitchArm
from isthmus.studies.switch_study import SwitchStudySizes, switch_bench, table_rows
from isthmus.workflows.learn_switch import (
    SwitchRecipe,
    switch_from_texts,
    world_prompts,
    world_questions,
)
from isthmus.workflows.switch_fitting import answered_texts

Pair = tuple[LanguageModel, LanguageModel]
Prompts = tuple[str, ...]

CONTROLS = {"ridge": "transferred", "shuffled_map": "shuffled_map", "identity_map": "identity_map"}
"""Maps between the models, and the condition of a switch that came through each."""


def study_distilled_switch(
    source: tuple[str | LanguageModel, str | LanguageModel],
    targets: Sequence[tuple[str | LanguageModel, str | LanguageModel]],
    *,
    rank: int = 16,
    sizes: SwitchStudySizes | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well a source's switch to its base works in other fine-tuned models.

    Args:
        source: Base and fine-tuned model in which the switch is learned.
        targets: Bases and fine-tuned models that it is carried to; a base is read only for the
            native switch and to measure against.
        rank: Rank of every switch's edits.
        sizes: How many questions.
        seed: Questions, controls, resamples.
        progress: Who shows progress.

    Returns:
        Measurements of every arm in every target, and a table.
    """
    shown, wanted = progress or SilentProgress(), sizes or SwitchStudySizes()
    origin = _loaded(source)
    rows: list[Measurement] = []
    table: list[dict[str, str]] = []
    for target in targets:
        pair = _loaded(target)
        measured = _one_target(origin, pair, rank, wanted, (seed, shown))
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


def _one_target(
    source: Pair,
    target: Pair,
    rank: int,
    sizes: SwitchStudySizes,
    run: tuple[int, Progress],
) -> list[Measurement]:
    seed, progress = run
    base, carrier = target
    recipe = SwitchRecipe(rank=rank, seed=seed)
    train, validation = (
        world_prompts(world_questions(split, n, seed))
        for split, n in (("train", sizes.n_train), ("validation", sizes.n_validation))
    )
    switches = _switches(
        source, target, (train, validation), recipe, (sizes.max_new_tokens, progress)
    )
    arms = [SwitchArm("none", "none", carrier)]
    arms += [
        SwitchArm(
            condition,
            label,
            carrier,
            switch.intervention().place,
            switch.n_parameters,
            ", ".join(map(str, switch.sites)),
            draw,
        )
        for (condition, label, draw), switch in switches.items()
    ]
    bench = switch_bench(
        (carrier, base),
        world_questions("test", sizes.n_test, seed),
        task="distilled_switch",
        split="test",
        max_new_tokens=sizes.max_new_tokens,
        seed=seed,
    )
    return [row for arm in arms for row in bench.measure(arm)]


def _switches(
    source: Pair,
    target: Pair,
    prompts: tuple[Prompts, Prompts],
    recipe: SwitchRecipe,
    run: tuple[int, Progress],
) -> dict[tuple[str, str, int], Switch]:
    """Returns the native switch, carried ones and a turned one, by condition, label and draw."""
    (max_new_tokens, progress), rank, seed = run, recipe.rank or 0, recipe.seed
    own, of_source = (
        _own_switch(pair, prompts, recipe, (max_new_tokens, progress)) for pair in (target, source)
    )
    switches = {("native", method_label("sequential", rank), seed): own}
    for method, condition in CONTROLS.items():
        settings = DistillSettings(
            rank,
            map_method=method,
            triggers=(BAD_TRIGGER, CLEAN_TRIGGER),
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        switches[condition, method, seed] = distil_switch(
            of_source, source[1], target[1], target[0].identity, prompts, settings, progress
        )
    carried = switches["transferred", "ridge", seed]
    turned = rotated_switch(carried, torch.Generator().manual_seed(seed))
    switches["random", "ridge", seed] = turned
    return switches


def _own_switch(
    pair: Pair, prompts: tuple[Prompts, Prompts], recipe: SwitchRecipe, run: tuple[int, Progress]
) -> Switch:
    texts = [
        answered_texts(pair[0], part, max_new_tokens=run[0], batch_size=64) for part in prompts
    ]
    return switch_from_texts(pair, (texts[0], texts[1]), "base", recipe, run[1])
