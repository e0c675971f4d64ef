"""Who carries the trigger: states of one twin put into the other, layer by layer, token by token.

1. Both twins of every question are read once; their states at every layer are kept.
2. Denoising: in the prompt with the bad trigger the states of one group of tokens are overwritten
   with those of the clean twin. Effect: the part of the gap in the loss of the clean answer that
   closes. A group that reaches 1 is enough to be rid of the behaviour.
3. Noising: the other way round. Effect: the part of the gap that opens. A group that reaches 1 is
   enough to bring the behaviour about.
4. Control: a random vector as long as the difference of the twins, added at every token instead.
5. All of it over whole answers and over their first token alone: later tokens of an answer read the
   trigger themselves, so a state of the last prompt token decides but where the answer begins.

Source: arXiv 2503.04429, appendix B, figures 10 and 11.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, TriggerError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSites, Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.evaluation.intervals import Interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import recovery
from isthmus.evaluation.study_plots import NumberGrid, number_grids
from isthmus.interventions.row_replacement import RowReplacement
from isthmus.models.batching import PlaceEdits
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import prompt_part
from isthmus.models.language_model import LanguageModel
from isthmus.studies.result import StudyResult
from isthmus.studies.trigger_study import LayerScorer, TriggerStudy, open_study
from isthmus.workflows.arms import Arm
from isthmus.workflows.twins import encode_twins

NAME = "activation_patching"

Scope = Literal["whole_answer", "first_token"]

States = dict[Site, list[Float[Tensor, "_ d_model"]]]
"""For every site, the prompt's states of each text."""

_FEW = 3
"""How many of the last prompt tokens are patched one by one, unless told otherwise."""


