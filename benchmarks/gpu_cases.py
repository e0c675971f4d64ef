"""What is measured on an accelerator: capture, edits per row, generation, and fits of maps."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.gpu_networks import N_WORDS
from benchmarks.peers.material import N_SPECIAL
from benchmarks.peers.run_isthmus import FIRST_CHARACTER, encoded
from benchmarks.plain_hooks import plain_hook
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.interventions.addition import Addition
from isthmus.maps.autoencoder import AutoencoderSettings
from isthmus.maps.autoencoder_training import fit_autoencoder
from isthmus.maps.moments import PairMoments
from isthmus.maps.ridge import RidgeFitter
from isthmus.models.capture import capture_activations
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import editing, run_until_captured
from isthmus.models.language_model import LanguageModel

PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Load:
    """How much is computed.

    Attributes:
        n_texts: Texts captured at once.
        n_tokens: Tokens of each.
        n_steered: Prompts continued at once, each with its own vector.
        n_new: Tokens added to each.
        n_rows: Pairs that maps are fitted on.
        n_steps: Optimiser steps of the autoencoder.
    """

    n_texts: int
    n_tokens: int
    n_steered: int
    n_new: int
    n_rows: int
    n_steps: int


@dataclass(frozen=True)
class GpuCase:
    """Something that is timed.

    Attributes:
        name: What is done.
        work: Does it once.
        amount: How much of `unit` that is.
        unit: What is counted.
        checks: Values that must agree, each computed once: 0 means equal.
    """

    name: str
    work: Callable[[], Any]
    amount: float
    unit: str
    checks: tuple[tuple[str, Callable[[], float]], ...] = ()


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Sets how matrix products of float32 are computed, for the block.

    Args:
        precision: One of `PRECISIONS`; `bf16` computes them in bfloat16 where that is safe.
        device: Where.

    Yields:
        None: Inside the setting.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with ExitStack() as stack:
            if precision == "bf16":
                stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def model_cases(lm: LanguageModel, load: Load, seed: int) -> Iterator[GpuCase]:
    """Yields capture at two layers, passes with an edit per row, and steered generation.

    Args:
        lm: The model, in the precision that is measured.
        load: How much.
        seed: Decides prompts and vectors.

    Yields:
        GpuCase: With the checks that a plain hook can make.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = [random_text(load.n_tokens, generator) for _ in range(load.n_texts)]
    batch = pad_batch(texts, lm.pad_id, "right")
    for where, layer in (("middle", lm.n_layers // 2), ("last", lm.n_layers - 1)):
        yield _capture(lm, texts, batch, Site(layer), where)
    prompts = [random_text(16, generator) for _ in range(load.n_steered)]
    vectors = 0.5 * torch.randn(load.n_steered, lm.d_model, generator=generator)
    vectors[0] = 0
    rows = RowEdits(lm, Site(lm.n_layers // 2), vectors)
    yield _scoring(rows, prompts)
    yield _generation(rows, prompts, load.n_new)


def random_text(n_tokens: int, generator: torch.Generator) -> EncodedText:
    """Draws a text of so many tokens."""
    drawn = torch.randint(N_SPECIAL, N_WORDS, (n_tokens,), generator=generator)
    return encoded(drawn.tolist())


def _capture(
    lm: LanguageModel, texts: list[EncodedText], batch: TokenBatch, site: Site, where: str
) -> GpuCase:
    def work() -> Tensor:
        return torch.cat([one.values[site] for one in capture_activations(lm, texts, [site])])

    def against_hook() -> float:
        seen: list[Tensor] = []
        with plain_hook(lm, site, seen.append), torch.inference_mode():
            _pass(lm, batch)
        return distance(work(), seen[0].flatten(0, 1))

    amount = float(sum(map(len, texts)))
    return GpuCase(
        f"capture, {where} layer", work, amount, "tokens", (("capture = plain hook", against_hook),)
    )


def _pass(lm: LanguageModel, batch: TokenBatch) -> Any:
    inputs = {
        "input_ids": batch.token_ids.to(lm.device),
        "attention_mask": batch.is_real.long().to(lm.device),
    }
    return lm.model(**inputs, use_cache=False)


@dataclass(frozen=True)
class RowEdits:
    """A vector of its own for every row of a batch but the first, which has none.

    Attributes:
        lm: The model.
        site: Where the vectors are added.
        vectors: One row each; the first is zero.
    """

    lm: LanguageModel
    site: Site
    vectors: Tensor

    def place(self, batch: TokenBatch) -> list[PlacedEdit]:
        """Returns one placed edit per row from the second on."""
        edits = []
        for row in range(1, len(self.vectors)):
            is_row = torch.arange(len(self.vectors)) == row
            given = batch.is_real & is_row[:, None]
            edits.append(PlacedEdit(self.site, Addition(self.vectors[row]), given, is_row))
        return edits

    def add(self, value: Tensor) -> Tensor:
        """Does the same as a plain hook, in the arithmetic of an edit."""
        vectors = self.vectors.to(value.device, torch.float32)[:, None]
        return (value.float() + vectors).to(value.dtype)


def _scoring(rows: RowEdits, prompts: list[EncodedText]) -> GpuCase:
    lm = rows.lm
    batch = pad_batch(prompts, lm.pad_id, "left")
    last = Site(lm.n_layers - 1)

    def work() -> Tensor:
        ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
        with editing(lm.layout, rows.place(batch)), torch.inference_mode():
            return run_until_captured(lm.layout, [last], ids, is_real)[last]

    def unedited_row() -> float:
        seen: list[Tensor] = []
        with plain_hook(lm, last, seen.append), torch.inference_mode():
            _pass(lm, batch)
        return distance(work()[0], seen[0][0])

    def against_hook() -> float:
        seen: list[Tensor] = []
        with (
            plain_hook(lm, rows.site, rows.add),
            plain_hook(lm, last, seen.append),
            torch.inference_mode(),
        ):
            _pass(lm, batch)
        return distance(work(), seen[0])

    checks = (("no edit = same bits", unedited_row), ("edits = plain hook", against_hook))
    return GpuCase("pass, an edit per row", work, float(sum(map(len, prompts))), "tokens", checks)


def _generation(rows: RowEdits, prompts: list[EncodedText], n_new: int) -> GpuCase:
    lm = rows.lm

    def work() -> tuple[str, ...]:
        found = generate_greedy(
            lm, prompts, max_new_tokens=n_new, edits=rows.place, batch_size=len(prompts)
        )
        return found.completions

    def plain() -> list[str]:
        batch = pad_batch(prompts, lm.pad_id, "left")
        network: Any = lm.model
        with plain_hook(lm, rows.site, rows.add), torch.inference_mode():
            ids = network.generate(
                input_ids=batch.token_ids.to(lm.device),
                attention_mask=batch.is_real.long().to(lm.device),
                max_new_tokens=n_new,
                do_sample=False,
            )
        new = ids[:, batch.token_ids.shape[1] :].tolist()
        # Tokens beyond the tokenizer's are written as nothing.
        return ["".join(chr(FIRST_CHARACTER + i) for i in row if i < N_WORDS) for row in new]

    def unequal() -> float:
        return float(sum(a != b for a, b in zip(work(), plain(), strict=True)))

    amount = float(n_new * len(prompts))
    checks = (("generation = plain hook", unequal),)
    return GpuCase("generation, an edit per row", work, amount, "new tokens", checks)


def map_cases(
    widths: tuple[int, int], load: Load, device: torch.device, precision: str
) -> Iterator[GpuCase]:
    """Yields moments and ridge (float64 whatever the rows are), and the autoencoder.

    Args:
        widths: Of source and target.
        load: How many pairs and steps.
        device: Where pairs are drawn and maps fitted.
        precision: One of `PRECISIONS`.

    Yields:
        GpuCase: Ready to be run.
    """
    generator = torch.Generator(device).manual_seed(0)
    d_source, d_target = widths
    source = torch.randn(load.n_rows, d_source, device=device, generator=generator)
    weight = torch.randn(d_source, d_target, device=device, generator=generator)
    target = source @ weight / d_source**0.5
    half = load.n_rows // 2
    if precision == "bf16":
        source, target = source.bfloat16(), target.bfloat16()

    def moments() -> list[PairMoments]:
        found = []
        for part in (slice(0, half), slice(half, None)):
            found.append(PairMoments(d_source, d_target, device))
            found[-1].update(source[part], target[part])
        return found

    def ridge() -> Any:
        return RidgeFitter().fit(*moments())

    def unexplained() -> float:
        expected = target.float()
        error = ridge()(source.float()) - expected
        return float(error.square().mean() / expected.square().mean() > 1e-3)

    yield GpuCase("moments", moments, load.n_rows, "pairs")
    yield GpuCase(
        "moments and ridge", ridge, load.n_rows, "pairs", (("ridge finds the map", unexplained),)
    )
    settings = AutoencoderSettings.well_trained(load.n_steps)

    def autoencoder() -> Any:
        with computing_in(precision, device):
            draws = torch.Generator(device).manual_seed(0)
            return fit_autoencoder(source.float(), target.float(), settings, draws)

    yield GpuCase("autoencoder", autoencoder, load.n_steps, "steps")


def distance(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference, infinity where shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.double() - other.double()).abs().max())
