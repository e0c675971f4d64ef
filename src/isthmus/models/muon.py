"""Muon in float32: momentum whose matrices are made orthogonal before they are applied.

`torch.optim.Muon` does this in bfloat16, which processors without such arithmetic emulate: a step
of a small model then takes longer than its forward and backward pass together.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_N_ITERATIONS = 5


def orthogonalised(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """Moves all singular values of a matrix to about 1 and leaves its singular vectors.

    Five Newton-Schulz iterations X := a X + (b X Xᵀ + c (X Xᵀ)²) X from X / ‖X‖, with coefficients
    that are fast rather than exact: values end between .7 and 1.2 unless they were tiny.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".

    Args:
        matrix: Any matrix; left unchanged.

    Returns:
        Float32 matrix; zeros of zeros.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_N_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay, for matrices alone.

    W := (1 - η λ) W - η √max(1, rows / columns) · orthogonalised(g + μ (m - g)), m the running mean
    of gradients with μ = .95.

    Args:
        matrices: Parameters with two dimensions.
        lr: η.
        weight_decay: λ.
    """

    _MOMENTUM = 0.95

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves every matrix that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew, where it is given.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                kept = self.state[matrix]
                mean = kept.setdefault("mean", torch.zeros_like(matrix.grad))
                mean.lerp_(matrix.grad, 1 - self._MOMENTUM)
                update = orthogonalised(matrix.grad.lerp(mean, self._MOMENTUM))
                size = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update.to(matrix), alpha=-group["lr"] * size)
        return loss
