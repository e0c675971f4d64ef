"""Batches whose rows differ: an intervention for each, and requests that join and leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from benchmarks.networks import Scale, random_model, random_texts
from benchmarks.timing import Case, Check, Pair

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, length_buckets
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import PerRow, merge_rows
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits, no_edits
from isthmus.models.continuous import ContinuousDecoder
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel

LIMIT = 1.05

_NONE, _AGAIN, _ONE = "no edit", "no edit again", "one addition for all rows"
_STATIC, _CONTINUOUS = "static batches", "continuous decoding"


@dataclass(frozen=True)
class Work:
    """Requests of one case.

    Attributes:
        lm: The model.
        texts: Prompts, longest first.
        interventions: One or none for each.
        lengths: Tokens that each gets.
        n_slots: Most that run at once.
    """

    lm: LanguageModel
    texts: Sequence[EncodedText]
    interventions: tuple[Intervention | None, ...]
    lengths: Sequence[int]
    n_slots: int

    def continued(self, edits: PlaceEdits = no_edits) -> tuple[str, ...]:
        """Returns completions of one batch, all of the length of the first."""
        return generate_greedy(
            self.lm,
            self.texts,
            max_new_tokens=self.lengths[0],
            edits=edits,
            batch_size=len(self.texts),
        ).completions

    def alone(self) -> list[str]:
        """Returns completions of every request by itself."""
        rows = zip(self.texts, self.interventions, self.lengths, strict=True)
        return [
            generate_greedy(
                self.lm, [text], max_new_tokens=n_new, edits=PerRow((one,)).place
            ).completions[0]
            for text, one, n_new in rows
        ]

    def in_static_batches(self) -> list[str]:
        """Returns completions in batches that run until their longest request ends."""
        found = []
        for rows in length_buckets([len(text) for text in self.texts], self.n_slots):
            chosen = PerRow(tuple(self.interventions[row] for row in rows))
            found += generate_greedy(
                self.lm,
                [self.texts[row] for row in rows],
                max_new_tokens=max(self.lengths[row] for row in rows),
                edits=chosen.place,
                batch_size=len(rows),
            ).completions
        return found

    def continuously(self) -> list[str]:
        """Returns completions in one batch that requests join and leave."""
        decoder = ContinuousDecoder(self.lm, merge_rows, n_slots=self.n_slots)
        requests = [
            decoder.submit(text, max_new_tokens=n, edits=no_edits if one is None else one.place)
            for text, one, n in zip(self.texts, self.interventions, self.lengths, strict=True)
        ]
        decoder.run()
        return [
            str(self.lm.tokenizer.decode(one.token_ids, skip_special_tokens=True)).strip()
            for one in requests
        ]


def row_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields one case per batch size: completions with an intervention of its own in every row.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: No edit twice, one addition for all, another in every row, and a mixture of kinds.
    """
    lm = random_model(scale, generator)
    for n_prompts in scale.batch_sizes:
        texts = random_texts(lm, scale, n_prompts, generator, answers=False)
        lengths = [scale.n_new_tokens] * n_prompts
        works = {
            "another addition in every row": _additions(lm, n_prompts, generator),
            "another kind of edit in every row": _mixture(lm, n_prompts, generator),
        }
        shared = Work(lm, texts, (next(iter(works.values()))[0],) * n_prompts, lengths, n_prompts)
        variants: dict[str, Callable[[], Any]] = {_NONE: shared.continued, _AGAIN: shared.continued}
        variants[_ONE] = partial(shared.continued, _place(shared.interventions[0]))
        checks = []
        for name, interventions in works.items():
            work = Work(lm, texts, interventions, lengths, n_prompts)
            variants[name] = partial(work.continued, PerRow(interventions).place)
            checks += _checks(name, cache(variants[name]), work, shared)
        pairs = [Pair(name, _NONE, LIMIT) for name in (*works, _ONE)]
        name = f"{scale.n_new_tokens} new tokens, batch {n_prompts}"
        yield Case("Rows", name, variants, (*pairs, Pair(_AGAIN, _NONE)), tuple(checks))


def continuous_cases(scale: Scale, generator: torch.Generator) -> Iterator[Case]:
    """Yields requests of mixed lengths, and of one length, which no batch can gain from.

    Args:
        scale: Sizes.
        generator: Source of randomness.

    Yields:
        Case: Static batches and a batch that requests join and leave.
    """
    lm = random_model(scale, generator)
    n_slots = scale.batch_sizes[0]
    n_requests, longest = 4 * n_slots, 4 * scale.n_new_tokens
    texts = random_texts(lm, scale, n_requests, generator, answers=False)
    interventions = _mixture(lm, n_requests, generator)
    mixed = torch.randint(1, longest + 1, (n_requests,), generator=generator).tolist()
    for name, lengths in (
        (f"1 to {longest} new tokens", mixed),
        (f"{scale.n_new_tokens} new tokens each", [scale.n_new_tokens] * n_requests),
    ):
        work = Work(lm, texts, interventions, lengths, n_slots)
        check = Check(
            f"{name}: continuous = alone", partial(_unequal, work.continuously, work.alone)
        )
        yield Case(
            "Continuous",
            f"{n_requests} requests, {n_slots} slots, {name}",
            {_STATIC: work.in_static_batches, _CONTINUOUS: work.continuously},
            (Pair(_CONTINUOUS, _STATIC),),
            (check,),
            # Rounds are long; seven have an interval.
            n_repeats=min(7, scale.n_repeats),
        )


def _checks(name: str, run: Callable[[], Any], work: Work, shared: Work) -> list[Check]:
    return [
        Check(f"{name} = each row alone", partial(_unequal, run, work.alone)),
        Check(
            f"{name} changes what comes out",
            lambda: float(_unequal(run, shared.continued) == 0),
        ),
    ]


def _place(intervention: Intervention | None) -> PlaceEdits:
    return no_edits if intervention is None else intervention.place


def _additions(
    lm: LanguageModel, n_rows: int, generator: torch.Generator
) -> tuple[Intervention | None, ...]:
    site, everywhere = Site(lm.n_layers // 2), parse_positions("all")
    vectors = torch.randn(n_rows, 1, lm.d_model, generator=generator)
    return tuple(
        Intervention.steering({site: vector}, everywhere, 1.0 + row / n_rows)
        for row, vector in enumerate(vectors)
    )


def _mixture(
    lm: LanguageModel, n_rows: int, generator: torch.Generator
) -> tuple[Intervention | None, ...]:
    """Draws additions, ablations, coordinates and replacements, and every fifth row none."""
    site, everywhere = Site(lm.n_layers // 2), parse_positions("all")
    made: list[Intervention | None] = []
    for row, vector in enumerate(torch.randn(n_rows, 1, lm.d_model, generator=generator)):
        given = {site: vector}
        kinds: list[Intervention | None] = [
            Intervention.steering(given, everywhere),
            Intervention.ablation(given, everywhere),
            Intervention.set_coordinate(given, {site: torch.tensor([9.0])}, everywhere),
            Intervention.replacement(given, parse_positions("last:1")),
            None,
        ]
        made.append(kinds[row % len(kinds)])
    return tuple(made)


def _unequal(run: Callable[[], Sequence[str]], other: Callable[[], Sequence[str]]) -> float:
    return float(sum(one != two for one, two in zip(run(), other(), strict=True)))
