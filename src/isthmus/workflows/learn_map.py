"""`learn-map`: a map from a source site, or all of them, to a target site."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from isthmus.core.artifacts import require_free, sha256_of_file
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.options import require_word
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites, Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import read_contrast, stream_questions
from isthmus.data.store_format import ROLES, Role
from isthmus.data.stored_pairs import StoredPairs
from isthmus.maps.files import KIND, FittedMap, save_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows
from isthmus.maps.shelf import FROM_MOMENTS
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype, MapMethod, Pairing
from isthmus.workflows.contrast_maps import ON_CONTRASTS, fit_and_measure
from isthmus.workflows.contrast_reading import ContrastPair, parts_of_contrasts, read_contrasts
from isthmus.workflows.map_fitting import (
    Besides,
    MapEnds,
    fit_map,
    fit_streamed,
    measured_again,
)
from isthmus.workflows.map_tuning import MapTuning, single_pairing, tune_map
from isthmus.workflows.pairing import PARTS, Part, paired_moments, paired_rows
from isthmus.workflows.row_reading import encoded_questions
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.store_filling import as_in_store, fill_store, spec_of_store
from isthmus.workflows.vocabulary_rows import vocabulary_rows

_TEXTS_AT_ONCE = 64
"""Texts that are tokenized together."""


def learn_map(
    source: str | Path,
    target: str | Path,
    texts: str | Path,
    *,
    target_site: GivenSites,
    out: str | Path | None = None,
    source_sites: GivenSites = "all",
    map: MapMethod = "ridge",  # noqa: A002
    pairing: Pairing = "character_end",
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    downstream_steps: int = 0,
    contrasts: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> FittedMap:
    """Fits a map from the source's activation space to the target's and measures it on other texts.

    Args:
        source: Hub name, local folder or `organism:NAME`.
        target: The same.
        texts: JSONL with `prompt` (and `answer`), or one text per line; at least 10. Of ten texts
            seven are fitted on, one chooses the strength, two measure.
        target_site: Where the map leads: `resid_post[3]`, `3`, `0.6`; for one map that leads to
            several sites at once a tuple, `1,2,3` or `all`.
        out: Folder to write; nothing is written when not given.
        source_sites: Sites that are concatenated: `all`, or a list.
        map: Which map; `auto` fits many, chooses by held-out score and notes in the provenance what
            it rejected.
        pairing: How tokens are paired: by `character_end`, at a `chunk_boundary`, as the mean of a
            span (`span_pool`), by `index`, or the `last` prompt token only.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Texts per forward pass.
        seed: First weights and order of maps that are trained.
        downstream_steps: Steps by which the map is then fine-tuned on what the target predicts when
            it reads on from mapped states; 0 leaves it as it was fitted.
        contrasts: Contrast prompts as `learn_direction` takes them, positive and negative in turn;
            `ridge_contrast` is fitted on what differs between them, too, and needs them.
        store: Folder of a store of pairs. One that holds these sites and was finished with these
            texts is read instead of the models; else the pairs are captured into it first, and a
            killed capture is gone on with.
        progress: Who shows progress.

    Returns:
        The map with its quality on held-out texts.

    Raises:
        IsthmusError: If a model, a site, the texts or the place cannot be used.
    """
    _require_asked(map, pairing, out)
    tuning = _tuning_of(downstream_steps, pairing, batch_size, seed)
    shown = progress or SilentProgress()
    # Read as a whole before a model is loaded: what is wrong with a row is said at once.
    n_texts = sum(1 for _ in stream_questions(Path(texts)))
    twins = _pairs_of(contrasts, map, Path(texts))
    models = [load_language_model(name, dtype=dtype, device=device) for name in (source, target)]
    sites = thinned_sites(models[0], source_sites)
    reached = models[1].sites(target_site)
    ends = MapEnds(models[0].identity, models[1].identity, sites, reached[0], reached[1:])
    reading = _Reading((models[0], models[1]), Path(texts), n_texts, pairing, batch_size, shown)
    if store is None and map in FROM_MOMENTS and not tuning:
        fitted = fit_streamed(map, reading.moments(ends), ends)
    elif store is None and twins and not tuning:
        both = reading.moments(ends), reading.contrasts(ends, twins)
        fitted = ends.fitted(*fit_and_measure(*both))
    else:
        pairs = reading.rows(ends) if store is None else reading.stored(ends, Path(store))
        besides = Besides(
            partial(vocabulary_rows, models[0], models[1]),
            partial(reading.contrasts, ends, twins) if twins else None,
        )
        fitted = fit_map(map, pairs, ends, seed, shown, besides)
        if tuning:
            fitted = measured_again(reading.tuned(fitted, tuning), pairs, ends)
    fitted.provenance.update(
        {
            "n_texts": n_texts,
            "texts_sha256": sha256_of_file(Path(texts)),
            "pairing": pairing,
            "seed": seed,
            **made_with(),
        }
    )
    if contrasts is not None:
        told = {"n_pairs": len(twins), "sha256": sha256_of_file(Path(contrasts))}
        fitted.provenance["contrasts"] = told
    if out is not None:
        save_map(Path(out), fitted)
    return fitted


def _require_asked(method: str, pairing: str, out: str | Path | None) -> None:
    """Refuses what no map can be made of, or for, before anything is read."""
    require_word("map", method, get_args(MapMethod))
    require_word("pairing", pairing, get_args(Pairing))
    require_free(out, KIND)


def _tuning_of(n_steps: int, pairing: Pairing, batch_size: int, seed: int) -> MapTuning | None:
    """Says how a map is fine-tuned, and refuses before anything is read what cannot be done."""
    if not n_steps:
        return None
    single_pairing(pairing)
    return MapTuning(n_steps=n_steps, batch_size=min(batch_size, 16), seed=seed)


def _pairs_of(contrasts: str | Path | None, method: MapMethod, texts: Path) -> list[ContrastPair]:
    if method == ON_CONTRASTS and contrasts is None:
        raise ConfigError(
            f"the {ON_CONTRASTS} map is fitted on contrasts and none are given: name a file of "
            "contrast prompts (contrasts), or use ridge"
        )
    if method != ON_CONTRASTS and contrasts is not None:
        raise ConfigError(
            f"contrasts {contrasts} given, but the {method} map is not fitted on any: leave them "
            f"out, or use {ON_CONTRASTS}"
        )
    if contrasts is None:
        return []
    prompts = read_contrast(Path(contrasts))
    if len(prompts.positive) != len(prompts.negative):
        raise DataError(
            f"{contrasts} holds {len(prompts.positive)} positive and {len(prompts.negative)} "
            "negative prompts: a map is fitted on pairs, give one of either in every row"
        )
    both = zip(prompts.positive, prompts.negative, strict=True)
    pairs = [ContrastPair(*pair) for pair in both]
    parts_of_contrasts(pairs, _prompts(texts))
    return pairs


def _prompts(texts: Path) -> list[str]:
    return [question.prompt for question in stream_questions(texts)]


@dataclass(frozen=True)
class _Reading:
    """Reads both models over the same questions: to moments, to rows, or through a store."""

    models: tuple[LanguageModel, LanguageModel]
    path: Path
    n_texts: int
    pairing: Pairing
    batch_size: int
    progress: Progress

    def texts(self) -> Iterator[tuple[EncodedText, EncodedText]]:
        stream = stream_questions(self.path)
        while some := tuple(itertools.islice(stream, _TEXTS_AT_ONCE)):
            source, target = (encoded_questions(lm, some) for lm in self.models)
            yield from zip(source, target, strict=True)

    def moments(self, ends: MapEnds) -> dict[Part, PairMoments]:
        found = paired_moments(
            *self.models,
            self.texts(),
            (ends.source_sites, ends.target_sites),
            pairing=self.pairing,
            batch_size=self.batch_size,
            n_texts=self.n_texts,
            progress=self.progress,
            keeps_rows=False,
        )
        return found.joint

    def rows(self, ends: MapEnds) -> dict[Part, PairedRows]:
        return paired_rows(
            *self.models,
            self.texts(),
            (ends.source_sites, ends.target_sites),
            pairing=self.pairing,
            batch_size=self.batch_size,
            n_texts=self.n_texts,
            progress=self.progress,
        )

    def contrasts(self, ends: MapEnds, pairs: Sequence[ContrastPair]) -> dict[Part, PairedRows]:
        return read_contrasts(
            self.models,
            pairs,
            _prompts(self.path),
            (ends.source_sites, ends.target_sites),
            self.batch_size,
            self.progress,
        )

    def tuned(self, fitted: FittedMap, tuning: MapTuning) -> FittedMap:
        both = list(self.texts())
        texts = [source for source, _ in both], [target for _, target in both]
        return tune_map(fitted, self.models, texts, tuning, self.progress, pairing=self.pairing)

    def stored(self, ends: MapEnds, folder: Path) -> dict[Part, StoredPairs]:
        models: dict[Role, LanguageModel] = dict(zip(ROLES, self.models, strict=True))
        sites: dict[Role, tuple[Site, ...]] = {
            "source": ends.source_sites,
            "target": ends.target_sites,
        }
        spec = spec_of_store(models, sites, pairing=self.pairing)
        filled = fill_store(
            folder,
            as_in_store(folder, spec),
            models,
            stream_questions(self.path),
            batch_size=self.batch_size,
            n_texts=self.n_texts,
            progress=self.progress,
        )
        return {part: filled.pairs(part, sites["source"], sites["target"]) for part in PARTS}
