import json

import pytest
import torch
from tests.fakes import tiny_network, tiny_tokenizer
from tests.further_families import further_network
from transformers import Mamba2Config

from isthmus.core.errors import NonFiniteError
from isthmus.models.fingerprints import deciding_settings, hash_tokenizer, hash_weights
from isthmus.models.language_model import wrap_language_model


def test_the_same_values_hash_alike_and_one_changed_value_does_not():
    network, twin = tiny_network("llama"), tiny_network("llama")
    assert hash_weights(network) == hash_weights(twin)
    with torch.no_grad():
        twin.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    assert hash_weights(network) != hash_weights(twin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_that_holds_the_values_does_not_change_the_hash(dtype):
    stored = tiny_network("llama").to(dtype)
    before = hash_weights(stored)
    assert hash_weights(stored.float()) == before


def test_rounding_to_a_narrower_dtype_changes_the_hash():
    network = tiny_network("llama")
    before = hash_weights(network)
    assert hash_weights(network.bfloat16()) != before


def test_exchanged_matrices_of_one_shape_change_the_hash():
    network = tiny_network("llama")
    before = hash_weights(network)
    attention = network.model.layers[0].self_attn
    attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    assert hash_weights(network) != before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_weights_are_refused_by_name(bad):
    network = tiny_network("llama")
    with torch.no_grad():
        network.model.layers[0].mlp.up_proj.weight[0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mlp\.up_proj"):
        hash_weights(network)


def test_using_a_tokenizer_does_not_change_its_hash():
    tokenizer = tiny_tokenizer()
    before = hash_tokenizer(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert hash_tokenizer(tokenizer) == before


def test_the_chat_template_and_the_vocabulary_are_part_of_the_hash():
    tokenizer, other = tiny_tokenizer(), tiny_tokenizer()
    assert hash_tokenizer(tokenizer) == hash_tokenizer(other)
    other.chat_template = "{{ messages[0]['content'] }}"
    assert hash_tokenizer(tokenizer) != hash_tokenizer(other)
    assert hash_tokenizer(tokenizer) != hash_tokenizer(tiny_tokenizer("metaspace"))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"rms_norm_eps": 1e-2}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        ("mistral", {"sliding_window": 3}),
        ("gemma2", {"query_pre_attn_scalar": 3}),
        ("granite", {"residual_multiplier": 0.25}),
        ("gpt2", {"layer_norm_epsilon": 1e-2}),
    ],
)
def test_the_same_weights_under_another_configuration_are_another_model(family, change):
    tokenizer = tiny_tokenizer()
    n_vocab = len(tokenizer)
    one, twin, other = (
        wrap_language_model(tiny_network(family, n_vocab=n_vocab, **changes), tokenizer, "m")
        for changes in ({}, {}, change)
    )
    assert one.identity.is_same_model(twin.identity)
    assert one.identity.weights_sha256 == other.identity.weights_sha256
    assert not one.identity.is_same_model(other.identity)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("deepseek_v3", {"n_group": 1}),
        ("llama4_text", {"use_qk_norm": False}),
        ("phimoe", {"router_jitter_noise": 0.3}),
    ],
)
def test_what_routes_tokens_or_norms_without_weights_decides_too(family, change):
    ids = torch.arange(3, 23)[None]
    one, other = further_network(family), further_network(family, **change)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert not torch.allclose(one(ids).logits, other(ids).logits, atol=1e-3)
    assert deciding_settings(one.config) != deciding_settings(other.config)


def test_what_a_configuration_says_of_files_and_versions_does_not_count():
    settings = deciding_settings(tiny_network("llama").config)
    assert settings["rms_norm_eps"] == 1e-6
    assert not {"dtype", "transformers_version", "bos_token_id", "use_cache"} & set(settings)
    assert deciding_settings(None) == {}


def test_infinite_limits_and_what_only_decorates_are_kept_as_json_can():
    limits = deciding_settings(Mamba2Config(num_heads=8, hidden_size=32, head_dim=8))
    assert limits["time_step_limit"] == [0.0, "Infinity"]
    assert json.loads(json.dumps(limits, allow_nan=False)) == limits
    qwen2 = deciding_settings(tiny_network("qwen2").config)
    assert "max_window_layers" not in qwen2
    stretched = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    one, other = (
        deciding_settings(
            tiny_network("llama", rope_parameters=stretched, max_position_embeddings=n).config
        )
        for n in (64, 128)
    )
    assert one != other
