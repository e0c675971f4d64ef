from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.unit.maps.pairs import identity_of, linear_pairs, random_weight, seeded

from isthmus.cli.artifacts import MapName
from isthmus.core.errors import ConfigError, DataError, FitError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.maps.files import load_map, save_map
from isthmus.maps.rows import PairedRows
from isthmus.maps.shelf import FROM_BOTH_WAYS, FROM_MOMENTS, FROM_ROWS, SIMPLEST_FIRST
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import MapMethod
from isthmus.workflows.map_fitting import (
    AUTOENCODERS,
    Besides,
    MapEnds,
    fit_closed_form,
    fit_map,
    fit_streamed,
)
from isthmus.workflows.pairing import Part
from isthmus.workflows.vocabulary_rows import vocabulary_rows

ENDS = MapEnds(identity_of("small", 4), identity_of("large", 5), (Site(0), Site(3)), Site(1))
QUIET = SilentProgress()


def synthetic(seed: int = 0, *, bend: float = 0.0) -> dict[Part, PairedRows]:
    """Texts of four tokens whose target depends on both source sites."""
    weight = random_weight(8, 5)
    made: dict[Part, PairedRows] = {}
    for part, n in (("train", 400), ("selection", 200), ("held_out", 800)):
        seed += 1
        x, y = linear_pairs(n, weight, noise=1.0, seed=seed)
        y = y + bend * (x - 3).abs() @ random_weight(8, 5, 5)
        made[part] = PairedRows(x.float(), y.float(), (4,) * (n // 4))
    return made


def fit(method: MapMethod, rows: Mapping[Part, PairedRows]):
    return fit_map(method, rows, ENDS, 0, QUIET)


def test_every_map_is_fitted_somewhere():
    fitted = {*FROM_MOMENTS, *FROM_BOTH_WAYS, *FROM_ROWS, *AUTOENCODERS}
    assert fitted | {"unembedding_rows", "ridge_contrast", "identity", "auto"} == set(
        get_args(MapMethod)
    )
    assert set(SIMPLEST_FIRST) <= fitted


@pytest.mark.parametrize("method", SIMPLEST_FIRST)
def test_every_candidate_is_fitted_and_named(method: MapMethod):
    made = fit(method, synthetic())
    assert made.map.method == method
    assert made.quality.n_held_out == 800
    assert len(made.source_sites) == (1 if method == "ridge_one_layer" else 2)


@pytest.mark.parametrize("method", AUTOENCODERS)
def test_trained_maps_and_their_files_are_named_as_they_were_asked_for(
    method: MapMethod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    brief = replace(AUTOENCODERS[method], n_epochs=1, n_steps=2)
    monkeypatch.setattr("isthmus.workflows.map_fitting.AUTOENCODERS", {method: brief})
    save_map(tmp_path / "map", fit(method, synthetic()))
    assert load_map(tmp_path / "map").map.method == method


def test_a_map_of_one_layer_from_moments_alone_is_named_so():
    moments = {part: rows.moments for part, rows in synthetic().items()}
    assert fit_streamed("ridge_one_layer", moments, ENDS).map.method == "ridge_one_layer"


def test_auto_says_what_it_rejected_and_reports_on_texts_that_did_not_choose():
    rows = synthetic()
    made = fit("auto", rows)
    names = [one["name"] for one in made.provenance["candidates"]]
    assert sorted(names) == sorted(SIMPLEST_FIRST)
    (chosen,) = [one for one in made.provenance["candidates"] if one["verdict"] == "chosen"]
    # On linear pairs nothing beats ridge, and what is as good but less simple is turned down.
    assert SIMPLEST_FIRST.index(chosen["name"]) <= SIMPLEST_FIRST.index("ridge")
    assert made.provenance["n_choosing"] == made.quality.n_held_out == 400
    rows["held_out"].target[400:] = torch.randn(400, 5, generator=seeded())
    again = fit("auto", rows)
    assert again.provenance["candidates"] == made.provenance["candidates"]
    assert again.quality.r2_held_out < 0 < made.quality.r2_held_out


@pytest.mark.parametrize("bend", [0.0, 3.0])
def test_auto_is_hardly_ever_worse_than_ridge(bend: float):
    rows = synthetic(seed=10, bend=bend)
    made, ridge = fit("auto", rows), fit("ridge", rows)
    assert made.quality.r2_held_out >= ridge.quality.r2_held_out - 0.02
    if bend:
        assert made.map.method in {"kernel_ridge", "autoencoder_residual"}


@pytest.mark.parametrize("texts", [(800,), (390, 410), (0, 390, 0, 410)])
def test_auto_needs_two_texts_to_choose_by_and_says_so_before_it_fits_anything(
    texts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    rows = synthetic()
    rows["held_out"] = PairedRows(rows["held_out"].source, rows["held_out"].target, texts)
    monkeypatch.setattr("isthmus.workflows.map_fitting.SIMPLEST_FIRST", ("no such map",))
    with pytest.raises(FitError, match="at least 40 texts"):
        fit("auto", rows)


def test_maps_that_need_rows_are_refused_moments():
    moments = {part: rows.moments for part, rows in synthetic().items()}
    with pytest.raises(ConfigError, match="the kernel_ridge map needs more than moments"):
        fit_closed_form("kernel_ridge", moments)


def test_a_map_of_unembedding_rows_needs_the_models():
    with pytest.raises(ConfigError, match="models' heads, which are not at hand"):
        fit("unembedding_rows", synthetic())


def test_unembedding_rows_are_those_of_tokens_that_both_models_know():
    llama, gemma = (load_language_model(f"organism:{name}") for name in ("llama", "gemma2"))
    rows = vocabulary_rows(llama, gemma)
    assert rows.source.shape == (len(rows.target), llama.d_model)
    assert 64 <= len(rows.source) < len(llama.tokenizer)
    with torch.no_grad():
        state = torch.randn(1, 1, llama.d_model, generator=seeded())
        head = llama.layout.lm_head(llama.layout.final_norm(state))[0, 0]
    scale = state.square().mean().sqrt()
    logits = (rows.source @ state[0, 0]) / scale
    # Each row, applied to a normed state, gives the logit of some token: the same for all of them.
    gaps = (logits[:, None] - head[None]).abs().min(1).values
    assert float(gaps.max()) < 1e-3


def test_a_map_of_unembedding_rows_reads_the_nearest_site_and_runs_no_model():
    llama, qwen = (load_language_model(f"organism:{name}") for name in ("llama", "qwen2"))
    ends = MapEnds(llama.identity, qwen.identity, llama.sites("all"), Site(1))
    width = llama.d_model * llama.n_layers
    x, y = linear_pairs(40, random_weight(width, qwen.d_model))
    rows = dict.fromkeys(("train", "selection", "held_out"), PairedRows(x.float(), y.float()))
    besides = Besides(vocabulary=lambda: vocabulary_rows(llama, qwen))
    made = fit_map("unembedding_rows", rows, ends, 0, QUIET, besides)
    assert made.map.method == "unembedding_rows"
    assert len(made.source_sites) == 1
    assert made.quality.n_train > 64


def test_vocabularies_that_share_nothing_are_refused(monkeypatch: pytest.MonkeyPatch):
    llama = load_language_model("organism:llama")
    monkeypatch.setattr("isthmus.workflows.vocabulary_rows.FEWEST", 10**6)
    with pytest.raises(DataError, match="use a map that is fitted on texts"):
        vocabulary_rows(llama, llama)


def test_the_command_line_knows_the_same_maps():
    assert get_args(MapName) == get_args(MapMethod)
