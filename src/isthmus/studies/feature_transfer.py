"""Carries the effect of one sparse feature through a map into another model.

1. Site: of all blocks but the last, where the triggered twin's own states at the last prompt tokens
   bring the behaviour about best on validation; in the target, where their mapped images do. The
   last block is left out: its output is the prediction of the next token.
2. A TopK autoencoder is trained on the source site over the texts of the map, or given.
3. Features are ranked by mean activation under the bad minus under the clean trigger on training
   prompts. Each is patched on validation: its pre-activation in the clean prompt becomes scale
   times that of the triggered twin, before TopK, at the last prompt token; the reconstruction is
   mapped and put into the target there, once: later tokens are left to the model.
4. The feature with the largest effect in the source is chosen, its scale by the effect in the
   target.
5. On test prompts it is compared with the mapped reconstruction alone, with noise and with the
   change through a shuffled map as long as its own change, with random features of the same
   activation, and with what the whole state of the triggered twin does.

Source: arXiv 2503.04429, appendix H.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import spearmanr

from isthmus.core.errors import ConfigError, FitError
from isthmus.core.identity import require_same_model
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.evaluation.measurements import Measurement
from isthmus.features.files import FittedFeatures
from isthmus.features.patching import RankedFeatures, rank_features
from isthmus.features.sparse_autoencoder import reconstruction_quality
from isthmus.features.training import TopKSettings
from isthmus.models.language_model import load_language_model
from isthmus.studies.feature_measuring import NAME, Described, effect_beyond
from isthmus.studies.feature_route import FeatureStudy
from isthmus.studies.feature_testing import FeaturePatcher, FeatureTest, feature_figures
from isthmus.studies.result import StudyResult
from isthmus.workflows.config import make_config
from isthmus.workflows.twins import read_splits

SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Multiples of the triggered twin's pre-activation that are tried."""


def ignore_features(_features: FittedFeatures) -> None:
    """Takes no notice of an autoencoder that was trained."""


def transfer_feature(
    source: str,
    target: str,
    *,
    features: FittedFeatures | None = None,
    training: TopKSettings | None = None,
    source_site: Site | None = None,
    n_features: int = 30,
    scales: Sequence[float] = SCALES,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    on_trained: Callable[[FittedFeatures], None] = ignore_features,
) -> StudyResult:
    """Finds the sparse feature that brings a behaviour about, and carries its effect to a target.

    Args:
        source: Hub name, local folder or `organism:NAME`.
        target: Likewise.
        features: A sparse autoencoder of the source; trained when not given.
        training: How it is trained.
        source_site: Where, when it is trained; chosen on validation when not given.
        n_features: How many of the features that differ most are tried, at least 1.
        scales: Multiples of the triggered twin's pre-activation that are tried: at least one, all
            finite and above 0.
        settings: Other fields of `RunConfig`: questions, triggers, sizes of splits, batch size.
        seed: Seed of questions, training and random controls.
        progress: Who shows progress.
        on_trained: Told of an autoencoder that was trained here, so that further targets can be
            given the same `features`.

    Returns:
        Behaviour rates and recoveries in both models with controls, the effect of every feature
        that was tried, two figures and completions side by side.

    Raises:
        ConfigError: If there is no feature or no scale to try, or a scale is out of range.
        IsthmusError: If models, features, sites or questions cannot be used.
    """
    progress = progress or SilentProgress()
    _require_choices(n_features, scales)
    few = {"n_validation": 48, "n_test": 128, "positions": "last:1"}
    config = make_config(
        {"source": source, "target": target, **few, **(settings or {}), "seed": seed}
    )
    models = []
    for name in (config.source, config.targets[0]):
        with progress.stage(f"load {name}"):
            models.append(load_language_model(name, dtype=config.dtype, device=config.device))
    study = FeatureStudy(models[0], models[1], read_splits(config), config, progress)
    if features is not None:
        require_same_model(
            "sparse autoencoder",
            features.model,
            study.source.identity,
            "train one on the source, or give the model that it was trained on",
        )
        source_site = features.site
    route = study.route(source_site)
    if features is None:
        features = study.train(route, training or TopKSettings())
        on_trained(features)
    return _carried(FeaturePatcher(study, route, features.autoencoder), n_features, tuple(scales))


def _require_choices(n_features: int, scales: Sequence[float]) -> None:
    if n_features < 1:
        raise ConfigError(f"n_features is {n_features}: expected at least 1")
    if not scales:
        raise ConfigError("no scales: give at least one, such as 1.0 for the twin's own activation")
    for scale in scales:
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"scale {scale}: expected a finite number above 0")


