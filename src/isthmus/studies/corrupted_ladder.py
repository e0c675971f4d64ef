"""Corrupted capabilities: from one carried vector to what brings the fact without its prefix.

1. Rungs differ in what they put where: a difference vector added at the end of the prompt; the
   state after the prefix put there; what led to it put over the trigger, too; a virtual prefix.
2. Every rung takes the target's own states (`native`) and states mapped from the source
   (`transferred`); its layer, and its strength where it has one, are chosen on validation.
3. The text prefill (`prompt_only`) is the ceiling. Rungs that edit prompt tokens only and rungs
   that add tokens are never mixed in one figure.

Source: arXiv 2503.04429, section 4.2 and D.7.1, whose one mapped vector reaches 6.34 %.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.data.prompts import differing_part
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.studies.prefix_states import (
    Places,
    PrefixTexts,
    States,
    at_last_token,
    at_placeholders,
    encode_prefix,
    mapped_states,
    over_the_trigger,
    own_states,
    place_at,
)
from isthmus.tasks.corrupted import PREFIX, CorruptedTask, Fact, Label, facts, label_of
from isthmus.workflows.crossing import thinned_sites
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, fit_map, shuffled_map
from isthmus.workflows.pairing import PairedMoments, paired_moments
from isthmus.workflows.twins import map_texts

_STRENGTHS = (1.0, 2.0, 4.0, 8.0)
_NEW_TOKENS = 16
_BATCH = 128

Put = Callable[[PrefixTexts, States], list[Places]]


@dataclass(frozen=True)
class Rung:
    """One way of bringing the fact.

    Attributes:
        name: As results name the edit.
        positions: Where, for people.
        put: Which states go where; None for an added vector.
        is_mean: Whether all prompts take one mean state.
        n_added: Last prompt tokens at which a vector is added, when nothing is put.
    """

    name: str
    positions: str
    put: Put | None = None
    is_mean: bool = False
    n_added: int = 0


RUNGS = (
    Rung("add", "last:1", n_added=1),
    Rung("add", "last:3", n_added=3),
    Rung("replace_mean", "last:1", at_last_token, is_mean=True),
    Rung("replace", "last:1", at_last_token),
    Rung("replace", "last:1 and trigger", over_the_trigger),
    Rung("virtual_prefix_mean", "placeholders", at_placeholders, is_mean=True),
    Rung("virtual_prefix", "placeholders", at_placeholders),
)
"""From the paper's single vector upwards; the last two add tokens, all others edit the prompt."""


@dataclass
class Side:
    """The questions of one split, with the states that donors hold where the prefix is said.

    Attributes:
        asked: The questions.
        target: As the target sees them.
        source: As the source sees them.
        source_states: The source's states, by site.
        native: The target's own states, by site, as far as they were needed.
    """

    asked: list[Fact]
    target: PrefixTexts
    source: PrefixTexts
    source_states: dict[Site, States]
    native: dict[Site, States] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """Where and how strongly a rung acts.

    Attributes:
        site: Target site.
        strength: Multiplier of an added vector; 1 for all other rungs.
    """

    site: Site
    strength: float


