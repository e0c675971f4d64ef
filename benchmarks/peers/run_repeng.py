"""repeng as its documentation steers; what it captures are last tokens only."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.service import Prompts, Refusal, generated, padded, read_model, serve
from repeng import ControlModel, ControlVector
from torch import Tensor


class Repeng:
    """The library with a model of transformers.

    Attributes:
        model: The model once it is loaded.
        controlled: The same model with a module of the library in place of one block.
    """

    packages = ("repeng",)
    capture_call = "batched_get_hiddens"
    steer_call = "ControlModel.set_control, generate"

    def __init__(self) -> None:
        self.model: Any = None
        self.controlled: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = read_model(folder)

    def capture(self, _prompts: Prompts, _batch_size: int, _layer: int) -> list[Tensor]:
        """Refuses: the library reads the last token of texts only."""
        raise Refusal("batched_get_hiddens reads the last token of every text, not all of them")

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Sets a control vector while the model generates."""
        if self.controlled is None:
            self.controlled = ControlModel(self.model, [layer])
        control = ControlVector(self.model.config.model_type, {layer: vector.numpy()})
        (inputs,) = padded(prompts, len(prompts))
        self.controlled.set_control(control, 1.0)
        output = self.controlled.generate(**inputs, max_new_tokens=n_new, do_sample=False)
        self.controlled.reset()
        return generated(output, prompts)


if __name__ == "__main__":
    serve(Repeng())
