"""From where to where a feature's effect is carried: sites chosen on validation, map, features."""

from dataclasses import dataclass

import torch

from isthmus.core.errors import FitError, SiteError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.features.files import FittedFeatures
from isthmus.features.sparse_autoencoder import reconstruction_quality
from isthmus.features.training import TopKSettings, train_sparse_autoencoder
from isthmus.maps.base import AffineMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.studies.feature_bench import PatchBench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.map_fitting import MapEnds, fit_closed_form
from isthmus.workflows.pairing import PairedMoments, PairedRows, Part, paired_moments, paired_rows
from isthmus.workflows.twins import TwinSplits, map_texts


@dataclass(frozen=True)
class FeatureRoute:
    """From where to where, and through which map.

    Attributes:
        ends: Models and sites.
        used_map: Ridge map between the sites.
        fvu: Its unexplained variance on held-out pairs.
        rows: Paired activations.
    """

    ends: MapEnds
    used_map: AffineMap
    fvu: float
    rows: dict[Part, PairedRows]

    @property
    def sites(self) -> tuple[Site, Site]:
        """The source site and the target site."""
        return self.ends.source_sites[0], self.ends.target_site


@dataclass(frozen=True)
class FeatureStudy:
    """Both models and the questions.

    Attributes:
        source: Model with the features.
        target: Model that an effect is carried to.
        splits: Questions as twins.
        config: Positions, behaviour, batch size, seed.
        progress: Who shows progress.
    """

    source: LanguageModel
    target: LanguageModel
    splits: TwinSplits
    config: RunConfig
    progress: Progress

    def route(self, source_site: Site | None) -> FeatureRoute:
        """Chooses both sites on validation and fits the map between them."""
        site = source_site or self._source_site()
        moments, texts = self._moments(site)
        maps = {}
        for target_site in self._inner_sites(self.target):
            maps[target_site] = fit_closed_form("ridge", moments.by_site[target_site])
        bench = PatchBench(self.source, self.splits.validation, site, self.config)
        states = bench.states(bench.triggered)
        best: dict[Site, float] = {}
        with self.progress.stage("choose the target site", len(maps)) as advance:
            for target_site, (made, _) in maps.items():
                there = PatchBench(self.target, self.splits.validation, target_site, self.config)
                best[target_site] = there.recovery(made(states))
                advance(1)
        chosen = max(best, key=lambda one: best[one])
        made, quality = maps[chosen]
        if not isinstance(made, AffineMap):
            raise FitError("the ridge map is not affine")
        rows = moments.rows_at(chosen) or paired_rows(
            self.source,
            self.target,
            texts,
            ([site], chosen),
            batch_size=self.config.batch_size,
            progress=self.progress,
        )
        ends = MapEnds(self.source.identity, self.target.identity, (site,), chosen)
        return FeatureRoute(ends, made, quality.fvu_held_out, rows)

    def _inner_sites(self, lm: LanguageModel) -> tuple[Site, ...]:
        sites = tuple(site for site in lm.sites("all") if site.layer < lm.n_layers - 1)
        if not sites:
            raise SiteError(f"{lm.identity.name} has one block: a feature needs a later one to act")
        return sites

    def _source_site(self) -> Site:
        found: dict[Site, float] = {}
        sites = self._inner_sites(self.source)
        with self.progress.stage("choose the source site", len(sites)) as advance:
            for site in sites:
                bench = PatchBench(self.source, self.splits.validation, site, self.config)
                found[site] = bench.recovery(bench.states(bench.triggered))
                advance(1)
        return max(found, key=lambda site: found[site])

    def _moments(
        self, site: Site
    ) -> tuple[PairedMoments, tuple[list[EncodedText], list[EncodedText]]]:
        texts = map_texts(self.splits.train)
        asked, answers = [p for p, _ in texts], [answer for _, answer in texts]
        encoded = (
            encode_prompts(self.source.tokenizer, asked, answers=answers),
            encode_prompts(self.target.tokenizer, asked, answers=answers),
        )
        moments = paired_moments(
            self.source,
            self.target,
            encoded,
            ([site], self._inner_sites(self.target)),
            pairing=self.config.pairing,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )
        return moments, encoded

    def train(self, route: FeatureRoute, training: TopKSettings) -> FittedFeatures:
        """Trains the sparse autoencoder on the source side of the map's training pairs."""
        with self.progress.stage("train the sparse autoencoder", training.n_steps) as advance:
            autoencoder = train_sparse_autoencoder(
                route.rows["train"].source,
                training,
                torch.Generator().manual_seed(self.config.seed),
                lambda _step, _loss: advance(1),
            )
        quality = reconstruction_quality(autoencoder, route.rows["held_out"].source)
        return FittedFeatures(autoencoder, self.source.identity, route.sites[0], quality)
