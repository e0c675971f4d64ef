"""Validates a map the way arXiv 2503.04429 does: all states of a layer are replaced by mapped ones.

1. Fit the ridge map to every target site on training texts; replace on validation texts.
2. Take the site with the least divergence there, and the site of the paper's rule: the last layer
   at which the target's own steering vector works.
3. At these sites fit the other maps, a self-map from the target to itself (the ceiling), a map of
   shuffled pairs and the mean state (the floors).
4. On test texts without a trigger, with the clean and with the bad one, measure teacher-forced and
   free-running what replacement leaves of the target.
5. Beside it stands what we recommend a map for: carrying a steering vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import GivenSite, Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.embedding_similarity import can_embed
from isthmus.evaluation.intervals import mean_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.maps.base import ActivationMap
from isthmus.maps.files import FittedMap
from isthmus.models.changes import benign_changes
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.replacement_measuring import TASK, Examiner, Treatment, overlaps
from isthmus.studies.result import StudyResult
from isthmus.studies.state_replacement import (
    StateReader,
    StateReplacer,
    Unpaired,
    follow_texts,
    reads_alike,
)
from isthmus.studies.text_sets import (
    OwnCompletions,
    longest_answer,
    own_completions,
    text_sets,
)
from isthmus.studies.validation_reporting import (
    Tested,
    changes,
    mean_map,
    replacement_figures,
    side_by_side,
)
from isthmus.studies.validation_steering import choose_steering, steering_treatments
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import MapMethod, RunConfig, make_config
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form, fit_map, shuffled_map
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedMoments, PairedRows, Part, paired_moments, paired_rows
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twins import map_texts, position_candidates, read_splits


def validate_map(
    source: LanguageModel | str,
    target: LanguageModel | str,
    *,
    maps: Sequence[MapMethod] = ("ridge", "autoencoder"),
    site: GivenSite | None = None,
    judge: LanguageModel | str | None = None,
    embedder: str | Path | None = None,
    n_train: int = 240,
    n_validation: int = 48,
    n_test: int = 100,
    n_completed: int = 64,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures what is left of a target whose states at one site all come through a map.

    Args:
        source: Model whose states are mapped, loaded or by name; all its layers are read.
        target: Model that is edited.
        maps: Which maps are fitted and tested.
        site: Target site; when not given, the two that the rules of this module choose.
        judge: Untouched model under which the perplexity of completions is measured; the target
            itself when not given.
        embedder: Local folder of a sentence-transformers model for `embedding_similarity`.
        n_train: Questions for maps and directions; each gives three texts.
        n_validation: Questions that choose sites, positions and strengths.
        n_test: Questions that are measured, each in every set.
        n_completed: How many of them are answered under replacement.
        settings: Other fields of `RunConfig`, which go before the sizes above: questions, triggers,
            batch size, type and device of models that are loaded here.
        seed: Seed of everything random.
        progress: Who shows progress.

    Returns:
        Measurements whose task names the set, notes, a figure per site, completions side by side.

    Raises:
        IsthmusError: If a model, the site or the numbers cannot be used.
    """
    names = [m if isinstance(m, str) else m.identity.name for m in (source, target)]
    sizes = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    ends = {"source": names[0], "target": names[1], "seed": seed}
    config = make_config({**sizes, "maps": list(maps), **(settings or {}), **ends})

    def loaded(model: LanguageModel | str) -> LanguageModel:
        if isinstance(model, str):
            return load_language_model(model, dtype=config.dtype, device=config.device)
        return model

    ours, theirs = loaded(source), loaded(target)
    referee = theirs if judge is None else loaded(judge)
    study = _Study(ours, theirs, referee, config, progress or SilentProgress())
    folder = None if embedder is None else Path(embedder)
    if folder is not None and not can_embed():
        study.notes.append(
            "embedding_similarity is missing: the package sentence-transformers is not installed"
        )
        folder = None
    return study.run(None if site is None else theirs.site(site), n_completed, folder)


