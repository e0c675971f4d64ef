"""AdamW, written out: a few lines that touch only the parameters they are given."""

from collections.abc import Sequence

import torch
from torch import Tensor


class AdamW:
    """Adam with decoupled weight decay on a fixed list of parameters, which it changes in place.

    θ ← θ (1 - rate · decay) - rate · m̂ / (√v̂ + 1e-8), with m and v the running means (0.9, 0.999)
    of the gradient and of its square, both corrected for their start at zero.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2.

    Args:
        parameters: Leaf tensors to train.
        weight_decay: Decoupled decay, at least 0.
    """

    def __init__(self, parameters: Sequence[Tensor], weight_decay: float) -> None:
        self._parameters = list(parameters)
        self._weight_decay = weight_decay
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._n_steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Takes one step.

        Args:
            gradients: One per parameter, in the same order; left unchanged.
            rate: Learning rate of this step.
        """
        self._n_steps += 1
        mean_start = 1 - 0.9**self._n_steps
        square_start = 1 - 0.999**self._n_steps
        state = zip(self._parameters, gradients, self._means, self._squares, strict=True)
        for parameter, gradient, mean, square in state:
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.mul_(1 - rate * self._weight_decay)
            parameter.addcdiv_(
                mean / mean_start, (square / square_start).sqrt() + 1e-8, value=-rate
            )
