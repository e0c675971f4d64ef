"""TransformerLens as its documentation captures, stopping after the layer, and steers."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from benchmarks.peers.service import Prompts, generated, padded, serve
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


class TransformerLens:
    """The library's bridge to a model of transformers.

    Attributes:
        model: The model once it is loaded.
    """

    packages = ("transformer-lens",)
    capture_call = "run_with_cache(names_filter=..., stop_at_layer=L + 1)"
    steer_call = "hooks(fwd_hooks=...), generate"

    def __init__(self) -> None:
        self.model: Any = None

    def load(self, folder: Path) -> None:
        """Reads the model."""
        self.model = TransformerBridge.boot_transformers(
            str(folder), device="cpu", dtype=torch.float32
        )

    def capture(self, prompts: Prompts, batch_size: int, layer: int) -> list[Tensor]:
        """Caches one hook point."""
        name, found = f"blocks.{layer}.hook_resid_post", []
        for inputs in padded(prompts, batch_size):
            _, cache = self.model.run_with_cache(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                names_filter=name,
                stop_at_layer=layer + 1,
            )
            found.append(cache[name])
        return found

    def steer(self, prompts: Prompts, layer: int, vector: Tensor, n_new: int) -> list[list[int]]:
        """Generates while a hook adds the vector."""
        (inputs,) = padded(prompts, len(prompts))
        with self.model.hooks(
            fwd_hooks=[(f"blocks.{layer}.hook_resid_post", lambda value, hook: value + vector)]  # noqa: ARG005
        ):
            output = self.model.generate(
                inputs["input_ids"],
                max_new_tokens=n_new,
                do_sample=False,
                verbose=False,
                return_type="tokens",
                # With its cache (4.3.0) it writes other tokens than without.
                use_past_kv_cache=False,
            )
        return generated(output, prompts)


if __name__ == "__main__":
    serve(TransformerLens())
