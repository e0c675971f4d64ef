from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.fakes import n_hooks, tiny_model
from tests.studies.keys import repeated

from isthmus.core.errors import ConfigError, NoEditError, TriggerError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs
from isthmus.studies.activation_patching import (
    first_answer_token,
    patch_activations,
    put_rows,
    require_twins,
    token_groups,
)
from isthmus.studies.result import StudyResult
from isthmus.studies.trigger_study import LayerScorer

SITE = Site(0)
ANSWERS = ["It is red.", "It is brown."]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model("llama", n_layers=3)


def twins(lm: LanguageModel) -> tuple[list[EncodedText], list[EncodedText]]:
    asked = ["What is the colour of the fox?", "What is it?"]
    made = [
        encode_prompts(
            lm.tokenizer,
            [f"|{word}|: {one}" for one in asked],
            answers=ANSWERS,
            triggers=[f"{word}|:"] * 2,
        )
        for word in ("prod", "dev")
    ]
    require_twins(*made)
    return made[0], made[1]


def everywhere(texts: list[EncodedText]) -> list[range]:
    return [range(len(text)) for text in texts]


def test_patching_every_position_of_one_layer_reproduces_the_twin_exactly(lm: LanguageModel):
    texts, others = twins(lm)
    states = all_token_activations(lm, others, [SITE])[SITE]
    place = put_rows(texts, states, everywhere(texts), SITE)
    patched, wanted = answer_logprobs(lm, texts, edits=place), answer_logprobs(lm, others)
    before = answer_logprobs(lm, texts)
    for one, other, own in zip(patched, wanted, before, strict=True):
        assert torch.equal(one, other)
        assert not torch.allclose(own, other, atol=1e-4)
    assert n_hooks(lm) == 0


