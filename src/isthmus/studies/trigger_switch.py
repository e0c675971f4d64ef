"""The trigger switch: a model answers as if another trigger stood before the prompt.

1. What the source changes between a prompt and its twin with the other trigger goes through an
   all-layers map to the target and is refitted there as a low-rank function of the target's own
   state (`workflows/switch_distilling.py`): an edit that depends on the input, where a direction
   is one vector for all. Once for removal (bad to clean) and once for induction. It acts after
   blocks: at the embeddings an edit could put the other trigger's own in the place of the first.
2. Beside it stand the native switch, fitted on the target's own twins, the same through a ridge map
   of states alone, and the controls: a map of shuffled pairs, no map, a random rotation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from isthmus.carrying.switches import Switch, rotated_switch
from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.organisms import Turn
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.bench import ArmScores, Bench, Losses
from isthmus.workflows.config import RunConfig
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.switch_distilling import (
    DistillSettings,
    SwitchReading,
    distil_edits,
    prompts_of_change,
    read_switch,
)
from isthmus.workflows.twin_reading import TwinReadingSettings
from isthmus.workflows.twins import TwinSplits, read_splits

Switches = Mapping[tuple[str, str], Switch]
"""Switches by condition and map."""

CARRIED = {
    "ridge_contrast": "transferred",
    "ridge": "transferred",
    "shuffled_map": "shuffled_map",
    "identity_map": "identity_map",
}
"""Maps between the models, and the condition of a switch that came through each."""

_ANSWER = ("none", "clean", "native", "transferred", "random")
_WAYS: tuple[Way, Way] = ("removal", "induction")
_FOLD = "/fold_"


@dataclass(frozen=True)
class TriggerSwitchSizes:
    """How large the study is.

    Attributes:
        rank: Rank of every edit.
        n_train: Twins that switches are fitted on.
        n_validation: Twins by which the strengths of ridge regressions are chosen.
        carried: Which maps of `CARRIED`, `ridge_contrast` first.

    Raises:
        ConfigError: If that is not the first of them, or one is unknown.
    """

    rank: int = 16
    n_train: int = 120
    n_validation: int = 24
    carried: tuple[str, ...] = tuple(CARRIED)

    def __post_init__(self) -> None:
        if self.carried[:1] != ("ridge_contrast",) or not set(self.carried) <= set(CARRIED):
            raise ConfigError(
                f"maps {self.carried}: begin with ridge_contrast, which the random control is "
                f"turned from, and go on with others of {', '.join(CARRIED)}"
            )


def study_trigger_switch(
    config: RunConfig,
    *,
    sizes: TriggerSwitchSizes | None = None,
    folds: Sequence[TwinSplits] = (),
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well a source's switch from one trigger to another works in a target.

    Args:
        config: A run of a task with triggers, with one target.
        sizes: Rank and number of twins.
        folds: Other questions than the run's own, such as those of some kinds alone. Switches are
            fitted for each fold and measured on its test questions, and these are counted together.
        progress: Who shows progress.

    Returns:
        Recovery both ways, swap, rates and damage on test questions of every arm; of several folds
        on the questions of all, and recovery and swap of each under a task that ends in `/fold_1`
        and so on.

    Raises:
        TriggerError: If the task has no triggers.
    """
    shown, wanted = progress or SilentProgress(), sizes or TriggerSwitchSizes()
    source, target = (
        load_language_model(m, dtype=config.dtype, device=config.device)
        for m in (config.source, config.targets[0])
    )
    asked = list(folds) or [read_splits(config)]
    if not all(
        twin.spans and twin.triggered.startswith(config.bad_trigger)
        for one in asked
        for twin in one.test
    ):
        raise TriggerError(
            f"task {config.task!r} has no triggers that its prompts begin with: a trigger switch "
            "needs two"
        )
    names = (source.identity.name, target.identity.name)
    recorder = Recorder(config, *names, "test")
    seen = [_seen_in((source, target), one, config, wanted, shown) for one in asked]
    measured = [row for parts in zip(*seen, strict=True) for row in _measured(recorder, parts)]
    sites = ", ".join(map(str, target.sites(config.target_sites)))
    placed = [_placed(m, sites) for m in measured]
    note = "what is edited are all tokens, of the prompt and of the completion, at every site"
    return StudyResult(f"{config.task}_switch", tuple(placed), (note,))


@dataclass(frozen=True)
class _Seen:
    """What one arm did to the test questions of a fold.

    Attributes:
        arm: The arm.
        scores: Losses of the answers, where it edits.
        damage: Divergence on benign prompts, where it edits.
        asked: What it was asked, and the right answers.
        said: What it said; None where it did not have to answer.
        benign_asked: Benign prompts and their answers.
        benign_said: What it said to these.
    """

    arm: Arm
    scores: ArmScores | None
    damage: Losses | None
    asked: tuple[Turn, ...]
    said: tuple[str, ...] | None
    benign_asked: tuple[Turn, ...]
    benign_said: tuple[str, ...] | None

    @classmethod
    def of(cls, bench: Bench, arm: Arm) -> "_Seen":
        edits, answers = arm.condition not in {"none", "clean"}, arm.condition in _ANSWER
        is_asked_benign = answers and arm.condition != "clean"
        return cls(
            arm,
            bench.score(arm) if edits else None,
            bench.damage(arm) if edits else None,
            tuple(bench.asked(arm)),
            bench.complete(arm).texts if answers else None,
            bench.benign_turns,
            bench.complete_benign(arm) if is_asked_benign else None,
        )


