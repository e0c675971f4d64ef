"""Ways of a direction through models: maps between neighbours, fitted once, and what they carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from isthmus.carrying.chains import average_directions, carry_along
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.direction import Direction
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import RunConfig
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, fit_map, shuffled_map
from isthmus.workflows.pairing import PairedMoments, paired_moments
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import map_texts

Way = tuple[str, ...]
"""Names of the models that a direction passes, the source first."""


@dataclass(frozen=True)
class Route:
    """One or several ways into one model.

    Attributes:
        ways: One is a chain; several, whose last model is the same, are averaged there.
        compared_with: Name of the route into the same model that it is compared with; None means
            the native direction.

    Raises:
        ConfigError: If there is no way, a way has fewer than two models, or ways end differently.
    """

    ways: tuple[Way, ...]
    compared_with: str | None = None

    def __post_init__(self) -> None:
        if not self.ways or any(len(way) < 2 for way in self.ways):
            raise ConfigError(f"ways {self.ways}: expected two models or more in each")
        if len({way[-1] for way in self.ways}) > 1:
            raise ConfigError(f"ways {self.ways} end in different models: average in one")

    @property
    def target(self) -> str:
        """The model that it leads to."""
        return self.ways[0][-1]

    @property
    def name(self) -> str:
        """How results and pictures call it."""
        if len(self.ways) == 1:
            return " → ".join(self.ways[0])
        starts = ", ".join(" → ".join(way[:-1]) for way in self.ways)
        return f"mean of {starts} → {self.target}"


@dataclass
class Ways:
    """Directions of several models and the ridge maps between them, made when first asked for.

    Every map reads all sites of its source, so that every leg leads to all sites of its target.

    Attributes:
        models: Loaded models by short name.
        twins: Training questions for directions and maps.
        config: Method, pairing, seed.
        progress: Who shows progress.
    """

    models: Mapping[str, LanguageModel]
    twins: Sequence[TwinPrompt]
    config: RunConfig
    progress: Progress
    _learned: dict[tuple[str, str], Direction] = field(default_factory=dict)
    _moments: dict[tuple[str, str], PairedMoments] = field(default_factory=dict)
    _legs: dict[tuple[str, str], tuple[FittedMap, ...]] = field(default_factory=dict)

    def learned(self, name: str, positions: str) -> Direction:
        """Returns the direction that a model has of its own, at all of its sites."""
        if (name, positions) not in self._learned:
            lm = self.models[name]
            self._learned[name, positions] = learn_twin_direction(
                lm, self.twins, self._sites(name), positions, self.config
            )
        return self._learned[name, positions]

    def leg(self, source: str, target: str) -> tuple[FittedMap, ...]:
        """Returns the ridge maps from one model to every site of another."""
        if (source, target) not in self._legs:
            by_site = self._pairs(source, target).by_site
            self._legs[source, target] = tuple(
                self._ends(source, target, site).fitted(*fit_closed_form("ridge", by_site[site]))
                for site in by_site
            )
        return self._legs[source, target]

    def carried(self, route: Route, positions: str) -> Direction:
        """Returns what arrives by a route, at every site of its target.

        Args:
            route: One way, or several that are averaged.
            positions: Which tokens the direction is read at and used at.

        Returns:
            A direction of the target.
        """
        return average_directions(
            [
                carry_along(
                    self.learned(way[0], positions),
                    [self.leg(*ends) for ends in pairwise(way)],
                )
                for way in route.ways
            ]
        )

    def misled(self, route: Route, positions: str, site: Site) -> Direction | None:
        """Returns what arrives when the last map of every way was fitted on shuffled pairs.

        Args:
            route: One way, or several that are averaged.
            positions: Which tokens.
            site: Where in the target.

        Returns:
            A direction at the site; None where too many pairs were read to be kept.
        """
        arrived = []
        for way in route.ways:
            if (last := self.shuffled(way[-2], way[-1], site)) is None:
                return None
            before = [self.leg(*ends) for ends in pairwise(way[:-1])]
            arrived.append(carry_along(self.learned(way[0], positions), [*before, [last]]))
        return average_directions(arrived)

    def shuffled(self, source: str, target: str, site: Site) -> FittedMap | None:
        """Returns the map between two models that was fitted on shuffled pairs.

        Args:
            source: Where it starts.
            target: Where it leads.
            site: Where there.

        Returns:
            The map; None where too many pairs were read to be kept.
        """
        rows = self._pairs(source, target).rows_at(site)
        if rows is None:
            return None
        return shuffled_map(rows, self._ends(source, target, site), self.config.seed)

    def identity(self, source: str, target: str, site: Site) -> FittedMap | None:
        """Returns the map that cuts states or fills them up with zeros, likewise."""
        rows = self._pairs(source, target).rows_at(site)
        if rows is None:
            return None
        ends = self._ends(source, target, site)
        return fit_map("identity", rows, ends, self.config.seed, self.progress)

    def _sites(self, name: str) -> tuple[Site, ...]:
        return thinned_sites(self.models[name], "all")

    def _ends(self, source: str, target: str, site: Site) -> MapEnds:
        ends = [self.models[name].identity for name in (source, target)]
        return MapEnds(ends[0], ends[1], self._sites(source), site)

    def _pairs(self, source: str, target: str) -> PairedMoments:
        if (source, target) not in self._moments:
            texts = map_texts(self.twins)
            lms = (self.models[source], self.models[target])
            encoded = [
                encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
                for lm in lms
            ]
            self._moments[source, target] = paired_moments(
                *lms,
                (encoded[0], encoded[1]),
                (self._sites(source), self._sites(target)),
                pairing=self.config.pairing,
                batch_size=self.config.batch_size,
                progress=self.progress,
            )
        return self._moments[source, target]
