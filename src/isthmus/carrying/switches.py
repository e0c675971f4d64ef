"""Switches: residual maps that turn a model into its fine-tune, or back, and how they are fitted.

1. Pairs are (state, what is missing): the state of the model that carries the switch, and the other
   model's state at the same token minus it.
2. A full map is ridge regression on the pairs; a low-rank one is reduced-rank ridge regression, the
   best of its rank for the pairs (not the truncation of the full map's weights, which ignores how
   the states are spread); a difference vector is the mean of what is missing.
3. Several sites are fitted from the first to the last, each on pairs read under the edits before it
   (`workflows/switch_fitting.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.certificate import Certificate
from isthmus.core.errors import ConfigError, ShapeError
from isthmus.core.identity import ModelIdentity, require_same_model
from isthmus.core.sites import Site, Stream, parse_sites
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.maps.moments import PairMoments, require_fittable
from isthmus.maps.reduced_rank import ReducedRankFitter
from isthmus.maps.ridge import RidgeFitter

Towards = Literal["base", "fine_tuned"]

LEARN_ANOTHER = "learn one for this model: isthmus learn-switch BASE FINE_TUNED --out FOLDER"


@dataclass(frozen=True, eq=False)
class Switch:
    """Affine residual maps that make one of two models answer like the other.

    It holds no model: `intervention` says what it does to one, for a single request.

    Attributes:
        edits: One affine edit per site, in any order.
        base: The model before fine-tuning.
        fine_tuned: The model after it.
        to: Which of the two is imitated: `base` is carried by the fine-tuned model, `fine_tuned`
            by the base.
        method: How it was made.
        positions: Where it acts, as `parse_positions` reads it.
        quality: What was measured on held-out prompts, by name.
        provenance: JSON values: prompts, seeds, ranks.
        certificate: What is known about a carried switch; None of one that was learned here.

    Raises:
        ConfigError: If there is no edit.
        IdentityError: If the certificate is about another model.
        ArtifactError: If it is about other sites or edits.
        ShapeError: If an edit has another width than the models.
        SiteError: If the models do not have a site.
    """

    edits: Mapping[Site, AffineEdit]
    base: ModelIdentity
    fine_tuned: ModelIdentity
    to: Towards
    method: str
    positions: str = "all"
    quality: Mapping[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        if not self.edits:
            raise ConfigError("a switch without a site: fit it at one site at least")
        parse_sites(tuple(self.edits), self.carrier.n_layers)
        parse_positions(self.positions)
        for site, edit in self.edits.items():
            if edit.d_model != self.carrier.d_model:
                raise ShapeError(
                    f"the edit at {site} has width {edit.d_model}, {self.carrier} has "
                    f"{self.carrier.d_model}: fit the switch on the model that carries it"
                )
        object.__setattr__(self, "edits", MappingProxyType(dict(self.edits)))
        if self.certificate is not None:
            self.certificate.require_target(self.carrier)
            self.certificate.require_vectors(self.norms_as_written)

    @property
    def carrier(self) -> ModelIdentity:
        """The model that carries the switch; the other one is imitated."""
        return self.fine_tuned if self.to == "base" else self.base

    @property
    def imitated(self) -> ModelIdentity:
        """The model that the carrier answers like while the switch is on."""
        return self.base if self.to == "base" else self.fine_tuned

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it acts, in the order of the forward pass."""
        return in_forward_order(self.edits)

    @property
    def norms_as_written(self) -> dict[str, list[float]]:
        """Norm of what is added at the mean state by site, as a certificate keeps them."""
        return {str(site): [float(self.edits[site].bias.norm())] for site in self.sites}

    @property
    def n_parameters(self) -> int:
        """How many numbers it takes."""
        return sum(edit.n_parameters for edit in self.edits.values())

    def intervention(self, strength: float = 1.0) -> Intervention:
        """Returns the switch as an intervention on its carrier.

        Args:
            strength: 1 is on, 0 changes nothing, in between goes part of the way.

        Returns:
            An intervention that can be placed on any batch of the carrier.
        """
        at_strength = {site: replace(e, strength=strength) for site, e in self.edits.items()}
        return Intervention.affine(at_strength, parse_positions(self.positions))

    def require_carrier(self, model: ModelIdentity) -> None:
        """Refuses any model but the one that the switch was fitted on (`IdentityError`).

        Args:
            model: The model that it is about to be used on.
        """
        what = f"the switch to the {self.to.replace('_', '-')} model"
        is_there_already = self.imitated.is_same_model(model)
        fix = f"{model.name} is what it imitates, use it on {self.carrier.name}"
        require_same_model(what, self.carrier, model, fix if is_there_already else LEARN_ANOTHER)