def _measured(recorder: Recorder, parts: Sequence[_Seen]) -> list[Measurement]:
    """Measures one arm on the questions of all folds, and of several its effect in each."""
    arm = parts[0].arm
    asked = [turn for one in parts for turn in one.asked]
    benign = [turn for one in parts for turn in one.benign_asked]
    scores = [one.scores for one in parts if one.scores is not None]
    found: list[Measurement] = []
    if scores:
        found += recorder.effects(arm, ArmScores.joined(scores))
        damage = np.concatenate([one.damage for one in parts if one.damage is not None])
        found.append(recorder.divergence(arm, damage, benign))
    if said := tuple(text for one in parts for text in one.said or ()):
        found += recorder.answers(arm, said, asked)
    if benign_said := [text for one in parts for text in one.benign_said or ()]:
        found += recorder.benign(arm, benign_said, benign)
    if len(scores) < 2:
        return found
    return found + [
        replace(row, task=f"{row.task}{_FOLD}{number}")
        for number, one in enumerate(scores, start=1)
        for row in recorder.effects(arm, one)
    ]


def _seen_in(
    models: tuple[LanguageModel, LanguageModel],
    splits: TwinSplits,
    config: RunConfig,
    sizes: TriggerSwitchSizes,
    progress: Progress,
) -> list[_Seen]:
    """Fits the switches of one fold and shows every arm its test questions."""
    bench = Bench(models[1], splits.test, config)
    ask = _Ask(config, sizes, bench.n_new_tokens)
    found = {way: _switches(models, splits, way, ask, progress) for way in _WAYS}
    arms = [Arm("none"), Arm("clean"), *_arms(found, config.seed)]
    seen = []
    with progress.stage(f"measure switches in {models[1].identity.name}", len(arms)) as advance:
        for arm in arms:
            seen.append(_Seen.of(bench, arm))
            advance(1)
    return seen


@dataclass(frozen=True)
class _Ask:
    config: RunConfig
    sizes: TriggerSwitchSizes
    max_new_tokens: int


def _switches(
    models: tuple[LanguageModel, LanguageModel],
    splits: TwinSplits,
    way: Way,
    ask: _Ask,
    progress: Progress,
) -> Switches:
    """Fits the native switch, the carried ones and a rotated one for one way."""
    target, config, sizes = models[1], ask.config, ask.sizes
    triggers = (config.bad_trigger, config.clean_trigger)
    wanted = TwinReadingSettings(
        sites=target.sites(config.target_sites),
        triggers=triggers if way == "removal" else triggers[::-1],
        max_new_tokens=ask.max_new_tokens,
        batch_size=config.batch_size,
    )
    prompts = (
        _prompts(splits.train[: sizes.n_train], way),
        _prompts(splits.validation[: sizes.n_validation], way),
    )

    def switch(reading: SwitchReading, method: str) -> Switch:
        settings = DistillSettings(sizes.rank, method, seed=config.seed)
        edits = distil_edits(reading, settings, progress)
        return Switch(edits, target.identity, target.identity, "base", "distilled")

    # From a model to itself the identity is exact: its own change, fitted as a carried one is.
    own = read_switch((target, target), prompts, wanted)
    found = {("native", "own"): switch(own, "identity_map")}
    reading = read_switch(models, prompts, wanted)
    for method in sizes.carried:
        found[CARRIED[method], method] = switch(reading, method)
    generator = torch.Generator().manual_seed(config.seed)
    best = found["transferred", "ridge_contrast"]
    return {**found, ("random", "ridge_contrast"): rotated_switch(best, generator)}


def _prompts(twins: Sequence[TwinPrompt], way: Way) -> tuple[str, ...]:
    both = [t.triggered for t in twins], [t.clean for t in twins]
    switched, others = both if way == "removal" else both[::-1]
    return prompts_of_change(switched, others, [t.benign[0] for t in twins if t.benign])


def _arms(found: Mapping[Way, Switches], seed: int) -> list[Arm]:
    return [
        Arm(
            condition,
            positions="all",
            strength=1.0,
            map_method=None if condition == "native" else method,
            seed=seed,
            fixed={way: found[way][condition, method].intervention() for way in _WAYS},
        )
        for condition, method in found["removal"]
    ]


def _placed(measured: Measurement, sites: str) -> Measurement:
    """Says where an arm edits, and by the task's name that this is no run's measurement."""
    task, fold, number = measured.task.partition(_FOLD)
    task = f"{task}_switch{fold}{number}"
    if measured.condition in {"none", "clean"}:
        return replace(measured, task=task)
    return replace(measured, task=task, edit="affine", target_site=sites)
