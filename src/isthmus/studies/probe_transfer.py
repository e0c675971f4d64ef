"""Carries a probe for "this prompt is triggered" to a target of which no label is known.

1. In the source a logistic probe is fitted on labelled prompts: the bad trigger against the clean
   one and, at the last prompt token, against none. At the trigger its tokens are averaged.
2. Maps in both directions are fitted on all tokens of unlabelled texts that both models read.
3. The probe is pulled back through the map from target to source, or pushed forward along its
   direction. Its threshold is the source's own, or set again so that in the target the same share
   of unlabelled prompts is positive as the source's probe finds among them.
4. Area under the ROC curve and accuracy are measured on test prompts, next to a probe that was
   fitted on the target's labels, and to random, random orthogonal and shuffled maps.
5. Harder variants: maps from few texts; maps from texts without any trigger; probe and map from
   some kinds of question, tested on the others.

Source: arXiv 2503.04429, appendix H, reports that its own attempts at this failed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
from isthmus.directions.probe import Probe, fit_probe
from isthmus.evaluation.intervals import mean_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.ranking import auroc_interval
from isthmus.maps.base import AffineMap
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.rows import moments_of
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.map_fitting import fit_closed_form
from isthmus.workflows.pairing import PairedRows, Part, paired_rows
from isthmus.workflows.twin_directions import read_states
from isthmus.workflows.twins import (
    TwinSplits,
    encode_prompts_of_twins,
    map_texts,
    read_splits,
)

NAME = "probe_transfer"
POSITIONS = ("last:1", "trigger")
"""Where probes read."""

States = Float[Tensor, "prompt d_model"]
Texts = list[tuple[str, str]]


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
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits, batch size.
        seed: Seed of questions and random controls.
        progress: Who shows progress.

    Returns:
        AUROC and accuracies of every probe with intervals over questions.

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
    study = _Study((models[0], models[1]), sites, read_splits(config), config, progress)
    measured: list[Measurement] = []
    for positions in POSITIONS:
        measured += study.everywhere(positions, tuple(n_texts), n_nulls)
    notes = (
        "no label of the target is used, except by the native probe",
        "the texts of the map hold triggers unless the task says otherwise",
        "accuracy is the mean of both classes' accuracies; intervals resample questions",
    )
    same = sorted({m.positions for m in measured if m.n == 1 and m.positions is not None})
    constant = tuple(
        f"at {positions} the states are the same in every prompt: each number there rests on two "
        "states, is 0 or 1 by necessity, and has no interval"
        for positions in same
    )
    return StudyResult(NAME, tuple(measured), notes + constant)


@dataclass(frozen=True)
class _Labelled:
    """States of the same questions in both classes.

    Attributes:
        positive: With the bad trigger.
        negative: With the clean trigger and, where it can be read there, without any.
    """

    positive: States
    negative: tuple[States, ...]

    @property
    def every(self) -> States:
        """All states, labels forgotten."""
        return torch.cat([self.positive, *self.negative])

    @property
    def is_constant(self) -> bool:
        """Whether every class has one and the same state in all prompts, up to rounding."""
        return all(
            bool(torch.allclose(one, one[:1].expand_as(one), rtol=1e-3, atol=1e-3))
            for one in (self.positive, *self.negative)
        )

    def probe(self) -> Probe:
        return fit_probe(self.positive, torch.cat(self.negative))


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
        positions: Where probes read.
        probe: The source's.
        unlabelled: Target states to set a threshold by.
        share: Share of them that the source's probe finds positive, on the same texts.
        test: The target's test states.
    """

    task: str
    positions: str
    probe: Probe
    unlabelled: States
    share: float
    test: _Labelled


