"""Maps fitted where a prefix is said: one ridge per token of the prefix.

1. A map of all tokens spends its fit on the many tokens of prompts; what tells one question's
   prefix from another's is a small share of the variance, and is what brings its fact.
2. Each token of the prefix has its own mean and its own linear part, from the source's states at
   that token, all layers concatenated; strengths are chosen on held-out questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.maps.base import ActivationMap
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.rows import moments_of
from isthmus.workflows.map_fitting import fit_closed_form
from isthmus.workflows.pairing import PARTS, PairedRows, Part, part_of_text

PrefixStates = Float[Tensor, "text token _"]
"""States at the tokens of the prefix, text by text."""


@dataclass(frozen=True)
class PrefixMap:
    """One map per token of a prefix.

    Attributes:
        by_token: The maps, in the order of the tokens.
        r2_held_out: Explained share of the variance among held-out questions, mean over the tokens.
    """

    by_token: tuple[ActivationMap, ...]
    r2_held_out: float

    def __call__(
        self, states: Float[Tensor, "text token d_source"]
    ) -> Float[Tensor, "text token d_target"]:
        """Maps every token's states by its own map.

        Args:
            states: States of the source at the tokens of the prefix.

        Returns:
            States for the target.
        """
        columns = zip(self.by_token, states.unbind(1), strict=True)
        return torch.stack([one(rows).float() for one, rows in columns], dim=1)


def fit_prefix_map(
    source: PrefixStates, target: PrefixStates, *, shuffled_seed: int | None = None
) -> PrefixMap:
    """Fits one ridge map per token of the prefix.

    Args:
        source: States of the source, the sites concatenated.
        target: States of the target at one site, of the same questions in the same order.
        shuffled_seed: Order in which to shuffle the target's questions, as a control whose maps
            know each token's mean and nothing else; None leaves the pairs as they are.

    Returns:
        The maps, with their score on a fifth of the questions that no fit has seen.
    """
    parts = [part_of_text(i) for i in range(len(source))]
    where: dict[Part, list[int]] = {p: [i for i, q in enumerate(parts) if q == p] for p in PARTS}
    made, scores = [], []
    for x, y in zip(source.unbind(1), target.unbind(1), strict=True):
        pairs = {part: PairedRows(x[rows], y[rows]) for part, rows in where.items()}
        if shuffled_seed is not None:
            pairs = _shuffled(pairs, shuffled_seed)
        moments = {part: moments_of(rows) for part, rows in pairs.items()}
        one, quality = fit_closed_form("ridge", moments)
        made.append(one)
        scores.append(quality.r2_held_out)
    return PrefixMap(tuple(made), sum(scores) / len(scores))


def _shuffled(pairs: dict[Part, PairedRows], seed: int) -> dict[Part, PairedRows]:
    generator = torch.Generator().manual_seed(seed)
    return {
        part: rows
        if part == "held_out"
        else PairedRows(rows.source, shuffled_rows(rows.target, generator))
        for part, rows in pairs.items()
    }


def fit_without(
    source: PrefixStates, target: PrefixStates, groups: Sequence[str], n_folds: int = 5
) -> dict[str, PrefixMap]:
    """Fits maps that have not seen the questions they will carry, nor any like them.

    Args:
        source: States of the source, as for `fit_prefix_map`.
        target: States of the target.
        groups: Which questions are alike: those of one group share a word here.
        n_folds: Sets of groups, each left out of one map.

    Returns:
        For every group a map fitted on other groups only.
    """
    # Order of first mention is as random as the order of the questions.
    fold = {name: i % n_folds for i, name in enumerate(dict.fromkeys(groups))}
    maps = []
    for left_out in range(n_folds):
        kept = [i for i, name in enumerate(groups) if fold[name] != left_out]
        maps.append(fit_prefix_map(source[kept], target[kept]))
    return {name: maps[i] for name, i in fold.items()}
