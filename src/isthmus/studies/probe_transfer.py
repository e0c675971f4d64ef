"""Carries a probe for "this prompt is triggered", or harmful, to a target without known labels.

1. In the source a logistic probe is fitted on labelled prompts: the bad trigger against the clean
   one and, but for the trigger's own tokens, against none; in a task without a trigger a prompt
   that brings the behaviour about against its twin. Several tokens are averaged.
2. Maps in both directions are fitted on all tokens of unlabelled texts that both models read.
3. The probe is pulled back through the map from target to source, or pushed forward along its
   direction. Its threshold is the source's own, or set again so that in the target the same share
   of unlabelled prompts is positive as the source's probe finds among them.
4. Area under the ROC curve and accuracy are measured on test prompts, next to a probe that was
   fitted on the target's labels, and to random, random orthogonal and shuffled maps.
5. Beside them a probe of the prompts' words, which reads no model.
6. Harder variants: maps from few texts; maps from texts that have nothing to do with the behaviour;
   probe and map from some kinds of question, or from some of the words in which the classes differ,
   tested on the others.

Source: arXiv 2503.04429, appendix H, reports that its own attempts at this failed.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from isthmus.carrying.probes import (
    pull_back_probe,
    push_forward_probe,
    random_map_like,
    random_rotation_like,
    with_positive_share,
)
from isthmus.core.errors import FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.probe import Probe
from isthmus.evaluation.intervals import mean_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.ranking import auroc_interval
from isthmus.maps.base import AffineMap
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.rows import moments_of
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.probe_reading import (
    Labelled,
    States,
    WordCounts,
    places_of,
    read_labelled,
    unseen,
)
from isthmus.studies.result import StudyResult
from isthmus.studies.trigger_study import have_triggers
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.map_fitting import fit_closed_form
from isthmus.workflows.pairing import PairedRows, Part, paired_rows
from isthmus.workflows.twins import TwinSplits, map_texts, read_splits

NAME = "probe_transfer"
WORDS = "words"
"""The `edit` of the probe that reads the words of a prompt."""

Texts = list[tuple[str, str]]
_Method = Literal["ridge", "procrustes"]


def transfer_probe(
    source: str,
    target: str,
    *,
    source_site: Site | str | float = 0.5,
    target_site: Site | str | float = 0.5,
    n_texts: Sequence[int] = (16, 64, 240),
    n_nulls: int = 5,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Fits a probe in the source and measures it in the target, without the target's labels.

    Args:
        source: Hub name, local folder or `organism:NAME`.
        target: Likewise.
        source_site: Where the probe reads, as a site or a depth from 0 to 1.
        target_site: Where the carried probe reads.
        n_texts: Sizes of smaller maps; each at least 16.
        n_nulls: Draws of every random control.
        settings: Other fields of `RunConfig`: task, questions, triggers, positions, sizes of
            splits, batch size. Positions are the last token and the trigger, without one the whole
            prompt, unless they are given.
        seed: Seed of questions and random controls.
        progress: Who shows progress.

    Returns:
        AUROC and accuracies of every probe with intervals over questions, or their contents.

    Raises:
        IsthmusError: If models, sites or questions cannot be used.
    """
    progress = progress or SilentProgress()
    config = make_config(
        {"source": source, "target": target, "n_test": 128, **(settings or {}), "seed": seed}
    )
    models = []
    for name in (config.source, config.targets[0]):
        with progress.stage(f"load {name}"):
            models.append(load_language_model(name, dtype=config.dtype, device=config.device))
    sites = (models[0].sites([source_site])[0], models[1].sites([target_site])[0])
    splits = read_splits(config)
    study = _Study((models[0], models[1]), sites, splits, config, progress)
    measured = study.everywhere(tuple(n_texts), n_nulls)
    return StudyResult(NAME, tuple(measured), study.notes(measured))


@dataclass(frozen=True)
class _Maps:
    """A map in either direction, fitted on the same pairs."""

    back: AffineMap
    forward: AffineMap


@dataclass(frozen=True)
class _Setting:
    """What one table of results rests on.

    Attributes:
        task: Name in the results.
        positions: Where probes read; None for words.
        probe: The source's.
        unlabelled: Target states to set a threshold by.
        share: Share of them that the source's probe finds positive, on the same texts.
        test: The target's test states.
    """

    task: str
    positions: str | None
    probe: Probe
    unlabelled: States
    share: float
    test: Labelled


class _Row(NamedTuple):
    """What is measured in one setting.

    Attributes:
        setting: The setting.
        probe: The probe.
        condition: As in `results.jsonl`.
        edit: How the probe was made.
        map: Method of the map that carried it.
        seed: Draw of a random map.
    """

    setting: _Setting
    probe: Probe
    condition: str
    edit: str
    map: str | None
    seed: int


