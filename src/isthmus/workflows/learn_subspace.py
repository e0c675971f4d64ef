"""`learn-subspace`: a subspace from a file of contrasting prompts."""

from functools import partial
from pathlib import Path

from isthmus.core.artifacts import require_free
from isthmus.core.progress import Progress
from isthmus.core.sites import GivenSites
from isthmus.directions.files import SUBSPACE_KIND, save_direction
from isthmus.directions.subspace import METHOD, Subspace, learn_site_subspace, require_rank
from isthmus.workflows.class_reading import ClassReading, read_classes
from isthmus.workflows.config import Dtype


def learn_subspace(
    model: str | Path,
    prompts: str | Path,
    *,
    rank: int = 2,
    out: str | Path | None = None,
    sites: GivenSites = "all",
    positions: str = "last:3",
    pooled: bool = False,
    triggers: tuple[str, str] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Subspace:
    """Learns the subspace in which paired prompts differ, at every site.

    Its first basis vector is the mean difference of all pairs and positions, the others are the
    principal components of what is left of the differences. It can be ablated, its coordinates can
    be set, and it can be carried through maps, as a direction can.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `positive` and `negative` on every line, twins of each other, or
            `prompt` and `label` with as many of both in the same order.
        rank: How many dimensions, at least 1.
        out: Folder to write; nothing is written when not given.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        positions: Tokens that are read: `trigger`, `last:3`, `prompt`.
        pooled: Whether the coordinates of the classes are one for all positions of the span; the
            basis is one in any case.
        triggers: The positive and the negative trigger, for positions `trigger`.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        progress: Who shows progress.

    Returns:
        The subspace; its provenance says which share of the contrast each basis vector holds.

    Raises:
        IsthmusError: If the model, a site, the prompts, the rank or the place cannot be used.
    """
    require_rank(rank)
    require_free(out, SUBSPACE_KIND)
    how = ClassReading(sites, positions, pooled, triggers, dtype, device, batch_size)
    read = read_classes(model, Path(prompts), how, progress)
    by_site = read.at_every_site(partial(learn_site_subspace, rank=rank))
    shares = {str(site): one.shares_as_written for site, one in by_site.items()}
    subspace = Subspace(
        by_site,
        read.lm.identity,
        METHOD,
        positions,
        read.is_pooled,
        {**read.provenance, "shares": shares},
    )
    if out is not None:
        save_direction(Path(out), subspace)
    return subspace
