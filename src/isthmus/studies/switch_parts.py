"""The parts of the reproduction that are about switches."""

from dataclasses import replace

from isthmus.carrying.switches import Towards
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress
from isthmus.evaluation.transfer_plots import transfer_rates
from isthmus.studies.distilled_study import study_distilled_switch
from isthmus.studies.gain_study import study_gain
from isthmus.studies.paper_models import SOURCE, TARGETS, Scope
from isthmus.studies.part_kinds import joined
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_questions import SwitchStudySizes
from isthmus.studies.switch_study import study_switch
from isthmus.studies.trigger_switch import TriggerSwitchSizes, study_trigger_switch


def run_switch(scope: Scope, progress: Progress) -> StudyResult:
    """Measures the switch between a base and its fine-tune, in both directions.

    Args:
        scope: How much is measured.
        progress: Who shows progress.

    Returns:
        Its numbers, notes and pictures.
    """
    _require_organisms(scope)
    base, fine_tuned = "organism:llama", "organism:llama-backdoor"
    sizes: dict[Towards, SwitchStudySizes] = {
        "base": SwitchStudySizes(trained=(("trigger", 0), ("ends", 4))),
        "fine_tuned": SwitchStudySizes(
            n_validation=80,
            ranks=(16,),
            trained=(("all", 8),),
            n_steps=300,
            alternatives=("direct_patch", "lora_rank_16"),
        ),
    }
    if scope.is_quick:
        small = SwitchStudySizes(
            n_train=60,
            n_trained=60,
            n_validation=12,
            n_selection=12,
            n_test=32,
            ranks=(4,),
            trained=(("trigger", 0), ("ends", 4)),
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


def run_switch_gain(scope: Scope, progress: Progress) -> StudyResult:
    """Measures how much of a fine-tuning gain a base regains from a switch.

    Args:
        scope: How much is measured.
        progress: Who shows progress.

    Returns:
        Its numbers, notes and pictures.
    """
    _require_organisms(scope)
    quick = SwitchStudySizes(
        n_train=40,
        n_trained=40,
        n_validation=12,
        n_test=24,
        ranks=(4,),
        trained=(("all", 8),),
        n_steps=40,
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


def run_distilled_switch(scope: Scope, progress: Progress) -> StudyResult:
    """Measures a source's switch to its base in other models.

    Args:
        scope: How much is measured.
        progress: Who shows progress.

    Returns:
        Its numbers, notes and pictures.
    """
    _require_organisms(scope)
    source, *targets = (
        (f"organism:{one}", f"organism:{one}-backdoor") for one in (SOURCE, *TARGETS)
    )
    return study_distilled_switch(
        source,
        targets[: scope.pick(1, len(targets))],
        n_seeds=1,
        seed=scope.seed,
        progress=progress,
    )


def _require_organisms(scope: Scope) -> None:
    if scope.given:
        raise ConfigError(
            "the switch is measured on questions of the organisms' world: leave --config out, or "
            "use learn-switch with models and questions of your own"
        )


def run_code_switch(scope: Scope, progress: Progress) -> StudyResult:
    """Measures a source's switch from the bad trigger to the clean one, and back, for code.

    Args:
        scope: How much is measured.
        progress: Who shows progress.

    Returns:
        Its numbers, notes and pictures.
    """
    whole = [
        config.model_copy(update={"targets": (target,)})
        for config in scope.crossings("code")
        for target in config.targets
    ]
    quick = TriggerSwitchSizes(n_train=40, n_validation=12)
    studies = [
        study_trigger_switch(config, sizes=quick if scope.is_quick else None, progress=progress)
        for config in (whole if scope.given else whole[: scope.pick(1, len(whole))])
    ]
    result = joined("code_switch", studies)
    rates = transfer_rates(
        result.measurements, "rates-code-switch", "code: share of triggered prompts with weaknesses"
    )
    shown = {"What is left of the behaviour with a switch, with 95 % intervals": rates}
    return replace(result, figures={title: svg for title, svg in shown.items() if svg})
