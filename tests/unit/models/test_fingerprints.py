import pytest
import torch
from tests.fakes import tiny_network, tiny_tokenizer

from isthmus.core.errors import NonFiniteError
from isthmus.models.fingerprints import hash_tokenizer, hash_weights


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
