import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fakes import FAMILIES, OverwritesItsInput, tiny_network
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from isthmus.core.errors import ModelError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.probing import find_layout

ADDS_AS_IS = {
    "llama": "self_attn.o_proj mlp.down_proj",
    "qwen2": "self_attn.o_proj mlp.down_proj",
    "mistral": "self_attn.o_proj mlp.down_proj",
    "phi3": "self_attn.o_proj mlp.down_proj",
    "cohere": "self_attn.o_proj mlp.down_proj",
    "gpt2": "attn.c_proj mlp.c_proj",
    "gpt_neox": "attention.dense mlp.dense_4h_to_h",
    "gptj": "attn.out_proj mlp.fc_out",
    "falcon": "self_attention.dense mlp.dense_4h_to_h",
    "opt": "self_attn.out_proj fc2",
    "smollm3": "self_attn.o_proj mlp.down_proj",
    "stablelm": "self_attn.o_proj mlp.down_proj",
}
NORM_BETWEEN = ("gemma2", "gemma3", "olmo2")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_blocks_width_norm_embedding_and_head(family):
    network = tiny_network(family, n_layers=3)
    layout = find_layout(network)
    assert (layout.n_layers, layout.d_model) == (3, 16)
    assert layout.final_norm is not None
    assert layout.lm_head is network.get_output_embeddings()
    assert layout.embedding is network.get_input_embeddings()


@pytest.mark.parametrize(("family", "expected"), ADDS_AS_IS.items())
def test_exact_writers_are_the_matrices_whose_product_is_added(family, expected):
    layout = find_layout(tiny_network(family))
    for block in layout.blocks:
        assert [w.name.removeprefix(f"{block.name}.") for w in block.writers] == expected.split()
        assert all(writer.is_exact for writer in block.writers)
        assert block.has_all_writers
    assert layout.writes_exactly


@pytest.mark.parametrize("family", NORM_BETWEEN)
def test_writers_before_a_norm_are_not_exact_and_the_norm_makes_the_addition(family):
    block = find_layout(tiny_network(family)).blocks[0]
    assert [w.name.split(".")[-1] for w in block.writers] == ["o_proj", "down_proj"]
    assert not any(writer.is_exact for writer in block.writers)
    assert not find_layout(tiny_network(family)).writes_exactly
    assert "Norm" in type(block.attn).__name__


def test_the_experts_of_a_mixture_are_one_writer():
    block = find_layout(tiny_network("mixtral")).blocks[0]
    assert block.mlp is not None
    assert [w.name.split(".")[-1] for w in block.writers] == ["o_proj", "experts"]
    assert block.has_all_writers


@pytest.mark.parametrize("family", ["granite", "bloom", "mamba"])
@pytest.mark.parametrize("stream", [Stream.ATTN_OUT, Stream.MLP_OUT])
def test_parts_that_are_not_added_as_they_are_have_no_site_and_the_error_says_why(family, stream):
    layout = find_layout(tiny_network(family))
    with pytest.raises(SiteError, match="multiplier"):
        layout.module_at(Site(0, stream))
    assert layout.module_at(Site(0, Stream.RESID_PRE)) is layout.blocks[0].module


@pytest.mark.parametrize(
    ("family", "scale"), [("llama", 1.0), ("gemma2", 4.0), ("gpt2", None), ("granite", 1.0)]
)
def test_the_embedding_scale_is_the_factor_before_the_first_block(family, scale):
    found = find_layout(tiny_network(family)).embedding_scale
    assert found == (None if scale is None else pytest.approx(scale, rel=1e-6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gpt_neox", "opt", "granite", "mixtral", "mamba", "bloom"]
)
def test_parts_and_writers_are_found_in_half_precision(family, dtype):
    network = tiny_network(family)
    assert names(find_layout(network.to(dtype))) == names(find_layout(network.float()))


def names(layout):
    parts = [(type(block.attn), type(block.mlp)) for block in layout.blocks]
    return parts, [(w.name, w.norm, w.scale is None) for w in layout.writers]


def test_a_layer_beyond_the_last_is_refused_with_the_range():
    layout = find_layout(tiny_network("llama"))
    with pytest.raises(SiteError, match="layers 0 to 1"):
        layout.module_at(Site(2))


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_wrapped_model_has_the_layout_of_the_model_inside():
    network = tiny_network("llama")
    wrapped = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"])).eval()
    layout = find_layout(wrapped)
    assert layout.root is network
    assert layout.blocks[0].has_all_writers


def bert():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(hidden_size=16, vocab_size=50, initializer_range=0.2, **sizes)
    return BertLMHeadModel(config).eval()


def t5():
    sizes = {"num_layers": 2, "num_heads": 2, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, **sizes))


def headless():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaModel(LlamaConfig(hidden_size=16, vocab_size=50, **sizes))


@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)), r"a transformers model \(none of its modules"),
        (t5, r"a decoder without an encoder \(its configuration says"),
        (headless, r"a language-model head \(get_output_embeddings\(\) returned NoneType\)"),
        (bert, "not causal"),
    ],
)
def test_what_is_no_decoder_is_refused_and_the_message_names_what_is_missing(build, missing):
    with pytest.raises(ModelError, match=missing):
        find_layout(build())


def test_a_model_that_runs_its_blocks_several_times_is_refused():
    # Which of its states a layer names, capturing and editing would not agree.
    network = tiny_network("llama")
    network.model.layers.append(network.model.layers[0])
    network.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match=r"layers\.0 2 times in a pass"):
        find_layout(network)


def test_blocks_that_overwrite_their_inputs_are_noticed():
    network = tiny_network("llama")
    assert not find_layout(network).writes_in_place
    network.model.layers[1] = OverwritesItsInput(network.model.layers[1])
    assert find_layout(network).writes_in_place


@pytest.mark.parametrize("seed", range(4))
def test_experts_that_sum_in_another_order_are_no_later_token_that_is_seen(seed):
    # At this size rounding alone was refused for one seed in twelve, for more in larger models.
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "initializer_range": 0.02}
    network = tiny_network("mixtral", n_layers=12, seed=seed, num_local_experts=8, **sizes)
    assert find_layout(network).n_layers == 12
