"""An intervention: edits by site, and the positions at which they apply."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import Edit, PlacedEdit
from isthmus.core.errors import ConfigError, ShapeError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import TokenBatch
from isthmus.interventions.ablation import DirectionalAblation
from isthmus.interventions.addition import Addition
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.checks import require_strength, require_vector, unit_of
from isthmus.interventions.coordinate import SetCoordinate
from isthmus.interventions.noise import GaussianNoise
from isthmus.interventions.positions import PositionMasks, PositionSelector
from isthmus.interventions.replacement import Replacement

VectorsBySite = Mapping[Site, Float[Tensor, "position d_model"]]
"""One vector per position of a span, or a single one for all positions, at every site."""


@dataclass(frozen=True)
class Intervention:
    """Edits at several sites, with where in the text they apply.

    It holds no model and no state: `place` says what it does to one batch. Every constructor
    refuses vectors that are not [position d_model] (ShapeError), hold NaN or infinity
    (NonFiniteError) or do not fit the positions (ConfigError), and strengths outside -1000 to 1000
    (StrengthError).

    Attributes:
        edits: For every site, one edit for all positions or one per position of the span.
        positions: Where the edits apply.

    Raises:
        ConfigError: If there is no edit, or edits per position where there is no fixed span.
    """

    edits: Mapping[Site, tuple[Edit, ...]]
    positions: PositionSelector

    def __post_init__(self) -> None:
        if not self.edits:
            raise ConfigError("an intervention without a site: name at least one")
        for site, edits in self.edits.items():
            if not edits:
                raise ConfigError(f"no edit at {site}: give one, or one per position")
            if len(edits) > 1:
                self.positions.require_span(len(edits))
        object.__setattr__(self, "edits", MappingProxyType(dict(self.edits)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it edits, in the order of the forward pass."""
        within_block = tuple(Stream)
        return tuple(sorted(self.edits, key=lambda s: (s.layer, within_block.index(s.stream))))

    def place(self, batch: TokenBatch) -> list[PlacedEdit]:
        """Finds the positions of one batch at which every edit applies.

        A prompt shorter than the positions ask for is a DataError, a trigger with another number of
        tokens than there are edits a TriggerError.

        Args:
            batch: Texts padded on either side, with or without their answers.

        Returns:
            Placed edits by site; those of one site have disjoint masks.
        """
        masks_by_count: dict[int, list[PositionMasks]] = {}
        placed: list[PlacedEdit] = []
        for site in self.sites:
            edits = self.edits[site]
            if len(edits) not in masks_by_count:
                masks_by_count[len(edits)] = self._masks(batch, len(edits))
            for edit, masks in zip(edits, masks_by_count[len(edits)], strict=True):
                own = edit.for_batch(batch) if isinstance(edit, GaussianNoise) else edit
                placed.append(PlacedEdit(site, own, masks.given, masks.generated))
        return placed

    def _masks(self, batch: TokenBatch, n_edits: int) -> list[PositionMasks]:
        if n_edits == 1:
            return [self.positions.masks(batch)]
        return self.positions.position_masks(batch, n_edits)

    @classmethod
    def steering(
        cls,
        vectors_by_site: VectorsBySite,
        positions: PositionSelector,
        strength: float = 1.0,
        *,
        keeps_norm: bool = False,
    ) -> "Intervention":
        """Adds a vector, h + strength · v.

        Args:
            vectors_by_site: Steering vectors in activation units.
            positions: Where.
            strength: Multiplier, from -1000 to 1000.
            keeps_norm: Whether every state is scaled back to its own length.

        Returns:
            An intervention of additions.
        """
        edits = {
            site: tuple(Addition(row, strength, keeps_norm) for row in _rows(site, vectors))
            for site, vectors in vectors_by_site.items()
        }
        return cls(edits, positions)

    @classmethod
    def ablation(
        cls, vectors_by_site: VectorsBySite, positions: PositionSelector
    ) -> "Intervention":
        """Removes the component along each vector, h - (h·r) r with r = v / ‖v‖.

        Args:
            vectors_by_site: Directions of any length but zero.
            positions: Where.

        Returns:
            An intervention of directional ablations.
        """
        edits = {
            site: tuple(
                DirectionalAblation(unit_of(f"direction at {site}", vector))
                for vector in _rows(site, vectors)
            )
            for site, vectors in vectors_by_site.items()
        }
        return cls(edits, positions)

    @classmethod
    def set_coordinate(
        cls,
        vectors_by_site: VectorsBySite,
        coordinates_by_site: Mapping[Site, Float[Tensor, " position"]],
        positions: PositionSelector,
        strength: float = 1.0,
    ) -> "Intervention":
        """Moves the coordinate along each vector, h + strength · (c - h·r) r with r = v / ‖v‖.

        Args:
            vectors_by_site: Directions of any length but zero.
            coordinates_by_site: c along the unit direction, in activation units; same sites, one
                for every vector.
            positions: Where.
            strength: Fraction of the way to c, from -1000 to 1000.

        Returns:
            An intervention that sets coordinates.

        Raises:
            ConfigError: If vectors and coordinates are at different sites.
            ShapeError: If coordinates are not as many as vectors.
        """
        if vectors_by_site.keys() != coordinates_by_site.keys():
            raise ConfigError(
                f"vectors at {_listed(vectors_by_site)}, coordinates at "
                f"{_listed(coordinates_by_site)}: give both at the same sites"
            )
        edits = {}
        for site, vectors in vectors_by_site.items():
            rows, coordinates = _rows(site, vectors), coordinates_by_site[site]
            if coordinates.shape != (len(rows),):
                raise ShapeError(
                    f"coordinates of shape {list(coordinates.shape)} at {site}: expected "
                    f"{len(rows)}, one per vector"
                )
            edits[site] = tuple(
                SetCoordinate(unit_of(f"direction at {site}", row), float(c), strength)
                for row, c in zip(rows, coordinates, strict=True)
            )
        return cls(edits, positions)

    @classmethod
    def replacement(
        cls, means_by_site: VectorsBySite, positions: PositionSelector
    ) -> "Intervention":
        """Overwrites activations with a mean, h := μ (mean ablation).

        Args:
            means_by_site: Mean activations.
            positions: Where.

        Returns:
            An intervention of replacements.
        """
        edits = {
            site: tuple(Replacement(mean) for mean in _rows(site, means))
            for site, means in means_by_site.items()
        }
        return cls(edits, positions)

    @classmethod
    def affine(
        cls, edits_by_site: Mapping[Site, AffineEdit], positions: PositionSelector
    ) -> "Intervention":
        """Adds an affine function of each state, h + strength · ((h - m) A B + b).

        Args:
            edits_by_site: One affine edit per site; each has its own strength.
            positions: Where.

        Returns:
            An intervention of affine edits.
        """
        return cls({site: (edit,) for site, edit in edits_by_site.items()}, positions)

    @classmethod
    def noise(
        cls,
        vectors_by_site: VectorsBySite,
        positions: PositionSelector,
        seed: int,
        strength: float = 1.0,
    ) -> "Intervention":
        """Adds Gaussian noise as long, on average, as `steering` with the same vectors would add.

        Args:
            vectors_by_site: Vectors whose norms the noise has; their directions do not matter.
            positions: Where.
            seed: Which noise; every site and position has its own.
            strength: Multiplier, from -1000 to 1000; its sign does not matter.

        Returns:
            An intervention of Gaussian noises.
        """
        require_strength(strength)
        edits: dict[Site, tuple[Edit, ...]] = {}
        n_drawn = 0
        for site, vectors in vectors_by_site.items():
            noises = []
            for vector in _rows(site, vectors):
                require_vector(f"vector at {site}", vector)
                norm = abs(strength) * float(vector.double().norm())
                # Far apart, so that runs with seeds 0, 1, 2 share no noise.
                noises.append(GaussianNoise(len(vector), norm, seed + 1_000_003 * n_drawn))
                n_drawn += 1
            edits[site] = tuple(noises)
        return cls(edits, positions)


def _rows(site: Site, vectors: Tensor) -> tuple[Tensor, ...]:
    if vectors.ndim != 2 or vectors.shape[0] == 0:
        raise ShapeError(
            f"vectors of shape {list(vectors.shape)} at {site}: expected [position d_model]"
        )
    return tuple(vectors.unbind())


def _listed(by_site: Mapping[Site, Tensor]) -> str:
    return ", ".join(str(site) for site in by_site) or "no site"
