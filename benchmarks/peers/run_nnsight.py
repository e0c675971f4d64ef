"""nnsight as its documentation captures, stopping early, and steers every step."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from benchmarks.peers.service import Prompts, generated, padded, serve
from nnsight import TransformersModel
from torch import Tensor


class NnSight:
    """The library's own model, on the machine at hand.

    Attributes:
        model: The model once it is loaded.
    """

    packages = ("nnsight",)
    capture_call = "trace of a batch, output.save(), tracer.stop()"
    steer_call = "generate of a batch, tracer.iter[:n]"

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = TransformersModel(
            str(folder), task="text-generation", dtype=torch.float32, dispatch=True
        )

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Traces batch after batch up to the block."""
        model, found = self.model, []
        for inputs in padded(prompts, batch_size):
            with model.trace(inputs, use_cache=False) as tracer:
                hidden = model.model.layers[layer].output.save()
                tracer.stop()
            found.append(hidden)
        return found

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Adds the vector in every step of a generation."""
        model = self.model
        (inputs,) = padded(prompts, len(prompts))
        with model.generate(inputs, max_new_tokens=n_new, do_sample=False) as tracer:
            for _step in tracer.iter[:n_new]:
                block = model.model.layers[layer]
                block.output = block.output + vector
            output = tracer.result.save()
        return generated(output, prompts)


if __name__ == "__main__":
    serve(NnSight())
