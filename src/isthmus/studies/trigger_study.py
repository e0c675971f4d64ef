"""What every study of a trigger starts from: a model, its questions, a scorer of single edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.resuming import PrefixStates, can_resume, last_shared_layer, prefix_states
from isthmus.models.scoring import answer_nll
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.twins import TwinSplits, read_splits

_MOST_STATES = 2**26
"""Most activations, in numbers, that one scorer keeps; 256 MiB in float32."""


@dataclass(frozen=True)
class TriggerStudy:
    """A model whose trigger is studied.

    Attributes:
        lm: The model.
        config: Triggers, answers, batch size, seed.
        splits: Questions as twins.
    """

    lm: LanguageModel
    config: RunConfig
    splits: TwinSplits

    def recorder(self, split: str) -> Recorder:
        """Returns what writes measurements of one split."""
        name = self.lm.identity.name
        return Recorder(self.config, name, name, split)


def open_study(
    model: str, settings: Mapping[str, Any] | None, seed: int, progress: Progress
) -> TriggerStudy:
    """Loads a model and reads its questions.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits, batch size.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        The model, with its twins in three splits.
    """
    config = make_config({"source": model, "target": model, **(settings or {}), "seed": seed})
    with progress.stage(f"load {model}"):
        lm = load_language_model(config.source, dtype=config.dtype, device=config.device)
    return TriggerStudy(lm, config, read_splits(config))


class LayerScorer:
    """Scores the answers of one list of texts under edits; passes start above what is edited.

    Args:
        lm: The model.
        texts: Prompts with answers.
        layers: Layers at whose end edits will begin.
        batch_size: Texts per forward pass.
    """

    def __init__(
        self,
        lm: LanguageModel,
        texts: Sequence[EncodedText],
        layers: Sequence[int],
        batch_size: int,
    ) -> None:
        self.lm, self.texts, self.batch_size = lm, tuple(texts), batch_size
        size = sum(len(text) for text in texts) * lm.d_model * len(layers)
        self._prefixes: dict[int, PrefixStates] = {}
        if layers and size <= _MOST_STATES:
            kept = prefix_states(lm, texts, layers, batch_size)
            self._prefixes = {n: one for n, one in kept.items() if can_resume(lm, texts, one)}

    def losses(
        self, place: PlaceEdits = no_edits, site: Site | None = None
    ) -> Float[np.ndarray, " text"]:
        """Returns the loss of every answer, in nats per token.

        Args:
            place: Says what to edit in a batch.
            site: The first site that is edited; None when nothing is.

        Returns:
            Losses in the order of the texts.
        """
        layer = None if site is None else last_shared_layer([site])
        prefix = None if layer is None else self._prefixes.get(layer)
        result = answer_nll(
            self.lm, self.texts, edits=place, batch_size=self.batch_size, prefix=prefix
        )
        return result.nll.double().numpy()
