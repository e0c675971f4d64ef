import pytest
import torch
from tests.fakes import (
    FAMILIES,
    model_whose_blocks_share_more_than_the_stream,
    n_hooks,
    shift,
    tiny_model,
)

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site, Stream
from isthmus.models.encoding import encode_prompts
from isthmus.models.resuming import (
    PrefixStates,
    can_resume,
    last_shared_layer,
    prefix_states,
    resuming,
)
from isthmus.models.scoring import answer_logprobs, answer_nll

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "What is a rope?"]
ANSWERS = ["A drum.", "The fox is red.", "a lamp and a rope", "A thing."]
BATCH = 3


def texts_of(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def zeros(layer):
    return PrefixStates(layer, 1, (torch.zeros(1, 3, 16),), in_tuple=False)


def edits_at(site):
    def place(batch):
        mask = torch.zeros_like(batch.is_real)
        mask[:, 1:3] = True
        return [PlacedEdit(site, shift(), mask, mask.new_zeros(len(mask)))]

    return place


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_that_start_in_the_middle_are_those_of_whole_passes(family):
    lm = tiny_model(family, n_layers=3)
    texts, site = texts_of(lm), Site(1)
    prefix = prefix_states(lm, texts, [0, 1], BATCH)[1]
    assert can_resume(lm, texts, prefix)
    whole = answer_nll(lm, texts, edits=edits_at(site), batch_size=BATCH)
    resumed = answer_nll(lm, texts, edits=edits_at(site), batch_size=BATCH, prefix=prefix)
    torch.testing.assert_close(resumed.nll, whole.nll, rtol=1e-5, atol=1e-5)
    assert resumed.n_edited == whole.n_edited > 0
    pairs = zip(
        answer_logprobs(lm, texts, edits=edits_at(site), batch_size=BATCH),
        answer_logprobs(lm, texts, edits=edits_at(site), batch_size=BATCH, prefix=prefix),
        strict=True,
    )
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_model_is_as_before_when_the_body_raises():
    lm = tiny_model(n_layers=3)
    before = lm.model(torch.tensor([[5, 6, 7]])).logits
    own = [dict(vars(block.module)) for block in lm.layout.blocks]
    with pytest.raises(RuntimeError, match="body"), resuming(lm.layout, zeros(1), 0):
        raise RuntimeError("body")
    assert [dict(vars(block.module)) for block in lm.layout.blocks] == own
    assert n_hooks(lm) == 0
    torch.testing.assert_close(lm.model(torch.tensor([[5, 6, 7]])).logits, before)


def test_a_forward_that_a_wrapper_put_there_is_put_back():
    lm = tiny_model(n_layers=2)
    block = lm.layout.blocks[0].module
    wrapped = block.forward
    block.forward = wrapped
    with resuming(lm.layout, zeros(0), 0):
        assert block.forward is not wrapped
    assert vars(block)["forward"] is wrapped


def test_a_model_whose_blocks_share_more_than_the_stream_is_not_resumed():
    wrapped = model_whose_blocks_share_more_than_the_stream()
    texts = texts_of(wrapped)
    prefix = prefix_states(wrapped, texts, [0], BATCH)[0]
    assert not can_resume(wrapped, texts, prefix)


def test_states_of_other_texts_are_refused():
    lm = tiny_model()
    texts = texts_of(lm)
    prefix = prefix_states(lm, texts, [0], BATCH)[0]
    with pytest.raises(DataError, match=r"4 texts in batches of 3 were kept, 3 texts"):
        answer_nll(lm, texts[:3], batch_size=BATCH, prefix=prefix)


@pytest.mark.parametrize(
    ("sites", "layer"),
    [
        ([Site(2)], 2),
        ([Site(3), Site(1)], 1),
        ([Site(2, Stream.MLP_OUT)], 1),
        ([Site(0, Stream.RESID_PRE)], None),
        ([], None),
    ],
)
def test_the_last_shared_layer_lies_below_every_edit(sites, layer):
    assert last_shared_layer(sites) == layer