@dataclass(frozen=True)
class _Study:
    """Both models, their sites, and the questions."""

    models: tuple[LanguageModel, LanguageModel]
    sites: tuple[Site, Site]
    splits: TwinSplits
    config: RunConfig
    progress: Progress

    def everywhere(
        self, positions: str, n_texts: tuple[int, ...], n_nulls: int
    ) -> list[Measurement]:
        """Measures the plain setting, the smaller maps, and the harder ones."""
        twins = self.splits
        setting, native = self._setting(NAME, positions, twins.train, twins.test)
        texts = map_texts(twins.train)
        rows = self._rows(texts)
        measured = self._native(setting, native)
        measured += self._carried(setting, _ridge(rows), "ridge")
        measured += self._carried(setting, _fitted("procrustes", rows), "procrustes")
        measured += self._nulls(setting, rows, n_nulls)
        for n in n_texts:
            smaller = replace(setting, task=f"{NAME}/{n}_texts")
            measured += self._carried(smaller, _ridge(self._rows(texts[:n])), "ridge")
        plain = replace(setting, task=f"{NAME}/no_trigger_texts")
        untriggered = [one.benign for one in twins.train if one.benign is not None]
        if len(untriggered) == len(twins.train):
            measured += self._carried(plain, _ridge(self._rows(untriggered)), "ridge")
        return measured + self._unseen_kinds(positions, n_nulls)

    def _unseen_kinds(self, positions: str, n_nulls: int) -> list[Measurement]:
        """Fits probe and map on every other kind of question and tests on the rest."""
        kinds = sorted({twin.kind for twin in self.splits.train if twin.kind is not None})
        seen = set(kinds[::2])
        train = [twin for twin in self.splits.train if twin.kind in seen]
        test = [twin for twin in self.splits.test if twin.kind not in seen]
        if len(kinds) < 2 or len(train) < 8 or len(test) < 4:
            return []
        setting, native = self._setting(f"{NAME}/unseen_kinds", positions, train, test)
        rows = self._rows(map_texts(train))
        measured = self._native(setting, native)
        measured += self._carried(setting, _ridge(rows), "ridge")
        return measured + self._nulls(setting, rows, n_nulls)

    def _setting(
        self, task: str, positions: str, train: Sequence[TwinPrompt], test: Sequence[TwinPrompt]
    ) -> tuple[_Setting, Probe]:
        """Returns a setting, and the probe that knows the target's labels."""
        source, target = self.models
        probe = self._labelled(source, train, positions).probe()
        native = self._labelled(target, train, positions).probe()
        unlabelled = self.splits.validation
        in_source = self._labelled(source, unlabelled, positions).every
        share = float((probe.scores(in_source) > 0).double().mean())
        setting = _Setting(
            task,
            positions,
            probe,
            self._labelled(target, unlabelled, positions).every,
            share,
            self._labelled(target, test, positions),
        )
        return setting, native

    def _labelled(
        self, lm: LanguageModel, twins: Sequence[TwinPrompt], positions: str
    ) -> _Labelled:
        site = self.sites[self.models.index(lm)]
        lists = list(encode_prompts_of_twins(lm, twins))
        benign = [twin.benign for twin in twins if twin.benign is not None]
        # A prompt without a trigger cannot be read at the trigger.
        if positions != "trigger" and len(benign) == len(twins):
            lists.append(encode_prompts(lm.tokenizer, [prompt for prompt, _ in benign]))
        states = [
            read_states(lm, texts, [site], positions, self.config.batch_size)[site].mean(1)
            for texts in lists
        ]
        return _Labelled(states[0], tuple(states[1:]))

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

    def _native(self, setting: _Setting, native: Probe) -> list[Measurement]:
        return self._measured(setting, native, "native", "own_labels", None, self.config.seed)

    def _carried(self, setting: _Setting, maps: _Maps, method: str) -> list[Measurement]:
        seed = self.config.seed
        back = pull_back_probe(setting.probe, maps.back)
        forward = push_forward_probe(setting.probe, maps.forward)
        return [
            *self._measured(setting, back, "transferred", "pull_back", method, seed),
            *self._measured(setting, forward, "transferred", "push_forward", method, seed),
        ]

    def _nulls(
        self, setting: _Setting, rows: dict[Part, PairedRows], n_nulls: int
    ) -> list[Measurement]:
        """Measures maps that know nothing, several draws each."""
        fitted = _ridge(rows).back
        measured = []
        for seed in range(self.config.seed, self.config.seed + n_nulls):
            generator = torch.Generator().manual_seed(seed)
            ignorant = {
                "random": random_map_like(fitted, generator),
                "random_procrustes": random_rotation_like(fitted, generator),
                "shuffled": _ridge(_shuffled(rows, generator)).back,
            }
            for method, one in ignorant.items():
                condition = "shuffled_map" if method == "shuffled" else "random"
                probe = pull_back_probe(setting.probe, one)
                measured += self._measured(setting, probe, condition, "pull_back", method, seed)
        return measured

    def _measured(
        self,
        setting: _Setting,
        probe: Probe,
        condition: str,
        edit: str,
        method: str | None,
        seed: int,
    ) -> list[Measurement]:
        test = setting.test
        # A trigger at the beginning of every prompt is preceded by nothing that differs: its states
        # are equal in all prompts, so that an interval over prompts would be an illusion.
        n = 1 if test.is_constant else len(test.positive)
        moved = with_positive_share(probe, setting.unlabelled, setting.share)
        positive, negative = _scores(probe, test)
        found = [("auroc", edit, auroc_interval(positive, negative, seed=self.config.seed))]
        for name, used in ((edit, probe), (f"{edit}_recalibrated", moved)):
            above, below = _scores(used, test)
            right = ((above > 0) + (below <= 0).mean(1)) / 2
            found.append(("accuracy", name, mean_interval(right, seed=self.config.seed)))
        return [
            Measurement(
                task=setting.task,
                source=self.models[0].identity.name,
                target=self.models[1].identity.name,
                source_site=str(self.sites[0]),
                target_site=str(self.sites[1]),
                map=method,
                condition=condition,
                edit=name,
                positions=setting.positions,
                split="test",
                metric=metric,
                value=value.value,
                ci_low=None if n == 1 else value.low,
                ci_high=None if n == 1 else value.high,
                n=n,
                seed=seed,
            )
            for metric, name, value in found
        ]


def _scores(
    probe: Probe, test: _Labelled
) -> tuple[Float[np.ndarray, " question"], Float[np.ndarray, "question asked"]]:
    negative = [probe.scores(states).double().cpu().numpy() for states in test.negative]
    return probe.scores(test.positive).double().cpu().numpy(), np.stack(negative, axis=1)


def _ridge(rows: dict[Part, PairedRows]) -> _Maps:
    return _fitted("ridge", rows)


def _fitted(method: Literal["ridge", "procrustes"], rows: dict[Part, PairedRows]) -> _Maps:
    forward, _ = fit_closed_form(method, {part: moments_of(r) for part, r in rows.items()})
    turned = {part: moments_of(PairedRows(r.target, r.source)) for part, r in rows.items()}
    back, _ = fit_closed_form(method, turned)
    if not isinstance(back, AffineMap) or not isinstance(forward, AffineMap):
        raise FitError("a probe is carried through affine maps only: fit ridge or procrustes")
    return _Maps(back, forward)


def _shuffled(rows: dict[Part, PairedRows], generator: torch.Generator) -> dict[Part, PairedRows]:
    return {
        part: PairedRows(shuffled_rows(r.source, generator), r.target) for part, r in rows.items()
    }
