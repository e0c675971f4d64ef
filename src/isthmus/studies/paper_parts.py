"""The parts of the reproduction: which study answers which section of the paper."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.carrying.switches import Towards
from isthmus.core.progress import Progress
from isthmus.studies.activation_patching import patch_activations
from isthmus.studies.corrupted_study import study_corrupted
from isthmus.studies.distilled_study import study_distilled_switch
from isthmus.studies.feature_transfer import transfer_feature
from isthmus.studies.gain_study import study_gain
from isthmus.studies.layer_sweep import sweep_layers
from isthmus.studies.mapper_validation import validate_map
from isthmus.studies.multi_layer import study_multi_layer
from isthmus.studies.noise_study import study_noise
from isthmus.studies.probe_transfer import transfer_probe
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_questions import SwitchStudySizes
from isthmus.studies.switch_study import study_switch
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import RunConfig, TaskName
from isthmus.workflows.run import run

SOURCE = "llama"
TARGETS = ("qwen2", "gemma2", "llama-large")
"""Same tokenizer, other tokenizer and architecture, over five times larger."""


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Attributes:
        is_quick: Fewer questions, fewer maps.
        seed: Seed of everything random.
    """

    is_quick: bool
    seed: int

    def pick(self, quick: int, full: int) -> int:
        """Returns the number that this scope asks for."""
        return quick if self.is_quick else full


@dataclass(frozen=True)
class Part:
    """One part of the reproduction.

    Attributes:
        title: Heading, with the paper's section.
        organisms: Organisms it reads.
        run: Does it.
    """

    title: str
    organisms: tuple[str, ...]
    run: Callable[[Scope, Progress], StudyResult]


def joined(name: str, results: Sequence[StudyResult]) -> StudyResult:
    """Returns studies of several pairs as one.

    Args:
        name: Its name.
        results: At least one.

    Returns:
        All numbers, notes and pictures, in order.
    """
    return StudyResult(
        name,
        tuple(itertools.chain.from_iterable(r.measurements for r in results)),
        tuple(dict.fromkeys(itertools.chain.from_iterable(r.notes for r in results))),
        {title: svg for r in results for title, svg in r.figures.items()},
        tuple(itertools.chain.from_iterable(r.rows for r in results)),
    )


def organisms_of(course: str) -> tuple[str, ...]:
    """Returns the source and the targets that one course made."""
    return tuple(f"{base}-{course}" for base in (SOURCE, *TARGETS))


