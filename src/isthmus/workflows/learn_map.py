"""`learn-map`: a map from a source site, or all of them, to a target site."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import package_versions
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.prompts import Question, read_questions
from isthmus.data.store_format import ROLES, Role
from isthmus.data.stored_pairs import StoredPairs
from isthmus.maps.files import FittedMap, save_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.rows import PairedRows
from isthmus.maps.shelf import FROM_MOMENTS
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype, MapMethod, Pairing
from isthmus.workflows.crossing import thinned_sites
from isthmus.workflows.map_fitting import MapEnds, fit_map, fit_streamed
from isthmus.workflows.pairing import PARTS, Part, paired_moments, paired_rows
from isthmus.workflows.store_filling import as_in_store, fill_store, spec_of_store
from isthmus.workflows.vocabulary_rows import vocabulary_rows


def learn_map(
    source: str,
    target: str,
    texts: str | Path,
    *,
    target_site: Site | str | int | float,
    out: str | Path | None = None,
    source_sites: str | tuple[Site | str | int | float, ...] = "all",
    map: MapMethod = "ridge",  # noqa: A002
    pairing: Pairing = "character_end",
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> FittedMap:
    """Fits a map from the source's activation space to the target's and measures it on other texts.

    Args:
        source: Hub name, local folder or `organism:NAME`.
        target: The same.
        texts: JSONL with `prompt` (and `answer`), or one text per line; at least 10. Of ten texts
            seven are fitted on, one chooses the strength, two measure.
        target_site: Where the map leads: `resid_post[3]`, `3`, `0.6`.
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
        store: Folder of a store of pairs. One that holds these sites and was finished with these
            texts is read instead of the models; else the pairs are captured into it first, and a
            killed capture is gone on with.
        progress: Who shows progress.

    Returns:
        The map with its quality on held-out texts.

    Raises:
        IsthmusError: If a model, a site, the texts or the place cannot be used.
    """
    shown = progress or SilentProgress()
    # Read as a whole before a model is loaded: what is wrong with a row is said at once.
    questions = read_questions(Path(texts))
    models = [load_language_model(name, dtype=dtype, device=device) for name in (source, target)]
    sites, site = thinned_sites(models[0], source_sites), models[1].site(target_site)
    ends = MapEnds(models[0].identity, models[1].identity, sites, site)
    reading = _Reading((models[0], models[1]), questions, pairing, batch_size, shown)
    if store is None and map in FROM_MOMENTS:
        fitted = fit_streamed(map, reading.moments(ends), ends)
    else:
        pairs = reading.rows(ends) if store is None else reading.stored(ends, Path(store))
        vocabulary = partial(vocabulary_rows, models[0], models[1])
        fitted = fit_map(map, pairs, ends, seed, shown, vocabulary)
    fitted.provenance.update(
        {"n_texts": len(questions), "pairing": pairing, "versions": package_versions()}
    )
    if out is not None:
        save_map(Path(out), fitted)
    return fitted


@dataclass(frozen=True)
class _Reading:
    """Reads both models over the same questions: to moments, to rows, or through a store."""

    models: tuple[LanguageModel, LanguageModel]
    questions: Sequence[Question]
    pairing: Pairing
    batch_size: int
    progress: Progress

    @property
    def texts(self) -> tuple[list[EncodedText], list[EncodedText]]:
        prompts = [question.prompt for question in self.questions]
        answers = [question.answer or "" for question in self.questions]
        first, second = (
            encode_prompts(lm.tokenizer, prompts, answers=answers if any(answers) else None)
            for lm in self.models
        )
        return first, second

    def moments(self, ends: MapEnds) -> dict[Part, PairMoments]:
        found = paired_moments(
            *self.models,
            self.texts,
            (ends.source_sites, [ends.target_site]),
            pairing=self.pairing,
            batch_size=self.batch_size,
            progress=self.progress,
            keeps_rows=False,
        )
        return found.by_site[ends.target_site]

    def rows(self, ends: MapEnds) -> dict[Part, PairedRows]:
        return paired_rows(
            *self.models,
            self.texts,
            (ends.source_sites, ends.target_site),
            pairing=self.pairing,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def stored(self, ends: MapEnds, folder: Path) -> dict[Part, StoredPairs]:
        models: dict[Role, LanguageModel] = dict(zip(ROLES, self.models, strict=True))
        sites: dict[Role, tuple[Site, ...]] = {
            "source": ends.source_sites,
            "target": (ends.target_site,),
        }
        spec = spec_of_store(models, sites, pairing=self.pairing)
        filled = fill_store(
            folder,
            as_in_store(folder, spec),
            models,
            self.questions,
            batch_size=self.batch_size,
            n_texts=len(self.questions),
            progress=self.progress,
        )
        return {part: filled.pairs(part, sites["source"], sites["target"]) for part in PARTS}
