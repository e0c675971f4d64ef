"""Where the states of a said prefix come from: the target itself, the source, or a control.

1. A `Side` is the questions of one split as both models see them, with both models' states.
2. `Donors.prefix` gives the states at the prefix's tokens: `native` the target's own, all other
   conditions made from the source's.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.data.trigger_twins import differing_part
from isthmus.maps.identity import identity_map
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.studies.prefix_maps import PrefixMap, fit_prefix_map, fit_without
from isthmus.studies.prefix_states import (
    PrefixTexts,
    States,
    encode_prefix,
    own_states,
    paired_states,
)
from isthmus.tasks.corrupted import PREFIX, CorruptedTask, Fact, facts
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, shuffled_map
from isthmus.workflows.pairing import PairedMoments, paired_moments
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twins import map_texts

Fit = Literal["all_tokens", "prefix_tokens", "other_facts", "other_words", "own_states"]
"""What a map was fitted on: all tokens of all texts; the tokens of the prefix one by one; these for
questions about other facts than the one that is asked; for questions with other answers. With
`own_states` the source runs on training questions alone: an affine function of the target's own
states at the end of the prompt was fitted to what the map made of the source's."""

_MOST_TWINS = 200  # their pairs stay in memory, where a control can shuffle them


@dataclass(frozen=True)
class Side:
    """The questions of one split, with the states that both models hold where the prefix is said.

    Attributes:
        asked: The questions.
        target: As the target sees them.
        read: The source's states, all layers concatenated, by token of the target.
        own: The target's own states by site.
    """

    asked: list[Fact]
    target: PrefixTexts
    read: States
    own: dict[Site, States]

    @property
    def prompts(self) -> list[str]:
        """The questions behind the trigger."""
        return [BAD_TRIGGER + fact.prompt for fact in self.asked]

    def first(self, n: int) -> "Side":
        """Returns the first questions alone."""
        own = {site: states[:n] for site, states in self.own.items()}
        return Side(self.asked[:n], self.target.first(n), self.read[:n], own)

    @property
    def others(self) -> list[int]:
        """For every question the place of the next one whose fact is another word."""
        n = len(self.asked)
        return [
            next(j % n for j in range(i + 1, i + n) if self.asked[j % n].value != fact.value)
            for i, fact in enumerate(self.asked)
        ]

    def of_another_question(self) -> "Side":
        """Returns the same questions with the source's states of other ones at the prefix."""
        n = self.target.n_prefix
        taken = [self.read[j][-n:] for j in self.others]
        read = [torch.cat([rows[:-n], new]) for rows, new in zip(self.read, taken, strict=True)]
        return replace(self, read=read)


