"""The parts of the reproduction: which study answers which section of the paper."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from isthmus.core.errors import ConfigError
from isthmus.core.options import TaskName
from isthmus.core.progress import Progress
from isthmus.core.provenance import StageClock
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.transfer_plots import transfer_rates
from isthmus.features.files import FittedFeatures
from isthmus.features.training import TopKSettings
from isthmus.studies.activation_patching import patch_activations
from isthmus.studies.corrupted_ladder import HEADLINES, RUNGS
from isthmus.studies.corrupted_study import study_corrupted
from isthmus.studies.feature_transfer import transfer_feature
from isthmus.studies.layer_sweep import sweep_layers
from isthmus.studies.mapper_validation import validate_map
from isthmus.studies.multi_layer import study_multi_layer
from isthmus.studies.noise_study import study_noise
from isthmus.studies.paper_models import (
    COURSE_OF,
    SOURCE,
    TARGETS,
    Scope,
    left_out_maps,
    organisms_of,
)
from isthmus.studies.part_kinds import Part, joined
from isthmus.studies.probe_transfer import transfer_probe
from isthmus.studies.refusal_study import study_refusal
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_parts import (
    run_code_switch,
    run_distilled_switch,
    run_switch,
    run_switch_gain,
)
from isthmus.tasks import task_named
from isthmus.workflows.config import RunConfig
from isthmus.workflows.run import carry_out

_RATES = (
    "What is left of the behaviour after steering, with 95 % intervals; arms that were not made to "
    "write, such as maps that were not chosen, show their swap"
)


def _crossings(task: TaskName) -> Part:
    def work(scope: Scope, progress: Progress) -> StudyResult:
        measured: list[Measurement] = []
        notes: list[str] = []
        for config in scope.crossings(task):
            shares = {} if scope.is_alone else {"n_parallel": 1, "n_threads": 1}
            for crossing in carry_out(config.model_copy(update=shares), StageClock(progress)):
                measured += crossing.measurements
                notes += crossing.summary["notes"]
        figures = {
            _RATES: transfer_rates(
                measured, f"rates-{task}", f"{task}: share of triggered prompts with the behaviour"
            )
        }
        shown = {title: svg for title, svg in figures.items() if svg}
        return StudyResult(task, tuple(measured), tuple(dict.fromkeys(notes)), shown)

    title = f"{task.capitalize()}: native, carried and controls on every crossing"
    return Part(title, task, work, organisms_of(COURSE_OF[task]))


def _corrupted(scope: Scope, progress: Progress) -> StudyResult:
    def study(config: RunConfig) -> StudyResult:
        given = config.model_fields_set if scope.given else set()
        other = {name for name in given if getattr(config, name) != _default(name)}
        if refused := sorted(_DECIDED & other):
            raise ConfigError(
                f"part corrupted has no use for {', '.join(refused)}: every rung of the ladder "
                "decides that; leave it out, or leave the part out with --only"
            )
        found = study_corrupted(
            config.source,
            config.targets[0],
            n_train=config.n_train if "n_train" in given else scope.pick(100, 480),
            n_test=config.n_test if "n_test" in given else scope.pick(96, 360),
            rungs=HEADLINES if scope.is_quick else RUNGS,
            seed=config.seed,
            dtype=config.dtype,
            device=config.device,
            progress=progress,
        )
        unused = sorted(_FIXED & other)
        note = f"not used in the ladder, whose sizes are its own: {', '.join(unused)}"
        return replace(found, notes=(*found.notes, note)) if unused else found

    return _on_targets("corrupted", scope, study)


_DECIDED = frozenset(
    "edit method pairing pooled positions source_sites target_sites strengths".split()  # noqa: SIM905 - one line
)
"""Settings that each rung of the ladder decides."""

_FIXED = frozenset({"batch_size", "max_new_tokens", "n_benign", "n_random", "n_validation"})
"""Sizes of a crossing that the ladder does not have, or has as they are."""


def _default(name: str) -> Any:
    return RunConfig.model_fields[name].default


def _on_targets(
    name: str,
    scope: Scope,
    study: Callable[[RunConfig], StudyResult],
    n_quick: int | None = None,
    n_full: int | None = None,
) -> StudyResult:
    """Runs a study that fits ridge maps alone on every pair; says which maps it leaves out.

    Of the organisms it takes the first targets, where a number is said.
    """
    studies = []
    for config in scope.crossings(PARTS[name].task):
        note = left_out_maps(name, config) if scope.given else None
        most = None if scope.given else n_quick if scope.is_quick else n_full
        for target in config.targets[:most]:
            found = study(config.model_copy(update={"targets": (target,)}))
            studies.append(replace(found, notes=(*found.notes, note)) if note else found)
    return joined(name, studies)


def _on_pairs(
    name: str, study: Callable[..., StudyResult], task: TaskName = "backdoor", **sizes: Any
) -> Part:
    """Returns the part that runs a study of two models on every pair of a task."""

    def work(scope: Scope, progress: Progress) -> StudyResult:
        chosen = {key: value(scope) for key, value in sizes.items()}
        settings = {"task": task, **chosen.pop("settings", {})}
        return joined(
            name,
            [
                study(
                    pair.source,
                    pair.target,
                    settings={**settings, **pair.settings},
                    seed=pair.seed,
                    progress=progress,
                    **chosen,
                )
                for pair in scope.pairs(task)
            ],
        )

    return Part(_TITLES[name], task, work, organisms_of(COURSE_OF[task]))


def _on_models(name: str, study: Callable[..., StudyResult], **sizes: Any) -> Part:
    """Returns the part that runs a study of one model on every model of the backdoor."""

    def work(scope: Scope, progress: Progress) -> StudyResult:
        chosen = {key: value(scope) for key, value in sizes.items()}
        settings = chosen.pop("settings", {})
        return joined(
            name,
            [
                study(
                    model.source,
                    settings={**settings, **model.settings},
                    seed=model.seed,
                    progress=progress,
                    **chosen,
                )
                for model in scope.models("backdoor")
            ],
        )

    return Part(_TITLES[name], "backdoor", work, organisms_of("backdoor"))


def _style_at_every_layer(scope: Scope, progress: Progress) -> StudyResult:
    def study(config: RunConfig) -> StudyResult:
        positions = "last:3" if config.positions == "auto" else config.positions
        found = study_multi_layer(adding(config), progress=progress, positions=positions)
        note = f"vectors are added, as in the paper; the crossings' edit is {config.edit!r}"
        return found if config.edit == "add" else replace(found, notes=(*found.notes, note))

    return _on_targets("style_multi_layer", scope, study, n_quick=1, n_full=2)


def adding(config: RunConfig) -> RunConfig:
    """Returns a style's configuration that adds vectors, as the paper does at several layers.

    Args:
        config: A configuration whose crossings add, or do what the task recommends.

    Returns:
        The same with `edit: add`.

    Raises:
        ConfigError: If it asks for another edit.
    """
    if config.edit not in {"add", task_named("style").recommended.edit}:
        raise ConfigError(
            f"part style_multi_layer adds vectors: leave out 'edit' (got {config.edit!r})"
        )
    return config.model_copy(update={"edit": "add"})


def _refusal_ablated(scope: Scope, progress: Progress) -> StudyResult:
    sizes = {
        "n_train": scope.pick(80, 160),
        "n_validation": scope.pick(16, 48),
        "n_test": scope.pick(40, 96),
        "n_random": scope.pick(1, 2),
    }

    def study(config: RunConfig) -> StudyResult:
        left_out = {"source", "targets", "seed"}
        names = config.model_fields_set - left_out if scope.given else set()
        return study_refusal(
            config.source,
            config.targets[0],
            settings={**sizes, **{name: getattr(config, name) for name in names}},
            seed=config.seed,
            progress=progress,
        )

    return _on_targets("refusal_study", scope, study, n_quick=1)


def _features(scope: Scope, progress: Progress) -> StudyResult:
    # Every target is given the same features of a source: one autoencoder, trained once.
    trained: dict[str, FittedFeatures] = {}
    studies = []
    for pair in scope.pairs("backdoor"):
        ours = repr((pair.source, pair.seed, sorted(pair.settings.items())))
        found = transfer_feature(
            pair.source,
            pair.target,
            features=trained.get(ours),
            training=TopKSettings(n_steps=scope.pick(500, TopKSettings.n_steps)),
            n_features=scope.pick(12, 16),
            settings={
                "n_validation": scope.pick(16, 32),
                "n_test": scope.pick(48, 96),
                **pair.settings,
            },
            seed=pair.seed,
            progress=progress,
            on_trained=partial(trained.__setitem__, ours),
        )
        studies.append(found)
    return joined("features", studies)


_TITLES = {
    "mapper_validation": "Mapped activations in place of the target's own (sections 4, 5, App. L)",
    "features": "A feature of a sparse autoencoder carried through the map (App. H)",
    "probes": "Probes carried without labels of the target (App. H)",
    "refusal_probes": "Probes for what is declined, carried likewise (beyond App. H)",
    "patching": "Where the trigger's trace lies (Figures 10 and 11)",
    "noise": "What noise does (App. B and H)",
    "layers": "Which layers steer (Table 3)",
}

PARTS: dict[str, Part] = {
    "backdoor": _crossings("backdoor"),
    "code": _crossings("code"),
    "refusal": _crossings("refusal"),
    "style": _crossings("style"),
    "refusal_study": Part(
        "Refusal ablated at every site and in the weights, and induced (section 4.3, App. F)",
        "refusal",
        _refusal_ablated,
        organisms_of("assistant"),
    ),
    "corrupted": Part(
        "Corrupted capabilities: the ladder from one vector to a virtual prefix (section 4.2)",
        "corrupted",
        _corrupted,
        organisms_of("corrupted"),
    ),
    "style_multi_layer": Part(
        "Style at every layer: own directions against one copied (App. I)",
        "style",
        _style_at_every_layer,
        organisms_of("assistant"),
    ),
    "switch": Part(
        "The switch between base and fine-tune (section 4.4, App. G and J)",
        "backdoor",
        run_switch,
        ("llama", "llama-backdoor"),
    ),
    "switch_gain": Part(
        "A fine-tuning gain regained by a switch (App. J)",
        "backdoor",
        run_switch_gain,
        ("llama", "llama-assistant", "llama-corrupted"),
    ),
    "distilled_switch": Part(
        "A source's switch carried to other models",
        "backdoor",
        run_distilled_switch,
        (*organisms_of("backdoor"), *(SOURCE, *TARGETS)),
    ),
    "code_switch": Part(
        "A source's switch from one trigger to the other, for code (beyond the paper's vector)",
        "code",
        run_code_switch,
        organisms_of("code"),
        when_named=True,
    ),
    "mapper_validation": _on_pairs(
        "mapper_validation",
        validate_map,
        settings=lambda scope: {"n_validation": scope.pick(16, 32)},
        n_test=lambda scope: scope.pick(16, 32),
        n_completed=lambda scope: scope.pick(12, 16),
        n_train=lambda scope: scope.pick(80, 160),
    ),
    "features": Part(_TITLES["features"], "backdoor", _features, organisms_of("backdoor")),
    "probes": _on_pairs("probes", transfer_probe),
    "refusal_probes": _on_pairs(
        "refusal_probes",
        transfer_probe,
        "refusal",
        settings=lambda _scope: {"n_train": 120},
        n_texts=lambda _scope: (),
        n_nulls=lambda _scope: 3,
    ),
    "patching": _on_models(
        "patching", patch_activations, n_prompts=lambda scope: scope.pick(16, 24)
    ),
    "layers": _on_models(
        "layers",
        sweep_layers,
        settings=lambda scope: {
            "n_validation": scope.pick(16, 32),
            "n_test": scope.pick(16, 32),
            "n_random": 1,
        },
    ),
    "noise": _on_models(
        "noise",
        study_noise,
        n_prompts=lambda scope: scope.pick(8, 10),
        n_draws=lambda scope: scope.pick(4, 5),
        sites=lambda _scope: [0, 2],
    ),
}
"""Every part in the order of the report."""

OF_ORGANISMS_ALONE = frozenset({"switch", "switch_gain", "distilled_switch", "code_switch"})
"""Parts that configurations of other models cannot be about."""

LONGEST = (
    "code",
    "code_switch",
    "mapper_validation",
    "layers",
    "corrupted",
    "switch",
    "features",
    "refusal_study",
    "distilled_switch",
    "style",
    "style_multi_layer",
    "backdoor",
    "switch_gain",
    "noise",
    "refusal",
    "patching",
    "probes",
    "refusal_probes",
)
"""All parts, about longest first: what is left for the end is short, and no processor waits."""
