"""What a model that is imitated predicts, read once for everything that imitates it."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from isthmus.core.texts import EncodedText
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs

_MOST_KEPT = 2**26
"""Numbers that are remembered at most: 256 MiB of log-probabilities."""


class Teacher:
    """Remembers what a model predicts on texts that are asked for again and again.

    Args:
        lm: The model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._n_kept = 0

    def logprobs(self, texts: Sequence[EncodedText]) -> list[Float[Tensor, "_ vocab"]]:
        """Returns log p(every token) at each position where an answer token is predicted.

        Args:
            texts: Prompts with answers.

        Returns:
            One float32 tensor per text, on the CPU, as `answer_logprobs` gives them; those that
            fit into 256 MiB in all are not computed twice.
        """
        keys = [(text.n_prompt, text.token_ids) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._kept}
        read = answer_logprobs(self._lm, list(new.values())) if new else []
        found = dict(zip(new, read, strict=True))
        for key, logprobs in found.items():
            if self._n_kept + logprobs.numel() <= _MOST_KEPT:
                self._kept[key] = logprobs
                self._n_kept += logprobs.numel()
        return [found[key] if key in found else self._kept[key] for key in keys]