def task_config(task: TaskName, course: str, scope: Scope) -> RunConfig:
    """Returns the crossings of one task on the organisms.

    Args:
        task: The task.
        course: Ending of the organisms' names.
        scope: How much is measured.

    Returns:
        A configuration of one source and three targets.
    """
    source, *targets = (f"organism:{name}" for name in organisms_of(course))
    strengths = task_named(task).recommended.strengths if task in TASKS else None
    return RunConfig(
        task=task,
        source=source,
        targets=tuple(targets),
        maps=("ridge", "autoencoder")
        if scope.is_quick
        else ("ridge", "ridge_one_layer", "autoencoder", "sgd_affine"),
        strengths=strengths or (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
        n_train=scope.pick(160, 240),
        n_validation=scope.pick(32, 64),
        n_test=scope.pick(64, 208),
        seed=scope.seed,
    )


def _crossings(task: TaskName, course: str) -> Part:
    def work(scope: Scope, progress: Progress) -> StudyResult:
        with tempfile.TemporaryDirectory(prefix="isthmus-") as place:
            config = task_config(task, course, scope)
            result = run(config, out=Path(place) / "run", progress=progress)
        return StudyResult(task, result.measurements, result.notes)

    title = f"{task.capitalize()}: native, carried and controls on three crossings"
    return Part(title, organisms_of(course), work)


def _corrupted(scope: Scope, progress: Progress) -> StudyResult:
    source, *targets = (f"organism:{name}" for name in organisms_of("corrupted"))
    n_test, n_train = scope.pick(96, 240), scope.pick(100, 200)
    return joined(
        "corrupted",
        [
            study_corrupted(
                source, target, n_train=n_train, n_test=n_test, seed=scope.seed, progress=progress
            )
            for target in targets
        ],
    )


def _on_targets(name: str, study: Callable[..., StudyResult], **settings: Any) -> Part:
    """Returns the part that runs a study of a pair on the source and every backdoored target."""

    def work(scope: Scope, progress: Progress) -> StudyResult:
        source, *targets = (f"organism:{one}" for one in organisms_of("backdoor"))
        chosen = {key: value(scope) for key, value in settings.items()}
        return joined(
            name,
            [
                study(source, target, seed=scope.seed, progress=progress, **chosen)
                for target in targets[: scope.pick(1, len(targets))]
            ],
        )

    return Part(_TITLES[name], organisms_of("backdoor"), work)


def _on_models(name: str, study: Callable[..., StudyResult], **settings: Any) -> Part:
    """Returns the part that runs a study of one model on every backdoored organism."""

    def work(scope: Scope, progress: Progress) -> StudyResult:
        models = [f"organism:{one}" for one in organisms_of("backdoor")]
        chosen = {key: value(scope) for key, value in settings.items()}
        return joined(
            name,
            [
                study(model, seed=scope.seed, progress=progress, **chosen)
                for model in models[: scope.pick(2, len(models))]
            ],
        )

    return Part(_TITLES[name], organisms_of("backdoor"), work)


def _style_at_every_layer(scope: Scope, progress: Progress) -> StudyResult:
    whole = task_config("style", "assistant", scope)
    targets = whole.targets[: scope.pick(1, len(whole.targets))]
    configs = [whole.model_copy(update={"targets": (target,)}) for target in targets]
    studies = [study_multi_layer(config, progress=progress) for config in configs]
    return joined("style_multi_layer", studies)


def _switch(scope: Scope, progress: Progress) -> StudyResult:
    base, fine_tuned = "organism:llama", "organism:llama-backdoor"
    sizes: dict[Towards, SwitchStudySizes] = {
        "base": SwitchStudySizes(),
        "fine_tuned": SwitchStudySizes(
            ranks=(16,),
            trained=(("all", 8),),
            alternatives=("direct_patch", "lora_rank_16"),
        ),
    }
    if scope.is_quick:
        small = SwitchStudySizes(
            n_train=60,
            n_validation=12,
            n_test=32,
            ranks=(4,),
            trained=(("trigger", 0), ("embeddings", 1), ("all", 8)),
            n_steps=40,
        )
        sizes = {"base": small, "fine_tuned": small}
    studies = [
        study_switch(
            base, fine_tuned, directions=(to,), sizes=one, seed=scope.seed, progress=progress
        )
        for to, one in sizes.items()
    ]
    return joined("switch", studies)


def _switch_gain(scope: Scope, progress: Progress) -> StudyResult:
    quick = SwitchStudySizes(
        n_train=40, n_validation=12, n_test=24, ranks=(4,), trained=(("all", 8),), n_steps=40
    )
    gains = {"refusal": "llama-assistant", "corrupted": "llama-corrupted"}
    studies = [
        study_gain(
            "organism:llama",
            f"organism:{fine_tuned}",
            task,
            sizes=quick if scope.is_quick else None,
            seed=scope.seed,
            progress=progress,
        )
        for task, fine_tuned in gains.items()
    ]
    return joined("switch_gain", studies)


def _distilled_switch(scope: Scope, progress: Progress) -> StudyResult:
    source, *targets = (
        (f"organism:{one}", f"organism:{one}-backdoor") for one in (SOURCE, *TARGETS)
    )
    return study_distilled_switch(
        source,
        targets[: scope.pick(1, len(targets))],
        n_seeds=scope.pick(1, 2),
        seed=scope.seed,
        progress=progress,
    )


_TITLES = {
    "mapper_validation": "Mapped activations in place of the target's own (sections 4, 5, App. L)",
    "features": "A feature of a sparse autoencoder carried through the map (App. H)",
    "probes": "Probes carried without labels of the target (App. H)",
    "patching": "Where the trigger's trace lies (Figures 10 and 11)",
    "noise": "What noise does (App. B and H)",
    "layers": "Which layers steer (Table 3)",
}

PARTS: dict[str, Part] = {
    "backdoor": _crossings("backdoor", "backdoor"),
    "code": _crossings("code", "code"),
    "refusal": _crossings("refusal", "assistant"),
    "style": _crossings("style", "assistant"),
    "corrupted": Part(
        "Corrupted capabilities: the ladder from one vector to a virtual prefix (section 4.2)",
        organisms_of("corrupted"),
        _corrupted,
    ),
    "style_multi_layer": Part(
        "Style at every layer: own directions against one copied (App. I)",
        organisms_of("assistant"),
        _style_at_every_layer,
    ),
    "switch": Part(
        "The switch between base and fine-tune (section 4.4, App. G and J)",
        ("llama", "llama-backdoor"),
        _switch,
    ),
    "switch_gain": Part(
        "A fine-tuning gain regained by a switch (App. J)",
        ("llama", "llama-assistant", "llama-corrupted"),
        _switch_gain,
    ),
    "distilled_switch": Part(
        "A source's switch carried to other models",
        (*organisms_of("backdoor"), *(SOURCE, *TARGETS)),
        _distilled_switch,
    ),
    "mapper_validation": _on_targets(
        "mapper_validation",
        validate_map,
        n_test=lambda scope: scope.pick(24, 100),
        n_completed=lambda scope: scope.pick(12, 48),
        n_train=lambda scope: scope.pick(80, 240),
    ),
    "features": _on_targets("features", transfer_feature),
    "probes": _on_targets("probes", transfer_probe),
    "patching": _on_models(
        "patching", patch_activations, n_prompts=lambda scope: scope.pick(24, 64)
    ),
    "layers": _on_models(
        "layers", sweep_layers, settings=lambda scope: {"n_test": scope.pick(32, 96)}
    ),
    "noise": _on_models(
        "noise",
        study_noise,
        n_prompts=lambda scope: scope.pick(8, 16),
        n_draws=lambda scope: scope.pick(4, 10),
        sites=lambda _scope: [0, 2],
    ),
}
"""Every part in the order of the report."""
