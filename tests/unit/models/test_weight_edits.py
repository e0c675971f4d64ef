import pytest
import torch
from tests.fakes import tiny_model
from tests.further_families import further_model
from transformers import AutoModelForCausalLM

from isthmus.core.errors import ModelError
from isthmus.models.weight_edits import copy_with_own_weights

IDS = torch.tensor([[5, 6, 7, 8]])


# The blocks of Zamba share their attention: once the head is not tied, nothing was on loading.
@pytest.mark.parametrize("family", ["zamba", "rwkv", "bart"])
def test_a_copy_shares_no_weight_and_computes_the_same_when_saved_and_loaded(family, tmp_path):
    lm = further_model(family)
    made = copy_with_own_weights(lm)
    weights = [id(one) for _, one in made.named_parameters(remove_duplicate=False)]
    assert len(set(weights)) == len(weights)
    made.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for one in (made, again):
            torch.testing.assert_close(one(IDS).logits, lm.model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_module_that_stands_at_two_places_is_refused():
    lm = tiny_model()
    first, second = lm.model.model.layers
    second.mlp = first.mlp
    with pytest.raises(ModelError, match="one module at several places"):
        copy_with_own_weights(lm)