def _carried(patcher: FeaturePatcher, n_features: int, scales: tuple[float, ...]) -> StudyResult:
    choice = _Choice(patcher)
    ranked = choice.ranked(n_features)
    feature, scale = choice.choose(ranked, scales)
    test = FeatureTest(patcher, feature, scale, ranked)
    rows = test.run(scales)
    measured = (*choice.measured, *test.measured)
    notes = (*choice.notes, *_origin_notes(patcher))
    return StudyResult(NAME, measured, notes, feature_figures(measured, scale), rows)


def _origin_notes(patcher: FeaturePatcher) -> list[str]:
    route = patcher.route
    quality = reconstruction_quality(patcher.sae, route.rows["held_out"].source)
    kept = (
        f"sparse autoencoder at {route.sites[0]}: {patcher.sae.d_feature} features, "
        f"{quality.n_active:.1f} active, {quality.dead_share:.3f} never active, unexplained "
        f"variance {quality.fvu:.4f} on {quality.n_rows} held-out tokens"
    )
    deviation = (
        "unlike in the paper the map is ridge from one source site, and sites, feature and scale "
        "are chosen on validation prompts"
    )
    return [kept, f"map to {route.sites[1]}: unexplained variance {route.fvu:.3f}", deviation]


class _Choice:
    """Tries features on validation and keeps what was measured."""

    def __init__(self, patcher: FeaturePatcher) -> None:
        self.patcher, self.config = patcher, patcher.config
        self.measured: list[Measurement] = []
        self.notes: list[str] = []

    def ranked(self, n_features: int) -> RankedFeatures:
        """Ranks features on training prompts."""
        train = self.patcher.bench("source", "train")
        triggered, clean = train.states(train.triggered), train.states(train.clean)
        ranked = rank_features(self.patcher.sae, triggered, clean, n_features)
        if not ranked.indices:
            raise FitError("no feature is more active under the bad trigger: use another site")
        return ranked

    def choose(self, ranked: RankedFeatures, scales: tuple[float, ...]) -> tuple[int, float]:
        """Tries every feature on validation; returns the best in the source, and its scale."""
        here, there = self.patcher.benches("validation")
        clean, triggered = here.states(here.clean), here.states(here.triggered)
        plain = self.patcher.sae.reconstruct(clean)
        baselines = (here.losses(plain), there.losses(self.patcher.route.used_map(plain)))
        found: dict[tuple[int, float], tuple[float, float]] = {}
        with self.patcher.study.progress.stage("try features", len(ranked.indices)) as advance:
            for feature in ranked.indices:
                for scale in scales:
                    states = self.patcher.patched(clean, triggered, feature, scale)
                    effects = []
                    for bench, put, base in (
                        (here, states, baselines[0]),
                        (there, self.patcher.route.used_map(states), baselines[1]),
                    ):
                        effect = effect_beyond(bench.losses(put), base)
                        condition = "native" if bench is here else "transferred"
                        what = Described(condition, f"feature {feature}", scale, self.config.seed)
                        recorder = self.patcher.recorder(bench, "validation")
                        self.measured.append(
                            recorder.record(what, "feature_effect", effect, len(bench.clean))
                        )
                        effects.append(effect.value)
                    found[feature, scale] = (effects[0], effects[1])
                advance(1)
        best = max(found, key=lambda one: found[one][0])[0]
        scale = max(scales, key=lambda one: found[best, one][1])
        self._note_ranking(ranked, found, scales, best, scale)
        return best, scale

    def _note_ranking(
        self,
        ranked: RankedFeatures,
        found: dict[tuple[int, float], tuple[float, float]],
        scales: tuple[float, ...],
        best: int,
        scale: float,
    ) -> None:
        peaks = [
            tuple(max(found[feature, s][side] for s in scales) for side in (0, 1))
            for feature in ranked.indices
        ]
        works = [sum(peak[side] >= 0.5 for peak in peaks) for side in (0, 1)]
        rank = ranked.indices.index(best) + 1
        self.notes.append(
            f"feature {best} at scale {scale:g} chosen: {rank} of {len(peaks)} by mean difference; "
            f"{works[0]} of {len(peaks)} features raise the recovery by .5 or more at some scale "
            f"in the source, {works[1]} in the target (validation)"
        )
        if len(peaks) > 2:
            agree = spearmanr([p[0] for p in peaks], [p[1] for p in peaks]).statistic
            by_rank = spearmanr(ranked.differences, [p[0] for p in peaks]).statistic
            self.notes.append(
                f"rank correlation over the features of best effect in source and target "
                f"{agree:.2f}, of mean difference and effect in the source {by_rank:.2f}"
            )
