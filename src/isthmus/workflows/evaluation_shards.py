"""The arms of an evaluation: made the same everywhere, and measured one by one as shards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.scaling import random_direction_like
from isthmus.core.progress import Progress
from isthmus.core.sites import GivenSite, Site
from isthmus.directions.direction import Direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.subspace import Subspace
from isthmus.evaluation.measurements import Measurement, read_results, write_results
from isthmus.models.capture import all_token_activations
from isthmus.models.language_model import load_language_model
from isthmus.workflows.arms import Arm, control_edit
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import EditKind, RunConfig, make_config
from isthmus.workflows.engines.jobs import Engine, Job, Json, Shard, shard_folder
from isthmus.workflows.gated_testing import GatedTest
from isthmus.workflows.gating import probe_of
from isthmus.workflows.generate import direction_at
from isthmus.workflows.given_directions import GivenDirection, loaded_direction
from isthmus.workflows.limits import unjudged_notes
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.sent_directions import (
    received_learned,
    received_probe,
    sent_direction,
    sent_probe,
)
from isthmus.workflows.subspace_arms import noise_arm, random_arms, subspace_arm
from isthmus.workflows.testing import read_arms, recorded
from isthmus.workflows.twin_directions import origin_of
from isthmus.workflows.twins import TwinSplits, read_splits

_WORKER = f"{__name__}:EvaluationWorker"
_MODEL, _RESULTS = "the model", "results.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a direction, and on which questions.

    Attributes:
        model: Name of the model.
        place: Site as it was given, edit, positions as they were given, and strength.
        splits: The questions.
        fields: Other fields of the configuration, as JSON values.
        n_random: Draws of the random control.
        seed: Seed of the controls.
    """

    model: str
    place: tuple[Json, EditKind, str | None, float]
    splits: TwinSplits
    fields: dict[str, Any]
    n_random: int
    seed: int

    @classmethod
    def of(
        cls,
        model: str,
        place: tuple[GivenSite | None, EditKind, str | None, float],
        given: Mapping[str, Any],
    ) -> "Evaluation":
        """Checks what was given and reads the questions.

        Args:
            model: Name of the model.
            place: Site, edit, positions and strength.
            given: Other fields of the configuration.

        Returns:
            What is measured.

        Raises:
            ConfigError: If a field cannot be used.
            DataError: If the questions cannot be used.
        """
        site, edit, positions, strength = place
        # Where the direction was learned is not known yet.
        ends = {"source": _MODEL, "targets": [model], "edit": edit, "strengths": [strength]}
        config = make_config({**ends, **given})
        fields = config.model_dump(mode="json", exclude_unset=True, exclude={"questions", "source"})
        spelled = str(site) if isinstance(site, Site) else site
        place = (spelled, edit, positions, strength)
        splits = read_splits(config)
        return cls(model, place, splits, fields, config.n_random, config.seed)

    @property
    def n_arms(self) -> int:
        """How many conditions are measured."""
        return 5 + self.n_random + all(twin.overridden for twin in self.splits.test)

    def arms(
        self, here: Direction | Subspace, mean: Mapping[Site, Float[Tensor, "1 d_model"]]
    ) -> list[Arm]:
        """Makes every condition.

        Args:
            here: The direction or subspace at its one site.
            mean: Mean state of the model there.

        Returns:
            The untouched model, its clean twin, the direction, its controls, and the prompt alone
            where the task has such a prompt.
        """
        _, edit, positions, strength = self.place
        at = (here.sites[0], positions or here.positions)
        origin = origin_of(here)
        tested = Arm(
            "native" if origin.map_method is None else "transferred",
            *at,
            edit,
            strength,
            map_method=origin.map_method,
            source_sites=origin.source_sites,
            seed=self.seed,
        )
        arms = [Arm("none"), Arm("clean")]
        if isinstance(here, Subspace):
            arms += [subspace_arm(tested, here), *random_arms(tested, here, self.n_random)]
            arms.append(noise_arm(tested, here))
        else:
            arms.append(replace(tested, direction=here))
            for seed in range(self.seed, self.seed + self.n_random):
                drawn = random_direction_like(here, torch.Generator().manual_seed(seed))
                arms.append(Arm("random", *at, control_edit(edit), strength, drawn, seed=seed))
            arms.append(Arm("noise", *at, "add", strength, here, seed=self.seed))
        arms.append(Arm("mean_ablation", *at, "replace", 1.0, seed=self.seed, mean=mean))
        return [*arms, Arm("prompt_only")][: self.n_arms]

    def to_json(self) -> Json:
        """Returns the evaluation as JSON values."""
        return {**vars(self), "splits": self.splits.to_json()}

    @classmethod
    def from_json(cls, fields: Json) -> "Evaluation":
        """Reads what `to_json` wrote."""
        splits, place = TwinSplits.from_json(fields["splits"]), tuple(fields["place"])
        return cls(**{**fields, "splits": splits, "place": place})


