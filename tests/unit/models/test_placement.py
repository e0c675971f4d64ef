import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.fakes import n_hooks, shift, tiny_network
from tests.workflows.small import save_tiny

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, ModelError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.baking import bake_ablation, bake_addition
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.fingerprints import hash_weights
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.placement import find_placement, is_spread
from isthmus.models.resuming import can_resume, prefix_states
from isthmus.models.scoring import answer_nll
from isthmus.workflows.vocabulary_rows import vocabulary_rows
from isthmus.workflows.weight_patching import with_blocks

ELSEWHERE = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.layers.3": "disk",
    "model.norm": "disk",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
EDITED = [Site(1), Site(2, Stream.ATTN_OUT), Site(3, Stream.RESID_PRE)]


def spelled(**changes: str) -> str:
    devices = {**ELSEWHERE, **{f"model.{name}": place for name, place in changes.items()}}
    return f"map:{json.dumps(devices)}"


def pair_of(folder: Path, device: str, **changes: object) -> tuple[LanguageModel, LanguageModel]:
    name = save_tiny(folder, n_layers=4, **changes)
    return load_language_model(name, device="cpu"), load_language_model(name, device=device)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, LanguageModel]:
    """A model in memory, and the same with every second block and the head on the disk."""
    return pair_of(tmp_path_factory.mktemp("model") / "one", spelled())


@pytest.fixture(scope="module")
def texts(models) -> list[EncodedText]:
    prompts = ["What is the colour of the fox?", "The capital", "A drum, a lamp and a rope."]
    answers = ["red.", "of Besk is Brim.", "12"]
    return encode_prompts(models[0].tokenizer, prompts, answers=answers)


def edits(batch: TokenBatch) -> list[PlacedEdit]:
    return [
        PlacedEdit(s, shift(), batch.is_real, torch.ones(len(batch.texts)).bool()) for s in EDITED
    ]


def test_weights_on_the_disk_have_no_values_here_and_the_model_is_known_all_the_same(models):
    whole, spread = models
    assert is_spread(spread.model)
    assert not is_spread(whole.model)
    kept = [name for name, value in spread.model.named_parameters() if value.is_meta]
    assert {"lm_head.weight", "model.norm.weight"} < set(kept)
    assert spread.identity == whole.identity
    assert spread.device == torch.device("cpu")
    assert [name for name, value in spread.model.named_parameters() if value.is_meta] == kept


@pytest.mark.parametrize(("place", "tied"), [("cpu", False), ("disk", False), ("disk", True)])
def test_an_embedding_that_is_elsewhere_changes_neither_identity_nor_sites(tmp_path, tied, place):
    device = spelled(embed_tokens=place)
    whole, spread = pair_of(tmp_path / "model", device, tie_word_embeddings=tied)
    assert spread.identity == whole.identity
    assert spread.layout.embedding_scale == whole.layout.embedding_scale == 1.0
    for one, other in zip(whole.layout.blocks, spread.layout.blocks, strict=True):
        assert (one.name, one.reason, one.missing) == (other.name, other.reason, other.missing)
        assert [w.name for w in one.writers] == [w.name for w in other.writers]


def test_a_map_that_parts_a_tied_head_from_its_embedding_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="are one weight"):
        pair_of(tmp_path / "model", spelled(), tie_word_embeddings=True)


def test_activations_are_the_same_bits(models, texts):
    whole, spread = (all_token_activations(lm, texts, EDITED, batch_size=2) for lm in models)
    for site in EDITED:
        for one, other in zip(whole[site], spread[site], strict=True):
            assert torch.equal(one, other)


def test_edits_and_completions_under_them_are_the_same(models, texts):
    whole, spread = (answer_nll(lm, texts, edits=edits, batch_size=2) for lm in models)
    assert torch.equal(whole.nll, spread.nll)
    assert whole.n_edited == spread.n_edited > 0
    asked = [prompt_part(text) for text in texts]
    done = [generate_greedy(lm, asked, max_new_tokens=4, edits=edits) for lm in models]
    assert done[0] == done[1]
    assert not n_hooks(models[1])


def test_a_pass_that_starts_in_the_middle_puts_the_wrapped_forwards_back(models, texts):
    whole, spread = models
    before = [vars(block.module).get("forward") for block in spread.layout.blocks]
    assert None not in before
    prefix = prefix_states(spread, texts, [1], 2)[1]
    assert can_resume(spread, texts, prefix)
    found = answer_nll(spread, texts, edits=edits, batch_size=2, prefix=prefix)
    assert torch.equal(found.nll, answer_nll(whole, texts, edits=edits, batch_size=2).nll)
    assert [vars(block.module).get("forward") for block in spread.layout.blocks] == before


def test_unembedding_rows_are_read_from_the_disk(models):
    whole, spread = models
    here, there = vocabulary_rows(whole, whole), vocabulary_rows(whole, spread)
    assert torch.equal(here.target, there.target)


def test_copies_with_other_weights_are_refused(models):
    whole, spread = models
    vector = torch.ones(whole.d_model)
    with pytest.raises(ModelError, match="accelerate has spread"):
        bake_ablation(spread, vector)
    with pytest.raises(ModelError, match="accelerate has spread"):
        bake_addition(spread, Site(1), vector)
    for one, other in ((whole, spread), (spread, whole)):
        with pytest.raises(ModelError, match="cannot exchange weights"):
            with_blocks(one, other, [0])


def test_weights_without_values_are_refused():
    with pytest.raises(ModelError, match="no values"):
        hash_weights(tiny_network("llama").to("meta"))


def test_a_map_that_chooses_by_itself_needs_nothing_on_a_machine_with_room(tmp_path):
    whole, spread = pair_of(tmp_path / "model", "map:auto")
    assert spread.identity == whole.identity


def test_half_precision_becomes_single_where_it_is_computed_on_a_cpu(tmp_path):
    _, spread = pair_of(tmp_path / "model", spelled(), dtype=torch.float16)
    assert spread.dtype == torch.float32


def test_what_lies_on_the_disk_goes_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, spread = pair_of(tmp_path / "model", spelled())
    assert list(tmp_path.glob("isthmus-offload-*"))
    del spread
    gc.collect()
    assert not list(tmp_path.glob("isthmus-offload-*"))


@pytest.mark.parametrize(
    "device",
    ["map:", "map:best", "map:[1]", "map:{}", 'map:{"model": null}', 'map:{"model": true}'],
)
def test_a_map_that_is_none_is_refused(device):
    with pytest.raises(ConfigError, match="JSON object of devices by module"):
        find_placement(device)


@pytest.mark.parametrize("given", ["cuda:777", "xpu:777", "mps", "hpu", 777, "gpu", "meta", "0"])
def test_a_map_that_names_a_device_which_is_not_here_is_refused_as_the_device_alone_is(given):
    with pytest.raises(ConfigError, match=rf"'lm_head' on '?{given}'?\W"):
        find_placement("map:" + json.dumps({"model": "cpu", "lm_head": given}))
    if given not in {777, "meta"}:
        with pytest.raises(ConfigError, match=f"no device '{given}' here"):
            find_placement(given)


def test_without_accelerate_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[accelerate\]'"):
        find_placement("map:auto")