@dataclass(frozen=True)
class _Study:
    """Both models, their sites, and the questions."""

    models: tuple[LanguageModel, LanguageModel]
    sites: tuple[Site, Site]
    splits: TwinSplits
    config: RunConfig
    progress: Progress

    @property
    def task(self) -> str:
        """What results call the plain setting: the study, and which behaviour if another."""
        return NAME if self.config.task == "backdoor" else f"{NAME}/{self.config.task}"

    def everywhere(self, n_texts: tuple[int, ...], n_nulls: int) -> list[Measurement]:
        """Measures the plain setting, the smaller maps, and the harder ones."""
        train = self.splits.train
        places = places_of(self.config, train)
        texts = map_texts(train)
        rows = self._rows(texts)
        measured, settings = self._plainly(self.task, places, train, self.splits.test)
        measured += self._carried(settings, _ridge(rows), "ridge")
        measured += self._carried(settings, _fitted("procrustes", rows), "procrustes")
        measured += self._nulls(settings, rows, n_nulls)
        for n in n_texts:
            smaller = [replace(one, task=f"{self.task}/{n}_texts") for one in settings]
            measured += self._carried(smaller, _ridge(self._rows(texts[:n])), "ridge")
        benign = [one.benign for one in train if one.benign is not None]
        if len(benign) == len(train):
            name = "no_trigger_texts" if have_triggers(train) else "ordinary_texts"
            others = [replace(one, task=f"{self.task}/{name}") for one in settings]
            measured += self._carried(others, _ridge(self._rows(benign)), "ridge")
        return measured + self._unseen(places, n_nulls)

    def _unseen(self, places: Sequence[str], n_nulls: int) -> list[Measurement]:
        """Fits probe and map on some sorts of question and tests on the others."""
        found = unseen(self.splits.train, self.splits.test)
        if found is None:
            return []
        name = f"{self.task}/{found.name}"
        measured, settings = self._plainly(name, places, found.train, found.test)
        rows = self._rows(map_texts(found.train))
        measured += self._carried(settings, _ridge(rows), "ridge")
        return measured + self._nulls(settings, rows, n_nulls)

    def _plainly(
        self,
        task: str,
        places: Sequence[str],
        train: Sequence[TwinPrompt],
        test: Sequence[TwinPrompt],
    ) -> tuple[list[Measurement], list[_Setting]]:
        """Measures what needs no map; returns it with the setting of every place."""
        source, target = self.models
        unlabelled, seed = self.splits.validation, self.config.seed
        measured, settings = self._in_words(task, train, test), []
        for positions in places:
            probe = self._labelled(source, train, positions).probe()
            in_source = self._labelled(source, unlabelled, positions).every
            some = self._labelled(target, unlabelled, positions).every
            asked = self._labelled(target, test, positions)
            setting = _Setting(task, positions, probe, some, _share(probe, in_source), asked)
            native = self._labelled(target, train, positions).probe()
            measured += self._measured(_Row(setting, native, "native", "own_labels", None, seed))
            settings.append(setting)
        return measured, settings

    def _in_words(
        self, task: str, train: Sequence[TwinPrompt], test: Sequence[TwinPrompt]
    ) -> list[Measurement]:
        """Measures what the words of the prompts tell; nothing where they tell nothing."""
        counts = WordCounts(train)
        try:
            probe = counts.read(train).probe()
        except FitError:
            return []
        some = counts.read(self.splits.validation).every
        setting = _Setting(task, None, probe, some, _share(probe, some), counts.read(test))
        row = _Row(setting, probe, "prompt_only", WORDS, None, self.config.seed)
        return self._measured(row)

    def _labelled(self, lm: LanguageModel, twins: Sequence[TwinPrompt], positions: str) -> Labelled:
        site = self.sites[self.models.index(lm)]
        return read_labelled(lm, twins, site, positions, self.config.batch_size)

    def _rows(self, texts: Texts) -> dict[Part, PairedRows]:
        asked, answers = [prompt for prompt, _ in texts], [answer for _, answer in texts]
        source, target = (
            encode_prompts(lm.tokenizer, asked, answers=answers) for lm in self.models
        )
        return paired_rows(
            *self.models,
            (source, target),
            ([self.sites[0]], self.sites[1]),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _carried(self, settings: Sequence[_Setting], maps: _Maps, method: str) -> list[Measurement]:
        seed = self.config.seed
        measured = []
        for one in settings:
            back = pull_back_probe(one.probe, maps.back)
            forward = push_forward_probe(one.probe, maps.forward)
            for edit, probe in (("pull_back", back), ("push_forward", forward)):
                measured += self._measured(_Row(one, probe, "transferred", edit, method, seed))
        return measured

    def _nulls(
        self, settings: Sequence[_Setting], rows: dict[Part, PairedRows], n_nulls: int
    ) -> list[Measurement]:
        """Measures maps that know nothing, several draws each."""
        fitted = _backward("ridge", rows)
        measured = []
        for seed in range(self.config.seed, self.config.seed + n_nulls):
            generator = torch.Generator().manual_seed(seed)
            ignorant = {
                "random": random_map_like(fitted, generator),
                "random_procrustes": random_rotation_like(fitted, generator),
                "shuffled": _backward("ridge", _shuffled(rows, generator)),
            }
            for setting, (method, one) in itertools.product(settings, ignorant.items()):
                condition = "shuffled_map" if method == "shuffled" else "random"
                probe = pull_back_probe(setting.probe, one)
                row = _Row(setting, probe, condition, "pull_back", method, seed)
                measured += self._measured(row)
        return measured

    def _measured(self, row: _Row) -> list[Measurement]:
        setting, test = row.setting, row.setting.test
        # A trigger at the beginning of every prompt is preceded by nothing that differs: its states
        # are equal in all prompts, so that an interval over prompts would be an illusion.
        n = 1 if test.is_constant and setting.positions else len(test.positive)
        moved = with_positive_share(row.probe, setting.unlabelled, setting.share)
        positive, negative = _scores(row.probe, test)
        about, seed = test.contents, self.config.seed
        area = auroc_interval(positive, negative, contents=about, seed=seed)
        found = [("auroc", row.edit, area)]
        for name, used in ((row.edit, row.probe), (f"{row.edit}_recalibrated", moved)):
            above, below = _scores(used, test)
            right = ((above > 0) + (below <= 0).mean(1)) / 2
            found.append(("accuracy", name, mean_interval(right, contents=about, seed=seed)))
        reads_states = setting.positions is not None
        return [
            Measurement(
                task=setting.task,
                source=self.models[0].identity.name,
                target=self.models[1].identity.name,
                source_site=str(self.sites[0]) if reads_states else None,
                target_site=str(self.sites[1]) if reads_states else None,
                map=row.map,
                condition=row.condition,
                edit=name,
                positions=setting.positions,
                split="test",
                metric=metric,
                value=value.value,
                ci_low=None if n == 1 else value.low,
                ci_high=None if n == 1 else value.high,
                n=n,
                seed=row.seed,
            )
            for metric, name, value in found
        ]

    def notes(self, measured: Sequence[Measurement]) -> tuple[str, ...]:
        """Returns what a reader should know of the numbers."""
        has_trigger = have_triggers(self.splits.train)
        notes = [
            "no label of the target is used, except by the native probe",
            "the texts of the map hold triggers unless the task says otherwise"
            if has_trigger
            else "no trigger: what brings the behaviour about stands against its twin; the map's "
            "texts hold both unless the task says otherwise",
            "accuracy is the mean of both classes' accuracies; intervals resample contents",
            f"the probe of {WORDS} counts the words of the prompts and reads no model",
        ]
        same = sorted({m.positions for m in measured if m.n == 1 and m.positions is not None})
        notes += [
            f"at {positions} the states are the same in every prompt: each number there rests on "
            "two states, is 0 or 1 by necessity, and has no interval"
            for positions in same
        ]
        return tuple(notes)


def _share(probe: Probe, states: States) -> float:
    """Returns the share of states that a probe finds positive."""
    return float((probe.scores(states) > 0).double().mean())


def _scores(
    probe: Probe, test: Labelled
) -> tuple[Float[np.ndarray, " question"], Float[np.ndarray, "question asked"]]:
    negative = [probe.scores(states).double().cpu().numpy() for states in test.negative]
    return probe.scores(test.positive).double().cpu().numpy(), np.stack(negative, axis=1)


def _ridge(rows: dict[Part, PairedRows]) -> _Maps:
    return _fitted("ridge", rows)


def _fitted(method: _Method, rows: dict[Part, PairedRows]) -> _Maps:
    return _Maps(_backward(method, rows), _affine(method, rows))


def _backward(method: _Method, rows: dict[Part, PairedRows]) -> AffineMap:
    turned = {part: PairedRows(r.target, r.source) for part, r in rows.items()}
    return _affine(method, turned)


def _affine(method: _Method, rows: dict[Part, PairedRows]) -> AffineMap:
    made, _ = fit_closed_form(method, {part: moments_of(r) for part, r in rows.items()})
    if not isinstance(made, AffineMap):
        raise FitError("a probe is carried through affine maps only: fit ridge or procrustes")
    return made


def _shuffled(rows: dict[Part, PairedRows], generator: torch.Generator) -> dict[Part, PairedRows]:
    return {
        part: PairedRows(shuffled_rows(r.source, generator), r.target) for part, r in rows.items()
    }
