"""Fine-tunes a fitted map on what the target then predicts, not on the states alone.

1. The states of the target's site are replaced by mapped ones wherever tokens are paired; the rest
   of the target reads on.
2. The loss is KL(untouched target ‖ target on mapped states) at every token, in nats, plus what the
   map leaves unexplained of the states, so that points and directions stay where they were. The
   variance that this is a share of is that of all selection texts: a batch may hold one token.
3. Gradients reach the map's parameters through the frozen target. Adam; steps in units of each
   parameter's own size, a short warm-up, a cosine decay.
4. Every quarter of the steps the map is measured on selection texts; the best is kept, the one that
   training started from included.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.data.alignment import PairingMethod, pair_tokens
from isthmus.interventions.row_replacement import RowReplacement
from isthmus.maps.base import ActivationMap
from isthmus.maps.files import FittedMap
from isthmus.maps.parameters import parameters_of, with_parameters
from isthmus.models.capture import all_token_activations
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing
from isthmus.workflows.pairing import Part, part_of_text
from isthmus.workflows.switch_training import drawn_batches

_N_CHECKS = 4


@dataclass(frozen=True)
class MapTuning:
    """How a map is fine-tuned.

    Attributes:
        n_steps: Steps of Adam, at least 1.
        batch_size: Texts per step.
        learning_rate: Largest step of a parameter's entries, in units of their root mean square.
        n_warmup: Steps until it is reached.
        fidelity: Weight of the fraction of variance unexplained beside nats per token.
        seed: Order of the texts.

    Raises:
        ConfigError: If there is no step, or no text in one.
    """

    n_steps: int = 200
    batch_size: int = 16
    learning_rate: float = 0.03
    n_warmup: int = 20
    fidelity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"{self.n_steps} steps of {self.batch_size} texts, expected at least 1 of each"
            )

    def rate(self, step: int) -> float:
        """Returns the step size: linear warm-up, then half a cosine down to zero."""
        warm = min(1.0, (step + 1) / self.n_warmup)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))


class Stitched(NamedTuple):
    """What a target on mapped states does to some texts.

    Attributes:
        kl: KL(untouched ‖ on mapped states), nats per token.
        error: Σ |mapped - own|² over paired tokens, divided by their number.
    """

    kl: Float[Tensor, ""]
    error: Float[Tensor, ""]


class _Batch(NamedTuple):
    """Some texts as the target reads them, with the source's states at paired tokens."""

    read: TokenBatch
    source_states: Float[Tensor, "batch pos d_source"]
    is_paired: Bool[Tensor, "batch pos"]


