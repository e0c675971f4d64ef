"""`evaluate`: one direction or subspace in one model, against controls; behind a gate, too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus.core.artifacts import require_free, write_json
from isthmus.core.errors import ConfigError
from isthmus.core.options import TaskName
from isthmus.core.places import atomic_folder
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import machine, made_with
from isthmus.core.sites import GivenSite, parse_site
from isthmus.directions.direction import Direction
from isthmus.directions.files import save_direction
from isthmus.directions.learned import Learned
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.subspace import Subspace
from isthmus.evaluation.measurements import Measurement, write_results
from isthmus.workflows.arms import require_no_strength
from isthmus.workflows.certifying import certified_by
from isthmus.workflows.config import (
    Dtype,
    EditKind,
    JudgeKind,
    read_fields,
    require_strength,
)
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.evaluation_shards import Evaluation, PreparedEvaluation, evaluate_by
from isthmus.workflows.gated_testing import require_readable
from isthmus.workflows.gating import GivenProbe, loaded_probe
from isthmus.workflows.given_directions import (
    GivenDirection,
    kind_of_given,
    loaded_direction,
)
from isthmus.workflows.twin_directions import at_one_site


def evaluate(
    model: str | Path,
    direction: GivenDirection,
    *,
    gate: GivenProbe | None = None,
    site: GivenSite | None = None,
    edit: EditKind = "add",
    positions: str | None = None,
    strength: float = 1.0,
    questions: str | Path | None = None,
    task: TaskName = "backdoor",
    judge: JudgeKind = "rules",
    judge_settings: Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    certify: str | Path | None = None,
    n_test: int = 256,
    n_random: int = 3,
    dtype: Dtype = "auto",
    device: str = "auto",
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measures recovery, swap, rates and damage of one direction on the test questions.

    Besides the direction it measures the untouched model on both prompts, random directions of the
    same norm (beside a subspace, random ones of the same rank), noise, the mean state of the model,
    and the prompt alone. Nothing is chosen here: site, positions and strength are what the caller
    says.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        direction: A direction or a subspace of this model, or its folder.
        gate: A probe of this model, or its folder: every edit is measured without it and behind it,
            where only prompts above its threshold are edited, and the direction behind random
            gates. Causing the behaviour is not measured behind a gate.
        site: Which of the direction's sites; may be left out when it has only one.
        edit: `add`, `ablate`, `set_coordinate` or `replace`; of a subspace `ablate` or
            `set_coordinate`.
        positions: Where; the positions at which the direction was learned when not given.
        strength: In units of the direction's norm, above 0 and up to 1000; both signs are tried.
            `ablate` and `replace` have none.
        questions: JSONL of `prompt` and `answer`; the organisms' test questions when not given.
        task: What is measured: the backdoor, or a task of the package, which brings its prompts.
        judge: Who judges completions of task `refusal`: `rules`, `endpoint` or `guard`.
        judge_settings: Settings of the endpoint or guard, or a YAML file of them.
        out: Results folder to write; nothing is written when not given.
        certify: Folder of a direction to write: the carried direction at the site at which it was
            measured, with behaviour and damage in its certificate. It may be the direction's own.
            With a gate the certificate names it, and what it does without.
        n_test: Questions that are measured.
        n_random: Draws of the random control, and of random gates.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        engine: Who measures conditions: `local` is this process, `ray` workers of a Ray cluster,
            each with one thread and a model of its own.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many workers.
        seed: Seed of the controls and of the bootstrap.
        progress: Who shows progress.

    Returns:
        Every number.

    Raises:
        IdentityError: If the direction or the gate belongs to another model.
        TriggerError: If the gate reads the trigger and the task's prompts have none.
        StrengthError: If the strength is out of range, or the edit has none.
        OutputError: If the place is taken or cannot be written to.
        ConfigError: If the task takes no questions, the judge lacks its settings, or a direction
            that was not carried is to be certified.
    """
    require_strength(strength)
    require_no_strength(edit, strength)
    require_free(out)
    require_free(certify, kind_of_given(direction))
    measured = direction if certify is None else _with_certificate(direction)
    probe = None if gate is None else loaded_probe(gate)
    chosen = engine_named(engine, address, n_workers)
    given: dict[str, Any] = {"task": task, "n_test": n_test, "n_random": n_random, "seed": seed}
    given |= {"dtype": dtype, "device": device, **_judge_fields(judge, judge_settings)}
    given |= {} if questions is None else {"questions": Path(questions)}
    evaluation = Evaluation.of(str(model), (site, edit, positions, strength), given)
    if probe is not None:
        require_readable(probe, evaluation.splits.test, task)
    shown = progress or SilentProgress()
    if isinstance(chosen, LocalEngine):
        found = PreparedEvaluation(evaluation, measured, probe).measure(shown)
    else:
        found = evaluate_by(chosen, evaluation, measured, probe, shown)
    if out is not None:
        with atomic_folder(Path(out)) as folder:
            write_results(folder / "results.jsonl", found)
            write_json(
                folder / "provenance.json", {**made_with(), "machine": machine(), "seed": seed}
            )
    if certify is not None and isinstance(measured, Direction | Subspace):
        save_direction(Path(certify), _certified(measured, found, probe))
    return found


def _with_certificate(given: GivenDirection) -> Direction | Subspace:
    """Loads a direction or a subspace, and refuses one that has no certificate to fill."""
    direction = loaded_direction(given)
    if direction.certificate is None:
        raise ConfigError(
            f"the {direction.WHAT} was learned in {direction.model} and has no certificate: leave "
            f"certify out, or give a {direction.WHAT} that was carried"
        )
    return direction


def _certified(
    direction: Learned, found: Sequence[Measurement], gate: ModelProbe | None
) -> Learned:
    """Returns what was measured at the site at which it was measured, with what was found."""
    (swap,) = (m for m in found if (m.condition, m.metric) == ("transferred", "swap"))
    site = parse_site(str(swap.target_site), direction.model.n_layers)
    return certified_by(at_one_site(direction, site), found, swap.map, gate)


def _judge_fields(
    judge: JudgeKind, settings: Mapping[str, Any] | str | Path | None
) -> dict[str, Any]:
    if settings is None and judge != "rules":
        raise ConfigError(f"judge {judge!r} without settings: give judge_settings, such as a file")
    if settings is None:
        return {"judge": judge}
    if judge == "rules":
        raise ConfigError("settings of a judge, but the judge is 'rules': name endpoint or guard")
    given = dict(settings) if isinstance(settings, Mapping) else read_fields(Path(settings))
    return {"judge": judge, judge: given}