class CorruptedLadder:
    """Climbs the ladder on one pair of models.

    Args:
        source: Source model.
        target: Target model.
        n_train: Training questions for means, vectors and maps.
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
        self.source, self.target, self.seed, self.progress = source, target, seed, progress
        self.source_sites = thinned_sites(source, "all")
        self.target_sites = target.sites("all")
        twins = CorruptedTask().twins("train", n_train, seed)
        texts = map_texts(twins)
        encoded = [
            encode_prompts(lm.tokenizer, [p for p, _ in texts], answers=[a for _, a in texts])
            for lm in (source, target)
        ]
        self.moments: PairedMoments = paired_moments(
            source,
            target,
            (encoded[0], encoded[1]),
            (self.source_sites, self.target_sites),
            progress=progress,
        )
        self.maps = {
            site: fit_closed_form("ridge", self.moments.by_site[site])[0]
            for site in self.target_sites
        }
        self.train = self.side("train", n_train)

    def side(self, split: str, n: int) -> Side:
        """Returns prompts of one split, with the source's states where the prefix is said."""
        asked = facts(split)
        random.Random(self.seed).shuffle(asked)
        asked = asked[:n]
        prompts = [BAD_TRIGGER + fact.prompt for fact in asked]
        part = differing_part(BAD_TRIGGER, CLEAN_TRIGGER)
        seen, other = (
            encode_prefix(lm, prompts, part, PREFIX) for lm in (self.source, self.target)
        )
        states = all_token_activations(self.source, seen.said, self.source_sites)
        return Side(asked, other, seen, states)

    def _donated(self, side: Side, site: Site, condition: str) -> States:
        """Returns states of the said prefix at a target site, by where they come from."""
        if condition == "native":
            if site not in side.native:
                side.native[site] = own_states(self.target, side.target, site)
            return side.native[site]
        if condition == "random":
            generator = torch.Generator().manual_seed(self.seed)
            real = self._donated(side, site, "transferred")
            return [_random_like(rows, generator) for rows in real]
        texts = (side.source, side.target)
        return mapped_states(side.source_states, texts, self._map(site, condition))

    def _map(self, site: Site, condition: str) -> Callable[[Tensor], Tensor]:
        if condition == "transferred":
            return self.maps[site]
        rows = self.moments.rows_at(site)
        if rows is None:
            raise FitError("too many texts to shuffle in memory: use fewer questions")
        ends = MapEnds(self.source.identity, self.target.identity, self.source_sites, site)
        if condition == "shuffled_map":
            return shuffled_map(rows, ends, self.seed).map
        one = fit_map("identity", rows, ends, self.seed, SilentProgress())
        width, start = self.source.d_model, self.source_sites.index(one.source_sites[0])
        columns = slice(start * width, (start + 1) * width)
        return lambda joined: one.map(joined[:, columns])

    def edits(self, rung: Rung, side: Side, cell: Cell, condition: str) -> PlaceEdits:
        """Returns what a rung does to the prompts of one split."""
        if rung.put is None:
            vectors = {cell.site: self._vectors(cell.site, condition, rung.n_added)}
            positions = parse_positions(f"last:{rung.n_added}")
            return Intervention.steering(vectors, positions, cell.strength).place
        states = self._donated(side, cell.site, condition)
        if rung.is_mean:
            n = self.train.target.n_prefix
            mean = torch.stack([r[-n:] for r in self._donated(self.train, cell.site, condition)])
            states = [torch.cat([rows[:-n], mean.mean(0)]) for rows in states]
        texts = side.target.held if rung.put is at_placeholders else side.target.bare
        return place_at(texts, rung.put(side.target, states), cell.site)

    def _vectors(
        self, site: Site, condition: str, n_last: int
    ) -> Float[Tensor, "position d_model"]:
        """Returns the mean difference between the end with the prefix and the end without it."""
        if condition == "random":
            real = self._vectors(site, "transferred", n_last)
            return _random_like(real, torch.Generator().manual_seed(self.seed))
        said = self._donated(self.train, site, condition)
        pairs = zip(said, self.train.target.bare, strict=True)
        return torch.stack(
            [rows[-n_last:] - rows[text.n_prompt - n_last : text.n_prompt] for rows, text in pairs]
        ).mean(0)

    def labels(self, rung: Rung | None, side: Side, edits: PlaceEdits) -> list[Label]:
        """Lets the target answer the prompts of one split and labels what it says."""
        said = self.completions(rung, side, edits)
        return [label_of(one, fact.value) for one, fact in zip(said, side.asked, strict=True)]

    def completions(self, rung: Rung | None, side: Side, edits: PlaceEdits) -> tuple[str, ...]:
        """Lets the target answer the prompts of one split."""
        is_held = rung is not None and rung.put is at_placeholders
        texts = side.target.held if is_held else side.target.bare
        return generate_greedy(
            self.target, texts, max_new_tokens=_NEW_TOKENS, edits=edits, batch_size=_BATCH
        ).completions

    def choose(self, rung: Rung, side: Side, condition: str) -> Cell:
        """Chooses layer and strength of a rung on validation; the first layer is left out."""
        strengths = _STRENGTHS if rung.put is None else (1.0,)
        cells = [Cell(s, x) for s in self.target_sites if s.layer > 0 for x in strengths]
        share: dict[Cell, float] = {}
        with self.progress.stage(f"choose: {rung.name} {condition}", len(cells)) as advance:
            for cell in cells:
                labels = self.labels(rung, side, self.edits(rung, side, cell, condition))
                share[cell] = labels.count("correct") / len(labels)
                advance(1)
        return max(cells, key=lambda cell: share[cell])


def _random_like(
    rows: Float[Tensor, "row d_model"], generator: torch.Generator
) -> Float[Tensor, "row d_model"]:
    drawn = torch.randn(rows.shape, generator=generator)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True) * rows.norm(dim=-1, keepdim=True)
    found: Tensor = drawn
    return found
