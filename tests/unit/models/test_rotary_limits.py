"""Rows of a model with two sets of rotary frequencies come out as they do alone."""

import pytest
import torch
from tests.fakes import LONGROPE, shift, tiny_model, tiny_network, tiny_tokenizer, varied

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import merge_rows
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import no_edits, padded_batches
from isthmus.models.capture import all_token_activations
from isthmus.models.changes import benign_change
from isthmus.models.continuous import ContinuousDecoder
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy, generate_with_memory
from isthmus.models.language_model import wrap_language_model
from isthmus.models.prompt_memory import PromptMemory
from isthmus.models.rotary_limits import limit_within, read_alike, rotary_limits
from isthmus.models.scoring import answer_logprobs
from isthmus.models.stepwise import generate_stepwise
from isthmus.workflows.cell_passes import CellPasses

LIMIT = 26
LONG = "The bear is " + "brown and red " * 6
PROMPTS = ["a", LONG, "What is the fox?", "The bear is brown and red, and the fox", "Name it."]
ANSWERS = ["The fox", "brown", "red", "12", "A drum."]
N_NEW = 18
"""So many that two texts of different lengths come to the limit, each at a step of its own."""


# Phi-3 reads a text anew when it comes to the limit; other models keep what they have read.
@pytest.fixture(scope="module", params=["phi3", "llama"])
def lm(request):
    tokenizer = tiny_tokenizer()
    network = tiny_network(request.param, n_vocab=len(tokenizer), n_layers=3, **LONGROPE)
    return wrap_language_model(varied(network), tokenizer, request.param)


@pytest.fixture(scope="module")
def prompts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS)


@pytest.fixture(scope="module")
def answered(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def everywhere(batch):
    rows = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), batch.is_real, rows)]


def test_the_prompts_lie_on_both_sides_of_the_limit_and_two_cross_it_at_different_steps(
    lm, prompts
):
    assert rotary_limits(lm) == (LIMIT,)
    crossing = {len(one) for one in prompts if limit_within(lm, len(one), N_NEW)}
    assert len(crossing) >= 2
    assert {len(one) > LIMIT for one in prompts} == {True, False}
    # The long set does change what is read.
    long, short = max(prompts, key=len), min(prompts, key=len)
    ids = torch.full((2, len(long)), lm.pad_id)
    ids[0], ids[1, : len(short)] = torch.tensor(long.token_ids), torch.tensor(short.token_ids)
    with torch.no_grad():
        beside = lm.model(input_ids=ids).logits[1, len(short) - 1]
        alone = lm.model(input_ids=ids[1:, : len(short)]).logits[0, -1]
    assert (beside - alone).abs().max() > 0.1


@pytest.mark.parametrize("edits", [no_edits, everywhere], ids=["unedited", "edited"])
def test_answers_are_scored_as_they_are_alone(lm, answered, edits):
    together = answer_logprobs(lm, answered, edits=edits)
    changes = benign_change(lm, answered, everywhere)
    for i, text in enumerate(answered):
        (alone,) = answer_logprobs(lm, [text], edits=edits)
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-5)
        change = benign_change(lm, [text], everywhere)
        torch.testing.assert_close(changes.divergence[i], change.divergence[0])


def test_states_are_captured_as_they_are_alone(lm, prompts):
    sites = [Site(0), Site(2)]
    together = all_token_activations(lm, prompts, sites)
    for i, text in enumerate(prompts):
        alone = all_token_activations(lm, [text], sites)
        for site in sites:
            torch.testing.assert_close(together[site][i], alone[site][0], rtol=1e-5, atol=1e-5)


def test_cells_that_share_what_no_edit_reaches_are_scored_as_texts_are_alone(lm, answered):
    vector = {Site(1): torch.full((1, 16), 2.0)}
    steering = Intervention.steering(vector, parse_positions("last:2"))
    together = CellPasses(lm, 8).nll(answered, [steering])[0].nll
    for i, text in enumerate(answered):
        alone = CellPasses(lm, 8).nll([text], [steering])[0].nll
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=1e-5)


def by_the_model_itself(lm, text, n_new):
    ids = torch.tensor([text.token_ids])
    written = lm.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_new,
        do_sample=False,
        eos_token_id=list(lm.eos_ids),
        pad_token_id=lm.pad_id,
    )
    return lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("n_new", [4, N_NEW])