@dataclass(frozen=True)
class Stitcher:
    """Runs the target on states that a map made of the source's.

    Attributes:
        source: Source model.
        target: Target model.
        fitted: Where the map reads and where it leads.
        pairing: How tokens are paired; each with one.
    """

    source: LanguageModel
    target: LanguageModel
    fitted: FittedMap
    pairing: Pairing

    def read(self, texts: tuple[Sequence[EncodedText], Sequence[EncodedText]]) -> _Batch:
        """Reads the source's states of texts at the tokens that the target's are paired with."""
        batch = pad_batch(texts[1], self.target.pad_id, "right")
        by_site = all_token_activations(self.source, texts[0], self.fitted.source_sites)
        states = torch.zeros(*batch.token_ids.shape, self.fitted.map.d_source)
        is_paired = torch.zeros_like(batch.is_real)
        for row, (one, other) in enumerate(zip(*texts, strict=True)):
            pairs = pair_tokens(one, other, single_pairing(self.pairing))
            rows = torch.cat([by_site[s][row] for s in self.fitted.source_sites], dim=-1)
            there = torch.from_numpy(pairs.target)
            states[row, there] = rows[torch.from_numpy(pairs.source)]
            is_paired[row, there] = True
        device = self.target.device
        return _Batch(batch, states.to(device), is_paired.to(device))

    def run(self, made: ActivationMap, batch: _Batch) -> Stitched:
        """Measures a map on one batch, with gradients where they are enabled.

        Args:
            made: Any map between the same spaces.
            batch: What `read` returned.

        Returns:
            Divergence and squared error.
        """
        mapped = made(batch.source_states).float()
        sites, paired = self.fitted.target_sites, batch.is_paired
        wanted, states = self._untouched(batch)
        parts = mapped.split(self.target.d_model, dim=-1)
        replaced = [
            RowReplacement(rows, paired).at(site) for site, rows in zip(sites, parts, strict=True)
        ]
        with editing(self.target.layout, replaced):
            got = _logprobs(self.target, batch.read)
        kl = (wanted.exp() * (wanted - got)).sum(-1).mean()
        return Stitched(kl, (mapped[paired] - states).square().sum(-1).mean())

    def variation(self, batches: Sequence[_Batch]) -> float:
        """Measures how much the target's own states vary, Σ |y - ȳ|² divided by their number.

        Args:
            batches: What `read` returned.

        Returns:
            What an error is a fraction of, ȳ being the mean over all batches.

        Raises:
            FitError: If there are fewer than two paired tokens with different states.
        """
        states = torch.cat([self._untouched(batch)[1].cpu().double() for batch in batches])
        found = float((states - states.mean(0)).square().sum(-1).mean())
        if not found > 0:
            raise FitError(
                f"fine-tuning needs at least 2 paired tokens with different states among the texts "
                f"that choose and among those that measure, got {len(states)}: give it more texts"
            )
        return found

    def _untouched(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Returns the target's log-probabilities and its own states at paired tokens."""
        sites = self.fitted.target_sites
        with torch.no_grad(), capturing(self.target.layout, sites) as captured:
            logprobs = _logprobs(self.target, batch.read)
            states = [captured[site][batch.is_paired].float() for site in sites]
        return logprobs, torch.cat(states, dim=-1)

    def mean(self, made: ActivationMap, batches: Sequence[_Batch]) -> Stitched:
        """Measures a map on several batches, each counting by its paired tokens."""
        with torch.no_grad():
            found = [self.run(made, batch) for batch in batches]
        weights = [int(batch.is_paired.sum()) for batch in batches]
        total = sum(weights)
        kl, error = (
            torch.stack([w / total * one[i] for w, one in zip(weights, found, strict=True)]).sum()
            for i in (0, 1)
        )
        return Stitched(kl, error)


def tune_map(
    fitted: FittedMap,
    models: tuple[LanguageModel, LanguageModel],
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    settings: MapTuning,
    progress: Progress,
    *,
    pairing: Pairing = "character_end",
) -> FittedMap:
    """Moves a map's parameters towards what the target predicts on its own states.

    Source: downstream losses for stitched language models in arXiv 2410.08255; that a loss at the
    stitch alone fails in shallow layers, arXiv 2603.12433.

    Args:
        fitted: The map to start from; left unchanged.
        models: Its source and its target.
        texts: The texts that it was fitted on, as either model sees them, in the same order.
        settings: Steps, batches, rate.
        progress: Who shows progress.
        pairing: How tokens are paired, each with one.

    Returns:
        The map that did best on selection texts, with the old quality: measure it again. Its
        provenance has `downstream`: divergence and unexplained variance on held-out texts, before
        and after.

    Raises:
        ConfigError: If the map has nothing to train, or the pairing pools tokens.
        FitError: If a part has no texts with pairs, or one that chooses or measures no variance.
    """
    stitcher = Stitcher(*models, fitted, pairing)
    parts = {part: _indices(stitcher, texts, part) for part in ("train", "selection", "held_out")}
    now = _Trainable(fitted.map, models[1].device)
    best = fitted.map
    kept = {
        part: list(_batches(stitcher, texts, parts[part], settings))
        for part in ("selection", "held_out")
    }
    variation = {part: stitcher.variation(batches) for part, batches in kept.items()}

    def value_of(found: Stitched) -> Tensor:
        return found.kl + settings.fidelity * found.error / variation["selection"]

    lowest = float(value_of(stitcher.mean(best, kept["selection"])))
    optimiser = torch.optim.Adam(now.groups, betas=(0.9, 0.98))
    with progress.stage(f"fine-tune the {fitted.map.method} map", settings.n_steps) as advance:
        drawn = drawn_batches(
            len(parts["train"]), settings.n_steps, settings.batch_size, settings.seed
        )
        for step, chosen in enumerate(drawn):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step) * group["size"]
            batch = stitcher.read(_at(texts, [parts["train"][i] for i in chosen]))
            with torch.enable_grad():
                loss = value_of(stitcher.run(now.map(), batch))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
            if (step + 1) % max(1, settings.n_steps // _N_CHECKS) == 0:
                here = now.frozen()
                value = float(value_of(stitcher.mean(here, kept["selection"])))
                if value < lowest:
                    best, lowest = here, value
    told = {
        "n_steps": settings.n_steps,
        "fidelity": settings.fidelity,
        **{
            name: number
            for when, made in (("before", fitted.map), ("after", best))
            for name, number in _told(
                when, stitcher.mean(made, kept["held_out"]), variation["held_out"]
            ).items()
        },
    }
    return replace(fitted, map=best, provenance={**fitted.provenance, "downstream": told})


class _Trainable:
    """A map whose parameters gradients change."""

    def __init__(self, fitted: ActivationMap, device: torch.device) -> None:
        self._start = fitted
        self._kept = parameters_of(fitted)
        self._values = {
            name: value.detach().to(device, copy=True).requires_grad_()
            for name, value in self._kept.items()
        }

    @property
    def groups(self) -> list[dict[str, object]]:
        """Parameters with their size, for step sizes in units of it."""
        sizes = [float(one.detach().square().mean().sqrt()) for one in self._values.values()]
        # A part that starts at zero moves by the size of the others.
        usual = max(sizes)
        return [
            {"params": [value], "size": size or usual}
            for value, size in zip(self._values.values(), sizes, strict=True)
        ]

    def map(self) -> ActivationMap:
        return with_parameters(self._start, self._values)

    def frozen(self) -> ActivationMap:
        copies = {
            name: value.detach().to(self._kept[name].device, copy=True)
            for name, value in self._values.items()
        }
        return with_parameters(self._start, copies)


def _told(when: str, found: Stitched, variation: float) -> dict[str, float]:
    return {f"kl_{when}": float(found.kl), f"fvu_{when}": float(found.error) / variation}


def single_pairing(pairing: Pairing) -> PairingMethod:
    """Refuses a pairing whose mapped states cannot stand in place of single ones.

    Args:
        pairing: How tokens are paired.

    Returns:
        The same, which pairs single tokens.

    Raises:
        ConfigError: If it pools tokens.
    """
    if pairing == "span_pool":
        raise ConfigError(
            "span_pool pairs means of tokens, which cannot stand in place of single states: "
            "fine-tune with character_end, chunk_boundary, index or last"
        )
    return pairing


def _indices(
    stitcher: Stitcher, texts: tuple[Sequence[EncodedText], Sequence[EncodedText]], part: Part
) -> list[int]:
    """Returns the texts of a part that have a pair."""
    method = single_pairing(stitcher.pairing)
    here = [
        i
        for i in range(len(texts[0]))
        if part_of_text(i) == part and len(pair_tokens(texts[0][i], texts[1][i], method).source)
    ]
    if not here:
        raise FitError(f"no text for {part} with paired tokens: give at least 10 texts")
    return here


def _batches(
    stitcher: Stitcher,
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    indices: Sequence[int],
    settings: MapTuning,
) -> Iterator[_Batch]:
    for start in range(0, len(indices), settings.batch_size):
        yield stitcher.read(_at(texts, indices[start : start + settings.batch_size]))


def _at(
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]], indices: Sequence[int]
) -> tuple[list[EncodedText], list[EncodedText]]:
    return [texts[0][i] for i in indices], [texts[1][i] for i in indices]


def _logprobs(lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "token vocab"]:
    """Returns log-probabilities of what follows every token, text after text."""
    is_real = batch.is_real.to(lm.device)
    logits = lm.model(
        input_ids=batch.token_ids.to(lm.device), attention_mask=is_real.long(), use_cache=False
    ).logits
    chosen: Tensor = logits[is_real].float().log_softmax(-1)
    return chosen
