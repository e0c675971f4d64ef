"""The states of both classes of a file of contrasting prompts, from which anything is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from isthmus.core.artifacts import sha256_of_file
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites, Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import read_contrast
from isthmus.data.trigger_twins import differing_part
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype
from isthmus.workflows.twin_directions import read_states, reading_positions

L = TypeVar("L")


@dataclass(frozen=True)
class ClassReading:
    """How both classes are read.

    Attributes:
        sites: `all`, or sites in any spelling.
        positions: Tokens that are read.
        pooled: Whether all positions of the span are treated as one.
        triggers: The positive and the negative trigger, for positions `trigger`.
        dtype: Computation type.
        device: Where the model runs.
        batch_size: Prompts per forward pass.
    """

    sites: GivenSites
    positions: str
    pooled: bool
    triggers: tuple[str, str] | None
    dtype: Dtype
    device: str
    batch_size: int


@dataclass(frozen=True)
class ReadClasses:
    """What was read.

    Attributes:
        lm: The model.
        by_site: Positive and negative states [prompt position d_model] by site.
        is_pooled: Whether all positions are treated as one, as they are where their number varies.
        provenance: Which prompts, as JSON values.
    """

    lm: LanguageModel
    by_site: dict[Site, tuple[Tensor, Tensor]]
    is_pooled: bool
    provenance: dict[str, Any]

    def at_every_site(self, learn: Callable[..., L]) -> dict[Site, L]:
        """Learns something from the states of every site.

        Args:
            learn: Takes positive and negative states, and by name whether they are `pooled`.

        Returns:
            What was learned by site.

        Raises:
            FitError: If it cannot be learned at one of them; the message says at which.
        """
        found: dict[Site, L] = {}
        for site, states in self.by_site.items():
            try:
                found[site] = learn(*states, pooled=self.is_pooled)
            except FitError as error:
                raise FitError(f"at {site}: {error}; or leave this site out (--sites)") from error
        return found


def read_classes(
    model: str | Path, prompts: Path, how: ClassReading, progress: Progress | None
) -> ReadClasses:
    """Reads the states of both classes of prompts at every site.

    Refuses a model, a site or prompts that cannot be used (`IsthmusError`).

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `positive` and `negative` on every line, or `prompt` and `label`.
        how: Sites, positions and the like.
        progress: Who shows progress.

    Returns:
        States by site, row by row in the order of the file.
    """
    contrast = read_contrast(prompts)
    selector = reading_positions(how.positions)
    lm = load_language_model(model, dtype=how.dtype, device=how.device)
    wanted = lm.sites(how.sites)
    sides = (contrast.positive, contrast.negative)
    encoded = [
        encoded_class(lm, side, how.positions, how.triggers, i) for i, side in enumerate(sides)
    ]
    with (progress or SilentProgress()).stage("read both classes", 2) as advance:
        states = []
        for texts in encoded:
            states.append(read_states(lm, texts, wanted, how.positions, how.batch_size))
            advance(1)
    provenance = {
        "n_positive": len(contrast.positive),
        "n_negative": len(contrast.negative),
        "prompts_sha256": sha256_of_file(prompts),
        "triggers": list(how.triggers) if how.triggers else None,
        **made_with(),
    }
    by_site = {site: (states[0][site], states[1][site]) for site in wanted}
    return ReadClasses(lm, by_site, how.pooled or not selector.has_fixed_span, provenance)


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
