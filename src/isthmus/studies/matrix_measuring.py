"""One column of a transfer matrix: a target, its native direction, what sources carry to it.

1. Benches and the native choice belong to the target alone and are made once for all sources.
2. A source's direction is carried by a ridge map from all of its layers; layer, positions and
   strength are chosen on validation and measured on test, as in a crossing.
3. Controls at that place and strength: random directions of equal norm, and the source's direction
   through a map fitted on shuffled pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from isthmus.carrying.directions import carry_direction
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import Pairing, RunConfig
from isthmus.workflows.controls import control_arms
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import (
    PairedMoments,
    PairedRows,
    Part,
    paired_moments,
    paired_rows,
)
from isthmus.workflows.selection import Cell, Selector, make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.testing import measure_arms
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import TwinSplits, map_texts, position_candidates

CONTROLS = ("random", "shuffled_map")


@dataclass(frozen=True)
class Reader:
    """A model with the texts that maps are fitted on, encoded once.

    Attributes:
        lm: The model.
        splits: Questions of every split.
        config: The run.
        progress: Who shows progress.
    """

    lm: LanguageModel
    splits: TwinSplits
    config: RunConfig
    progress: Progress

    @cached_property
    def texts(self) -> list[EncodedText]:
        """What both models of a pair read."""
        texts = map_texts(self.splits.train)
        return encode_prompts(
            self.lm.tokenizer, [p for p, _ in texts], answers=[answer for _, answer in texts]
        )

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites that a map reads."""
        return thinned_sites(self.lm, self.config.source_sites)

    def directions(
        self, positions: Sequence[str], sites: Sequence[Site] | None = None
    ) -> dict[str, Direction]:
        """Learns a direction per kind of positions.

        Args:
            positions: Kinds of positions.
            sites: Where; those that maps read when not given.

        Returns:
            Directions by kind of positions.
        """
        return {
            one: learn_twin_direction(
                self.lm, self.splits.train, sites or self.sites, one, self.config
            )
            for one in positions
        }


@dataclass(frozen=True)
class Column:
    """A target on which native and carried directions are measured.

    Attributes:
        target: The target.
    """

    target: Reader

    @cached_property
    def _sites(self) -> tuple[Site, ...]:
        return self.target.lm.sites(self.target.config.target_sites)

    @cached_property
    def _test(self) -> Bench:
        return Bench(self.target.lm, self.target.splits.test, self.target.config)

    @cached_property
    def _selector(self) -> Selector:
        bench = Bench(self.target.lm, self.target.splits.validation, self.target.config)
        return make_selector(bench, self._recorder(self.target), self.target.progress)

    def _recorder(self, source: Reader) -> Recorder:
        names = (source.lm.identity.name, self.target.lm.identity.name)
        return Recorder(self.target.config, *names, "test")

    def _selector_for(self, source: Reader) -> Selector:
        """Returns a selector on the same benches, whose untouched model is measured already."""
        recorder = replace(self._selector.recorder, source=source.lm.identity.name)
        return replace(self._selector, recorder=recorder, measured=[])

    def native(self) -> list[Measurement]:
        """Chooses the target's own direction on validation and measures it on test.

        Returns:
            The untouched model, its clean twin, and the native direction.
        """
        one = self.target
        positions, _ = position_candidates((one.lm,), one.config, one.splits.train[0])
        learned = one.directions(positions, self._sites)

        def make(cell: Cell) -> Arm:
            direction = at_one_site(learned[cell.positions], cell.site)
            place = (cell.site, cell.positions, one.config.edit, 1.0)
            return Arm("native", *place, direction, seed=one.config.seed)

        chosen = self._selector_for(one).choose_cell("native", self._cells(positions), make)
        arms = [Arm("none"), Arm("clean"), chosen.arm]
        return measure_arms(
            self._test, self._recorder(one), arms, chosen.arm, one.progress
        ).measurements

    def carried(self, source: Reader, pairing: Pairing) -> list[Measurement]:
        """Carries a source's direction to the target and measures it beside its controls.

        Args:
            source: The source, with the questions of this column.
            pairing: How tokens are paired.

        Returns:
            The carried direction and its controls on test questions, and its map's quality.
        """
        one = self.target
        models = (source.lm, one.lm)
        positions, _ = position_candidates(models, one.config, one.splits.train[0])
        learned = source.directions(positions)
        moments = self._moments(source, pairing)
        fitted = {
            site: self._ends(source, site).fitted(*fit_closed_form("ridge", parts))
            for site, parts in moments.by_site.items()
        }

        def make(cell: Cell) -> Arm:
            used = fitted[cell.site]
            place = (cell.site, cell.positions, one.config.edit, 1.0)
            return Arm(
                "transferred",
                *place,
                carry_direction(learned[cell.positions], used),
                map_method="ridge",
                source_sites=", ".join(map(str, used.source_sites)),
                seed=one.config.seed,
            )

        selector = self._selector_for(source)
        chosen = selector.choose_cell("transferred", self._cells(positions), make)
        site, place = chosen.arm.site, chosen.arm.positions
        if site is None or place is None:
            raise ConfigError("the transferred arm has no place")
        rows = moments.rows_at(site) or self._rows(source, site, pairing)
        ends = self._ends(source, site)
        every = control_arms(chosen.arm, learned[place], rows, ends, one.config)
        controls = [arm for arm in every if arm.condition in CONTROLS]
        recorder = self._recorder(source)
        tested = measure_arms(self._test, recorder, [chosen.arm], chosen.arm, one.progress)
        # Completions of controls would double the cost: likelihoods tell them apart.
        effects = [m for arm in controls for m in recorder.effects(arm, self._test.score(arm))]
        quality = recorder.quality(chosen.arm, fitted[site].quality)
        return [*tested.measurements, *effects, *quality]

    def _moments(self, source: Reader, pairing: Pairing) -> PairedMoments:
        return paired_moments(
            source.lm,
            self.target.lm,
            (source.texts, self.target.texts),
            (source.sites, self._sites),
            pairing=pairing,
            batch_size=self.target.config.batch_size,
            progress=self.target.progress,
        )

    def _rows(self, source: Reader, site: Site, pairing: Pairing) -> dict[Part, PairedRows]:
        return paired_rows(
            source.lm,
            self.target.lm,
            (source.texts, self.target.texts),
            (source.sites, site),
            pairing=pairing,
            batch_size=self.target.config.batch_size,
            progress=self.target.progress,
        )

    def _ends(self, source: Reader, site: Site) -> MapEnds:
        return MapEnds(source.lm.identity, self.target.lm.identity, source.sites, site)

    def _cells(self, positions: Sequence[str]) -> list[Cell]:
        return [Cell(site, p) for site in self._sites for p in positions]
