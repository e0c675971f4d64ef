"""Trains a switch's edits further on what they are for: the imitated model's next tokens.

1. The loss is KL(imitated ‖ carrier with the switch) at the answers' tokens, in nats per token, the
   mean over texts. Texts on which both models agree without a switch weigh more: what is right
   already is easily spoilt by what is not. Those whose answer hangs on a near tie weigh less: no
   small switch repeats them to the letter, and their distributions differ most.
2. Gradients reach the edits through the frozen carrier; Adam, a short warm-up, a cosine decay.
3. Every quarter of the steps the edits are measured on validation texts; the best are kept, those
   that training started from included.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch, pad_batch
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import PositionSelector
from isthmus.models.batching import no_edits
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs, answer_places, logits_at
from isthmus.workflows.switch_fitting import Edits
from isthmus.workflows.teacher import Teacher

_N_CHECKS = 4
_CHUNK = 128


@dataclass(frozen=True)
class TrainingSettings:
    """How a switch is trained.

    Attributes:
        n_steps: Steps of Adam, at least 1.
        batch_size: Texts per step.
        learning_rate: Largest step size.
        n_warmup: Steps until it is reached.
        quiet_weight: Weight of texts on which both models agree without a switch; others have 1.
        quiet_below: How little they diverge there, in nats per token.
        unsure_weight: Weight of the others of whose answers the imitated model is unsure.
        unsure_below: How unlikely it finds the least likely token of an answer then.
        seed: Order of the texts.
    """

    n_steps: int = 600
    batch_size: int = 16
    learning_rate: float = 6e-3
    n_warmup: int = 15
    quiet_weight: float = 4.0
    quiet_below: float = 0.05
    unsure_weight: float = 0.25
    unsure_below: float = 0.6
    seed: int = 0

    def rate(self, step: int) -> float:
        """Returns the step size: linear warm-up, then half a cosine down to a hundredth."""
        warm = min(1.0, (step + 1) / self.n_warmup)
        decayed = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        return self.learning_rate * warm * decayed


def divergences(
    carrier: LanguageModel,
    imitated: LanguageModel,
    texts: Sequence[EncodedText],
    edits: Edits,
    positions: PositionSelector,
) -> Float[Tensor, " text"]:
    """Measures KL(imitated ‖ carrier with the switch) over the answers' tokens.

    Args:
        carrier: The model that carries the switch.
        imitated: The model it shall answer like.
        texts: Prompts with answers.
        edits: The switch; without any the carrier is measured as it is.
        positions: Where it acts.

    Returns:
        Nats per answer token for every text.
    """
    return _divergences(carrier, Teacher(imitated), texts, edits, positions)


def _divergences(
    carrier: LanguageModel,
    teacher: Teacher,
    texts: Sequence[EncodedText],
    edits: Edits,
    positions: PositionSelector,
) -> Float[Tensor, " text"]:
    place = Intervention.affine(edits, positions).place if edits else no_edits
    per_text = []
    # Log-probabilities over a large vocabulary do not fit in memory for all texts at once.
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        wanted = teacher.logprobs(part)
        got = answer_logprobs(carrier, part, edits=place)
        per_text += [_per_token(p, q).mean() for p, q in zip(wanted, got, strict=True)]
    return torch.stack(per_text)


def train_edits(
    models: tuple[LanguageModel, LanguageModel],
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    edits: Edits,
    positions: PositionSelector,
    settings: TrainingSettings,
    progress: Progress,
) -> dict[Site, AffineEdit]:
    """Moves edits towards the imitated model's next tokens; their means stay.

    Args:
        models: The carrier, and the model it shall answer like.
        texts: Texts to train on, and others on which the best edits are chosen.
        edits: Where training starts; left unchanged.
        positions: Where the switch acts.
        settings: Steps, batches, rate.
        progress: Who shows progress.

    Returns:
        The edits that did best on the second list.
    """
    carrier, teacher = models[0], Teacher(models[1])
    now = _Trainable(edits)
    optimiser = torch.optim.Adam(now.parameters, lr=settings.learning_rate, betas=(0.9, 0.98))
    best = dict(edits)
    weights, weights_there = (
        _weights(carrier, teacher, part, positions, settings) for part in texts
    )

    def weighted_there(these: Edits) -> float:
        return float(
            (weights_there * _divergences(carrier, teacher, texts[1], these, positions)).mean()
        )

    lowest = weighted_there(best)
    with progress.stage("train the switch", settings.n_steps) as advance:
        for step, chosen in enumerate(_choices(len(texts[0]), settings)):
            batch = pad_batch([texts[0][i] for i in chosen], carrier.pad_id, "right")
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step)
            placed = Intervention.affine(now.edits(), positions).place(batch)
            with editing(carrier.layout, placed), torch.enable_grad():
                got = answer_logprobs_with_gradients(carrier, batch)
            wanted = torch.cat(teacher.logprobs(batch.texts)).to(got.device)
            lengths = [len(text) - text.n_prompt for text in batch.texts]
            per_text = torch.stack([p.mean() for p in _per_token(wanted, got).split(lengths)])
            optimiser.zero_grad()
            (weights[chosen].to(per_text) * per_text).mean().backward()
            torch.nn.utils.clip_grad_norm_(now.parameters, 1.0)
            optimiser.step()
            advance(1)
            if (step + 1) % max(1, settings.n_steps // _N_CHECKS) == 0:
                here = now.frozen()
                value = weighted_there(here)
                if value < lowest:
                    best, lowest = here, value
    return best


class _Trainable:
    """The parts of edits that gradients change."""

    def __init__(self, edits: Edits) -> None:
        self._means = {site: edit.mean for site, edit in edits.items()}
        self._parts: Mapping[Site, dict[str, Tensor]] = {
            site: {
                name: part.detach().clone().requires_grad_()
                for name, part in (("down", edit.down), ("up", edit.up), ("bias", edit.bias))
                if part is not None
            }
            for site, edit in edits.items()
        }

    @property
    def parameters(self) -> list[Tensor]:
        return [part for parts in self._parts.values() for part in parts.values()]

    def edits(self) -> dict[Site, AffineEdit]:
        return {
            site: AffineEdit(parts["down"], parts.get("up"), self._means[site], parts["bias"])
            for site, parts in self._parts.items()
        }

    def frozen(self) -> dict[Site, AffineEdit]:
        copies: dict[Site, AffineEdit] = {}
        for site, parts in self._parts.items():
            kept = {name: part.detach().clone() for name, part in parts.items()}
            copies[site] = AffineEdit(kept["down"], kept.get("up"), self._means[site], kept["bias"])
        return copies


def shuffled_batches(
    lm: LanguageModel, texts: Sequence[EncodedText], settings: TrainingSettings
) -> Iterator[TokenBatch]:
    """Yields one batch of texts per step, every text once before any comes again.

    Args:
        lm: The model that will read them.
        texts: What to draw from.
        settings: Steps, size and seed.

    Yields:
        TokenBatch: Texts padded on the right.
    """
    for chosen in _choices(len(texts), settings):
        yield pad_batch([texts[i] for i in chosen], lm.pad_id, "right")


def _weights(
    carrier: LanguageModel,
    teacher: Teacher,
    texts: Sequence[EncodedText],
    positions: PositionSelector,
    settings: TrainingSettings,
) -> Float[Tensor, " text"]:
    """Returns what every text counts for: more where there is nothing to switch, less near ties."""
    is_quiet = _divergences(carrier, teacher, texts, {}, positions) < settings.quiet_below
    is_unsure = _least_likely(teacher, texts) < settings.unsure_below
    loud = torch.where(is_unsure, settings.unsure_weight, 1.0)
    return torch.where(is_quiet, settings.quiet_weight, loud)


def _least_likely(teacher: Teacher, texts: Sequence[EncodedText]) -> Float[Tensor, " text"]:
    """Returns the probability of the least likely token of every text's answer."""
    least = []
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        for logprobs, text in zip(teacher.logprobs(part), part, strict=True):
            said = torch.tensor(text.token_ids[text.n_prompt :], device=logprobs.device)
            least.append(logprobs.gather(1, said[:, None]).min().exp())
    return torch.stack(least)


def _choices(n_texts: int, settings: TrainingSettings) -> Iterator[list[int]]:
    return drawn_batches(n_texts, settings.n_steps, settings.batch_size, settings.seed)


def drawn_batches(n_texts: int, n_steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yields the indices of every step's texts, all texts once before any comes again.

    Args:
        n_texts: How many texts there are.
        n_steps: How many batches are drawn.
        batch_size: Most texts in one.
        seed: Their order.

    Yields:
        list[int]: Indices of one batch.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, n_texts)
    order: list[int] = []
    for _ in range(n_steps):
        if len(order) < size:
            order = torch.randperm(n_texts, generator=generator).tolist()
        yield [order.pop() for _ in range(size)]


def answer_logprobs_with_gradients(
    lm: LanguageModel, batch: TokenBatch
) -> Float[Tensor, "token vocab"]:
    """Returns log-probabilities at the answer positions, text after text, with gradients."""
    rows, kept, columns = answer_places(batch.texts)
    return logits_at(lm, batch, columns)[rows, kept].float().log_softmax(-1)


def _per_token(
    wanted: Float[Tensor, "token vocab"], got: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    return (wanted.exp() * (wanted - got)).sum(-1)
