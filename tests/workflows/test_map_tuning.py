import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.workflows.small import save_tiny, write_world_questions

import isthmus
from isthmus.core.errors import ConfigError
from isthmus.core.progress import SilentProgress
from isthmus.data.prompts import read_questions
from isthmus.maps.base import AffineMap
from isthmus.maps.files import FittedMap, load_map, save_map
from isthmus.maps.shelf import FROM_ROWS
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.scoring import answer_logprobs
from isthmus.workflows.map_tuning import MapTuning, Stitcher, tune_map

Models = tuple[LanguageModel, LanguageModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tuning")
    save_tiny(place / "one")
    save_tiny(place / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_world_questions(place / "texts.jsonl")
    return place


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    return load_language_model(str(folder / "one")), load_language_model(str(folder / "two"))


@cache
def learned(folder: Path, **given: object) -> FittedMap:
    return isthmus.learn_map(
        str(folder / "one"), str(folder / "two"), folder / "texts.jsonl", target_site=1, **given
    )


def encoded(models: Models, folder: Path):
    questions = read_questions(folder / "texts.jsonl")
    return tuple(
        encode_prompts(
            lm.tokenizer, [q.prompt for q in questions], answers=[q.answer or "" for q in questions]
        )
        for lm in models
    )


def test_fine_tuning_lowers_what_mapped_states_do_to_other_texts(folder: Path, tmp_path: Path):
    before, after = learned(folder), learned(folder, downstream_steps=12)
    told = after.provenance["downstream"]
    assert told["kl_after"] < told["kl_before"]
    assert not torch.equal(before.map.weight, after.map.weight)
    save_map(tmp_path / "kept", after)
    assert load_map(tmp_path / "kept").provenance["downstream"] == told


def test_the_quality_of_a_tuned_map_is_measured_after_tuning(folder: Path):
    before, after = learned(folder), learned(folder, downstream_steps=12)
    assert after.quality.r2_held_out != before.quality.r2_held_out
    assert after.quality.n_held_out == before.quality.n_held_out


def test_what_is_told_to_be_unexplained_is_what_the_quality_says(folder: Path):
    before, after = learned(folder), learned(folder, downstream_steps=12)
    told = after.provenance["downstream"]
    assert told["fvu_before"] == pytest.approx(before.quality.fvu_held_out, rel=1e-4)
    assert told["fvu_after"] == pytest.approx(after.quality.fvu_held_out, rel=1e-4)


def test_a_batch_of_one_token_trains_as_any_other(models: Models, folder: Path):
    """With `last` every text has one pair, and one text in a batch has no variance of its own."""
    start = learned(folder, pairing="last")
    tuned = tune_map(
        start,
        models,
        encoded(models, folder),
        MapTuning(n_steps=8, batch_size=1),
        SilentProgress(),
        pairing="last",
    )
    told = tuned.provenance["downstream"]
    assert all(math.isfinite(number) for number in told.values())
    # What replaced the start did better on the texts that choose.
    assert not torch.equal(tuned.map.weight, start.map.weight)


def test_the_targets_own_states_through_an_identity_leave_its_predictions(
    models: Models, folder: Path
):
    target = models[1]
    texts = encoded(models, folder)[1][:6]
    own = learned(folder)
    width = target.d_model
    identity = AffineMap(torch.eye(width), torch.zeros(width), torch.zeros(width), "ridge")
    site = own.target_site
    to_itself = FittedMap(identity, target.identity, target.identity, (site,), site, own.quality)
    stitcher = Stitcher(target, target, to_itself, "character_end")
    found = stitcher.run(identity, stitcher.read((texts, texts)))
    assert float(found.kl) == pytest.approx(0.0, abs=1e-6)
    assert float(found.error) == pytest.approx(0.0, abs=1e-9)


def test_the_divergence_is_that_of_plain_passes_over_replaced_states(models: Models, folder: Path):
    source, target = models
    fitted = learned(folder, source_sites=(1,))
    texts = tuple(side[:1] for side in encoded(models, folder))
    stitcher = Stitcher(source, target, fitted, "index")
    batch = stitcher.read((texts[0], texts[1]))
    with torch.no_grad():
        states = source.model(
            torch.tensor([texts[0][0].token_ids]), output_hidden_states=False
        )  # the plain pass below needs no state of this one
        assert states.logits.isfinite().all()
        mapped = fitted.map(batch.source_states)

        def put_in(_module, _args, output):
            value = output[0] if isinstance(output, tuple) else output
            new = torch.where(batch.is_paired[..., None], mapped, value)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        ids = torch.tensor([texts[1][0].token_ids])
        untouched = target.model(ids).logits.log_softmax(-1)
        handle = target.layout.module_at(fitted.target_site).register_forward_hook(put_in)
        try:
            stitched = target.model(ids).logits.log_softmax(-1)
        finally:
            handle.remove()
    expected = (untouched.exp() * (untouched - stitched)).sum(-1).mean()
    found = stitcher.run(fitted.map, batch).kl
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["autoencoder_residual", "kernel_ridge"])
def test_maps_of_every_kind_can_be_tuned_and_the_start_stays_as_it_was(
    models: Models, folder: Path, method: str
):
    assert method in FROM_ROWS
    start = learned(folder, map=method)
    kept = {name: value.clone() for name, value in vars(start.map).items() if _is_tensor(value)}
    settings = MapTuning(n_steps=4, batch_size=4)
    tuned = tune_map(start, models, encoded(models, folder), settings, SilentProgress())
    assert type(tuned.map) is type(start.map)
    for name, value in kept.items():
        assert torch.equal(getattr(start.map, name), value)


def test_a_map_without_parameters_and_pooled_pairs_are_refused(models: Models, folder: Path):
    start = learned(folder)
    texts = encoded(models, folder)
    with pytest.raises(ConfigError, match="span_pool"):
        tune_map(start, models, texts, MapTuning(), SilentProgress(), pairing="span_pool")
    with pytest.raises(ConfigError, match="at least 1"):
        replace(MapTuning(), n_steps=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"downstream_steps": -4}, "-4 steps"), ({"pairing": "span_pool"}, "span_pool")],
)
def test_a_tuning_that_cannot_be_done_is_refused_before_a_model_is_looked_for(
    folder: Path, asked: dict[str, object], said: str
):
    given = {"downstream_steps": 4, **asked}
    with pytest.raises(ConfigError, match=said):
        isthmus.learn_map("none", "none", folder / "texts.jsonl", target_site=1, **given)


def test_no_hook_is_left_after_tuning(models: Models, folder: Path):
    tune_map(
        learned(folder), models, encoded(models, folder), MapTuning(n_steps=2), SilentProgress()
    )
    text = encoded(models, folder)[1][0]
    assert not any(m._forward_hooks for m in models[1].model.modules())
    assert answer_logprobs(models[1], [text])[0].isfinite().all()


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