class PreparedEvaluation:
    """An evaluation with its model, direction and gate.

    Args:
        evaluation: What is measured.
        direction: A direction or a subspace of the model, or its folder.
        gate: A probe of the model, behind which every edit is measured, too; None for no gate.
    """

    def __init__(
        self, evaluation: Evaluation, direction: GivenDirection, gate: ModelProbe | None = None
    ) -> None:
        fields = evaluation.fields
        options = {name: fields[name] for name in ("dtype", "device") if name in fields}
        lm = load_language_model(evaluation.model, **options)
        here = direction_at(lm, direction, evaluation.place[0])
        probe = None if gate is None else probe_of(lm, gate)
        learned_in = origin_of(here).model
        self.config: RunConfig = make_config({**fields, "source": learned_in})
        self.bench = Bench(lm, evaluation.splits.test, self.config)
        asked = self.bench.encoded
        # Of both twins, so that the mean is that of no behaviour; the model's own states, though a
        # carried direction came through a map.
        states = all_token_activations(lm, [*asked.triggered, *asked.clean], here.sites)
        mean = {site: torch.cat(rows).mean(0, keepdim=True) for site, rows in states.items()}
        self.arms = evaluation.arms(here, mean)
        self.recorder = Recorder(self.config, learned_in, lm.identity.name, "test")
        measured = self.bench, self.recorder, evaluation.n_random
        self.gated = None if probe is None else GatedTest(probe, *measured)

    def measure(self, progress: Progress, only: int | None = None) -> list[Measurement]:
        """Measures every arm, or one.

        Args:
            progress: Who shows progress.
            only: Number of the one.

        Returns:
            Every number, in the order of the arms; those behind a gate after each arm's own.
        """
        found: list[Measurement] = []
        tested = self.arms[2]
        for reading in read_arms(self.bench, self.arms, tested, progress, only):
            found += recorded(reading, self.bench, self.recorder)
            if self.gated is not None:
                found += self.gated.measured(reading, is_tested=reading.arm is tested)
        for note in unjudged_notes(found, self.recorder.why_unjudged):
            progress.note(note)
        return found


def evaluate_by(
    engine: Engine,
    evaluation: Evaluation,
    direction: GivenDirection,
    gate: ModelProbe | None,
    progress: Progress,
) -> list[Measurement]:
    """Lets an engine measure every arm as one shard.

    Args:
        engine: Who measures.
        evaluation: What is measured.
        direction: A direction or a subspace of the model, or its folder; its files travel.
        gate: A probe of the model, behind which every edit is measured, too; None for no gate.
        progress: Who shows progress.

    Returns:
        Every number, in the order of the arms.
    """
    sent = sent_direction(loaded_direction(direction))
    settings = {"evaluation": evaluation.to_json(), "direction": sent}
    settings["gate"] = None if gate is None else sent_probe(gate)
    with TemporaryDirectory(prefix="isthmus-evaluate-") as folder:
        shards = tuple(Shard({"arm": i}, f"arm {i}") for i in range(evaluation.n_arms))
        (Path(folder) / "shards").mkdir()
        job = Job("test", _WORKER, settings, shards)
        measured: list[Measurement] = []
        for number, _ in enumerate(engine.run(job, Path(folder) / "shards", progress)):
            place = shard_folder(Path(folder) / "shards", number)
            measured += read_results(place / _RESULTS)
    return measured


@dataclass
class EvaluationWorker:
    """Measures arms; loads the model once.

    Attributes:
        settings: The evaluation, and the files of the direction and of the gate in base64.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress

    @cached_property
    def _prepared(self) -> PreparedEvaluation:
        direction, sent = received_learned(self.settings["direction"]), self.settings["gate"]
        gate = None if sent is None else received_probe(sent)
        evaluation = Evaluation.from_json(self.settings["evaluation"])
        return PreparedEvaluation(evaluation, direction, gate)

    def work(self, asked: Json, place: Path) -> Json:
        """Measures one arm.

        Args:
            asked: Its number, `arm`.
            place: Receives `results.jsonl`.

        Returns:
            How many numbers there are.
        """
        found = self._prepared.measure(self.progress, only=asked["arm"])
        place.mkdir(parents=True)
        write_results(place / _RESULTS, found)
        return {"n": len(found)}
