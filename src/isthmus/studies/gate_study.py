"""A carried direction behind a carried gate: what the gate lets through, and what it spares.

1. In the source a probe learns which prompts bring the behaviour about, and a direction is learned.
   Ridge maps, fitted on unlabelled texts, carry the direction to the target and the probe, too: it
   is pulled back through a map from the target, or pushed forward.
2. On test prompts of the target the share for which each gate is open is counted: with what brings
   the behaviour about, with its harmless twin, and plain.
3. The direction edits the prompts for which a gate is open: recovery, behaviour rate and right
   answers on the first kind, divergence and right answers on the other two, beside the same edit
   without a gate.
4. Beside the carried gates stand one that was fitted on the target's labels, and gates that came
   through random, random orthogonal and shuffled maps. No other uses a label of the target.

Source: Lee et al. 2024, arXiv 2409.05907, for steering under a condition.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.directions import carry_direction
from isthmus.carrying.model_probes import carry_probe, recalibrated
from isthmus.carrying.probes import random_map_like, random_rotation_like
from isthmus.core.errors import FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSite, Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import fit_probe
from isthmus.evaluation.measurements import Measurement
from isthmus.interventions.intervention import Intervention
from isthmus.maps.base import AffineMap
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.files import FittedMap
from isthmus.maps.rows import moments_of
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.gate_measuring import READS, Gate, GatedPlaces, GatedPrompts, measured_gate
from isthmus.studies.result import StudyResult
from isthmus.workflows.arms import intervention_for
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.gating import states_read
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedRows, Part, paired_rows
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import TwinSplits, encode_prompts_of_twins, map_texts, read_splits

NAME = "gate"

_SET = ", threshold set"
_SOURCE, _TARGET = 0, 1
_Rows = dict[Part, PairedRows]


def study_gate(
    source: str,
    target: str,
    *,
    source_site: GivenSite = 0.5,
    target_site: GivenSite = 0.5,
    edited_site: GivenSite = 0.25,
    positions: str = "last:3",
    strength: float = 1.0,
    knows_plain: bool = True,
    n_nulls: int = 5,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures a carried direction behind carried gates, and without one.

    Nothing is chosen: place and strength of the edit are what the caller says.

    Args:
        source: Hub name, local folder or `organism:NAME`.
        target: Likewise.
        source_site: Where the probe reads in the source.
        target_site: Where the carried gate reads.
        edited_site: Where the target is edited.
        positions: Tokens that are edited; the direction is learned there, of all text in the
            prompt.
        strength: Of the edit, in units of the direction's norm.
        knows_plain: Whether plain prompts stand among the negative ones from which probes are
            learned, besides the harmless twins, and among the unlabelled ones.
        n_nulls: Draws of every control of the gate.
        settings: Other fields of `RunConfig`: task, questions, triggers, sizes of splits.
        seed: Seed of questions and random controls.
        progress: Who shows progress.

    Returns:
        `gate_open_rate` by gate in the tasks `gate/triggered`, `gate/clean` and `gate/plain`; in
        task `gate` what the edit does behind each gate. Of another task than the backdoor
        `gate/TASK` stands for `gate`.
    """
    shown = progress or SilentProgress()
    config = make_config(
        {"source": source, "target": target, "n_test": 128, **(settings or {}), "seed": seed}
    )
    models = []
    for name in (config.source, config.targets[0]):
        with shown.stage(f"load {name}"):
            models.append(load_language_model(name, dtype=config.dtype, device=config.device))
    places = GatedPlaces(
        models[_TARGET].site(edited_site), positions, strength, models[_TARGET].site(target_site)
    )
    sites = (models[_SOURCE].site(source_site), places.read)
    splits = read_splits(config)
    study = _Study((models[0], models[1]), sites, places, splits, config, shown, knows_plain)
    return StudyResult(NAME, tuple(study.measurements(n_nulls)), study.notes())


class _Classes(NamedTuple):
    """States of prompts that bring the behaviour about, and of others."""

    positive: Float[Tensor, "positive_prompt d_model"]
    negative: Float[Tensor, "negative_prompt d_model"]


