"""Refusal taken away by ablation, in activations and in weights, and brought about by addition.

1. Directions are differences of means at the last three prompt tokens, learned in the target and
   carried to every target layer by ridge from all source layers.
2. For ablations one vector (a layer and a token) is chosen on validation; layers beyond four fifths
   of the depth are left out. It is removed at every token: where blocks end; where embedding,
   attention and feed-forward part write; or from the weights themselves.
3. For additions layer and strength are chosen on validation, for both ways at once.
4. Every arm, with random directions and the direction through a map of shuffled pairs, is measured
   once on test requests.

Source: Arditi et al. 2024, arXiv:2406.11717; arXiv 2503.04429, section 4.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.chains import at_several_sites
from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import match_norm, random_direction_like
from isthmus.core.errors import ConfigError, ModelError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.interventions.everywhere import ablated_everywhere
from isthmus.maps.files import FittedMap
from isthmus.models.baking import bake_ablation, writer_sites
from isthmus.models.batching import no_edits
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import (
    LanguageModel,
    load_language_model,
    wrap_language_model,
)
from isthmus.models.scoring import answer_logprobs
from isthmus.studies.refusal_measuring import NAME, RefusalArm, RefusalBench
from isthmus.studies.result import StudyResult
from isthmus.tasks import task_named
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import EditKind, RunConfig, make_config
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, shuffled_map
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedMoments, paired_moments
from isthmus.workflows.selection import Cell, Scored, best_within, make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import TwinSplits, map_texts, read_splits

POSITIONS = "last:3"
"""Where directions are read, and where they are added."""

BLOCKS, WRITERS = "ablate every resid_post", "ablate every writer"
WEIGHTS = "rank-1 weight edit"
ADD: EditKind = "add"
"""What is done, as `edit` in `results.jsonl`."""

EVERYWHERE = "every token"
DEEPEST = 0.8
"""Share of the layers from which a vector for ablations may come (Arditi et al., appendix C)."""

_SIZES = {"n_train": 160, "n_validation": 48, "n_test": 162}
_N_SHOWN, _N_COMPARED = 6, 16


def study_refusal(
    source: str | LanguageModel,
    target: str | LanguageModel,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Takes refusal away at every site and in the weights, and brings it about by addition.

    Tasks `refusal_study/declined`, `…/answered` and `…/ordinary` name the requests.

    Args:
        source: Model that declines some requests: name, folder or a loaded model.
        target: Another one.
        settings: Other fields of `RunConfig`: requests, their judge, sizes of splits, sites,
            strengths, batch size, type and device of models that are loaded here; 160 requests
            train, 48 choose and 162 are measured when not given.
        seed: Which requests, and every random control.
        progress: Who shows progress.

    Returns:
        Refusals, refusals that turn into compliance, right steps, recovery and damage of the native
        and the carried direction and of their controls, and what was chosen.

    Raises:
        ConfigError: If `edit` or `positions` ask for something else than the study does.
    """
    names = [m if isinstance(m, str) else m.identity.name for m in (source, target)]
    advice = task_named("refusal").recommended
    given = {**_SIZES, "strengths": advice.strengths, **(settings or {})}
    ends = {"task": "refusal", "source": names[0], "targets": [names[1]], "seed": seed}
    config = make_config({**given, **ends})
    if config.edit != ADD or config.positions not in {"auto", POSITIONS}:
        raise ConfigError(
            f"the refusal study ablates, and adds at {POSITIONS}: leave out 'edit' and 'positions' "
            f"(got {config.edit!r}, {config.positions!r})"
        )
    lms = [
        load_language_model(m, dtype=config.dtype, device=config.device)
        if isinstance(m, str)
        else m
        for m in (source, target)
    ]
    room = _Room(lms[0], lms[1], config, progress or SilentProgress())
    arms = [RefusalArm("none", None, lms[1], seed=seed)]
    arms += [*room.ablations(), *room.additions()]
    measurements: list[Measurement] = []
    rows = [{"request": turn.prompt} for turn in room.test.declined[:_N_SHOWN]]
    with room.progress.stage("test refusal", len(arms)) as advance:
        for arm in arms:
            found, said = room.test.measure(arm)
            measurements += found
            if arm.condition in {"none", "transferred"}:
                for row, text in zip(rows, said, strict=False):
                    row[arm.edit or "untouched"] = text
            advance(1)
    return StudyResult(NAME, tuple(measurements), tuple(room.notes), {}, tuple(rows))