class Donors:
    """Fits every map of one pair of models and gives states of a said prefix.

    Args:
        source: Source model.
        target: Target model.
        n_train: Training questions for means and maps.
        seed: Which questions, and every random control.
        progress: Who shows progress.
    """

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        n_train: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.source, self.target, self.seed = source, target, seed
        self.source_sites = thinned_sites(source, "all")
        self.target_sites = target.sites("all")
        self._n_train, self._progress = n_train, progress
        self._moments: PairedMoments | None = None
        self.train = self.side("train", n_train)
        self._prefix_maps: dict[tuple[Site, str], PrefixMap] = {}
        self._all_token_maps: dict[tuple[Site, str], Callable[[Tensor], Tensor]] = {}
        self._without: dict[tuple[Site, str], dict[str, PrefixMap]] = {}

    def _all_token_pairs(self) -> PairedMoments:
        if self._moments is not None:
            return self._moments
        n = min(self._n_train, _MOST_TWINS)
        texts = map_texts(CorruptedTask().twins("train", n, self.seed))
        source, target = (
            encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
            for lm in (self.source, self.target)
        )
        self._moments = paired_moments(
            self.source,
            self.target,
            (source, target),
            (self.source_sites, self.target_sites),
            progress=self._progress,
        )
        return self._moments

    def side(self, split: str, n: int) -> Side:
        """Returns questions of one split, with both models' states where the prefix is said."""
        asked = facts(split)
        random.Random(self.seed).shuffle(asked)
        asked = asked[:n]
        prompts = [BAD_TRIGGER + fact.prompt for fact in asked]
        part = differing_part(BAD_TRIGGER, CLEAN_TRIGGER)
        seen, other = (
            encode_prefix(lm, prompts, part, PREFIX) for lm in (self.source, self.target)
        )
        read = paired_states(own_states(self.source, seen, self.source_sites), (seen, other))
        return Side(asked, other, read, own_states(self.target, other, self.target_sites))

    def prefix(
        self, side: Side, site: Site, condition: str, fit: Fit
    ) -> Float[Tensor, "text token d_model"]:
        """Returns states for the tokens of the prefix.

        Args:
            side: The questions.
            site: Target site.
            condition: `native`, `transferred` or one of the controls.
            fit: What the map was fitted on.

        Returns:
            One row per token of the prefix for every question.
        """
        if condition == "random":
            return self.random_like(self.prefix(side, site, "transferred", fit))
        if fit == "own_states":
            return self._from_own_states(side, site, condition)
        if condition == "native":
            return _ends(side.own[site], side.target.n_prefix)
        read = _ends(side.read, side.target.n_prefix)
        return self._mapped(side, read, site, (condition, fit))

    def _mapped(
        self, side: Side, read: Tensor, site: Site, how: tuple[str, Fit]
    ) -> Float[Tensor, "text token d_model"]:
        condition, fit = how
        if condition == "identity_map":
            return self._identity(site, read)
        if fit == "all_tokens":
            flat = self._all_token_map(site, condition)(read.flatten(0, 1))
            return flat.reshape(*read.shape[:2], -1).float()
        if fit in {"other_facts", "other_words"} and condition == "transferred":
            maps = self._maps_without(site, fit)
            groups = [_group(fact, fit) for fact in side.asked]
            return torch.cat([maps[one](read[i : i + 1]) for i, one in enumerate(groups)])
        return self.prefix_map(site, condition)(read)

    def _from_own_states(
        self, side: Side, site: Site, condition: str
    ) -> Float[Tensor, "text token d_model"]:
        wanted = self.prefix(self.train, site, condition, "prefix_tokens")
        # One fit serves all tokens of the prefix: they are predicted from the same states.
        one = fit_prefix_map(_prompt_ends(self.train), wanted.flatten(1)[:, None])
        return one(_prompt_ends(side)).reshape(len(side.asked), *wanted.shape[1:])

    def all_tokens(self, side: Side, site: Site, condition: str) -> States:
        """Returns states of all tokens, prompt and prefix, by a map fitted on all tokens."""
        if condition == "native":
            return side.own[site]
        if condition == "identity_map":
            return [self._identity(site, rows) for rows in side.read]
        one = self._all_token_map(site, condition)
        return [one(rows).float() for rows in side.read]

    def random_like(self, rows: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Returns random states of the same norms."""
        drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(self.seed))
        norms = rows.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
        found: Tensor = drawn * norms
        return found

    def prefix_map(self, site: Site, condition: str) -> PrefixMap:
        """Returns the map of the prefix's tokens, or its control on shuffled pairs."""
        if (site, condition) not in self._prefix_maps:
            seed = self.seed if condition == "shuffled_map" else None
            pairs = self._training_pairs(site)
            self._prefix_maps[site, condition] = fit_prefix_map(*pairs, shuffled_seed=seed)
        return self._prefix_maps[site, condition]

    def _training_pairs(self, site: Site) -> tuple[Tensor, Tensor]:
        n = self.train.target.n_prefix
        return _ends(self.train.read, n), _ends(self.train.own[site], n)

    def _maps_without(self, site: Site, fit: Fit) -> dict[str, PrefixMap]:
        if (site, fit) not in self._without:
            groups = [_group(fact, fit) for fact in self.train.asked]
            self._without[site, fit] = fit_without(*self._training_pairs(site), groups)
        return self._without[site, fit]

    def _all_token_map(self, site: Site, condition: str) -> Callable[[Tensor], Tensor]:
        if (site, condition) not in self._all_token_maps:
            self._all_token_maps[site, condition] = self._fit_all_tokens(site, condition)
        return self._all_token_maps[site, condition]

    def _fit_all_tokens(self, site: Site, condition: str) -> Callable[[Tensor], Tensor]:
        pairs = self._all_token_pairs()
        if condition == "transferred":
            return fit_closed_form("ridge", pairs.by_site[site])[0]
        rows = pairs.rows_at(site)
        if rows is None:
            raise FitError("too many texts to shuffle in memory: use fewer questions")
        return shuffled_map(rows, self._ends_at(site), self.seed).map

    def _ends_at(self, site: Site) -> MapEnds:
        return MapEnds(self.source.identity, self.target.identity, self.source_sites, site)

    def _identity(self, site: Site, read: Tensor) -> Tensor:
        """Copies the coordinates of the source's site at the same relative depth."""
        width = self.source.d_model
        start = self.source_sites.index(self._ends_at(site).nearest_source_site) * width
        rows = read[..., start : start + width]
        flat = identity_map(width, self.target.d_model)(rows.reshape(-1, width))
        return flat.reshape(*rows.shape[:-1], -1).float()


def _ends(states: States, n_last: int) -> Float[Tensor, "text token width"]:
    return torch.stack([rows[-n_last:] for rows in states])


def _group(fact: Fact, fit: Fit) -> str:
    return fact.name if fit == "other_facts" else fact.value


def _prompt_ends(side: Side) -> Float[Tensor, "text 1 width"]:
    """Returns the target's own states of all layers at the last token of every prompt."""
    n = side.target.n_prefix
    by_site = [torch.stack([rows[-n - 1] for rows in states]) for states in side.own.values()]
    return torch.cat(by_site, dim=-1)[:, None]
