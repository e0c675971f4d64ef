import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fakes import n_hooks, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError, NonFiniteError, ShapeError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.interventions import subspace_ablation
from isthmus.models.baking import bake_ablation, bake_addition, writer_sites
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import wrap_language_model
from isthmus.models.probing import find_layout

IDS = torch.tensor([[5, 6, 7, 8]])


def draw(n=16, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_nothing_in_the_stream_of_a_baked_model_lies_along_the_direction():
    direction = draw()
    sites = [Site(i, s) for i in range(2) for s in (Stream.RESID_PRE, Stream.RESID_POST)]
    layout = find_layout(bake_ablation(tiny_model("gpt2"), direction))
    with capturing(layout, sites) as captured, torch.no_grad():
        layout.root(IDS)
    for states in captured.values():
        along = (states @ direction).abs().max() / direction.norm()
        assert along < 1e-5 * states.norm(dim=-1).max()


def test_the_length_and_sign_of_the_direction_do_not_matter():
    lm, direction = tiny_model(), draw()
    one = bake_ablation(lm, direction)(IDS).logits
    other = bake_ablation(lm, -7 * direction)(IDS).logits
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_ablating_twice_is_ablating_once():
    lm, direction = tiny_model(), draw()
    once = bake_ablation(lm, direction)
    twice = bake_ablation(wrap_language_model(copy.deepcopy(once), lm.tokenizer, "x"), direction)
    torch.testing.assert_close(once(IDS).logits, twice(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_baked_subspace_is_the_subspace_ablated_wherever_something_is_written():
    lm, rows = tiny_model(), torch.stack([draw(seed=i) for i in range(3)])
    edit = subspace_ablation(torch.linalg.qr(rows.mT).Q.mT)
    every = torch.ones_like(IDS, dtype=torch.bool)
    placed = [PlacedEdit(site, edit, every, every[:, 0]) for site in writer_sites(lm.layout)]
    with editing(lm.layout, placed), torch.no_grad():
        expected = lm.model(IDS).logits
    baked = bake_ablation(lm, rows)(IDS).logits
    torch.testing.assert_close(baked, expected, rtol=1e-5, atol=1e-5)
    one = bake_ablation(lm, rows[0])(IDS).logits
    torch.testing.assert_close(bake_ablation(lm, rows[:1])(IDS).logits, one, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="3 vectors span fewer dimensions"):
        bake_ablation(lm, rows[[0, 1, 0]])
    for rank in (lm.d_model, lm.d_model + 1):
        with pytest.raises(ShapeError, match=f"at most {lm.d_model - 1} leave something"):
            bake_ablation(lm, torch.stack([draw(seed=i) for i in range(rank)]))


def test_a_tied_head_keeps_its_weights_and_the_embedding_changes():
    lm = tiny_model("gemma")
    own = lm.layout.embedding.weight
    baked = bake_ablation(lm, draw())
    head, embedding = baked.get_output_embeddings().weight, baked.get_input_embeddings().weight
    assert torch.equal(head, own)
    assert not torch.equal(embedding, own)
    assert not baked.config.tie_word_embeddings
    assert lm.model.config.tie_word_embeddings
    assert lm.model.get_output_embeddings().weight is own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_stay_in_it(dtype):
    lm = tiny_model()
    half = wrap_language_model(copy.deepcopy(lm.model).to(dtype), lm.tokenizer, "half")
    for baked in (bake_ablation(half, draw()), bake_addition(half, 0, draw())):
        assert baked.dtype == dtype
        assert all(p.dtype == dtype for p in baked.parameters())


def test_baking_leaves_the_model_and_the_random_generator_as_they_were():
    lm = tiny_model("qwen2")
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    state = torch.get_rng_state()
    bake_ablation(lm, draw())
    bake_addition(lm, 0, draw())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.state_dict().items())
    assert n_hooks(lm) == 0


@pytest.mark.parametrize("site", ["attn_out[1]", "mlp_out[0]", "resid_pre[1]", "resid_post[1]", -1])
def test_an_addition_goes_to_every_kind_of_site_of_a_model_with_biases(site):
    lm, vector = tiny_model(), draw()
    baked = bake_addition(lm, site, vector)
    where = lm.site(site)
    module = lm.layout.module_at(where)

    def before(_module, args, kwargs):
        return (args[0] + vector, *args[1:]), kwargs

    def after(_module, _args, made):
        return (made[0] + vector, *made[1:]) if isinstance(made, tuple) else made + vector

    if where.stream is Stream.RESID_PRE:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    expected = lm.model(IDS).logits
    handle.remove()
    torch.testing.assert_close(baked(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_mistral_without_windows_becomes_the_llama_that_computes_the_same(tmp_path):
    lm = tiny_model("mistral", sliding_window=None)
    baked = bake_addition(lm, 1, draw())
    assert type(baked).__name__ == "LlamaForCausalLM"
    baked.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, baked(IDS).logits)
    zero = bake_addition(lm, 1, torch.zeros(16))
    torch.testing.assert_close(zero(IDS).logits, lm.model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_bias_of_attention_is_not_taken_for_one_of_the_block():
    with pytest.raises(ModelError, match=r"o_proj acts on more than resid_post\[0\]"):
        bake_addition(tiny_model("qwen3"), 0, draw())


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        (draw(8), ShapeError),
        (torch.full((16,), torch.nan), NonFiniteError),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vector, error):
    lm = tiny_model()
    for bake in (lambda: bake_ablation(lm, vector), lambda: bake_addition(lm, 0, vector)):
        with pytest.raises(error):
            bake()


def test_a_zero_direction_and_a_layer_beyond_the_last_are_refused():
    lm = tiny_model()
    with pytest.raises(ShapeError, match="zero"):
        bake_ablation(lm, torch.zeros(16))
    with pytest.raises(SiteError, match="layers 0 to 1"):
        bake_addition(lm, 2, draw())


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_has_to_be_merged_first():
    lm = tiny_model()
    get_peft_model(lm.model, LoraConfig(r=2, target_modules=["o_proj"]))
    adapted = wrap_language_model(lm.model, lm.tokenizer, "adapted")
    with pytest.raises(ModelError, match="merge it first"):
        bake_ablation(adapted, draw())


class Bends(nn.Module):
    """A feed-forward part that no matrix ends."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x).tanh()


def test_a_part_without_a_matrix_at_its_end_is_named_with_what_was_looked_at():
    lm = tiny_model()
    lm.model.model.layers[1].mlp = Bends(lm.model.model.layers[1].mlp)
    odd = wrap_language_model(lm.model, lm.tokenizer, "odd")
    with pytest.raises(ModelError) as caught:
        bake_ablation(odd, draw())
    said = str(caught.value)
    assert "the matrix through which model.layers.1.mlp (Bends) writes" in said
    assert "mlp.mlp.down_proj" in said
    assert "docs/models.md" in said


class Wanders(nn.Module):
    """An embedding whose rows are bent before they begin the stream."""

    def __init__(self, embedding):
        super().__init__()
        self.inner = embedding

    def forward(self, ids):
        return self.inner(ids).sin()


def test_a_stream_that_does_not_begin_with_an_embeddings_rows_is_refused():
    lm = tiny_model()
    lm.model.model.embed_tokens = Wanders(lm.model.model.embed_tokens)
    odd = wrap_language_model(lm.model, lm.tokenizer, "odd")
    with pytest.raises(ModelError, match="rows begin the residual stream were not found"):
        bake_ablation(odd, draw())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stream_kept_in_float32_beside_narrower_weights_is_ablated_to_their_rounding(dtype):
    lm = tiny_model("mamba")
    half = wrap_language_model(copy.deepcopy(lm.model).to(dtype), lm.tokenizer, "half")
    assert bake_ablation(half, draw()).dtype == dtype