@dataclass(frozen=True)
class _Vector:
    """One vector of a direction: a site and which of its positions."""

    direction: Direction
    site: Site
    position: int

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """The vector itself."""
        return self.direction.at(self.site).vectors[self.position]

    def of(self, other: Direction) -> "_Vector":
        """Returns the vector at the same place of another direction."""
        return replace(self, direction=other)


class _Room:
    """Both models, the directions in the target, and both splits ready to be asked."""

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        config: RunConfig,
        progress: Progress,
    ) -> None:
        self.source, self.target, self.config, self.progress = source, target, config, progress
        self.splits: TwinSplits = read_splits(config)
        self.every_site, self.sites = target.sites("all"), target.sites(config.target_sites)
        self.source_sites = thinned_sites(source, config.source_sites)
        self.learned, self.native = (
            learn_twin_direction(lm, self.splits.train, sites, POSITIONS, config)
            for lm, sites in ((source, self.source_sites), (target, self.sites))
        )
        self.moments = self._moments()
        self.carried = self._carried()
        name = source.identity.name
        self.validation, self.test = (
            RefusalBench(target, name, twins, split, config)
            for split, twins in (
                ("validation", self.splits.validation),
                ("test", self.splits.test),
            )
        )
        self.notes: list[str] = []

    def ablations(self) -> list[RefusalArm]:
        """Returns every arm that removes one vector at every token."""
        arms: list[RefusalArm] = []
        both = {"native": self.native, "transferred": self.carried}
        chosen = {name: self._choose_vector(name, direction) for name, direction in both.items()}
        for condition, vector in chosen.items():
            arms += [self._ablation(edit, condition, vector) for edit in (BLOCKS, WRITERS)]
            arms += self._in_weights(condition, vector)
        carried = chosen["transferred"]
        here = at_one_site(self.carried, carried.site)
        for control, direction, seed in self._controls(here):
            arms += [
                self._ablation(edit, control, carried.of(direction), seed)
                for edit in (BLOCKS, WRITERS)
            ]
        return arms

    def additions(self) -> list[RefusalArm]:
        """Returns every arm that adds vectors at the end of the prompt, both ways."""
        names = (self.source.identity.name, self.target.identity.name)
        recorder = Recorder(self.config, *names, "validation")
        bench = Bench(self.target, self.splits.validation, self.config)
        selector = make_selector(bench, recorder, self.progress)
        cells = [Cell(site, POSITIONS) for site in self.sites]
        chosen: dict[str, Arm] = {}
        for condition, direction in (("native", self.native), ("transferred", self.carried)):
            make = _maker(condition, direction, self.config.seed)
            chosen[condition] = selector.choose_cell(condition, cells, make).arm
        arms = [_as_refusal_arm(self.target, arm) for arm in chosen.values()]
        carried = chosen["transferred"]
        if carried.direction is not None:
            for control, direction, seed in self._controls(carried.direction):
                like = replace(carried, condition=control, direction=direction, seed=seed)
                arms.append(_as_refusal_arm(self.target, like))
        self.notes += [
            f"{name}: added at {arm.site}, {arm.positions}, strength {arm.strength:g}"
            for name, arm in chosen.items()
        ]
        return arms

    def _choose_vector(self, condition: str, direction: Direction) -> _Vector:
        n_early = max(1, int(DEEPEST * self.target.n_layers))
        tried = [
            _Vector(direction, site, position)
            for site in self.sites
            if site.layer < n_early
            for position in range(direction.n_positions)
        ]
        scored: list[Scored] = []
        with self.progress.stage(f"choose a vector: {condition}", len(tried)) as advance:
            for vector in tried:
                arm = self._ablation(WRITERS, condition, vector)
                losses, change = self.validation.removed(arm), self.validation.change(arm)
                rows = torch.arange(len(losses)).numpy()[None]
                effect = float(losses.ratios(rows)[0])
                damage = float(change.divergence.mean())
                # Its index tells which vector it is.
                marked = Arm(condition, vector.site, seed=len(scored))
                scored.append(Scored(marked, effect, damage, change.accuracy_loss))
                advance(1)
        best = best_within(scored, self.config)
        vector = tried[best.arm.seed]
        self.notes.append(
            f"{condition}: ablated is the vector of {vector.site} at token "
            f"{vector.position - direction.n_positions} of the prompt (validation: recovery "
            f"{best.effect:.2f}, benign KL {best.damage:.3f})"
        )
        return vector

    def _ablation(
        self, edit: str, condition: str, vector: _Vector, seed: int | None = None
    ) -> RefusalArm:
        last = self.target.n_layers - 1
        if edit == BLOCKS:
            where, sites = f"resid_post[0..{last}]", self.every_site
        else:
            where = f"resid_pre[0], attn_out[0..{last}], mlp_out[0..{last}]"
            sites = writer_sites(self.target.layout)
        return RefusalArm(
            condition,
            edit,
            self.target,
            removal=ablated_everywhere(vector.value, sites),
            site=where,
            positions=EVERYWHERE,
            map_method="ridge" if condition == "transferred" else None,
            seed=self.config.seed if seed is None else seed,
        )

    def _in_weights(self, condition: str, vector: _Vector) -> list[RefusalArm]:
        try:
            baked = bake_ablation(self.target, vector.value)
        except ModelError as error:
            note = f"no {WEIGHTS} of {self.target.identity.name}: {error}"
            self.notes += [] if note in self.notes else [note]
            return []
        written = self._ablation(WRITERS, condition, vector)
        name = f"{self.target.identity.name} without a direction"
        edited = wrap_language_model(baked, self.target.tokenizer, name)
        texts = self.test.encoded.benign[:_N_COMPARED]
        pairs = zip(
            answer_logprobs(edited, texts),
            answer_logprobs(self.target, texts, edits=written.removal),
            strict=True,
        )
        apart = max(float((a - b).abs().max()) for a, b in pairs)
        self.notes.append(
            f"{condition}: log-probabilities under the {WEIGHTS} and under the ablation of every "
            f"writer differ by at most {apart:.1e}"
        )
        arm = replace(written, edit=WEIGHTS, lm=edited, removal=no_edits, site="weights")
        return [arm]

    def _controls(self, carried: Direction) -> list[tuple[str, Direction, int]]:
        """Returns random directions and the one through a shuffled map, at one site."""
        (site,) = carried.sites
        seeds = [self.config.seed + i for i in range(self.config.n_random)]
        drawn = [
            ("random", random_direction_like(carried, torch.Generator().manual_seed(seed)), seed)
            for seed in seeds
        ]
        rows = self.moments.rows_at(site)
        if rows is None:
            self.notes.append("no control through a shuffled map: too many pairs to keep")
            return drawn
        ignorant = shuffled_map(rows, self._ends(site), self.config.seed)
        shuffled = match_norm(carry_direction(self.learned, ignorant), carried.norms)
        return [*drawn, ("shuffled_map", shuffled, self.config.seed)]

    def _ends(self, site: Site) -> MapEnds:
        return MapEnds(self.source.identity, self.target.identity, self.source_sites, site)

    def _moments(self) -> PairedMoments:
        texts = map_texts(self.splits.train)
        encoded = [
            encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
            for lm in (self.source, self.target)
        ]
        return paired_moments(
            self.source,
            self.target,
            (encoded[0], encoded[1]),
            (self.source_sites, self.sites),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _carried(self) -> Direction:
        """Carries the source's direction to every target site, each through its own map."""
        return at_several_sites(
            [carry_direction(self.learned, self._fitted(site)) for site in self.moments.by_site]
        )

    def _fitted(self, site: Site) -> FittedMap:
        return self._ends(site).fitted(*fit_closed_form("ridge", self.moments.by_site[site]))


def _maker(condition: str, direction: Direction, seed: int) -> Callable[[Cell], Arm]:
    used_map = "ridge" if condition == "transferred" else None

    def make(cell: Cell) -> Arm:
        here = at_one_site(direction, cell.site)
        place = (cell.site, cell.positions)
        return Arm(condition, *place, ADD, 1.0, here, map_method=used_map, seed=seed)

    return make


def _as_refusal_arm(lm: LanguageModel, arm: Arm) -> RefusalArm:
    removal, induction = arm.intervention("removal"), arm.intervention("induction")
    return RefusalArm(
        arm.condition,
        ADD,
        lm,
        removal=no_edits if removal is None else removal.place,
        induction=None if induction is None else induction.place,
        site=str(arm.site),
        positions=arm.positions,
        strength=arm.strength,
        map_method=arm.map_method if arm.condition == "transferred" else None,
        seed=arm.seed,
    )
