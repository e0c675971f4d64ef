"""One crossing: a direction of the source is carried to one target and tested there.

1. Read both models over the same texts; keep the moments of paired activations per target site.
2. Learn directions in the source (all sites) and in the target (native).
3. Choose site, positions and strength on validation, for native and for the ridge map; confirm
   the strength on more benign prompts.
4. Fit every other map at the chosen site; choose each one's strength on validation.
5. Measure every condition once on test questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.carrying.directions import carry_direction
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.certifying import Certifier
from isthmus.workflows.choosing import Choosing
from isthmus.workflows.config import RunConfig
from isthmus.workflows.contrast_maps import ON_CONTRASTS, Contrasts
from isthmus.workflows.contrast_reading import contrasts_of, read_contrasts
from isthmus.workflows.controls import control_arms
from isthmus.workflows.costs import CostLedger
from isthmus.workflows.limits import limits_of
from isthmus.workflows.map_fitting import (
    Besides,
    MapEnds,
    fit_closed_form,
    fit_map,
)
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedMoments, PairedRows, Part, paired_moments, paired_rows
from isthmus.workflows.rule_choice import rule_notes
from isthmus.workflows.selection import Cell, Scored, make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.testing import measure_arms
from isthmus.workflows.twin_directions import at_one_site, learn_twin_directions
from isthmus.workflows.twins import (
    TwinSplits,
    map_texts,
    position_candidates,
)
from isthmus.workflows.vocabulary_rows import vocabulary_rows


@dataclass(frozen=True)
class CrossingResult:
    """What a crossing found.

    Attributes:
        measurements: Validation and test, every number.
        completions: Rows of completions side by side, and the names of both models.
        source_direction: Learned in the source at every site that maps read.
        native_direction: Learned in the target, at the site chosen for it.
        transferred: The direction in the target by map method.
        maps: Fitted maps by method.
        best_map: The method that did best on validation.
        chosen: The setting of the best map.
        notes: What a reader should know.
    """

    measurements: list[Measurement]
    completions: dict[str, Any]
    source_direction: Direction
    native_direction: Direction
    transferred: dict[str, Direction]
    maps: dict[str, FittedMap]
    best_map: str
    chosen: Arm
    notes: tuple[str, ...]


class Crossing:
    """Carries out one crossing.

    Args:
        source: Source model.
        target: Target model.
        splits: Questions.
        config: The run.
        progress: Who shows progress.
    """

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        splits: TwinSplits,
        config: RunConfig,
        progress: Progress,
    ) -> None:
        self.source, self.target = source, target
        self.splits, self.config, self.progress = splits, config, progress
        self.source_sites = thinned_sites(source, config.source_sites)
        self.target_sites = target.sites(config.target_sites)
        self.positions, note = position_candidates((source, target), config, splits.train[0])
        self.notes = [note] if note else []
        self._read: dict[Site, Contrasts] = {}
        texts = map_texts(splits.train)
        self.texts = tuple(
            encode_prompts(
                lm.tokenizer, [p for p, _ in texts], answers=[answer for _, answer in texts]
            )
            for lm in (source, target)
        )

    def _ends(self, site: Site) -> MapEnds:
        return MapEnds(self.source.identity, self.target.identity, self.source_sites, site)

    def run(self) -> CrossingResult:
        """Does everything and returns what was found."""
        costs = CostLedger(self.target, is_swept=self.config.choose_by == "sweep")
        validation = self._validation()
        with costs.of("map"):
            moments = self._moments()
        names = (self.source.identity.name, self.target.identity.name)
        recorder = Recorder(self.config, *names, "test")
        selector = make_selector(validation, recorder, self.progress)
        sources = self._directions(self.source, self.source_sites)
        choosing = Choosing(self.target, self.splits, self.config, selector, costs, self.progress)
        native, ridge = self._places(choosing, moments, sources)
        site, positions = _place(ridge.arm)
        rows = moments.rows_at(site) or self._rows(site)
        maps = self._fit(rows, self._ends(site), costs)
        scored = self._scored(choosing, sources[positions], maps, ridge)
        best = choosing.best(scored)
        controls = control_arms(
            scored[best].arm,
            sources[positions],
            rows,
            self._ends(site),
            self.config,
            self._contrasts(site) if best == ON_CONTRASTS else None,
        )
        for arm in controls:
            if arm.condition in {"random", "noise"} and arm.seed == self.config.seed:
                selector.record_doses(arm)
        test = Bench(self.target, self.splits.test, self.config)
        if not test.encoded.overridden:
            controls = [arm for arm in controls if arm.condition != "prompt_only"]
        arms = [Arm("none"), Arm("clean"), native.arm, *(s.arm for s in scored.values()), *controls]
        tested = measure_arms(test, recorder, arms, scored[best].arm, self.progress)
        self.notes += rule_notes(self.config, len(self._cells()))
        self.notes += limits_of(scored[best], tested.measurements, recorder)
        certifier = Certifier(self.config, self.texts[0], tested.measurements, rows["train"].target)
        quality = [
            one
            for method, fitted in maps.items()
            if method in scored
            for one in recorder.quality(scored[method].arm, fitted.quality)
        ]
        return CrossingResult(
            measurements=[
                *selector.measured,
                *tested.measurements,
                *quality,
                *costs.measurements(recorder, [native.arm, *self._paid(scored, ridge)]),
            ],
            completions={"source": names[0], "target": names[1], "rows": tested.rows},
            source_direction=sources[positions],
            native_direction=_direction_of(native.arm),
            transferred={
                method: certifier.certified(one.arm, _direction_of(one.arm))
                for method, one in scored.items()
            },
            maps={method: fitted for method, fitted in maps.items() if method in scored},
            best_map=best,
            chosen=scored[best].arm,
            notes=tuple(self.notes),
        )

    def _validation(self) -> Bench:
        bench = Bench(self.target, self.splits.validation, self.config)
        bench.require_room()
        return bench

    def _paid(self, scored: dict[str, Scored], ridge: Scored) -> list[Arm]:
        on_contrasts = [one.arm for method, one in scored.items() if method == ON_CONTRASTS]
        return [scored.get("ridge", ridge).arm, *on_contrasts]

    def _places(
        self, choosing: Choosing, moments: PairedMoments, sources: dict[str, Direction]
    ) -> tuple[Scored, Scored]:
        """Chooses where the native and the carried direction act, and counts what that takes."""
        choosing.prepare(self.target_sites, self.positions)
        with choosing.costs.of("native"):
            natives = self._directions(self.target, self.target_sites)
            native = self._choose_native(choosing, natives)
        ridge = self._choose_transferred(choosing, moments, sources)
        choosing.costs.calibrate(choosing.selector.coarse, ridge.arm, self.config.max_benign_kl)
        return native, ridge

    def _fit(
        self, rows: dict[Part, PairedRows], ends: MapEnds, costs: CostLedger
    ) -> dict[str, FittedMap]:
        def contrasts() -> Contrasts:
            with costs.of("contrasts"):
                return self._contrasts(ends.target_site)

        besides = Besides(
            lambda: vocabulary_rows(self.source, self.target),
            contrasts,
        )
        return {
            method: fit_map(
                method,
                rows,
                ends,
                self.config.seed,
                self.progress,
                besides,
            )
            for method in self.config.maps
        }

    def _contrasts(self, site: Site) -> Contrasts:
        if site not in self._read:
            self._read[site] = read_contrasts(
                (self.source, self.target),
                contrasts_of(self.splits.train),
                [prompt for prompt, _ in map_texts(self.splits.train)],
                (self.source_sites, (site,)),
                self.config.batch_size,
                self.progress,
            )
        return self._read[site]

    def _moments(self) -> PairedMoments:
        return paired_moments(
            self.source,
            self.target,
            (self.texts[0], self.texts[1]),
            (self.source_sites, self.target_sites),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _directions(self, lm: LanguageModel, sites: Sequence[Site]) -> dict[str, Direction]:
        """Learns a direction per kind of positions."""
        with self.progress.stage(f"learn directions in {lm.identity.name}"):
            return learn_twin_directions(lm, self.splits.train, sites, self.positions, self.config)

    def _choose_native(self, choosing: Choosing, natives: dict[str, Direction]) -> Scored:
        def make(cell: Cell) -> Arm:
            direction = at_one_site(natives[cell.positions], cell.site)
            return Arm(
                "native",
                cell.site,
                cell.positions,
                self.config.edit,
                1.0,
                direction,
                seed=self.config.seed,
            )

        return choosing.native(self._cells(), make)

    def _choose_transferred(
        self, choosing: Choosing, moments: PairedMoments, sources: dict[str, Direction]
    ) -> Scored:
        """Chooses where the ridge map's direction works best; other maps then use that place."""
        fitted = {}
        with (
            choosing.costs.of("place"),
            self.progress.stage("fit a ridge map per layer", len(self.target_sites)) as advance,
        ):
            for site in self.target_sites:
                made, quality = fit_closed_form("ridge", moments.by_site[site])
                fitted[site] = self._ends(site).fitted(made, quality)
                advance(1)

        def make(cell: Cell) -> Arm:
            return self._arm(cell, "ridge", fitted[cell.site], sources[cell.positions])

        return choosing.carried(self._cells(), make)

    def _cells(self) -> list[Cell]:
        return [Cell(site, p) for site in self.target_sites for p in self.positions]

    def _arm(self, cell: Cell, method: str, fitted: FittedMap, direction: Direction) -> Arm:
        return Arm(
            "transferred",
            cell.site,
            cell.positions,
            self.config.edit,
            1.0,
            carry_direction(direction, fitted),
            map_method=method,
            source_sites=", ".join(map(str, fitted.source_sites)),
            seed=self.config.seed,
        )

    def _rows(self, site: Site) -> dict[Part, PairedRows]:
        return paired_rows(
            self.source,
            self.target,
            (self.texts[0], self.texts[1]),
            (self.source_sites, site),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _scored(
        self,
        choosing: Choosing,
        direction: Direction,
        maps: dict[str, FittedMap],
        ridge: Scored,
    ) -> dict[str, Scored]:
        """Chooses the strength of every map; ridge keeps what was chosen with its place."""
        cell = Cell(*_place(ridge.arm))
        scored: dict[str, Scored] = {}
        for method, fitted in maps.items():
            if method == "ridge":
                scored[method] = ridge
                continue
            try:
                arm = self._arm(cell, method, fitted, direction)
            except FitError as error:
                self.notes.append(f"the {method} map carried nothing: {error}")
                continue
            scored[method] = choosing.strength(method, arm)
        return scored or {"ridge": ridge}


def _place(arm: Arm) -> tuple[Site, str]:
    if arm.site is None or arm.positions is None:
        raise ConfigError(f"the {arm.condition} arm has no place")
    return arm.site, arm.positions


def _direction_of(arm: Arm) -> Direction:
    if arm.direction is None:
        raise ConfigError(f"the {arm.condition} arm has no direction")
    return arm.direction