class _Study:
    """Carries out one validation."""

    def __init__(
        self,
        source: LanguageModel,
        target: LanguageModel,
        judge: LanguageModel,
        config: RunConfig,
        progress: Progress,
    ) -> None:
        self.source, self.target, self.judge = source, target, judge
        self.config, self.progress = config, progress
        self.splits = read_splits(config)
        self.source_sites = thinned_sites(source, "all")
        self.own_sites = thinned_sites(target, "all")
        self.read_source = StateReader(source, self.source_sites)
        self.read_own = StateReader(target, self.own_sites)
        self.positions, note = position_candidates((source, target), config, self.splits.train[0])
        self.notes = [note] if note else []
        asked = map_texts(self.splits.train)
        self.texts: dict[str, list[EncodedText]] = {
            side: encode_prompts(lm.tokenizer, [p for p, _ in asked], answers=[a for _, a in asked])
            for side, lm in (("source", source), ("target", target))
        }
        names = (source.identity.name, target.identity.name)
        self.validation = Recorder(config, *names, "validation")
        self.test = Recorder(config, *names, "test")

    def run(self, given: Site | None, n_completed: int, embedder: Path | None) -> StudyResult:
        """Does everything and returns what was found."""
        moments = self._moments(self.source, self.source_sites)
        own_moments = self._moments(self.target, self.own_sites)
        ridge = {
            site: self._ends(site).fitted(*fit_closed_form("ridge", moments.by_site[site]))
            for site in self.own_sites
        }
        measured, least = self._sweep(ridge)
        models = (self.source, self.target)
        steering = choose_steering(
            models, self.splits, ridge, self.positions, self.config, self.progress
        )
        papers = steering.native.site or least
        sites = list(dict.fromkeys([least, papers])) if given is None else [given]
        self.notes.append(
            f"least divergence under replacement on validation: {least}; the paper's rule, the "
            f"last layer where the target's own steering works: {papers}; tested: "
            f"{', '.join(map(str, sites))}, the first also free-running"
        )
        treatments = [Treatment(Arm("none"))]
        for site in sites:
            rows = moments.rows_at(site) or self._rows(self.source, self.source_sites, site)
            own = own_moments.rows_at(site) or self._rows(self.target, self.own_sites, site)
            made, quality = self._replacements(site, rows, own, writes=site == sites[0])
            treatments += made
            measured += quality
            self._note_gaps(site, ridge[site].map)
        place = steering.transferred.site or least
        rows = moments.rows_at(place) or self._rows(self.source, self.source_sites, place)
        steered = steering_treatments(steering, rows, self._ends(place), self.config)
        tested, own_texts, examiner = self._examine([*treatments, *steered], n_completed, embedder)
        measured += self._measurements(tested, own_texts, examiner)
        self._note_use(tested, steering.transferred)
        return StudyResult(
            TASK,
            tuple(measured),
            tuple(self.notes),
            replacement_figures(measured, sites),
            side_by_side(tested),
        )

    def _ends(self, site: Site) -> MapEnds:
        return MapEnds(self.source.identity, self.target.identity, self.source_sites, site)

    def _sides(self, reader: LanguageModel) -> tuple[list[EncodedText], list[EncodedText]]:
        return self.texts["target" if reader is self.target else "source"], self.texts["target"]

    def _moments(self, reader: LanguageModel, sites: tuple[Site, ...]) -> PairedMoments:
        return paired_moments(
            reader,
            self.target,
            self._sides(reader),
            (sites, self.own_sites),
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _rows(
        self, reader: LanguageModel, sites: tuple[Site, ...], site: Site
    ) -> dict[Part, PairedRows]:
        return paired_rows(
            reader,
            self.target,
            self._sides(reader),
            (sites, site),
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def _replacer(
        self,
        made: ActivationMap,
        site: Site,
        twins: Sequence[TwinPrompt],
        *,
        is_self: bool = False,
        unpaired: Unpaired = "earlier",
    ) -> StateReplacer:
        read = self.read_own if is_self else self.read_source
        prompts = [p for texts in text_sets(twins) for p in texts.prompts]
        return StateReplacer(
            read, made, site, follow_texts(read.lm, self.target, prompts), unpaired
        )

    def _divergences(self, replacers: Sequence[StateReplacer]) -> list[np.ndarray]:
        """Returns divergences on validation texts with the answers that they should bring."""
        texts = [
            text
            for one in text_sets(self.splits.validation)
            for text in one.encoded(self.target, one.answers)
        ]
        places = [one.place for one in replacers]
        with self.progress.stage("replace states on validation", len(texts)) as advance:
            changes = benign_changes(
                self.target, texts, places, batch_size=self.config.batch_size, on_batch=advance
            )
        return [one.divergence.double().numpy() for one in changes]

    def _sweep(self, ridge: dict[Site, FittedMap]) -> tuple[list[Measurement], Site]:
        """Replaces at every site on validation; returns what came of it and the best site."""
        found, means = [], {}
        replacers = [
            self._replacer(fitted.map, site, self.splits.validation)
            for site, fitted in ridge.items()
        ]
        for site, kl in zip(ridge, self._divergences(replacers), strict=True):
            means[site] = float(kl.mean())
            interval = mean_interval(kl, seed=self.config.seed)
            arm = self._arm("transferred", site, "ridge")
            measured = self.validation.record(arm, "kl", interval, len(kl))
            found.append(replace(measured, task=f"{TASK}/all_sets"))
        return found, min(means, key=means.__getitem__)

    def _arm(self, condition: str, site: Site, method: str | None, *, is_self: bool = False) -> Arm:
        sites = self.own_sites if is_self else self.source_sites
        return Arm(
            condition,
            site,
            "all",
            "replace",
            map_method=method,
            source_sites=", ".join(map(str, sites)),
            seed=self.config.seed,
        )

    def _replacements(
        self,
        site: Site,
        rows: dict[Part, PairedRows],
        own: dict[Part, PairedRows],
        *,
        writes: bool,
    ) -> tuple[list[Treatment], list[Measurement]]:
        """Fits every map of one site; returns them as treatments, and their held-out quality."""
        ends, seed = self._ends(site), self.config.seed
        own_ends = MapEnds(self.target.identity, self.target.identity, self.own_sites, site)
        fitted = [
            (self._arm("transferred", site, m), fit_map(m, rows, ends, seed, self.progress))
            for m in self.config.maps
        ]
        itself = fit_map("ridge", own, own_ends, seed, self.progress)
        fitted.append((self._arm("native", site, "ridge", is_self=True), itself))
        fitted.append((self._arm("shuffled_map", site, "ridge"), shuffled_map(rows, ends, seed)))
        quality = [
            replace(one, task=f"{TASK}/held_out_texts")
            for arm, made in fitted
            for one in self.test.quality(arm, made.quality)
        ]
        maps = [(arm, one.map) for arm, one in fitted]
        maps.append((self._arm("mean_ablation", site, None), mean_map(rows["train"])))
        treatments = []
        for arm, made in maps:
            is_self = arm.condition == "native"
            replacer = self._replacer(made, site, self.splits.test, is_self=is_self)
            treatments.append(
                Treatment(
                    arm,
                    replacer.place,
                    follows_text=True,
                    is_causal=bool(replacer.follow.known_ids),
                    writes=writes,
                )
            )
        return treatments, quality

    def _note_gaps(self, site: Site, made: ActivationMap) -> None:
        """Says what the rule for positions without a partner does, where there are such."""
        prompts = [twin.triggered for twin in self.splits.validation]
        if reads_alike(self.source, self.target, prompts):
            return
        twins = self.splits.validation
        rules: tuple[Unpaired, ...] = ("earlier", "own")
        replacers = [self._replacer(made, site, twins, unpaired=rule) for rule in rules]
        kl = dict(zip(rules, (one.mean() for one in self._divergences(replacers)), strict=True))
        self.notes.append(
            f"target tokens without a partner take the nearest earlier row; at {site} on "
            f"validation KL is {kl['earlier']:.3f} so and {kl['own']:.3f} if they keep their own "
            "state, which lets the target's own knowledge through"
        )

    def _examine(
        self, treatments: Sequence[Treatment], n_completed: int, embedder: Path | None
    ) -> tuple[list[Tested], dict[str, OwnCompletions], Examiner]:
        sets = text_sets(self.splits.test)
        longest = self.config.max_new_tokens or longest_answer(self.target, sets)
        examiner = Examiner(self.target, self.judge, self.test, longest, n_completed, embedder)
        tested: list[Tested] = []
        own = {}
        with self.progress.stage("test", len(sets) * len(treatments)) as advance:
            for texts in sets:
                own[texts.name] = own_completions(
                    self.source, self.target, texts, longest, self.config.batch_size
                )
                done = examiner.examine(treatments, texts, own[texts.name], advance)
                tested += [
                    Tested(treatment, texts, one)
                    for treatment, one in zip(treatments, done, strict=True)
                ]
        return tested, own, examiner

    def _measurements(
        self, tested: Sequence[Tested], own: dict[str, OwnCompletions], examiner: Examiner
    ) -> list[Measurement]:
        floors = {
            (one.treatment.arm.site, one.texts.name): one.done
            for one in tested
            if one.treatment.arm.condition == "mean_ablation"
        }
        found = []
        for one in tested:
            arm = one.treatment.arm
            floor = floors.get((arm.site, one.texts.name)) if one.treatment.follows_text else None
            floor = None if arm.condition == "mean_ablation" else floor
            found += examiner.measurements(
                one.treatment, one.done, one.texts, own[one.texts.name], floor
            )
        for name, both in own.items():
            alike = mean_interval(
                np.array([o.rouge_l for o in overlaps(both.source, both.target)]),
                seed=self.config.seed,
            )
            self.notes.append(
                f"{name}: untouched, the source's completions have ROUGE-L {alike.value:.3f} "
                f"({alike.low:.3f} to {alike.high:.3f}) with the target's"
            )
        judge = "the untouched target" if self.judge is self.target else self.judge.identity.name
        self.notes.append(f"perplexity is that of the completions under {judge}")
        return found

    def _note_use(self, tested: Sequence[Tested], steering: Arm) -> None:
        """Says whether the recommended use keeps benign accuracy and false triggers."""
        lost, triggered = (
            mean_interval(np.concatenate(values), seed=self.config.seed)
            for values in changes(tested, steering, self.config.marker)
        )
        self.notes.append(
            f"recommended use, a ridge-carried vector at {steering.site}, {steering.positions}, "
            f"strength {steering.strength:g}, changes benign accuracy by "
            f"{100 * lost.value:+.1f} points ({100 * lost.low:+.1f} to {100 * lost.high:+.1f}) and "
            f"false triggers by {100 * triggered.value:+.1f} ({100 * triggered.low:+.1f} to "
            f"{100 * triggered.high:+.1f}), question by question on both benign sets"
        )
