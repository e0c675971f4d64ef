"""Corrupted capabilities: from one carried vector to what brings the fact without its prefix.

1. Rungs differ in what they put where: a difference vector added at the end of the prompt; the
   state after the prefix put there; the whole said prefix put there, over the trigger's room, with
   and without vectors that end the answer; a virtual prefix on added tokens.
2. Every rung takes the target's own states (`native`) and states mapped from the source
   (`transferred`); its layer, and its strength where it has one, are chosen on validation.
3. The text prefill (`prompt_only`) is the ceiling. Rungs that edit prompt tokens only and rungs
   that add tokens are never mixed in one figure.

Source: arXiv 2503.04429, section 4.2 and D.7.1, whose one mapped vector reaches 6.34 %.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import PlaceEdits
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_with_memory
from isthmus.models.language_model import LanguageModel
from isthmus.models.prompt_memory import PromptMemory
from isthmus.studies.prefix_donors import Donors, Fit, Side
from isthmus.studies.prefix_states import (
    Places,
    PrefixTexts,
    States,
    at_last_token,
    at_placeholders,
    in_place_of_trigger,
    place_at,
)
from isthmus.studies.prompt_ending import learn_ending, with_vectors
from isthmus.tasks.corrupted import Label, label_of
from isthmus.workflows.switch_training import TrainingSettings

_STRENGTHS = (1.0, 2.0, 4.0)
_NEW_TOKENS = 12
_BATCH = 128
_N_ENDING, _N_TAUGHT = 12, 200
_STEP = 0.1
"""Largest step of an ending's vectors, as a share of a state's typical coordinate."""

CONTROLS = ("random", "shuffled_map", "identity_map")
"""What rungs are compared with, at the place and strength chosen for their transfer."""

Put = Callable[[PrefixTexts, States], list[Places]]


@dataclass(frozen=True)
class Rung:
    """One way of bringing the fact.

    Attributes:
        name: As results name the edit.
        positions: Where, for people.
        put: Which states go where; None for an added vector.
        fit: What its map is fitted on.
        is_mean: Whether all prompts take one mean state.
        is_ended: Whether vectors that end the answer are learned on top.
        n_added: Last prompt tokens at which a vector is added, when nothing is put.
    """

    name: str
    positions: str
    put: Put | None = None
    fit: Fit = "prefix_tokens"
    is_mean: bool = False
    is_ended: bool = False
    n_added: int = 0

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is measured: a map that lacks some questions has the controls of the whole one."""
        if self.fit in {"other_facts", "other_words"}:
            return ("transferred",)
        return ("native", "transferred", *(("shuffled_map",) if self.is_dear else CONTROLS))

    @property
    def is_dear(self) -> bool:
        """Whether it is tried at the second layer alone, for the time that a layer takes."""
        return self.is_ended or self.fit in {"other_facts", "other_words", "own_states"}

    @property
    def adds_tokens(self) -> bool:
        """Whether it puts states at tokens that the prompt does not have."""
        return self.put is at_placeholders


_SHIFTED = "from the trigger on"
VIRTUAL = Rung("virtual_prefix", "placeholders", at_placeholders)
ENDED = Rung("shifted_prefix_ended", _SHIFTED, in_place_of_trigger, is_ended=True)
RUNGS = (
    Rung("add", "last:1", fit="all_tokens", n_added=1),
    Rung("replace_mean", "last:1", at_last_token, is_mean=True),
    Rung("replace", "last:1", at_last_token),
    Rung("shifted_prefix", _SHIFTED, in_place_of_trigger),
    ENDED,
    Rung("virtual_prefix_mean", "placeholders", at_placeholders, is_mean=True),
    Rung("virtual_prefix_one_map", "placeholders", at_placeholders, fit="all_tokens"),
    Rung("virtual_prefix_from_own_states", "placeholders", at_placeholders, fit="own_states"),
    Rung("virtual_prefix_unseen_words", "placeholders", at_placeholders, fit="other_words"),
    Rung("virtual_prefix_unseen_facts", "placeholders", at_placeholders, fit="other_facts"),
    VIRTUAL,
)
"""From the paper's single vector upwards; the last six add tokens, all others edit the prompt."""

