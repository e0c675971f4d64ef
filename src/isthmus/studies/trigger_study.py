"""What studies of one model and its trigger start from: questions, a scorer of single edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from isthmus.core.errors import NoEditError, TriggerError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.resuming import PrefixStates, can_resume, last_shared_layer, prefix_states
from isthmus.models.scoring import answer_nll
from isthmus.tasks import TASKS
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
    model: str,
    settings: Mapping[str, Any] | None,
    seed: int,
    progress: Progress,
    *,
    needs_trigger: bool = False,
) -> TriggerStudy:
    """Loads a model and reads its questions.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits, batch size.
        seed: Seed of everything random.
        progress: Who shows progress.
        needs_trigger: Whether the study is void without a trigger that can be pointed at.

    Returns:
        The model, with its twins in three splits.

    Raises:
        TriggerError: If a trigger is needed and the task has none.
    """
    config = make_config({"source": model, "target": model, **(settings or {}), "seed": seed})
    splits = read_splits(config)
    if needs_trigger and not have_triggers(splits.test):
        raise TriggerError(
            f"task {config.task!r} has no trigger that could be pointed at, which this study is "
            f"about: choose a task that has one ({', '.join(_tasks_with_triggers())})"
        )
    with progress.stage(f"load {model}"):
        lm = load_language_model(config.source, dtype=config.dtype, device=config.device)
    return TriggerStudy(lm, config, splits)


def have_triggers(twins: Sequence[TwinPrompt]) -> bool:
    """Says whether every pair of prompts differs by triggers that can be pointed at."""
    return all(twin.spans for twin in twins)


def _tasks_with_triggers() -> list[str]:
    asked = {name: task.twins("test", 1, 0) for name, task in TASKS.items()}
    return ["backdoor", *(name for name, twins in asked.items() if twins[0].spans)]


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

        Raises:
            NoEditError: If a site is named and nothing was edited.
        """
        layer = None if site is None else last_shared_layer([site])
        prefix = None if layer is None else self._prefixes.get(layer)
        result = answer_nll(
            self.lm, self.texts, edits=place, batch_size=self.batch_size, prefix=prefix
        )
        if site is not None and not result.n_edited:
            raise NoEditError(
                f"an edit at {site} chose no token of {len(self.texts)} texts and changed nothing: "
                "choose positions that the prompts have"
            )
        return result.nll.double().numpy()
