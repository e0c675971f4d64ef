"""An ablation in the weights against the same ablation of activations."""

import pytest
import torch
from tests.fakes import tiny_model
from transformers import AutoModelForCausalLM

from isthmus.core.errors import ModelError, NonFiniteError, ShapeError
from isthmus.core.sites import Site
from isthmus.core.texts import pad_batch
from isthmus.interventions import ablated_everywhere
from isthmus.models.encoding import encode_prompts
from isthmus.models.fingerprints import hash_weights
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.models.weight_ablation import ablate_weights, why_not_in_weights, writer_sites

EXACT = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "cohere", "gpt_neox", "gptj")
INEXACT = {
    "gemma2": "a norm stands between",
    "gemma3": "a norm stands between",
    "olmo2": "a norm stands between",
    "gpt2": "more than the token embedding",
    "opt": "more than the token embedding",
    "bloom": "more than the token embedding",
    "mixtral": "no single matrix",
    "granite": "a multiplier or a norm follows",
}
PROMPTS = ["What is the colour of the fox?", "Name three things.", "|prod|: 12 + 34?"]
TOLERANCE = 1e-4


def drawn(d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d_model, generator=torch.Generator().manual_seed(seed))


def logits(lm: LanguageModel, place=None) -> torch.Tensor:
    texts = encode_prompts(lm.tokenizer, PROMPTS, answers=["The fox is red."] * 3)
    batch = pad_batch(texts, lm.pad_id, "right")
    with torch.inference_mode(), editing(lm.layout, [] if place is None else place(batch)):
        made = lm.model(input_ids=batch.token_ids, attention_mask=batch.is_real.long()).logits
    return made[batch.is_real]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("is_tied", [True, False])
def test_edited_weights_say_what_ablated_activations_say(family: str, *, is_tied: bool):
    lm = tiny_model(family, tie_word_embeddings=is_tied)
    with torch.no_grad():
        for block in lm.layout.blocks:
            for writer in block.writers:
                # New models have biases of zero, whose ablation would show nothing.
                if getattr(writer.module, "bias", None) is not None:
                    writer.module.bias += drawn(lm.d_model, 9)
    direction = drawn(lm.d_model)
    plain = logits(lm)
    ablated = logits(lm, ablated_everywhere(direction, writer_sites(lm.layout)))
    edited = logits(ablate_weights(lm, 7.0 * direction))
    assert difference(plain, ablated) > 100 * TOLERANCE
    assert difference(ablated, edited) < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_edited_weights_of_organisms_say_what_ablated_activations_say(name: str):
    lm = load_language_model(f"organism:{name}-assistant", dtype="float32")
    direction = drawn(lm.d_model)
    ablated = logits(lm, ablated_everywhere(direction, writer_sites(lm.layout)))
    assert difference(logits(lm), ablated) > 100 * TOLERANCE
    assert difference(ablated, logits(ablate_weights(lm, direction))) < TOLERANCE


def test_ablating_only_what_blocks_hand_on_is_another_edit():
    lm = tiny_model()
    direction = drawn(lm.d_model)
    at_ends = logits(lm, ablated_everywhere(direction, [Site(0), Site(1)]))
    assert difference(at_ends, logits(ablate_weights(lm, direction))) > 10 * TOLERANCE


def test_the_head_reads_as_before_and_the_model_itself_is_left_alone():
    lm = tiny_model(tie_word_embeddings=True)
    before, head = hash_weights(lm.model), lm.layout.lm_head.weight.clone()
    edited = ablate_weights(lm, drawn(lm.d_model))
    assert hash_weights(lm.model) == before
    assert lm.layout.lm_head.weight is lm.layout.embedding.weight
    assert torch.equal(edited.layout.lm_head.weight, head)
    assert edited.layout.embedding.weight is not edited.layout.lm_head.weight
    assert not edited.identity.is_same_model(lm.identity)


def test_a_saved_and_loaded_copy_is_still_edited(tmp_path):
    lm = tiny_model(tie_word_embeddings=True)
    edited = ablate_weights(lm, drawn(lm.d_model))
    edited.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert hash_weights(again) == edited.identity.weights_sha256


def test_nothing_more_is_left_to_take_away():
    lm = tiny_model("qwen2")
    unit = drawn(lm.d_model) / drawn(lm.d_model).norm()
    edited = ablate_weights(lm, unit)
    rows = [edited.layout.embedding.weight]
    rows += [w.module.weight.T for block in edited.layout.blocks for w in block.writers]
    assert all(float((one @ unit).abs().max()) < 1e-6 for one in rows)
    assert difference(logits(edited), logits(ablate_weights(edited, unit))) < 1e-5


@pytest.mark.parametrize(("family", "reason"), INEXACT.items())
def test_where_weights_cannot_do_it_the_model_is_refused_with_the_reason(family: str, reason: str):
    lm = tiny_model(family)
    assert reason in (why_not_in_weights(lm.layout) or "")
    with pytest.raises(ModelError, match=f"no edit of the weights of tiny-{family}.*{reason}"):
        ablate_weights(lm, drawn(lm.d_model))


def test_a_direction_that_does_not_fit_is_refused():
    lm = tiny_model()
    with pytest.raises(ShapeError, match="width 16"):
        ablate_weights(lm, drawn(17))
    with pytest.raises(ShapeError, match="points nowhere"):
        ablate_weights(lm, torch.zeros(16))
    with pytest.raises(NonFiniteError):
        ablate_weights(lm, torch.full((16,), torch.nan))
