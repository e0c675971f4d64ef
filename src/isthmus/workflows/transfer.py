"""`transfer`: carries a direction, a subspace or a probe through a map, or several in turn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from isthmus.carrying.chains import carry_along, steps_of
from isthmus.carrying.directions import TransferRule
from isthmus.core.artifacts import require_free
from isthmus.core.errors import ConfigError
from isthmus.directions.direction import Direction
from isthmus.directions.files import save_direction
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe_files import KIND as KIND_OF_PROBE
from isthmus.directions.subspace import Subspace
from isthmus.maps.files import FittedMap, load_map
from isthmus.workflows.certifying import as_made_here
from isthmus.workflows.config import Dtype
from isthmus.workflows.given_directions import GivenDirection, kind_of_given, loaded_direction
from isthmus.workflows.probe_transfer import is_folder_of_probe, transfer_probe

GivenMap = FittedMap | str | Path
"""A fitted map or its folder."""

_Maps = GivenMap | Sequence[GivenMap]


@overload
def transfer(
    direction: Direction,
    map: _Maps,
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
) -> Direction: ...
@overload
def transfer(
    direction: Subspace,
    map: _Maps,
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
) -> Subspace: ...
@overload
def transfer(
    direction: ModelProbe,
    map: _Maps,
    *,
    out: str | Path | None = None,
    unlabelled: str | Path | None = None,
    positive_share: float | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> ModelProbe: ...
@overload
def transfer(
    direction: str | Path,
    map: _Maps,
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
    unlabelled: str | Path | None = None,
    positive_share: float | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Direction | Subspace | ModelProbe: ...
def transfer(
    direction: GivenDirection | ModelProbe,
    map: _Maps,  # noqa: A002 - the verb's own
    *,
    out: str | Path | None = None,
    rule: TransferRule = "auto",
    unlabelled: str | Path | None = None,
    positive_share: float | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Direction | Subspace | ModelProbe:
    """Carries a direction, a subspace or a probe of one model to another.

    Several maps, in the order of the way, carry it through several models: A → B, B → C.
    Neighbours between the same two models lead to several sites of one model, all of which the next
    map may read. A direction goes from a map's source to its target; a probe also the other way,
    against a map that leads to the model in which it was learned, and better so.

    Args:
        direction: A direction or a subspace, or its folder, learned at every site that the map
            reads; or a probe or its folder, at sites that the map leads to (it is pulled back) or
            at those that the map reads (it is pushed forward).
        map: A fitted map or its folder, or several of them.
        out: Folder to write; nothing is written when not given.
        rule: `auto` (the linear part of affine maps, the difference of images otherwise), or one of
            `linear`, `difference`, `map_of_vector`; a subspace has no `map_of_vector`, a probe
            no rule.
        unlabelled: File of prompts whose classes nobody knows, in the mixture in which the probe
            will meet them; its threshold in the new model is set by them. Of probes only.
        positive_share: Share of these prompts that lies above it, from 0 to 1; what the probe finds
            on the same prompts in its own model when not given.
        dtype: Computation type of models that read unlabelled prompts; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …

    Returns:
        What was given, in the last target, at the target sites of the last maps; a probe in the
        other model of the last map.

    Raises:
        ConfigError: If no map is given, there is no such rule, a probe shall go through a map that
            is not affine, or a setting is of the other kind.
        OutputError: If the place is taken or cannot be written to.
        IdentityError: If what is carried belongs to another model than the map's source, or a map
            does not start where the one before it ended; of a probe, if it belongs to neither.
        SiteError: If it was not learned at, or not carried to, a site that a map reads; of a probe,
            if the map has other sites.
    """
    if isinstance(direction, ModelProbe) or (
        isinstance(direction, str | Path) and is_folder_of_probe(direction)
    ):
        require_free(out, KIND_OF_PROBE)
        _require_default("rule", rule, "auto", "directions")
        return transfer_probe(
            direction,
            _loaded(map),
            out=out,
            unlabelled=unlabelled,
            positive_share=positive_share,
            dtype=dtype,
            device=device,
        )
    require_free(out, kind_of_given(direction))
    _require_default("unlabelled", unlabelled, None, "probes")
    _require_default("positive_share", positive_share, None, "probes")
    given = loaded_direction(direction)
    carried = carry_along(given, steps_of(_loaded(map)), rule)
    carried = replace(carried, certificate=as_made_here(carried.certificate))
    if out is not None:
        save_direction(Path(out), carried)
    return carried


def _loaded(given: _Maps) -> list[FittedMap]:
    every = [given] if isinstance(given, FittedMap | str | Path) else list(given)
    return [one if isinstance(one, FittedMap) else load_map(Path(one)) for one in every]


def _require_default(name: str, given: object, default: object, kind: str) -> None:
    if given != default:
        raise ConfigError(f"{name} {given} is a setting of {kind} only: leave it out")
