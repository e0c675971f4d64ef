"""Generation and scoring with a steering vector against the same call without."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from benchmarks.networks import Scale, random_model, random_texts
from benchmarks.plain_hooks import plain_hook
from benchmarks.timing import Case, Check, Pair
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, Side, pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.generation import GenerationResult, generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import ScoringResult, answer_nll

LIMIT = 1.05
POSITIONS = ("all", "last:3", "trigger")

_NONE, _AGAIN, _PLAIN = "no edit", "no edit again", "plain hook, every position"


@dataclass(frozen=True)
class Setting:
    """Texts that a model works on, and the vector that steers it.

    Attributes:
        lm: The model.
        texts: One batch, longest first.
        site: Where the vector is added.
        vector: The steering vector, larger than typical activations of a random model, so that
            what comes out changes.
        side: Side on which the batch is padded.
        n_fed: Generated tokens that the model reads again, per text.
    """

    lm: LanguageModel
    texts: list[EncodedText]
    site: Site
    vector: Float[Tensor, " d_model"]
    side: Side
    n_fed: int

    def place(self, positions: str) -> PlaceEdits:
        """Returns the addition at some positions, as generation and scoring take it."""
        steering = Intervention.steering({self.site: self.vector[None]}, parse_positions(positions))
        return steering.place

    def n_edited(self, positions: str) -> int:
        """Returns how many positions must be edited."""
        if positions == "all":
            return sum(map(len, self.texts)) + self.n_fed * len(self.texts)
        if positions == "trigger":
            return sum(past - first for first, past in (t.trigger or (0, 0) for t in self.texts))
        return 3 * len(self.texts)


def generation_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields one case per batch size: greedy completions with a key-value cache.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: No edit twice, a plain hook, and an addition at each choice of positions.
    """
    lm = random_model(scale, generator)
    site, vector = Site(lm.n_layers // 2), torch.randn(lm.d_model, generator=generator)
    for n_prompts in scale.batch_sizes:
        texts = random_texts(lm, scale, n_prompts, generator, answers=False)
        setting = Setting(lm, texts, site, vector, "left", scale.n_new_tokens - 1)
        name = f"{scale.n_new_tokens} new tokens, batch {n_prompts}"
        yield _case("Generation", name, setting, partial(_generate, setting), _unequal_texts)


def scoring_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields one case: likelihoods of given answers.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: No edit twice, a plain hook, and an addition at each choice of positions.
    """
    lm = random_model(scale, generator)
    site, vector = Site(lm.n_layers // 2), torch.randn(lm.d_model, generator=generator)
    texts = random_texts(lm, scale, scale.n_texts, generator, answers=True)
    setting = Setting(lm, texts, site, vector, "right", 0)
    work = partial(_score, setting)
    yield _case("Scoring", f"{len(texts)} answers", setting, work, _largest_difference)


def reference_edit(setting: Setting, positions: str) -> Callable[[Tensor], Tensor]:
    """Returns what a plain hook has to do for the same effect, from the texts alone.

    Args:
        setting: Texts and vector.
        positions: One of `POSITIONS`.

    Returns:
        A function of the block's output; what follows the first pass counts as generated.
    """
    mask = _reference_mask(setting, positions)

    def steer(value: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        if positions == "all":
            return value + setting.vector
        is_first = value.shape[1] == mask.shape[1]
        return torch.where(mask[..., None], value + setting.vector, value) if is_first else value

    return steer


def _reference_mask(setting: Setting, positions: str) -> Bool[Tensor, "batch pos"]:
    batch = pad_batch(setting.texts, setting.lm.pad_id, setting.side)
    mask = torch.zeros_like(batch.is_real)
    for row, (text, offset) in enumerate(zip(batch.texts, batch.offsets, strict=True)):
        last_three = (text.n_prompt - 3, text.n_prompt)
        first, past = last_three if positions == "last:3" else text.trigger or (0, 0)
        mask[row, offset + first : offset + past] = True
    return mask


def _case(
    group: str,
    name: str,
    setting: Setting,
    work: Callable[[PlaceEdits], Any],
    distance: Callable[[Any, Any], float],
) -> Case:
    unsteered = partial(work, no_edits)
    plain = partial(_hooked, setting, "all", unsteered)
    variants: dict[str, Callable[[], Any]] = {_NONE: unsteered, _AGAIN: unsteered, _PLAIN: plain}
    checks: list[Check] = []
    unsteered_once = cache(unsteered)
    for positions in POSITIONS:
        steered = partial(work, setting.place(positions))
        expected = cache(partial(_hooked, setting, positions, unsteered))
        variants[positions] = steered
        runs = (cache(steered), expected, unsteered_once)
        checks += _checks(setting, positions, runs, distance)
    pairs = (*(Pair(p, _NONE, LIMIT) for p in POSITIONS), Pair(_PLAIN, _NONE), Pair(_AGAIN, _NONE))
    return Case(group, name, variants, pairs, tuple(checks))


def _checks(
    setting: Setting,
    positions: str,
    runs: tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]],
    distance: Callable[[Any, Any], float],
) -> list[Check]:
    steered, expected, unsteered = runs
    return [
        Check(f"{positions} = plain hook", lambda: distance(steered(), expected())),
        Check(
            f"{positions} edits every position meant",
            lambda: abs(steered().n_edited - setting.n_edited(positions)),
        ),
        Check(
            f"{positions} changes what comes out",
            lambda: float(distance(steered(), unsteered()) == 0),
        ),
    ]


def _generate(setting: Setting, edits: PlaceEdits) -> GenerationResult:
    texts, n_new = setting.texts, setting.n_fed + 1
    return generate_greedy(
        setting.lm, texts, max_new_tokens=n_new, edits=edits, batch_size=len(texts)
    )


def _score(setting: Setting, edits: PlaceEdits) -> ScoringResult:
    return answer_nll(setting.lm, setting.texts, edits=edits, batch_size=len(setting.texts))


def _hooked(setting: Setting, positions: str, work: Callable[[], Any]) -> Any:
    with plain_hook(setting.lm, setting.site, reference_edit(setting, positions)):
        return work()


def _unequal_texts(one: GenerationResult, other: GenerationResult) -> float:
    pairs: Sequence[tuple[str, str]] = list(zip(one.completions, other.completions, strict=True))
    return float(sum(left != right for left, right in pairs))


def _largest_difference(one: ScoringResult, other: ScoringResult) -> float:
    return float((one.nll - other.nll).abs().max())