def test_completions_are_those_that_the_model_writes_alone(lm, prompts, n_new):
    found = generate_greedy(lm, prompts, max_new_tokens=n_new).completions
    assert list(found) == [by_the_model_itself(lm, text, n_new) for text in prompts]
    memory = PromptMemory(lm)
    assert generate_with_memory(memory, prompts, max_new_tokens=n_new).completions == found


def test_under_edits_completions_and_counts_are_those_of_each_alone(lm, prompts):
    found = generate_greedy(lm, prompts, max_new_tokens=N_NEW, edits=everywhere)
    for i, text in enumerate(prompts):
        alone = generate_greedy(lm, [text], max_new_tokens=N_NEW, edits=everywhere)
        assert (found.completions[i],) == alone.completions
        assert found.n_edited_by_text[i] == alone.n_edited


def test_texts_of_one_length_come_to_the_limit_together_and_share_a_batch(lm, prompts):
    twice = [*prompts, *prompts]
    batches = list(padded_batches(lm, twice, "left", 64, n_new=N_NEW))
    assert sorted(i for indices, _ in batches for i in indices) == list(range(len(twice)))
    for indices, batch in batches:
        lengths = {len(text) for text in batch.texts}
        crosses = {limit_within(lm, length, N_NEW) for length in lengths}
        assert len(crosses) == 1
        assert len({length > LIMIT for length in lengths}) == 1
        assert crosses == {None} or (len(lengths) == 1 and len(indices) >= 2)


def test_requests_run_beside_those_that_are_read_alike_and_get_the_tokens_they_get_alone(
    lm, prompts
):
    decoder, n_new = ContinuousDecoder(lm, merge_rows, n_slots=8), 3
    requests = [decoder.submit(text, max_new_tokens=n_new) for text in prompts]
    while not decoder.is_idle:
        decoder.step()
        assert len({len(one.text) > LIMIT for one in decoder._running}) <= 1
    for request, text in zip(requests, prompts, strict=True):
        written = lm.tokenizer.decode(request.token_ids, skip_special_tokens=True).strip()
        assert written == by_the_model_itself(lm, text, n_new)


def test_a_request_that_would_come_to_the_limit_is_refused(lm, prompts):
    decoder, text = ContinuousDecoder(lm, merge_rows), prompts[2]
    most = LIMIT - len(text) + 1
    assert not decoder.submit(text, max_new_tokens=most).is_done
    with pytest.raises(DataError, match=f"beyond {LIMIT} .*fewer new tokens, or use generate_gr"):
        decoder.submit(text, max_new_tokens=most + 1)
    with pytest.raises(DataError, match="LongRoPE"):
        generate_stepwise(lm, [text], max_new_tokens=most)
    found = generate_stepwise(lm, [text], max_new_tokens=most - 1)
    assert found == generate_greedy(lm, [text], max_new_tokens=most - 1).completions


def test_limits_of_every_kind_of_layer_are_found():
    lm = tiny_model("llama")
    assert rotary_limits(lm) == ()
    assert read_alike(lm, [3, 99, 4]) == [[0, 1, 2]]
    assert limit_within(lm, 3, 99) is None
    one = LONGROPE["rope_parameters"]
    lm.model.config.rope_parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": one,
        "other_attention": {**one, "original_max_position_embeddings": 60},
    }
    assert rotary_limits(lm) == (LIMIT, 60)
    assert read_alike(lm, [3, 99, 40, 4]) == [[1], [2], [0, 3]]
    assert read_alike(lm, [50, 20, 20, 50], 12) == [[0, 3], [1, 2]]


def test_frequencies_that_grow_with_the_text_do_so_beyond_what_is_refused_alone():
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    lm = tiny_model("llama", rope_parameters=dynamic, max_position_embeddings=36)
    texts = encode_prompts(lm.tokenizer, [PROMPTS[3], "a"])
    n_new = 36 - len(texts[0])
    found = generate_greedy(lm, texts, max_new_tokens=n_new).completions
    assert list(found) == [by_the_model_itself(lm, text, n_new) for text in texts]
    with pytest.raises(DataError, match="has 36"):
        generate_greedy(lm, texts, max_new_tokens=n_new + 1)
