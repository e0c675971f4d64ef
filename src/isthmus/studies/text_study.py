"""What text a map has to see so that a behaviour survives it.

1. The same direction of the source goes through ridge maps that were fitted on other texts: of the
   task; general ones, without trigger, instruction or declined request; general ones and strings of
   random words; general ones and a few prompts of the task, without answers or labels.
2. Place and strength are chosen for each on validation, and each is measured once on test questions
   beside the native direction, random ones, and a map of shuffled pairs of the same texts.

Choosing needs prompts of the task in the target in any case; only the maps go without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from isthmus.carrying.chains import at_several_sites
from isthmus.carrying.directions import carry_direction
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.maps.files import FittedMap
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.fitting_texts import Texts, texts_for_maps
from isthmus.studies.result import StudyResult
from isthmus.studies.travel_measuring import Arrivals, Tested, config_for, swap_grid
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, shuffled_map
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PARTS, PairedMoments, Part, paired_moments
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import position_candidates, read_splits

NAME = "map_text"
"""First part of the task in `results.jsonl`."""


def study_map_text(
    source: str | LanguageModel,
    target: str | LanguageModel,
    task: str = "refusal",
    *,
    n_prompts: Sequence[int] = (8, 32, 96),
    n_train: int = 120,
    n_validation: int = 32,
    n_test: int = 96,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Compares maps fitted on task text, on general text, and on mixtures.

    Tasks `map_text/TASK/TEXT` name the texts.

    Args:
        source: Model with the behaviour: name, folder or a loaded model.
        target: Another one.
        task: `backdoor` or a task of the package.
        n_prompts: How many unlabelled prompts are added, half with the trigger, the instruction or
            a declined request and half without; at most `n_train` of them.
        n_train: Training questions for directions and task text; there are three general texts for
            each.
        n_validation: Questions that choose.
        n_test: Questions that are measured.
        n_random: Draws of random directions.
        seed: Which texts and questions, and every random control.
        progress: Who shows progress.

    Returns:
        Swap, recoveries, rates and damage by text with controls, what each lost against the native
        direction, the quality of each map on its own held-out text, and a picture.
    """
    shown = progress or SilentProgress()
    lms = [load_language_model(m) if isinstance(m, str) else m for m in (source, target)]
    names = (lms[0].identity.name, lms[1].identity.name)
    sizes = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    config = config_for(task, names, {**sizes, "n_random": n_random, "seed": seed})
    splits = read_splits(config)
    positions, note = position_candidates(lms, config, splits.train[0])
    reader = _Reader(lms[0], lms[1], seed, shown)
    learned, own = (
        {p: learn_twin_direction(lm, splits.train, sites, p, config) for p in positions}
        for lm, sites in zip(lms, (reader.source_sites, reader.target_sites), strict=True)
    )
    arrivals = Arrivals(lms[1], splits, config, shown)
    native = arrivals.measure(own, names[1], f"{NAME}/{task}/native")
    measured: list[Measurement] = [*native.measurements]
    notes = [note] if note else []
    for name, parts in texts_for_maps(task, splits.train, lms[0], n_prompts, seed).items():
        carriage = _Carriage(learned, reader.maps(parts))
        done = arrivals.measure(
            carriage.arriving, names[0], f"{NAME}/{task}/{name}", carriage.misled
        )
        measured += [*done.measurements, arrivals.loss(native, done)]
        measured += carriage.quality(done, Recorder(config, *names, "test"))
        notes.append(f"{name}: at {done.arm.site}, {done.arm.positions}, ×{done.arm.strength:g}")
    return StudyResult(NAME, tuple(measured), tuple(notes), swap_grid(NAME, task, measured))


@dataclass(frozen=True)
class _Maps:
    """Ridge maps into every site of the target, with the pairs behind them."""

    fitted: tuple[FittedMap, ...]
    parts: tuple[PairedMoments, ...]
    seed: int

    def carried(self, direction: Direction) -> Direction:
        return at_several_sites([carry_direction(direction, one) for one in self.fitted])

    def shuffled(self, site: Site) -> FittedMap | None:
        """Fits the map to a site on shuffled pairs; None where pairs were not kept."""
        kept = [rows for one in self.parts if (rows := one.rows_at(site)) is not None]
        if len(kept) < len(self.parts):
            return None
        like = self.at(site)
        joined: dict[Part, PairedRows] = {
            part: PairedRows(
                torch.cat([rows[part].source for rows in kept if part in rows]),
                torch.cat([rows[part].target for rows in kept if part in rows]),
            )
            for part in PARTS
        }
        ends = MapEnds(like.source, like.target, like.source_sites, site)
        return shuffled_map(joined, ends, self.seed)

    def at(self, site: Site | None) -> FittedMap:
        return next(one for one in self.fitted if one.target_site == site)


@dataclass(frozen=True)
class _Carriage:
    """What one set of maps does with the source's directions."""

    learned: Mapping[str, Direction]
    maps: _Maps

    @property
    def arriving(self) -> dict[str, Direction]:
        return {p: self.maps.carried(one) for p, one in self.learned.items()}

    def misled(self, site: Site, positions: str) -> Direction | None:
        shuffled = self.maps.shuffled(site)
        return None if shuffled is None else carry_direction(self.learned[positions], shuffled)

    def quality(self, done: Tested, recorder: Recorder) -> list[Measurement]:
        found = recorder.quality(done.arm, self.maps.at(done.arm.site).quality)
        return [replace(m, task=done.measurements[0].task) for m in found]


class _Reader:
    """Reads both models over texts, each part once, and fits maps on parts together."""

    def __init__(
        self, source: LanguageModel, target: LanguageModel, seed: int, progress: Progress
    ) -> None:
        self.source, self.target, self.seed, self.progress = source, target, seed, progress
        self.source_sites = thinned_sites(source, "all")
        self.target_sites = target.sites("all")
        self._read: dict[tuple[tuple[str, str | None], ...], PairedMoments] = {}

    def maps(self, parts: Sequence[Texts]) -> _Maps:
        """Fits ridge maps on the moments of all parts together."""
        read = tuple(self._moments(texts) for texts in parts)
        fitted = []
        for site in self.target_sites:
            together = {part: _merged([one.by_site[site][part] for one in read]) for part in PARTS}
            ends = (self.source.identity, self.target.identity)
            fitted.append(
                MapEnds(*ends, self.source_sites, site).fitted(*fit_closed_form("ridge", together))
            )
        return _Maps(tuple(fitted), read, self.seed)

    def _moments(self, texts: Texts) -> PairedMoments:
        key = tuple(texts)
        if key not in self._read:
            prompts = [prompt for prompt, _ in texts]
            answers = [answer for _, answer in texts if answer is not None]
            encoded = [
                encode_prompts(lm.tokenizer, prompts, answers=answers or None)
                for lm in (self.source, self.target)
            ]
            self._read[key] = paired_moments(
                self.source,
                self.target,
                (encoded[0], encoded[1]),
                (self.source_sites, self.target_sites),
                progress=self.progress,
            )
        return self._read[key]


def _merged(moments: Sequence[PairMoments]) -> PairMoments:
    total = PairMoments(moments[0].d_source, moments[0].d_target)
    for one in moments:
        total.merge(one)
    return total
