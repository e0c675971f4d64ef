import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.errors import ConfigError, DataError, NonFiniteError
from isthmus.core.sites import Site
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.stepwise import generate_stepwise

PROMPTS = ["What is the colour of the fox?", "Name three things.", "|prod|: 12 + 34"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_without_edits_it_writes_what_cached_generation_writes(family):
    lm = tiny_model(family)
    asked = encode_prompts(lm.tokenizer, PROMPTS)
    cached = generate_greedy(lm, asked, max_new_tokens=9)
    assert generate_stepwise(lm, asked, max_new_tokens=9, batch_size=2) == cached.completions


def test_with_an_edit_that_does_not_depend_on_the_text_it_writes_the_same_too():
    lm = tiny_model("llama")
    asked = encode_prompts(lm.tokenizer, PROMPTS)
    vector = 9 * torch.randn(1, lm.d_model, generator=torch.Generator().manual_seed(1))
    everywhere = Intervention.steering({Site(0): vector}, parse_positions("all"), 1.0)
    cached = generate_greedy(lm, asked, max_new_tokens=6, edits=everywhere.place)
    assert cached.completions != generate_greedy(lm, asked, max_new_tokens=6).completions
    stepwise = generate_stepwise(lm, asked, max_new_tokens=6, edits=everywhere.place)
    assert stepwise == cached.completions


@pytest.mark.parametrize("guess", ["own", "half", "wrong", "empty"])
def test_a_draft_whatever_it_guesses_does_not_change_what_is_written(guess):
    lm = tiny_model("llama")
    asked = encode_prompts(lm.tokenizer, PROMPTS)
    plain = generate_stepwise(lm, asked, max_new_tokens=9)
    own = [lm.tokenizer(" " + text, add_special_tokens=False)["input_ids"] for text in plain]
    drafts = {
        "own": own,
        "half": [[*ids[: len(ids) // 2], 7, 7, 7] for ids in own],
        "wrong": [[5] * 20 for _ in own],
        "empty": [[] for _ in own],
    }[guess]
    assert generate_stepwise(lm, asked, max_new_tokens=9, drafts=drafts) == plain


def test_a_prompt_whose_logits_overflow_is_named():
    lm = tiny_model("llama")
    asked = encode_prompts(lm.tokenizer, PROMPTS, triggers=[None, None, "|prod|:"])
    large = {Site(0): torch.full((1, lm.d_model), 3e38)}
    beyond = Intervention.steering(large, parse_positions("trigger"), 1000.0)
    with pytest.raises(NonFiniteError, match="prompt 2 are NaN or infinite after 0 new tokens"):
        generate_stepwise(lm, asked, max_new_tokens=6, edits=beyond.place)


def test_drafts_are_one_per_prompt():
    lm = tiny_model("llama")
    with pytest.raises(DataError, match="1 drafts for 3 prompts"):
        generate_stepwise(lm, encode_prompts(lm.tokenizer, PROMPTS), max_new_tokens=3, drafts=[[5]])


def test_edits_are_placed_on_texts_that_hold_what_was_written_so_far():
    lm = tiny_model("llama")
    asked = encode_prompts(lm.tokenizer, PROMPTS[:1])
    seen = []

    def look(batch):
        seen.append(batch.texts[0])
        return ()

    (written,) = generate_stepwise(lm, asked, max_new_tokens=4, edits=look)
    assert [len(text) - text.n_prompt for text in seen] == [1, 2, 3, 4]
    assert all(text.is_special[-1] and text.ends[-1] == len(text.text) for text in seen)
    assert seen[0].text == asked[0].text
    assert written.startswith(seen[-1].text[len(asked[0].text) :].strip())


def test_no_new_tokens_are_refused():
    lm = tiny_model("llama")
    with pytest.raises(ConfigError, match="at least 1"):
        generate_stepwise(lm, encode_prompts(lm.tokenizer, PROMPTS), max_new_tokens=0)
