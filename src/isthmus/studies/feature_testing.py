"""Tests one feature of the source in both models, with what edits as large do without it."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import Panel, condition_curve, curve_panels
from isthmus.features.patching import RankedFeatures, random_features, with_feature
from isthmus.features.sparse_autoencoder import SparseAutoencoder
from isthmus.maps.base import AffineMap
from isthmus.studies.feature_bench import PatchBench, PatchEffect
from isthmus.studies.feature_measuring import (
    IN_SOURCE,
    NAME,
    Described,
    FeatureRecorder,
    side_by_side,
)
from isthmus.studies.feature_route import FeatureRoute, FeatureStudy
from isthmus.workflows.map_fitting import shuffled_map

States = Float[Tensor, "prompt position d_model"]


class FeaturePatcher:
    """One sparse autoencoder and one map: patches features and says where they are measured.

    Args:
        study: Models and questions.
        route: Sites and map.
        autoencoder: The features.
    """

    def __init__(
        self, study: FeatureStudy, route: FeatureRoute, autoencoder: SparseAutoencoder
    ) -> None:
        self.study, self.route, self.sae = study, route, autoencoder
        self.config = study.config

    def bench(self, side: Literal["source", "target"], split: str) -> PatchBench:
        """Returns what measures one model on one split."""
        lm = self.study.source if side == "source" else self.study.target
        site = self.route.sites[0 if side == "source" else 1]
        return PatchBench(lm, getattr(self.study.splits, split), site, self.config)

    def benches(self, split: str) -> tuple[PatchBench, PatchBench]:
        """Returns what measures the source and the target on one split."""
        return self.bench("source", split), self.bench("target", split)

    def recorder(self, bench: PatchBench, split: str) -> FeatureRecorder:
        """Returns what writes the measurements of a bench."""
        is_target = bench.lm is self.study.target
        names = (self.study.source.identity.name, bench.lm.identity.name)
        return FeatureRecorder(
            *names,
            (str(self.route.sites[0]), str(bench.site)),
            self.config.positions,
            self.route.used_map.method if is_target else None,
            split,
            NAME if is_target else f"{NAME}/{IN_SOURCE}/{self.study.target.identity.name}",
        )

    def patched(self, clean: States, triggered: States, feature: int, scale: float) -> States:
        """Returns clean states in which one feature has scale times the triggered value."""
        values = scale * self.sae.preactivations(triggered)[..., feature]
        return with_feature(self.sae, clean, feature, values)


class FeatureTest:
    """Measures the chosen feature once on test prompts, with its controls.

    Args:
        patcher: Features and map.
        feature: Which one.
        scale: Multiple of the triggered value at which it is compared with controls.
        ranked: Features that are not drawn as random ones.
    """

    def __init__(
        self, patcher: FeaturePatcher, feature: int, scale: float, ranked: RankedFeatures
    ) -> None:
        self.patcher, self.feature, self.scale, self.ranked = patcher, feature, scale, ranked
        self.measured: list[Measurement] = []
        self.config, self.map = patcher.config, patcher.route.used_map
        self.here, self.there = patcher.benches("test")
        self.clean = self.here.states(self.here.clean)
        self.triggered = self.here.states(self.here.triggered)
        self.plain = patcher.sae.reconstruct(self.clean)

    def _record(
        self,
        bench: PatchBench,
        what: Described,
        done: PatchEffect,
        baseline: PatchEffect | None = None,
    ) -> None:
        recorder = self.patcher.recorder(bench, "test")
        self.measured += recorder.effects(what, done, baseline)

    def run(self, scales: tuple[float, ...]) -> tuple[dict[str, str], ...]:
        """Measures every condition; returns completions side by side."""
        shown: dict[str, PatchEffect] = {}
        for bench, condition, states in (
            (self.here, "native", self.plain),
            (self.there, "transferred", self.map(self.plain)),
        ):
            is_source = bench is self.here
            seed = self.config.seed
            self._record(bench, Described("none", seed=seed), bench.measure_triggered())
            self._record(bench, Described("clean", seed=seed), bench.measure(None))
            base = bench.measure(states)
            self._record(bench, Described(condition, "reconstruction", None, seed), base)
            whole = self.triggered if is_source else self.map(self.triggered)
            self._record(
                bench, Described(condition, "patch_state", None, seed), bench.measure(whole), base
            )
            for scale in scales:
                put = self._patched(self.feature, scale)
                done = bench.measure(put if is_source else self.map(put))
                what = Described(condition, "patch_feature", scale, seed)
                self._record(bench, what, done, base)
                if scale == self.scale:
                    shown["source" if is_source else "target"] = done
            shown["source, reconstruction" if is_source else "target, reconstruction"] = base
            if not is_source:
                self._controls(base)
        prompts = [text.text for text in self.here.clean]
        return side_by_side(prompts, shown, 8)

    def _patched(self, feature: int, scale: float) -> States:
        return self.patcher.patched(self.clean, self.triggered, feature, scale)

    def _controls(self, base: PatchEffect) -> None:
        """Measures in the target what edits as large do without the feature."""
        seed, there = self.config.seed, self.there
        plain = self.map(self.plain)
        change = self.map(self._patched(self.feature, self.scale)) - plain
        own = there.states(there.clean)
        what = Described("transferred", "add_feature", self.scale, seed)
        self._record(there, what, there.measure(own + change), base)
        for draw in range(seed, seed + self.config.n_random):
            generator = torch.Generator().manual_seed(draw)
            noise = torch.randn(change.shape, generator=generator)
            put = plain + _as_long_as(noise, change)
            self._record(
                there, Described("noise", "add", self.scale, draw), there.measure(put), base
            )
        self._random_features(base)
        shuffled = shuffled_map(self.patcher.route.rows, self.patcher.route.ends, seed).map
        if isinstance(shuffled, AffineMap):
            moved = shuffled.linear(self._patched(self.feature, self.scale) - self.plain)
            done = there.measure(plain + _as_long_as(moved, change))
            self._record(there, Described("shuffled_map", "add", self.scale, seed), done, base)
        mean = self.patcher.route.rows["train"].target.mean(0).expand_as(own)
        done = there.measure(mean)
        self._record(there, Described("mean_ablation", "replace", None, seed), done, base)

    def _random_features(self, base: PatchEffect) -> None:
        """Gives random features the pre-activation that the chosen one has."""
        sae = self.patcher.sae
        values = self.scale * sae.preactivations(self.triggered)[..., self.feature]
        generator = torch.Generator().manual_seed(self.config.seed)
        drawn = random_features(
            sae, self.clean, self.ranked.indices, self.config.n_random, generator
        )
        for number, feature in enumerate(drawn):
            put = self.map(with_feature(sae, self.clean, feature, values))
            what = Described("random", "patch_feature", self.scale, self.config.seed + number)
            self._record(self.there, what, self.there.measure(put), base)


def _as_long_as(vectors: States, like: States) -> States:
    """Scales every vector to the length of its counterpart."""
    lengths = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scaled: Tensor = vectors / lengths * like.norm(dim=-1, keepdim=True)
    return scaled


def feature_figures(measured: Sequence[Measurement], scale: float) -> dict[str, str]:
    """Draws rate and recovery by scale in both models, and controls at the chosen scale.

    Args:
        measured: Measurements of a study.
        scale: The chosen scale.

    Returns:
        SVG text by title.
    """
    tested = [m for m in measured if m.split == "test" and not m.task.endswith("/corrected")]
    panels = []
    for metric, title in (
        ("behaviour_rate", "Behaviour rate on clean prompts"),
        ("recovery_induction", "Recovery of the behaviour"),
    ):
        curves = []
        for condition, edit, variant in (
            ("native", "patch_feature", "source"),
            ("transferred", "patch_feature", "target"),
            ("random", "patch_feature", "target"),
            ("noise", "add", "target"),
            ("shuffled_map", "add", "target"),
        ):
            points = [
                (m.strength, m)
                for m in tested
                if (m.metric, m.condition, m.edit) == (metric, condition, edit)
                and m.strength is not None
            ]
            if points:
                curves.append(condition_curve(condition, points, variant))
        panels.append(Panel(title, "scale of the feature", tuple(curves)))
    drawn = curve_panels(panels, "feature", f"One feature, controls at scale {scale:g}", 2)
    return {} if drawn is None else {"A feature's effect by its scale": drawn}
