"""A plain PyTorch hook on a whole pass, or with `bare` the pass alone: what all are compared to."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.service import Prompts, generated, padded, read_model, serve
from torch import Tensor, nn


class Plain:
    """transformers with at most one forward hook.

    Attributes:
        is_bare: Whether nothing is hooked.
        model: The model once it is loaded.
    """

    packages = ()
    capture_call = "register_forward_hook, whole pass"
    steer_call = "register_forward_hook, generate"

    def __init__(self, *, is_bare: bool) -> None:
        self.is_bare = is_bare
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = read_model(folder)

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Runs whole passes and keeps what the hook sees."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            # Blocks return a tensor, in transformers 4 a tuple.
            found.append(output[0] if isinstance(output, tuple) else output)

        with ExitStack() as hooks:
            if not self.is_bare:
                handle = self.model.model.layers[layer].register_forward_hook(keep)
                hooks.callback(handle.remove)
            for inputs in padded(prompts, batch_size):
                self.model(**inputs, use_cache=False)
        return found

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Generates while the hook adds the vector at every position."""

        def add(_module: nn.Module, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vector, *output[1:])
            return output + vector

        with ExitStack() as hooks:
            if not self.is_bare:
                handle = self.model.model.layers[layer].register_forward_hook(add)
                hooks.callback(handle.remove)
            (inputs,) = padded(prompts, len(prompts))
            output = self.model.generate(**inputs, max_new_tokens=n_new, do_sample=False)
        return generated(output, prompts)


if __name__ == "__main__":
    serve(Plain(is_bare="bare" in sys.argv[1:]))