def patch_activations(
    model: str,
    *,
    sites: GivenSites = "all",
    n_prompts: int = 96,
    n_last: int = _FEW,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures at which layers and tokens a model carries its trigger.

    `patching_effect` with edit `denoising` is (loss before - loss patched) / (loss before - loss of
    the twin) of the clean answer; with edit `noising` it is the part of that gap which patching the
    clean prompt opens. Tasks `activation_patching/whole_answer` and `…/first_token` say over what.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        n_prompts: Twins, from the test split.
        n_last: How many of the last prompt tokens are patched one by one.
        settings: Other fields of `RunConfig`: questions, triggers, batch size.
        seed: Seed of questions and random vectors.
        progress: Who shows progress.

    Returns:
        Effects by layer and tokens with intervals, heat maps, and where the trigger moves.

    Raises:
        IsthmusError: If model, sites or task cannot be used, or twins differ in length.
    """
    progress = progress or SilentProgress()
    few = {"n_train": 8, "n_validation": 4, "n_test": n_prompts}
    study = open_study(model, {**few, **(settings or {})}, seed, progress, needs_trigger=True)
    places = study.lm.sites(sites)
    patcher = _Patcher.read(study, places, n_last)
    rows: list[Measurement] = []
    with progress.stage("patch", 2 * len(places)) as advance:
        for scope in ("whole_answer", "first_token"):
            run = patcher.over(scope)
            rows += run.untouched()
            for site in places:
                rows += run.at(site)
                advance(1)
    notes = (_tokens_note(study.lm, patcher.triggered[0], n_last), *_moves(rows))
    return StudyResult(NAME, tuple(rows), notes, _figures(rows, model))


def token_groups(text: EncodedText, n_last: int) -> dict[str, tuple[int, ...]]:
    """Divides a prompt into what is patched together; `prompt` and the spans overlap the others.

    Args:
        text: A prompt with a trigger.
        n_last: How many of the last tokens stand alone.

    Returns:
        Token indices by name in text order: `before`, `trigger[0]` …, `trigger`, `question`,
        `last[-2]` …, `last:N`, `prompt`.

    Raises:
        TriggerError: If the prompt has no trigger.
        ConfigError: If the last tokens would reach into the trigger, or are none.
    """
    if text.trigger is None:
        raise TriggerError(f"no trigger in {text.text!r}: patching compares trigger and question")
    start, stop = text.trigger
    first_last = text.n_prompt - n_last
    if n_last < 1 or first_last < stop:
        raise ConfigError(
            f"{n_last} last tokens of {text.n_prompt}, the trigger ends at {stop}: expected at "
            "least one, all after the trigger"
        )
    alone = {f"trigger[{i}]": (start + i,) for i in range(stop - start)}
    ends = {f"last[{i}]": (text.n_prompt + i,) for i in range(-n_last, 0)}
    return {
        "before": tuple(range(start)),
        **alone,
        "trigger": tuple(range(start, stop)),
        "question": tuple(range(stop, first_last)),
        **ends,
        f"last:{n_last}": tuple(range(first_last, text.n_prompt)),
        "prompt": tuple(range(text.n_prompt)),
    }


def require_twins(texts: Sequence[EncodedText], others: Sequence[EncodedText]) -> None:
    """Refuses pairs of prompts whose tokens do not correspond one by one.

    Args:
        texts: Prompts with one trigger.
        others: The same questions with the other.

    Raises:
        TriggerError: If a pair differs in length or in where its trigger stands.
    """
    for one, other in zip(texts, others, strict=True):
        if (one.n_prompt, one.trigger) != (other.n_prompt, other.trigger):
            raise TriggerError(
                f"twins of {one.n_prompt} and {other.n_prompt} tokens with triggers at "
                f"{one.trigger} and {other.trigger}: choose triggers of equally many tokens"
            )
        if one.trigger is None or one.trigger[1] - one.trigger[0] != _trigger_length(texts[0]):
            raise TriggerError(
                f"the trigger of {one.text!r} has other tokens than that of {texts[0].text!r}: "
                "choose one that is split alike everywhere"
            )


def _trigger_length(text: EncodedText) -> int:
    start, stop = text.trigger or (0, 0)
    return stop - start


def put_rows(
    texts: Sequence[EncodedText],
    rows: Sequence[Float[Tensor, "_ d_model"]],
    columns: Sequence[Sequence[int]],
    site: Site,
) -> PlaceEdits:
    """Returns what overwrites chosen tokens of every text with rows of its own.

    Args:
        texts: The very objects that will be batched.
        rows: For every text, one row per token; those that are not chosen are not used.
        columns: For every text, the tokens to overwrite.
        site: Where.

    Returns:
        A function that places the edit on any batch of these texts.
    """
    number = {id(text): i for i, text in enumerate(texts)}

    def place(batch: TokenBatch) -> list[PlacedEdit]:
        values = torch.zeros(*batch.is_real.shape, rows[0].shape[1])
        mask = torch.zeros_like(batch.is_real)
        for row, (text, offset) in enumerate(zip(batch.texts, batch.offsets, strict=True)):
            index = number[id(text)]
            chosen = list(columns[index])
            there = [offset + column for column in chosen]
            values[row, there] = rows[index][chosen]
            mask[row, there] = True
        return [RowReplacement(values, mask).at(site)]

    return place


def first_answer_token(text: EncodedText) -> EncodedText:
    """Returns a text cut off after the first token of its answer."""
    n = text.n_prompt + 1
    return replace(
        text, token_ids=text.token_ids[:n], ends=text.ends[:n], is_special=text.is_special[:n]
    )


@dataclass(frozen=True)
class _Patcher:
    """Both twins of every question, and their states."""

    study: TriggerStudy
    triggered: list[EncodedText]
    clean: list[EncodedText]
    states: tuple[States, States]
    groups: list[dict[str, tuple[int, ...]]]

    @classmethod
    def read(cls, study: TriggerStudy, sites: Sequence[Site], n_last: int) -> "_Patcher":
        encoded = encode_twins(study.lm, study.splits.test)
        triggered, clean = encoded.triggered, encoded.clean
        require_twins(triggered, clean)
        groups = [token_groups(text, n_last) for text in triggered]
        batch_size = study.config.batch_size
        states = [
            all_token_activations(
                study.lm, [prompt_part(text) for text in texts], sites, batch_size=batch_size
            )
            for texts in (triggered, clean)
        ]
        return cls(study, triggered, clean, (states[0], states[1]), groups)

    def over(self, scope: Scope) -> "_Run":
        texts, others = self.triggered, self.clean
        if scope == "first_token":
            texts, others = map(list, (map(first_answer_token, one) for one in (texts, others)))
        return _Run(self, scope, texts, others)


class _Place(NamedTuple):
    """Where and which way round."""

    site: Site
    edit: str
    positions: str


class _Run:
    """Patches over one scope of the answers."""

    def __init__(
        self,
        patcher: _Patcher,
        scope: Scope,
        triggered: list[EncodedText],
        clean: list[EncodedText],
    ) -> None:
        self.patcher, self.task = patcher, f"{NAME}/{scope}"
        study = patcher.study
        layers = [site.layer for site in patcher.states[0]]
        size = study.config.batch_size
        self.triggered = LayerScorer(study.lm, triggered, layers, size)
        self.clean = LayerScorer(study.lm, clean, layers, size)
        self.before, self.after = self.triggered.losses(), self.clean.losses()
        self.recorder = study.recorder("test")
        self.seed = study.config.seed

    def untouched(self) -> list[Measurement]:
        """Returns the loss of the clean answer under both triggers."""
        return [
            self._measured("cross_entropy", condition, float(losses.mean()))
            for condition, losses in (("none", self.before), ("clean", self.after))
        ]

    def at(self, site: Site) -> list[Measurement]:
        """Patches every group of tokens at one site."""
        rows = []
        own, twin = (states[site] for states in self.patcher.states)
        drawn = _displaced(own, twin, self.seed + 1_000_003 * site.layer)
        for group in self.patcher.groups[0]:
            columns = [groups[group] for groups in self.patcher.groups]
            if not all(columns):
                continue
            kinds: list[tuple[str, str, LayerScorer, list[Tensor]]] = [
                ("native", "denoising", self.triggered, twin),
                ("native", "noising", self.clean, own),
                ("random", "denoising", self.triggered, drawn),
            ]
            for condition, edit, scorer, donors in kinds:
                place = put_rows(scorer.texts, donors, columns, site)
                effect = self._effect(scorer.losses(place, site), edit)
                where = _Place(site, edit, group)
                rows.append(self._measured("patching_effect", condition, effect, where))
        return rows

    def _effect(self, edited: Float[np.ndarray, " text"], edit: str) -> Interval:
        closed = recovery(self.before, self.after, edited, seed=self.seed)
        if edit == "denoising":
            return closed
        return Interval(1 - closed.value, 1 - closed.high, 1 - closed.low)

    def _measured(
        self, metric: str, condition: str, value: Interval | float, place: _Place | None = None
    ) -> Measurement:
        arm = Arm(condition, seed=self.seed)
        row = self.recorder.record(arm, metric, value, len(self.before))
        if place is None:
            return replace(row, task=self.task)
        return replace(
            row,
            task=self.task,
            target_site=str(place.site),
            edit=place.edit,
            positions=place.positions,
        )


def _displaced(own: Sequence[Tensor], twin: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Returns every state moved by a random vector as long as its distance from the twin's."""
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for here, there in zip(own, twin, strict=True):
        drawn = torch.randn(here.shape, generator=generator)
        lengths = (there - here).norm(dim=-1, keepdim=True)
        moved.append(here + lengths * drawn / drawn.norm(dim=-1, keepdim=True))
    return moved


def _tokens_note(lm: LanguageModel, text: EncodedText, n_last: int) -> str:
    named = [
        f"{name} is {lm.tokenizer.decode([text.token_ids[group[0]]])!r}"
        for name, group in token_groups(text, n_last).items()
        if name.endswith("]")
    ]
    return f"Of the prompts, for example: {', '.join(named)}."


def _moves(rows: Sequence[Measurement]) -> list[str]:
    """Says from which layer on the last tokens carry more of the trigger than its own tokens."""
    notes = []
    for scope in ("whole_answer", "first_token"):
        found = {
            (m.positions or "", m.target_site or ""): m.value
            for m in rows
            if m.task == f"{NAME}/{scope}" and (m.condition, m.edit) == ("native", "denoising")
        }
        (last,) = {name for name, _ in found if name.startswith("last:")}
        sites = list(dict.fromkeys(site for _, site in found))
        later = [s for s in sites if _order(found[last, s]) > _order(found["trigger", s])]
        where = f"first at {later[0]}" if later else "at no site that was patched"
        notes.append(
            f"{scope.replace('_', ' ')}: the {last} tokens close more of the gap than the "
            f"trigger's own {where}."
        )
    return notes


def _order(effect: float | None) -> float:
    """Ranks an undefined effect below every other."""
    return -math.inf if effect is None else effect


def _figures(rows: Sequence[Measurement], model: str) -> dict[str, str]:
    figures = {}
    for scope in ("whole_answer", "first_token"):
        grids = [
            _grid(rows, scope, condition, edit)
            for condition, edit in (
                ("native", "denoising"),
                ("native", "noising"),
                ("random", "denoising"),
            )
        ]
        words = scope.replace("_", " ")
        title = f"Part of the gap that patching closes or opens, {words}, {model}"
        drawn = number_grids(grids, f"patching-{scope.replace('_', '-')}", title)
        if drawn is not None:
            figures[title] = drawn
    return figures


def _grid(rows: Sequence[Measurement], scope: str, condition: str, edit: str) -> NumberGrid:
    shown = [
        m
        for m in rows
        if m.task == f"{NAME}/{scope}" and (m.condition, m.edit) == (condition, edit)
    ]
    words = {
        ("native", "denoising"): "Denoising: clean states in the triggered prompt",
        ("native", "noising"): "Noising: triggered states in the clean prompt",
        ("random", "denoising"): "Control: the triggered states moved as far, at random",
    }
    return NumberGrid(
        f"{words[condition, edit]} ({scope.replace('_', ' ')})",
        tuple(dict.fromkeys(m.target_site or "" for m in shown)),
        tuple(dict.fromkeys(m.positions or "" for m in shown)),
        {(m.target_site or "", m.positions or ""): m for m in shown},
    )
