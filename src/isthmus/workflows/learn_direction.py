"""`learn-direction`: a direction from a file of contrasting prompts."""

from pathlib import Path
from typing import get_args

from isthmus.core.artifacts import require_free, sha256_of_file
from isthmus.core.errors import ConfigError
from isthmus.core.options import require_word
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import read_contrast
from isthmus.data.trigger_twins import differing_part
from isthmus.directions.direction import Direction
from isthmus.directions.files import KIND, save_direction
from isthmus.directions.methods import learn_site_direction
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import DirectionMethodName, Dtype
from isthmus.workflows.twin_directions import read_states, reading_positions


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
    contrast = read_contrast(Path(prompts))
    selector = reading_positions(positions)
    lm = load_language_model(model, dtype=dtype, device=device)
    wanted = lm.sites(sites)
    sides = (contrast.positive, contrast.negative)
    encoded = [encoded_class(lm, side, positions, triggers, i) for i, side in enumerate(sides)]
    with (progress or SilentProgress()).stage("read both classes", 2) as advance:
        states = []
        for texts in encoded:
            states.append(read_states(lm, texts, wanted, positions, batch_size))
            advance(1)
    is_pooled = pooled or not selector.has_fixed_span
    by_site = {
        site: learn_site_direction(method, states[0][site], states[1][site], pooled=is_pooled)
        for site in wanted
    }
    provenance = {
        "n_positive": len(contrast.positive),
        "n_negative": len(contrast.negative),
        "prompts_sha256": sha256_of_file(Path(prompts)),
        "triggers": list(triggers) if triggers else None,
        **made_with(),
    }
    direction = Direction(by_site, lm.identity, method, positions, is_pooled, provenance)
    if out is not None:
        save_direction(Path(out), direction)
    return direction


def encoded_class(
    lm: LanguageModel,
    prompts: tuple[str, ...],
    positions: str,
    triggers: tuple[str, str] | None,
    side: int,
) -> list[EncodedText]:
    """Encodes the prompts of one class and marks their trigger's tokens where these are read.

    Args:
        lm: The model.
        prompts: The prompts of the class.
        positions: Tokens that will be read.
        triggers: The positive and the negative trigger, where they are known.
        side: Which class: 0 for the positive one, 1 for the negative one.

    Returns:
        One text per prompt.

    Raises:
        ConfigError: If the trigger shall be read and is not given.
    """
    if triggers is None:
        if positions == "trigger":
            raise ConfigError("positions 'trigger' need the two triggers: give --triggers")
        return encode_prompts(lm.tokenizer, prompts)
    part = differing_part(triggers[side], triggers[1 - side])
    return encode_prompts(lm.tokenizer, prompts, triggers=[part] * len(prompts))