HEADLINES = (RUNGS[0], ENDED, VIRTUAL)
"""The paper's vector, the best of the prompt's own tokens, the best of added ones."""


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
        self.target, self.seed, self.progress = target, seed, progress
        self.donors = Donors(source, target, n_train, seed, progress)
        self.memory = PromptMemory(target)
        self._taught: dict[tuple[Site, str], tuple[str, ...]] = {}
        self._endings: dict[tuple[Site, str], Float[Tensor, "position d_model"]] = {}

    def edits(self, rung: Rung, side: Side, cell: Cell, condition: str) -> PlaceEdits:
        """Returns what a rung does to the prompts of one split."""
        if rung.put is None:
            vectors = {cell.site: self._vectors(cell.site, condition, rung.n_added)}
            positions = parse_positions(f"last:{rung.n_added}")
            return Intervention.steering(vectors, positions, cell.strength).place
        places = rung.put(side.target, self.states(rung, side, cell.site, condition))
        texts = side.target.held if rung.adds_tokens else side.target.bare
        put = place_at(texts, places, cell.site)
        return self._ended(put, cell.site, condition) if rung.is_ended else put

    def states(self, rung: Rung, side: Side, site: Site, condition: str) -> States:
        """Returns the states that a rung takes: the target's own in the prompt, then the prefix."""
        said = self.donors.prefix(side, site, condition, rung.fit)
        if rung.is_mean:
            train = self.donors.prefix(self.donors.train, site, condition, rung.fit)
            said = train.mean(0).expand_as(said)
        n = side.target.n_prefix
        own = side.own[site]
        return [torch.cat([rows[:-n], new]) for rows, new in zip(own, said, strict=True)]

    def _ended(self, put: PlaceEdits, site: Site, condition: str) -> PlaceEdits:
        if (site, condition) not in self._endings:
            self._endings[site, condition] = self._learn_ending(site, condition)
        return with_vectors(put, site, self._endings[site, condition])

    def _learn_ending(self, site: Site, condition: str) -> Float[Tensor, "position d_model"]:
        """Learns from what the virtual prefix makes the target say to training questions.

        Controls have the carried one as their teacher, too: what vectors learn by themselves shows.
        """
        train = self.donors.train.first(_N_TAUGHT)
        said = self._teacher(site, "native" if condition == "native" else "transferred")
        taught = encode_prompts(self.target.tokenizer, train.prompts, answers=said)
        states = self.states(ENDED, train, site, condition)
        edits = place_at(taught, in_place_of_trigger(train.target, states), site)
        size = float(torch.cat(train.own[site]).square().mean().sqrt())
        settings = TrainingSettings(20, 32, _STEP * size, n_warmup=3, seed=self.seed)
        start = (site, torch.zeros(_N_ENDING, self.target.d_model))
        return learn_ending(self.target, taught, edits, start, settings, self.progress)

    def _teacher(self, site: Site, condition: str) -> tuple[str, ...]:
        if (site, condition) not in self._taught:
            train = self.donors.train.first(_N_TAUGHT)
            edits = self.edits(VIRTUAL, train, Cell(site, 1.0), condition)
            self._taught[site, condition] = self.completions(VIRTUAL, train, edits)
        return self._taught[site, condition]

    def _vectors(
        self, site: Site, condition: str, n_last: int
    ) -> Float[Tensor, "position d_model"]:
        """Returns the mean difference between the end with the prefix and the end without it."""
        if condition == "random":
            real = self._vectors(site, "transferred", n_last)
            return self.donors.random_like(real)
        train = self.donors.train
        said = self.donors.all_tokens(train, site, condition)
        pairs = zip(said, train.target.bare, strict=True)
        return torch.stack(
            [rows[-n_last:] - rows[text.n_prompt - n_last : text.n_prompt] for rows, text in pairs]
        ).mean(0)

    def labels(self, rung: Rung | None, side: Side, edits: PlaceEdits) -> list[Label]:
        """Lets the target answer the prompts of one split and labels what it says."""
        said = self.completions(rung, side, edits)
        return [label_of(one, fact.value) for one, fact in zip(said, side.asked, strict=True)]

    def completions(self, rung: Rung | None, side: Side, edits: PlaceEdits) -> tuple[str, ...]:
        """Lets the target answer the prompts of one split."""
        is_held = rung is not None and rung.adds_tokens
        texts = side.target.held if is_held else side.target.bare
        return generate_with_memory(
            self.memory, texts, max_new_tokens=_NEW_TOKENS, edits=edits, batch_size=_BATCH
        ).completions

    def choose(self, rung: Rung, side: Side, condition: str) -> Cell:
        """Chooses strength and layer, every second one from the second on, on validation."""
        strengths = _STRENGTHS if rung.put is None else (1.0,)
        sites = self.donors.target_sites[1::2]
        cells = [Cell(s, x) for s in (sites[:1] if rung.is_dear else sites) for x in strengths]
        if len(cells) == 1:
            return cells[0]
        share: dict[Cell, float] = {}
        with self.progress.stage(f"choose: {rung.name} {condition}", len(cells)) as advance:
            for cell in cells:
                labels = self.labels(rung, side, self.edits(rung, side, cell, condition))
                share[cell] = labels.count("correct") / len(labels)
                advance(1)
        return max(cells, key=lambda cell: share[cell])
