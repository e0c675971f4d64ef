"""What all that is learned from two classes has in common, at one site and in a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.certificate import Certificate
from isthmus.core.errors import DataError, NonFiniteError, ShapeError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, parse_site


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteClasses(ABC):
    """The states of both classes at one site, and what was learned from them.

    Pooled states have one position, at which those of all positions are listed one below the other.

    Attributes:
        WHAT: How messages call it.
        positive_mean: Mean state of the positive class.
        negative_mean: Mean state of the negative class.
        positive_states: States of the positive class.
        negative_states: States of the negative class; row by row their twins where prompts are
            paired.

    Raises:
        ShapeError: If widths or numbers of positions differ.
        DataError: If there is no position or a class has no states.
        NonFiniteError: If a value is NaN or infinite.
    """

    WHAT: ClassVar[str]

    positive_mean: Float[Tensor, "position d_model"]
    negative_mean: Float[Tensor, "position d_model"]
    positive_states: Float[Tensor, "positive_prompt position d_model"]
    negative_states: Float[Tensor, "negative_prompt position d_model"]

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape[-2:]) for name, value in self._by_position.items()}
        if len(set(shapes.values())) > 1:
            raise ShapeError(
                f"vectors, means and states must share (position, d_model), got {shapes}: "
                "read them at the same site and positions"
            )
        if not all(value.numel() for value in self._by_position.values()):
            raise DataError(
                f"a {self.WHAT} needs states of both classes at one position or more, got "
                f"{len(self.positive_states)} positive and {len(self.negative_states)} negative "
                f"prompts at {self.n_positions} positions: give prompts of both classes"
            )
        for name, value in self.tensors.items():
            if not torch.isfinite(value).all():
                raise NonFiniteError(
                    f"{name} of a {self.WHAT} hold NaN or infinity: "
                    "load the model in bfloat16 or float32, or drop the prompts that cause it"
                )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the name of their attribute."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def _by_position(self) -> dict[str, Tensor]:
        """The tensors that have one row per position."""
        return self.tensors

    @property
    def n_positions(self) -> int:
        """How many positions have means of their own; 1 when pooled."""
        return self.positive_mean.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream it fits."""
        return self.positive_mean.shape[1]

    @property
    @abstractmethod
    def norms(self) -> Float[Tensor, " position"]:
        """How far apart it says that the classes are, in activation units."""
        ...


S = TypeVar("S", bound=SiteClasses)
Same = TypeVar("Same", bound="LearnedBySite[Any]")


@dataclass(frozen=True, eq=False)
class LearnedBySite(Generic[S]):
    """Something of a model: the same two classes read at one or more sites.

    Attributes:
        WHAT: How messages call it.
        by_site: What was learned, with means and states, per site; all with the same positions and
            prompts.
        model: Model in whose activation space it lies.
        method: How it was made: `mean_difference`, `pca`, `probe`, `random` …
        positions: Selector of the tokens that were read: `last:3`, `trigger` …
        pooled: Whether all positions are treated as one.
        provenance: JSON values: prompts, seeds, the map it came through.
        certificate: What is known about a carried one; None of one that was learned here.

    Raises:
        IdentityError: If the certificate is about another model.
        ArtifactError: If it is about other sites or vectors.
        SiteError: If there is no site or the model does not have one of them.
        ShapeError: If a width is not the model's, or sites differ in positions or prompts.
    """

    WHAT: ClassVar[str]

    by_site: Mapping[Site, S]
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
            raise SiteError(f"a {self.WHAT} needs at least one site, got none: name a layer")
        for site, one in self.by_site.items():
            parse_site(site, self.model.n_layers)
            if one.d_model != self.model.d_model:
                raise ShapeError(
                    f"the {self.WHAT} at {site} has width {one.d_model}, {self.model} has width "
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
                f"a pooled {self.WHAT} has one position, got {self.n_positions}: learn it pooled"
            )
        # A private copy behind a read-only view: the caller's dictionary may change later.
        object.__setattr__(self, "by_site", MappingProxyType(dict(self.by_site)))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its sites, in the order given."""
        return tuple(self.by_site)

    @property
    def n_positions(self) -> int:
        """How many positions have means of their own; 1 when pooled."""
        return next(iter(self.by_site.values())).n_positions

    @property
    def norms(self) -> dict[Site, Float[Tensor, " position"]]:
        """How far apart it says that the classes are by site, in activation units."""
        return {site: one.norms for site, one in self.by_site.items()}

    @property
    def norms_as_written(self) -> dict[str, list[float]]:
        """The norms by site, as a certificate keeps them."""
        return {str(site): norms.tolist() for site, norms in self.norms.items()}

    def with_vectors(self: Same, by_site: Mapping[Site, SiteClasses], **changes: Any) -> Same:
        """Returns one whose vectors were made from this one's.

        Args:
            by_site: The new vectors, means and states.
            **changes: Other attributes that differ.

        Returns:
            One of the same model. Of a certificate it keeps what is still true: the way and the
            models; that something was measured is not.
        """
        bare = replace(self, by_site=by_site, certificate=None, **changes)
        if self.certificate is None:
            return bare
        about = self.certificate.of_other_vectors(bare.norms_as_written)
        return replace(bare, certificate=about)

    def at(self, site: Site) -> S:
        """Looks up what was learned at one site.

        Args:
            site: One of `sites`.

        Returns:
            Its vectors, means and states there.

        Raises:
            SiteError: If it was not learned there.
        """
        if site not in self.by_site:
            raise SiteError(
                f"no {self.WHAT} at {site}: this one was learned at "
                f"{', '.join(map(str, self.sites))}; learn it at {site} too"
            )
        return self.by_site[site]


Learned = TypeVar("Learned", bound=LearnedBySite[Any])
"""A direction or a subspace, and the same of the two again."""
