"""`learn-direction`: a direction from a file of contrasting prompts."""

from functools import partial
from pathlib import Path
from typing import get_args

from isthmus.core.artifacts import require_free
from isthmus.core.options import require_word
from isthmus.core.progress import Progress
from isthmus.core.sites import GivenSites
from isthmus.directions.direction import Direction
from isthmus.directions.files import KIND, save_direction
from isthmus.directions.methods import learn_site_direction
from isthmus.workflows.class_reading import ClassReading, read_classes
from isthmus.workflows.config import DirectionMethodName, Dtype


def learn_direction(
    model: str | Path,
    prompts: str | Path,
    *,
    out: str | Path | None = None,
    sites: GivenSites = "all",
    method: DirectionMethodName = "mean_difference",
    positions: str = "last:3",
    pooled: bool = False,
    triggers: tuple[str, str] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Direction:
    """Learns the direction from negative to positive prompts, at every site.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `positive` and `negative` on every line, or `prompt` and `label`.
        out: Folder to write; nothing is written when not given.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        method: `mean_difference`, `pca` or `probe`.
        positions: Tokens that are read: `trigger`, `last:3`, `prompt`.
        pooled: Whether one vector serves all positions of the span.
        triggers: The positive and the negative trigger, for positions `trigger`.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        progress: Who shows progress.

    Returns:
        The direction.

    Raises:
        IsthmusError: If the model, a site, the prompts or the place cannot be used.
    """
    require_word("direction method", method, get_args(DirectionMethodName))
    require_free(out, KIND)
    how = ClassReading(sites, positions, pooled, triggers, dtype, device, batch_size)
    read = read_classes(model, Path(prompts), how, progress)
    by_site = read.at_every_site(partial(learn_site_direction, method))
    direction = Direction(
        by_site, read.lm.identity, method, positions, read.is_pooled, read.provenance
    )
    if out is not None:
        save_direction(Path(out), direction)
    return direction