def in_forward_order(sites: Mapping[Site, Any] | tuple[Site, ...]) -> tuple[Site, ...]:
    """Sorts sites as a forward pass meets them."""
    within_block = tuple(Stream)
    return tuple(sorted(sites, key=lambda site: (site.layer, within_block.index(site.stream))))


def fit_affine_edit(train: PairMoments, selection: PairMoments, rank: int | None) -> AffineEdit:
    """Fits what is missing as an affine function of the state, (h - h̄) A B + d̄.

    Refuses too few pairs and states that never vary (`FitError`), and a rank above the width
    (`ConfigError`).

    Args:
        train: Moments of (state, what is missing).
        selection: Moments of other pairs, by which the ridge strength is chosen.
        rank: Rank of A B: the width or None for a full map, 0 for a difference vector.

    Returns:
        An edit in float32, factored so that A and B are equally large.
    """
    width = train.d_source
    if rank == 0:
        require_fittable(train, "a difference vector")
        nothing = torch.zeros(width, 0)
        bias = train.target_mean.float().cpu()
        return AffineEdit(nothing, nothing.T.contiguous(), torch.zeros(width), bias)
    if rank is None or rank == width:
        fitted = RidgeFitter().fit(train, selection)
        return AffineEdit(fitted.weight, None, fitted.source_mean, fitted.target_mean)
    fitted = ReducedRankFitter(rank).fit(train, selection)
    down, up = factors(fitted.weight, rank)
    return AffineEdit(down, up, fitted.source_mean, fitted.target_mean)


def factors(
    weight: Float[Tensor, "d_source d_target"], rank: int
) -> tuple[Float[Tensor, "d_source rank"], Float[Tensor, "rank d_target"]]:
    """Writes a matrix of low rank as a product of two equally large factors.

    Args:
        weight: A matrix; what it has beyond `rank` is cut off as its singular values say.
        rank: From 1 to the smaller side.

    Returns:
        A and B with A B = weight, float32.
    """
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    down, up = u[:, :rank] * root, root[:, None] * vh[:rank]
    return down.float().contiguous(), up.float().contiguous()


def rotated_switch(switch: Switch, generator: torch.Generator) -> Switch:
    """Draws a control: at every site what is added is turned by a random rotation.

    It reads the same from the states and adds, at every token, a vector of the same norm.

    Args:
        switch: What to be like; left unchanged.
        generator: Source of randomness, on the CPU.

    Returns:
        A switch with method `random` and no certificate.
    """
    edits = {}
    for site in switch.sites:
        edit = switch.edits[site]
        gauss = torch.randn(edit.d_model, edit.d_model, generator=generator, dtype=torch.float64)
        turn, upper = torch.linalg.qr(gauss)
        # Only with these signs are the rotations uniformly distributed.
        turn = (turn * upper.diagonal().sign()).float()
        bias = edit.bias @ turn
        if edit.up is None:
            edits[site] = replace(edit, down=edit.down @ turn, bias=bias)
        else:
            edits[site] = replace(edit, up=edit.up @ turn, bias=bias)
    return replace(switch, edits=edits, method="random", quality={}, certificate=None)
