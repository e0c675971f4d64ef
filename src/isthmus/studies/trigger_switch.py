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

import torch

from isthmus.carrying.switches import Switch, rotated_switch
from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.bench import Bench
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
    splits: TwinSplits | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well a source's switch from one trigger to another works in a target.

    Args:
        config: A run of a task with triggers, with one target.
        sizes: Rank and number of twins.
        splits: Other questions than the run's own, such as those of some kinds alone.
        progress: Who shows progress.

    Returns:
        Recovery both ways, swap, rates and damage on test questions of every arm.

    Raises:
        TriggerError: If the task has no triggers.
    """
    shown, wanted = progress or SilentProgress(), sizes or TriggerSwitchSizes()
    source, target = (
        load_language_model(m, dtype=config.dtype, device=config.device)
        for m in (config.source, config.targets[0])
    )
    asked = splits or read_splits(config)
    if not all(twin.spans and twin.triggered.startswith(config.bad_trigger) for twin in asked.test):
        raise TriggerError(
            f"task {config.task!r} has no triggers that its prompts begin with: a trigger switch "
            "needs two"
        )
    bench = Bench(target, asked.test, config)
    found = {
        way: _switches(
            (source, target), asked, way, _Ask(config, wanted, bench.n_new_tokens), shown
        )
        for way in _WAYS
    }
    names = (source.identity.name, target.identity.name)
    recorder = Recorder(config, *names, "test")
    arms = [Arm("none"), Arm("clean"), *_arms(found, config.seed)]
    measured: list[Measurement] = []
    with shown.stage(f"measure switches in {names[1]}", len(arms)) as advance:
        for arm in arms:
            measured += _measured(bench, recorder, arm)
            advance(1)
    sites = ", ".join(map(str, found["removal"]["native", "own"].sites))
    placed = [_placed(m, sites) for m in measured]
    note = "what is edited are all tokens, of the prompt and of the completion, at every site"
    return StudyResult(f"{config.task}_switch", tuple(placed), (note,))


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


def _measured(bench: Bench, recorder: Recorder, arm: Arm) -> list[Measurement]:
    edits = arm.condition not in {"none", "clean"}
    found = []
    if edits:
        found += recorder.effects(arm, bench.score(arm))
        found.append(recorder.divergence(arm, bench.damage(arm), bench.benign_turns))
    if arm.condition in _ANSWER:
        found += recorder.behaviour(arm, bench.complete(arm), bench.asked(arm))
    if arm.condition in _ANSWER and arm.condition != "clean":
        found += recorder.benign(arm, bench.complete_benign(arm), bench.benign_turns)
    return found


def _placed(measured: Measurement, sites: str) -> Measurement:
    """Says where an arm edits, and by the task's name that this is no run's measurement."""
    task = f"{measured.task}_switch"
    if measured.condition in {"none", "clean"}:
        return replace(measured, task=task)
    return replace(measured, task=task, edit="affine", target_site=sites)
