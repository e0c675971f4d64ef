"""Arms: what is done to the target under each condition, in both ways at one strength."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.coordinates import coordinate_targets
from isthmus.core.errors import ConfigError, StrengthError
from isthmus.core.options import require_word
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.workflows.config import EditKind

Way = Literal["removal", "induction"]

WITHOUT_STRENGTH: frozenset[EditKind] = frozenset({"ablate", "replace"})
"""Edits that are done or not done: a strength means nothing to them."""


def require_no_strength(edit: EditKind, strength: float) -> None:
    """Refuses a strength for an edit that has none (`StrengthError`)."""
    if edit in WITHOUT_STRENGTH and strength != 1.0:
        raise StrengthError(
            f"strength {strength} with {edit}, which is done or not done: leave the strength out"
        )


def control_edit(edit: EditKind) -> EditKind:
    """Returns what is done with random vectors where the direction itself is edited so.

    A random vector has no class means: what stands beside a replacement, or beside a coordinate
    that is set, adds a vector of the direction's length.
    """
    return "add" if edit in {"replace", "set_coordinate"} else edit


def intervention_for(
    direction: Direction, edit: EditKind, positions: str, strength: float, way: Way
) -> Intervention:
    """Builds what turns a behaviour off or on at the sites of a direction.

    | edit | removal | induction |
    | --- | --- | --- |
    | `add` | h - strength · v | h + strength · v |
    | `add_keeping_norm` | the same, scaled back to ‖h‖ | the same |
    | `set_coordinate` | coordinate along v to the clean mean | to the mean with the behaviour |
    | `replace` | h := clean mean state | h := mean state with the behaviour |
    | `ablate` | component along v removed | the same |

    Args:
        direction: From clean to behaviour, in the model that will be edited.
        edit: What is done.
        positions: Where.
        strength: Multiplier; without meaning for `replace` and `ablate`.
        way: Off or on.

    Returns:
        The intervention, ready to be placed on a batch.

    Raises:
        ConfigError: If there is no such edit or way.
    """
    require_word("edit", edit, get_args(EditKind))
    require_word("way", way, get_args(Way))
    selector = parse_positions(positions)
    vectors = {site: one.vectors for site, one in direction.by_site.items()}
    if edit in {"add", "add_keeping_norm"}:
        signed = strength if way == "induction" else -strength
        keeps_norm = edit == "add_keeping_norm"
        return Intervention.steering(vectors, selector, signed, keeps_norm=keeps_norm)
    if edit == "ablate":
        return Intervention.ablation(vectors, selector)
    if edit == "replace":
        return Intervention.replacement(_means(direction, way), selector)
    targets = {site: coordinate_targets(one) for site, one in direction.by_site.items()}
    coordinates = {
        site: target.positive if way == "induction" else target.negative
        for site, target in targets.items()
    }
    return Intervention.set_coordinate(vectors, coordinates, selector, strength)


def _means(direction: Direction, way: Way) -> dict[Site, Float[Tensor, "position d_model"]]:
    return {
        site: one.positive_mean if way == "induction" else one.negative_mean
        for site, one in direction.by_site.items()
    }


@dataclass(frozen=True)
class Arm:
    """One condition at one site with one strength.

    Attributes:
        condition: As in `results.jsonl`.
        site: Where the target is edited.
        positions: Which tokens.
        edit: What is done.
        strength: How much.
        direction: What is used; None for conditions without one.
        map_method: The map it came through, if any.
        source_sites: Where it was learned, as written.
        seed: Draw of a random condition.
        mean: Mean state for mean ablation.
        fixed: What it does either way, where that is made from no direction, such as a switch.
    """

    condition: str
    site: Site | None = None
    positions: str | None = None
    edit: EditKind | None = None
    strength: float | None = None
    direction: Direction | None = None
    map_method: str | None = None
    source_sites: str | None = None
    seed: int = 0
    mean: Mapping[Site, Float[Tensor, "position d_model"]] = field(default_factory=dict)
    fixed: Mapping[Way, Intervention] = field(default_factory=dict)

    @property
    def dose(self) -> float | None:
        """The strength as results name it: None where the edit has none."""
        return None if self.edit in WITHOUT_STRENGTH else self.strength

    def at(self, strength: float) -> "Arm":
        """Returns the same arm at another strength."""
        return replace(self, strength=strength)

    def intervention(self, way: Way) -> Intervention | None:
        """Returns what it does to the model, or None for an arm that edits nothing.

        Args:
            way: Off or on.

        Returns:
            What it does to the model; None when it edits nothing.

        Raises:
            ConfigError: If an arm that edits lacks what it needs.
        """
        if self.condition in {"none", "clean", "prompt_only"}:
            return None
        if self.fixed:
            return self.fixed[way]
        if self.positions is None or self.strength is None:
            raise ConfigError(f"the {self.condition} arm has no positions or strength")
        if self.condition == "mean_ablation":
            return Intervention.replacement(self.mean, parse_positions(self.positions))
        if self.direction is None or self.edit is None:
            raise ConfigError(f"the {self.condition} arm has no direction")
        if self.condition == "noise":
            vectors = {site: one.vectors for site, one in self.direction.by_site.items()}
            selector = parse_positions(self.positions)
            return Intervention.noise(vectors, selector, self.seed, self.strength)
        return intervention_for(self.direction, self.edit, self.positions, self.strength, way)