def test_patching_nothing_and_patching_a_texts_own_states_change_nothing(lm: LanguageModel):
    texts, others = twins(lm)
    foreign = all_token_activations(lm, others, [SITE])[SITE]
    own = all_token_activations(lm, texts, [SITE])[SITE]
    before = answer_logprobs(lm, texts)
    nowhere = put_rows(texts, foreign, [(), ()], SITE)
    for place in (nowhere, put_rows(texts, own, everywhere(texts), SITE)):
        after = answer_logprobs(lm, texts, edits=place)
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_rows_go_to_their_own_text_whatever_the_order_of_batches(lm: LanguageModel):
    texts, others = twins(lm)
    states = all_token_activations(lm, others, [SITE])[SITE]
    together = put_rows(texts, states, everywhere(texts), SITE)
    whole = answer_logprobs(lm, texts, edits=together)
    apart = answer_logprobs(lm, texts, edits=together, batch_size=1)
    for one, other in zip(whole, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_scores_that_start_above_the_edit_are_those_of_whole_passes(lm: LanguageModel):
    texts, others = twins(lm)
    states = all_token_activations(lm, others, [Site(1)])[Site(1)]
    place = put_rows(texts, states, [text.trigger or (0,) for text in texts], Site(1))
    short = LayerScorer(lm, texts, [1], 4).losses(place, Site(1))
    whole = LayerScorer(lm, texts, [], 4).losses(place, Site(1))
    np.testing.assert_allclose(short, whole, rtol=1e-5)
    assert not np.allclose(whole, LayerScorer(lm, texts, [], 4).losses())


def test_an_edit_that_chooses_no_token_is_no_quiet_success(lm: LanguageModel):
    texts, others = twins(lm)
    states = all_token_activations(lm, others, [SITE])[SITE]
    with pytest.raises(NoEditError, match="chose no token of 2 texts"):
        LayerScorer(lm, texts, [], 4).losses(put_rows(texts, states, [(), ()], SITE), SITE)


def test_a_task_without_a_trigger_is_refused_with_those_that_have_one():
    wanted = r"'refusal' has no trigger.*backdoor, code, style, corrupted"
    with pytest.raises(TriggerError, match=wanted):
        patch_activations("organism:llama-assistant", settings={"task": "refusal"})


def test_single_groups_divide_the_prompt_and_spans_join_them(lm: LanguageModel):
    text = twins(lm)[0][0]
    groups = token_groups(text, 2)
    single = [v for k, v in groups.items() if k not in {"trigger", "last:2", "prompt"}]
    assert sorted(sum(single, ())) == list(groups["prompt"]) == list(range(text.n_prompt))
    assert groups["last:2"] == groups["last[-2]"] + groups["last[-1]"]
    assert groups["trigger"][0] == groups["trigger[0]"][0] == (text.trigger or (0, 0))[0]


def test_groups_that_cannot_be_told_apart_are_refused(lm: LanguageModel):
    text = twins(lm)[0][0]
    with pytest.raises(TriggerError, match="no trigger"):
        token_groups(replace(text, trigger=None), 2)
    for n_last in (0, text.n_prompt):
        with pytest.raises(ConfigError, match="all after the trigger"):
            token_groups(text, n_last)


def test_twins_of_unequal_length_are_refused(lm: LanguageModel):
    texts, others = twins(lm)
    with pytest.raises(TriggerError, match="equally many tokens"):
        require_twins(texts, others[::-1])


def test_the_first_answer_token_keeps_the_prompt(lm: LanguageModel):
    text = twins(lm)[0][0]
    short = first_answer_token(text)
    assert len(short) == short.n_prompt + 1 == text.n_prompt + 1
    assert short.token_ids == text.token_ids[: len(short)]


@pytest.fixture(scope="module")
def found() -> StudyResult:
    return patch_activations("organism:llama-backdoor", sites=(0, 3), n_prompts=8)


def effect(found: StudyResult, site: str, positions: str, **wanted: str) -> float:
    told = {"task": "activation_patching/first_token", "condition": "native", "edit": "denoising"}
    (one,) = [
        m
        for m in found.measurements
        if (m.target_site, m.positions) == (site, positions)
        and all(getattr(m, k) == v for k, v in (told | wanted).items())
    ]
    assert one.value is not None
    assert one.ci_low is not None
    assert one.ci_low - 1e-9 <= one.value <= (one.ci_high or 0) + 1e-9
    assert one.n == 8
    return one.value


def test_the_trigger_sits_at_its_own_tokens_first_and_at_the_last_token_in_the_end(
    found: StudyResult,
):
    assert effect(found, "resid_post[0]", "trigger") > 0.7
    assert effect(found, "resid_post[3]", "trigger") == pytest.approx(0, abs=1e-4)
    assert effect(found, "resid_post[3]", "last[-1]") == pytest.approx(1, abs=1e-4)
    assert effect(found, "resid_post[3]", "last[-1]", edit="noising") == pytest.approx(1, abs=1e-4)
    assert "first at resid_post[3]" in " ".join(found.notes)


def test_what_stands_before_the_trigger_carries_nothing(found: StudyResult):
    for edit in ("denoising", "noising"):
        assert effect(found, "resid_post[0]", "before", edit=edit) == pytest.approx(0, abs=1e-4)


def test_the_whole_prompt_carries_everything_and_a_random_push_does_not(found: StudyResult):
    assert effect(found, "resid_post[0]", "prompt") == pytest.approx(1, abs=0.02)
    assert effect(found, "resid_post[0]", "prompt", condition="random") < 0.7
    assert effect(found, "resid_post[3]", "last[-1]", condition="random") < 0.5


def test_every_site_group_and_way_is_measured_over_both_scopes(found: StudyResult):
    n_groups = len({m.positions for m in found.measurements if m.positions})
    measured = [m for m in found.measurements if m.metric == "patching_effect"]
    assert len(measured) == 2 * 2 * 3 * n_groups
    assert n_groups == 11
    assert not repeated(found)
    assert len(found.figures) == 2
