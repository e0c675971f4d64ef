"""How far greedy tokens of two libraries are from being the same ones.

Libraries add numbers up in different orders, and their logits differ in the sixth digit. Where two
tokens are as likely as that, one library takes one and the other the other, and from there on the
texts part. What is compared is therefore how much likelier the plain hook found its own token than
the other library's, where the two part for the first time.
"""

from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.service import read_model, read_setting
from jaxtyping import Float, Int
from torch import Tensor

LOGIT_TOLERANCE = 1e-3
"""Largest difference of two logits that may decide otherwise; a random model's have deviation 1."""


def largest_gap(
    folder: Path, plain: Int[Tensor, "text new"], other: Int[Tensor, "text new"]
) -> float:
    """Returns how much less likely the other's first different token was, of all texts the most.

    Args:
        folder: The model, its setting and its vector.
        plain: New tokens of the plain hook.
        other: New tokens of another library.

    Returns:
        Difference of logits under the plain hook, at least 0; 0 where all tokens are the same,
        infinite where another number of them was written.
    """
    if plain.shape != other.shape:
        return float("inf")
    setting = read_setting(folder)
    model = read_model(folder / "model")

    def add(_module: Any, _args: Any, output: Any) -> Any:
        return output + setting.vector

    handle = model.model.layers[setting.layer].register_forward_hook(add)
    gaps = [0.0]
    for prompt, ours, theirs in zip(setting.steered, plain, other, strict=True):
        parted = (ours != theirs).nonzero()
        if len(parted):
            first = int(parted[0, 0])
            logits = _next_logits(model, [*prompt, *ours[:first].tolist()])
            gaps.append(float(logits[ours[first]] - logits[theirs[first]]))
    handle.remove()
    return max(gaps)


@torch.inference_mode()
def _next_logits(model: Any, ids: list[int]) -> Float[Tensor, " vocab"]:
    found: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return found
