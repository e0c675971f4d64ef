"""The frozen values of this package: a direction at one site, and a direction of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.certificate import Certificate
from isthmus.core.errors import DataError, FitError, NonFiniteError, ShapeError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_site


@dataclass(frozen=True, eq=False)
class SiteDirection:
    """What separates the two classes at one site, per position, with the states it came from.

    A pooled direction has one position, at which the states of all positions are listed one below
    the other.

    Attributes:
        vectors: Directions from the negative (clean) to the positive class (the behaviour), in
            activation units; none is zero.
        positive_mean: Mean state of the positive class.
        negative_mean: Mean state of the negative class.
        positive_states: States of the positive class.
        negative_states: States of the negative class; row by row their twins where prompts are
            paired.

    Raises:
        ShapeError: If widths or numbers of positions differ.
        DataError: If there is no position or a class has no states.
        NonFiniteError: If a value is NaN or infinite.
        FitError: If a vector is zero.
    """

    vectors: Float[Tensor, "position d_model"]
    positive_mean: Float[Tensor, "position d_model"]
    negative_mean: Float[Tensor, "position d_model"]
    positive_states: Float[Tensor, "positive_prompt position d_model"]
    negative_states: Float[Tensor, "negative_prompt position d_model"]

    def __post_init__(self) -> None:
        tensors = self.tensors
        shapes = {name: tuple(value.shape[-2:]) for name, value in tensors.items()}
        if len(set(shapes.values())) > 1:
            raise ShapeError(
                f"vectors, means and states must share (position, d_model), got {shapes}: "
                "read them at the same site and positions"
            )
        if not all(value.numel() for value in tensors.values()):
            raise DataError(
                f"a direction needs states of both classes at one position or more, got "
                f"{len(self.positive_states)} positive and {len(self.negative_states)} negative "
                f"prompts at {self.n_positions} positions: give prompts of both classes"
            )
        for name, value in tensors.items():
            if not torch.isfinite(value).all():
                raise NonFiniteError(
                    f"{name} of a direction hold NaN or infinity: "
                    "load the model in bfloat16 or float32, or drop the prompts that cause it"
                )
        if bool((self.norms == 0).any()):
            zero = torch.nonzero(self.norms == 0).flatten().tolist()
            raise FitError(
                f"a direction is zero at position(s) {zero}: both classes look alike there, "
                "choose other prompts, positions, a later layer or another map"
            )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the name of their attribute."""
        return {
            "vectors": self.vectors,
            "positive_mean": self.positive_mean,
            "negative_mean": self.negative_mean,
            "positive_states": self.positive_states,
            "negative_states": self.negative_states,
        }

    @property
    def n_positions(self) -> int:
        """How many positions have a vector of their own; 1 when pooled."""
        return self.vectors.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.vectors.shape[1]

    @property
    def norms(self) -> Float[Tensor, " position"]:
        """Norm of every vector, in activation units."""
        norms: Tensor = torch.linalg.vector_norm(self.vectors, dim=-1)
        return norms

    @property
    def unit_vectors(self) -> Float[Tensor, "position d_model"]:
        """The vectors scaled to norm 1."""
        return self.vectors / self.norms[:, None]


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction of a model: the same two classes read at one or more sites.

    Attributes:
        by_site: Vectors, means and states per site; all with the same positions and prompts.
        model: Model in whose activation space it lives.
        method: How it was made: `mean_difference`, `pca`, `probe`, `random` …
        positions: Selector of the tokens that were read: `last:3`, `trigger` …
        pooled: Whether one vector serves all positions.
        provenance: JSON values: prompts, seeds, the map it came through.
        certificate: What is known about a carried direction; None of one that was learned here.

    Raises:
        IdentityError: If the certificate is about another model.
        ArtifactError: If it is about other sites or vectors.
        SiteError: If there is no site or the model does not have one of them.
        ShapeError: If a width is not the model's, or sites differ in positions or prompts.
    """

    by_site: Mapping[Site, SiteDirection]
    model: ModelIdentity
    method: str
    positions: str
    pooled: bool
    provenance: dict[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if self.certificate is not None:
            self.certificate.require_target(self.model)
            self.certificate.require_vectors(self.norms_as_written)
        if not self.by_site:
            raise SiteError("a direction needs at least one site, got none: name a layer")
        for site, one in self.by_site.items():
            parse_site(site, self.model.n_layers)
            if one.d_model != self.model.d_model:
                raise ShapeError(
                    f"the direction at {site} has width {one.d_model}, {self.model} has width "
                    f"{self.model.d_model}: read it on this model"
                )
        shapes = {
            (one.n_positions, len(one.positive_states), len(one.negative_states))
            for one in self.by_site.values()
        }
        if len(shapes) > 1:
            raise ShapeError(
                f"sites differ in (positions, positive, negative prompts): {sorted(shapes)}: "
                "read the same prompts at every site"
            )
        if self.pooled and self.n_positions != 1:
            raise ShapeError(
                f"a pooled direction has one position, got {self.n_positions}: learn it pooled"
            )
        # A private copy behind a read-only view: the caller's dictionary may change later.
        object.__setattr__(self, "by_site", MappingProxyType(dict(self.by_site)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its sites, in the order given."""
        return tuple(self.by_site)

    @property
    def n_positions(self) -> int:
        """How many positions have a vector of their own; 1 when pooled."""
        return next(iter(self.by_site.values())).n_positions

    @property
    def norms(self) -> dict[Site, Float[Tensor, " position"]]:
        """Norm of every vector by site, in activation units."""
        return {site: one.norms for site, one in self.by_site.items()}

    @property
    def norms_as_written(self) -> dict[str, list[float]]:
        """Norm of every vector by site, as a certificate keeps them."""
        return {str(site): norms.tolist() for site, norms in self.norms.items()}

    def with_vectors(self, by_site: Mapping[Site, SiteDirection], **changes: Any) -> "Direction":
        """Returns a direction whose vectors were made from this one's.

        Args:
            by_site: The new vectors, means and states.
            **changes: Other attributes that differ.

        Returns:
            A direction of the same model. Of a certificate it keeps what is still true: the way
            and the models; that something was measured is not.
        """
        bare = replace(self, by_site=by_site, certificate=None, **changes)
        if self.certificate is None:
            return bare
        about = self.certificate.of_other_vectors(bare.norms_as_written)
        return replace(bare, certificate=about)

    def at(self, site: Site) -> SiteDirection:
        """Looks up the direction at one site.

        Args:
            site: One of `sites`.

        Returns:
            Its vectors, means and states there.

        Raises:
            SiteError: If the direction was not learned there.
        """
        if site not in self.by_site:
            raise SiteError(
                f"no direction at {site}: this one was learned at "
                f"{', '.join(map(str, self.sites))}; learn it at {site} too"
            )
        return self.by_site[site]
