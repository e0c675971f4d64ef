"""steering-vectors as its documentation captures and steers."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.service import Prompts, generated, padded, read_model, serve
from steering_vectors import SteeringVector, record_activations
from torch import Tensor


class SteeringVectors:
    """The library with a model of transformers.

    Attributes:
        model: The model once it is loaded.
    """

    packages = ("steering-vectors",)
    capture_call = "record_activations(layer_nums=[L]), whole pass"
    steer_call = "SteeringVector.apply, generate"

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = read_model(folder)

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Records one decoder block."""
        with record_activations(self.model, layer_nums=[layer]) as recorded:
            for inputs in padded(prompts, batch_size):
                self.model(**inputs, use_cache=False)
        found: list[Tensor] = recorded[layer]
        return found

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Applies a steering vector while the model generates."""
        steering = SteeringVector({layer: vector})
        (inputs,) = padded(prompts, len(prompts))
        with steering.apply(self.model):
            output = self.model.generate(**inputs, max_new_tokens=n_new, do_sample=False)
        return generated(output, prompts)


if __name__ == "__main__":
    serve(SteeringVectors())