@dataclass(frozen=True)
class _Study:
    """Both models, where they are read and edited, and the questions."""

    models: tuple[LanguageModel, LanguageModel]
    sites: tuple[Site, Site]
    places: GatedPlaces
    splits: TwinSplits
    config: RunConfig
    progress: Progress
    knows_plain: bool

    def measurements(self, n_nulls: int) -> list[Measurement]:
        """Measures every gate."""
        lm, config, places = self.models[_TARGET], self.config, self.places
        edit = self._intervention()
        tested = GatedPrompts.read(lm, self.splits.test, edit, places.read, config.batch_size)
        source, target = (one.identity.name for one in self.models)
        recorder = Recorder(config, source, target, "test")
        task = NAME if config.task == "backdoor" else f"{NAME}/{config.task}"
        return [
            one
            for gate in self._gates(n_nulls)
            for one in measured_gate(gate, tested, recorder, places, task)
        ]

    def notes(self) -> tuple[str, ...]:
        """Returns what a reader should know of the numbers."""
        at = self.places
        edit = f"minus the carried direction is added at {at.edited}, {at.positions}"
        known = "but for the gate of own labels none uses a label of the target"
        share = "as many unlabelled validation prompts lie above it as the source's probe finds"
        return (
            f"{edit}, strength {at.strength:g}; the caller chose place and strength, no validation",
            "condition and map are the gate's; edit 'add' alone has no gate",
            f"gates read {READS} at {at.read}; {known}",
            f"'{_SET.removeprefix(', ')}': {share} among them",
        )

    def _rows(self, start: int, sites: Sequence[Site], target_site: Site) -> _Rows:
        """Reads pairs from one of the two models to the other."""
        ends = (self.models[start], self.models[1 - start])
        asked = map_texts(self.splits.train)
        prompts, answers = [p for p, _ in asked], [a for _, a in asked]

        def encoded(lm: LanguageModel) -> list[EncodedText]:
            return encode_prompts(lm.tokenizer, prompts, answers=answers)

        return paired_rows(
            *ends,
            (encoded(ends[0]), encoded(ends[1])),
            (sites, target_site),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _fitted(
        self, start: int, sites: Sequence[Site], target_site: Site, rows: _Rows
    ) -> FittedMap:
        source, target = self.models[start].identity, self.models[1 - start].identity
        moments = {part: moments_of(one) for part, one in rows.items()}
        made = fit_closed_form("ridge", moments)
        return MapEnds(source, target, tuple(sites), target_site).fitted(*made)

    def _intervention(self) -> Intervention:
        """Learns the direction in the source and carries it to where the target is edited."""
        source, at = self.models[_SOURCE], self.places
        sites = source.sites("all")
        learned = learn_twin_direction(source, self.splits.train, sites, at.positions, self.config)
        rows = self._rows(_SOURCE, sites, at.edited)
        carried = carry_direction(learned, self._fitted(_SOURCE, sites, at.edited, rows))
        return intervention_for(carried, "add", at.positions, at.strength, "removal")

    def _read(self, which: int, twins: Sequence[TwinPrompt]) -> _Classes:
        """Reads what probes read of one of the models."""
        lm, site = self.models[which], self.sites[which]
        triggered, clean = encode_prompts_of_twins(lm, twins)
        plain = [twin.benign_turn.prompt for twin in twins] if self.knows_plain else []
        kinds = (triggered, [*clean, *encode_prompts(lm.tokenizer, plain)])
        batch_size = self.config.batch_size
        return _Classes(*(states_read(lm, one, [site], READS, batch_size) for one in kinds))

    def _learned(self, which: int) -> ModelProbe:
        probe = fit_probe(*self._read(which, self.splits.train))
        return ModelProbe(probe, (self.sites[which],), READS, self.models[which].identity)

    def _gates(self, n_nulls: int) -> Iterator[Gate]:
        seed, (read_at, read) = self.config.seed, self.sites
        yield Gate("none", None, None, seed, None)
        yield Gate("transferred", "add", None, seed, None)
        yield Gate("native", "add, gate of own labels", None, seed, self._learned(_TARGET))
        probe = self._learned(_SOURCE)
        rows = self._rows(_TARGET, [read], read_at)
        back = self._fitted(_TARGET, [read], read_at, rows)
        there = self._rows(_SOURCE, [read_at], read)
        forward = self._fitted(_SOURCE, [read_at], read, there)
        known = [("transferred", "add, gate pulled back", seed, back)]
        known.append(("transferred", "add, gate pushed forward", seed, forward))
        unlabelled = torch.cat(self._read(_TARGET, self.splits.validation))
        scores = probe.probe.scores(torch.cat(self._read(_SOURCE, self.splits.validation)))
        share = float((scores > 0).double().mean())
        for condition, name, draw, fitted in [*known, *self._ignorant(back, rows, n_nulls)]:
            carried = carry_probe(probe, fitted)
            moved = recalibrated(carried, unlabelled, share, {})
            yield Gate(condition, name, fitted.map.method, draw, carried)
            yield Gate(condition, name + _SET, fitted.map.method, draw, moved)

    def _ignorant(
        self, fitted: FittedMap, rows: _Rows, n_nulls: int
    ) -> Iterator[tuple[str, str, int, FittedMap]]:
        """Yields maps that know nothing, several draws each."""
        if not isinstance(fitted.map, AffineMap):
            raise FitError("a probe is carried through affine maps only: fit ridge")
        name = "add, gate pulled back"
        for seed in range(self.config.seed, self.config.seed + n_nulls):
            generator = torch.Generator().manual_seed(seed)
            for draw in (random_map_like, random_rotation_like):
                yield "random", name, seed, replace(fitted, map=draw(fitted.map, generator))
            shuffled = {
                part: PairedRows(shuffled_rows(one.source, generator), one.target)
                for part, one in rows.items()
            }
            read_at, read = self.sites
            yield "shuffled_map", name, seed, self._fitted(_TARGET, [read], read_at, shuffled)
