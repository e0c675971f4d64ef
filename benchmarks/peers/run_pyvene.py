"""pyvene as its documentation collects and steers, at every position of a block's output."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyvene
from benchmarks.peers.service import Prompts, generated, padded, read_model, serve
from torch import Tensor


class Pyvene:
    """The library with a model of transformers.

    Attributes:
        model: The model once it is loaded.
    """

    packages = ("pyvene",)
    capture_call = "IntervenableModel with CollectIntervention, whole pass"
    steer_call = "IntervenableModel with AdditionIntervention, generate"

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = read_model(folder)

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Collects one block's output at every position."""
        # Without keep_last_dim it would flatten positions, and know the first of them only.
        collection = pyvene.CollectIntervention(
            embed_dim=self.model.config.hidden_size, keep_last_dim=True
        )
        collecting = self._intervenable(layer, collection)
        found = []
        for inputs in padded(prompts, batch_size):
            (_, collected), _ = collecting(inputs, use_cache=False)
            found.extend(collected)
        return found

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Adds the vector to one block's output in every step."""
        addition = pyvene.AdditionIntervention(
            source_representation=vector, embed_dim=len(vector), keep_last_dim=True
        )
        adding = self._intervenable(layer, addition)
        (inputs,) = padded(prompts, len(prompts))
        _, output = adding.generate(
            inputs, intervene_on_prompt=True, max_new_tokens=n_new, do_sample=False
        )
        return generated(output, prompts)

    def _intervenable(self, layer: int, intervention: Any) -> Any:
        representation = {
            "layer": layer,
            "component": "block_output",
            "intervention": intervention,
        }
        return pyvene.IntervenableModel([representation], model=self.model)


if __name__ == "__main__":
    serve(Pyvene())
