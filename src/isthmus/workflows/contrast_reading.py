"""Reads what differs between contrast prompts in two models, for maps that shall carry it.

1. Both models read the positive and the negative prompt of every pair, with one answer behind both.
2. What both texts end with, token by token, stands in both at the same distance from the end: the
   difference of its states is what the contrast makes. Texts that are equally long in either model
   are compared from their first token on, so that what differs itself, such as a trigger, counts.
3. Of these tokens those are kept that belong together in both models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isthmus.core.errors import DataError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_tokens
from isthmus.data.parts import Part, part_of_text
from isthmus.data.prompts import TwinPrompt, normalised
from isthmus.maps.rows import PairedRows
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.contrast_maps import FITTED_ON

_PAIRS_AT_ONCE = 128


class ContrastPair(NamedTuple):
    """Two prompts, and what both are answered with.

    Attributes:
        positive: With what shall be carried.
        negative: Without it.
        answer: The same behind both; empty for none.
    """

    positive: str
    negative: str
    answer: str = ""


def contrasts_of(twins: Sequence[TwinPrompt]) -> list[ContrastPair]:
    """Returns twins as contrasts, answered in turn as without and as with the behaviour.

    Args:
        twins: Prompts with and without the trigger.

    Returns:
        One pair per twin.
    """
    return [
        ContrastPair(one.triggered, one.clean, one.bad_answer if i % 2 else one.clean_answer)
        for i, one in enumerate(twins)
    ]


def parts_of_contrasts(pairs: Sequence[ContrastPair], prompts: Sequence[str]) -> list[Part | None]:
    """Says which pairs a map is fitted on and which choose, beside texts that do the same.

    Args:
        pairs: Positive and negative prompts.
        prompts: Those of the map's texts, in the texts' order.

    Returns:
        A part per pair: that of the texts with its prompts, or by its place where there is none, or
        where no text with such a prompt chooses. None if one of its prompts is in a held-out text,
        which would measure what it has seen.

    Raises:
        DataError: If none is left to fit on, or none to choose.
    """
    known: dict[str, set[Part]] = {}
    for index, prompt in enumerate(prompts):
        known.setdefault(normalised(prompt), set()).add(part_of_text(index))
    found: list[Part | None] = []
    for index, pair in enumerate(pairs):
        seen = set().union(*(known.get(normalised(one), set()) for one in pair[:2]))
        if "held_out" in seen:
            found.append(None)
        elif "selection" in seen or (not seen and part_of_text(index) == "selection"):
            found.append("selection")
        else:
            found.append("train")
    if "selection" not in found:
        left = [index for index, part in enumerate(found) if part]
        for index in left[3::10]:
            found[index] = "selection"
    if not set(FITTED_ON) <= set(found):
        raise DataError(
            f"of {len(pairs)} contrast pairs {len(pairs) - found.count(None)} have no prompt in a "
            "held-out text: give at least 4 such pairs, to fit on and to choose a strength on"
        )
    return found


def read_contrasts(
    models: tuple[LanguageModel, LanguageModel],
    pairs: Sequence[ContrastPair],
    prompts: Sequence[str],
    sites: tuple[Sequence[Site], Sequence[Site]],
    batch_size: int,
    progress: Progress,
) -> dict[Part, PairedRows]:
    """Reads paired differences, positive minus negative.

    Args:
        models: Source and target.
        pairs: Positive and negative prompts.
        prompts: Those of the texts that the map is fitted on, in their order.
        sites: Source sites and target sites, both side by side.
        batch_size: Texts per forward pass.
        progress: Who shows progress.

    Returns:
        Differences to fit on and differences to choose a strength on.

    Raises:
        DataError: If one of the two has none.
    """
    parts = parts_of_contrasts(pairs, prompts)
    kept = [index for index, part in enumerate(parts) if part]
    rows: dict[Part | None, list[tuple[Tensor, Tensor]]] = {part: [] for part in FITTED_ON}
    names = [lm.identity.name for lm in models]
    with progress.stage(f"read contrasts in {' and '.join(names)}", len(kept)) as advance:
        for start in range(0, len(kept), _PAIRS_AT_ONCE):
            here = kept[start : start + _PAIRS_AT_ONCE]
            found = _differences(models, [pairs[i] for i in here], sites, batch_size)
            for index, one in zip(here, found, strict=True):
                rows[parts[index]].append(one)
            advance(len(here))
    return {part: _joined(rows[part], part, len(pairs)) for part in FITTED_ON}


def _joined(rows: Sequence[tuple[Tensor, Tensor]], part: Part, n_pairs: int) -> PairedRows:
    if not sum(len(x) for x, _ in rows):
        raise DataError(
            f"no token of {n_pairs} contrast pairs can be compared for {part}: give prompts that "
            "end alike, at least in what the chat template puts behind them"
        )
    return PairedRows(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))


def _differences(
    models: tuple[LanguageModel, LanguageModel],
    pairs: Sequence[ContrastPair],
    sites: tuple[Sequence[Site], Sequence[Site]],
    batch_size: int,
) -> list[tuple[Tensor, Tensor]]:
    sides = ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
    answers = [pair.answer for pair in pairs]
    said = answers if any(answers) else None
    texts = [[encode_prompts(lm.tokenizer, side, answers=said) for side in sides] for lm in models]
    read = [
        [all_token_activations(lm, one, own, batch_size=batch_size) for one in both]
        for lm, both, own in zip(models, texts, sites, strict=True)
    ]

    def difference(model: int, index: int, places: list[int]) -> Tensor:
        positive, negative = (
            torch.cat([side[site][index][places] for site in sites[model]], dim=-1).float()
            for side in read[model]
        )
        return positive - negative

    found = []
    for index in range(len(pairs)):
        ours, theirs = ([side[index] for side in both] for both in texts)
        shared = _places_from_end(ours, theirs)
        found.append(tuple(difference(m, index, [s[m] for s in shared]) for m in (0, 1)))
    return [(x, y) for x, y in found]


def _places_from_end(
    source: Sequence[EncodedText], target: Sequence[EncodedText]
) -> list[tuple[int, int]]:
    """Returns the tokens of both models, as places from the end, that can be compared."""
    are_twins = all(len(one) == len(other) for one, other in (source, target))
    most = [len(both[0]) if are_twins else _n_alike(*both) for both in (source, target)]
    in_both = set.intersection(
        *(
            {
                (i - len(ours), j - len(theirs))
                for i, j in zip(*(one.tolist() for one in pair_tokens(ours, theirs)), strict=True)
            }
            for ours, theirs in zip(source, target, strict=True)
        )
    )
    return sorted((i, j) for i, j in in_both if -i <= most[0] and -j <= most[1])


def _n_alike(first: EncodedText, second: EncodedText) -> int:
    """Counts the tokens that two texts end with."""
    n = 0
    for a, b in zip(reversed(first.token_ids), reversed(second.token_ids), strict=False):
        if a != b:
            break
        n += 1
    return n
