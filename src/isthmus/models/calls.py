"""What hooks keep: calls of modules, and how many tokens a model was run on."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Call:
    """The first call of a module in a pass.

    Attributes:
        given: Copy of its first tensor argument, made before the call.
        made: Copy of its (first) output tensor, made right after the call.
        live: The tensors that were copied, as they are now.
        n_calls: How often the module was called.
    """

    given: Tensor | None = None
    made: Tensor | None = None
    live: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    n_calls: int = 0

    @property
    def was_overwritten(self) -> bool:
        """Whether one of the tensors was changed in place after it was copied."""
        return any(not torch.equal(copy, now.cpu()) for copy, now in self.live)

    def keep(self, value: Tensor) -> Tensor:
        """Copies a tensor to the CPU and remembers the original."""
        # Modules of one model may compute on several devices, and their calls are compared.
        copy = value.detach().to("cpu", copy=True)
        self.live.append((copy, value.detach()))
        return copy


@dataclass
class TokenMeter:
    """How many tokens a model was run on.

    Attributes:
        n_read: Positions of first passes: prompts, and texts that are scored.
        n_generated: Positions computed one by one, on top of a cache.
    """

    n_read: int = 0
    n_generated: int = 0

    @property
    def n_tokens(self) -> int:
        """Both together."""
        return self.n_read + self.n_generated

    def add(self, n_positions: int, *, is_step: bool) -> None:
        """Counts one forward pass: of whole texts, or one step of their continuation."""
        if is_step:
            self.n_generated += n_positions
        else:
            self.n_read += n_positions
