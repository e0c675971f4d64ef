"""`learn-map`: a map from a source site, or all of them, to a target site."""

from pathlib import Path

from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import package_versions
from isthmus.core.sites import Site
from isthmus.data.prompts import read_questions
from isthmus.maps.files import FittedMap, save_map
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import Dtype, MapMethod, Pairing
from isthmus.workflows.crossing import thinned_sites
from isthmus.workflows.map_fitting import MapEnds, fit_map, measured_again
from isthmus.workflows.map_tuning import MapTuning, tune_map
from isthmus.workflows.pairing import paired_rows
from isthmus.workflows.vocabulary_rows import vocabulary_rows


def learn_map(
    source: str,
    target: str,
    texts: str | Path,
    *,
    target_site: Site | str | int | float | tuple[Site | str | int | float, ...],
    out: str | Path | None = None,
    source_sites: str | tuple[Site | str | int | float, ...] = "all",
    map: MapMethod = "ridge",  # noqa: A002
    pairing: Pairing = "character_end",
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    downstream_steps: int = 0,
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
        progress: Who shows progress.

    Returns:
        The map with its quality on held-out texts.

    Raises:
        IsthmusError: If a model, a site, the texts or the place cannot be used.
    """
    shown = progress or SilentProgress()
    questions = read_questions(Path(texts))
    models = [load_language_model(name, dtype=dtype, device=device) for name in (source, target)]
    prompts = [question.prompt for question in questions]
    answers = [question.answer or "" for question in questions]
    encoded = [
        encode_prompts(lm.tokenizer, prompts, answers=answers if any(answers) else None)
        for lm in models
    ]
    sites = thinned_sites(models[0], source_sites)
    given = target_site if isinstance(target_site, str | tuple) else (target_site,)
    reached = models[1].sites(given)
    rows = paired_rows(
        models[0],
        models[1],
        (encoded[0], encoded[1]),
        (sites, reached),
        pairing=pairing,
        batch_size=batch_size,
        progress=shown,
    )
    ends = MapEnds(models[0].identity, models[1].identity, sites, reached[0], reached[1:])
    fitted = fit_map(map, rows, ends, seed, shown, lambda: vocabulary_rows(models[0], models[1]))
    if downstream_steps:
        tuning = MapTuning(n_steps=downstream_steps, batch_size=min(batch_size, 16), seed=seed)
        tuned = tune_map(
            fitted, (models[0], models[1]), (encoded[0], encoded[1]), tuning, shown, pairing=pairing
        )
        fitted = measured_again(tuned, rows, ends)
    fitted.provenance.update(
        {"n_texts": len(questions), "pairing": pairing, "versions": package_versions()}
    )
    if out is not None:
        save_map(Path(out), fitted)
    return fitted
