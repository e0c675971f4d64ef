"""isthmus itself, asked as its peers are."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from benchmarks.peers.service import Prompts, serve
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.capture import CapturedBatch, capture_activations
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model

FIRST_CHARACTER = 0x4E00
"""Token i is the character i places after this one, so that texts say which tokens they are."""


class Isthmus:
    """The library.

    Attributes:
        lm: The model once it is loaded.
    """

    packages = ()
    capture_call = "capture_activations"
    steer_call = "generate_greedy, Intervention.steering"

    def __init__(self) -> None:
        self.lm: LanguageModel | None = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.lm = load_language_model(str(folder), dtype="float32", device="cpu")

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Any]:
        """Captures texts in batches of like length."""
        texts = [encoded(prompt) for prompt in prompts]
        return list(capture_activations(self._lm(), texts, [Site(layer)], batch_size=batch_size))

    def in_order(self, found: Sequence[CapturedBatch], prompts: Prompts, _size: int) -> Tensor:
        """Puts rows into the order of the prompts."""
        rows = {
            index: row
            for batch in found
            for index, row in zip(batch.indices, batch.rows(*batch.values), strict=True)
        }
        return torch.cat([rows[index] for index in range(len(prompts))])

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Generates under an edit at all positions."""
        steering = Intervention.steering({Site(layer): vector[None]}, parse_positions("all"))
        texts = [encoded(prompt) for prompt in prompts]
        result = generate_greedy(
            self._lm(), texts, max_new_tokens=n_new, edits=steering.place, batch_size=len(prompts)
        )
        return [[ord(one) - FIRST_CHARACTER for one in text] for text in result.completions]

    def _lm(self) -> LanguageModel:
        if self.lm is None:
            raise RuntimeError("no model is loaded")
        return self.lm


def encoded(prompt: list[int]) -> EncodedText:
    """Returns token ids as a text of one character each."""
    text = "".join(chr(FIRST_CHARACTER + one) for one in prompt)
    ends = tuple(range(1, len(prompt) + 1))
    return EncodedText(text, tuple(prompt), ends, (False,) * len(prompt), len(prompt))


if __name__ == "__main__":
    serve(Isthmus(), no_gradients=False)
