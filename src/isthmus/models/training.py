"""The training loop of the organisms: Muon for matrices, AdamW for the rest.

Passes compute in bfloat16 where the device has such arithmetic, else in float32.

1. `bucketed_batches` shuffles rows of tokens, then groups those of like length: little is padded.
2. `train` runs a warm-up, a plateau and a linear cool-down over a given number of steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isthmus.core.errors import ConfigError, DataError, NonFiniteError
from isthmus.models.muon import Muon


@dataclass(frozen=True)
class TrainingRow:
    """One text as tokens.

    Attributes:
        token_ids: Prompt and answer.
        n_prompt: How many of the tokens belong to the prompt.
    """

    token_ids: tuple[int, ...]
    n_prompt: int


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        n_steps: Optimiser steps, at least 0.
        batch_size: Rows per step, at least 1.
        muon_lr: Learning rate of the matrices inside the blocks.
        adamw_lr: Learning rate of embeddings, norms and biases.
        prompt_weight: Weight of prompt tokens in the loss; answer tokens weigh 1.
        warm_up: Share of the steps in which the rate rises, above 0 and at most 1.
        cool_down: Share of the steps in which it falls to zero, above 0 and at most 1.
        weight_decay: Decoupled decay of the matrices.

    Raises:
        ConfigError: If one of them is out of its range.
    """

    n_steps: int
    batch_size: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 0.005
    prompt_weight: float = 0.3
    warm_up: float = 0.05
    cool_down: float = 0.4
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.n_steps < 0 or self.batch_size < 1:
            raise ConfigError(
                f"n_steps is {self.n_steps} and batch_size {self.batch_size}, expected at least "
                "0 and 1"
            )
        if not (0 < self.warm_up <= 1 and 0 < self.cool_down <= 1):
            raise ConfigError(
                f"warm_up is {self.warm_up} and cool_down {self.cool_down}, expected shares above "
                "0 and at most 1"
            )


@dataclass
class _Optimisers:
    """Both optimisers behind one step."""

    members: list[torch.optim.Optimizer]
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [member.param_groups[0]["lr"] for member in self.members]

    def step(self, factor: float) -> None:
        for member, rate in zip(self.members, self.rates, strict=True):
            member.param_groups[0]["lr"] = rate * factor
            member.step()
            member.zero_grad(set_to_none=True)


def _optimisers(model: nn.Module, settings: TrainingSettings) -> _Optimisers:
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in trained if id(p) not in chosen]
    members: list[torch.optim.Optimizer] = []
    if matrices:
        members.append(Muon(matrices, settings.muon_lr, settings.weight_decay))
    if others:
        members.append(torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.98)))
    return _Optimisers(members)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the body on one torch thread: small models are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_bfloat16(device: torch.device) -> bool:
    """Says whether a device computes in bfloat16 rather than emulates it, ten times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def bucketed_batches(
    rows: Sequence[TrainingRow], batch_size: int, generator: torch.Generator
) -> Iterator[list[TrainingRow]]:
    """Yields batches of rows of like length, without end, each pass in a new order.

    Args:
        rows: All rows.
        batch_size: Rows per batch; the last of a pass may be smaller.
        generator: Source of randomness.

    Yields:
        list[TrainingRow]: The next batch.

    Raises:
        DataError: If there is no row.
    """
    if not rows:
        raise DataError("no rows to train on: give at least one")
    pool = batch_size * 16
    while True:
        order: list[int] = torch.randperm(len(rows), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=lambda i: len(rows[i].token_ids))
            batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield [rows[i] for i in batches[index]]


def _collate(
    rows: Sequence[TrainingRow], prompt_weight: float
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    width = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    weights = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        n = len(row.token_ids)
        ids[i, :n] = torch.tensor(row.token_ids)
        mask[i, :n] = 1
        weights[i, :n] = 1.0
        weights[i, : row.n_prompt] = prompt_weight
    return ids, mask, weights


def train(
    model: nn.Module,
    rows: Sequence[TrainingRow],
    settings: TrainingSettings,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> None:
    """Trains a model in place on next-token prediction, answers weighing more than prompts.

    Args:
        model: Any causal language model; parameters without gradient stay as they are.
        rows: Training text.
        settings: Steps, rates and weights.
        generator: Order of the rows.
        on_step: Called after each step with its number (from 1) and the loss.

    Raises:
        DataError: If there is no row.
        NonFiniteError: If the loss is NaN or infinite; no step is taken with it.
    """
    optimisers = _optimisers(model, settings)
    batches = bucketed_batches(rows, settings.batch_size, generator)
    device = next(model.parameters()).device
    is_fast = has_bfloat16(device)
    model.train()
    for step in range(settings.n_steps):
        ids, mask, weights = (t.to(device) for t in _collate(next(batches), settings.prompt_weight))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_fast):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        flat = weights[:, 1:].flatten()
        loss = (losses * flat).sum() / flat.sum()
        if not math.isfinite(reached := float(loss.detach())):
            raise NonFiniteError(
                f"the loss is {reached} in step {step + 1}: lower the rates, or see that some "
                "tokens of every batch have weight"
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = step / settings.n_steps
        optimisers.step(min(1.0, (done + 1e-3) / settings.warm_up, (1 - done) / settings.cool_down))
        on_step(step + 1, reached)
    model.eval()
