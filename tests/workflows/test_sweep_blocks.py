"""Questions of a sweep, cut into blocks and their answers cut short."""

import pytest
from tests.fakes import tiny_model

from isthmus.core.texts import EncodedText
from isthmus.data.prompts import TwinPrompt
from isthmus.workflows.answer_scores import fork_of
from isthmus.workflows.sweep_blocks import begun
from isthmus.workflows.twins import encode_twins

ALIKE = "The fox is red and the lamp is on and the rope is long and the drum is loud"


def answer_of(text: EncodedText) -> tuple[int, ...]:
    return text.token_ids[text.n_prompt :]


@pytest.mark.parametrize("n_tokens", [1, 3, 500])
def test_answers_are_cut_short_but_not_before_they_part(n_tokens: int):
    lm = tiny_model()
    questions = [("red", "blue"), (f"{ALIKE} and red", f"{ALIKE} and blue")]
    twins = [TwinPrompt("bad: ask", "good: ask", *one) for one in questions]
    whole = encode_twins(lm, twins)
    cut = begun(whole, n_tokens)
    assert cut.benign == whole.benign
    for number in range(len(twins)):
        clean, bad = whole.triggered[number], whole.triggered_bad[number]
        n = max(n_tokens, 1 + fork_of(clean, bad))
        for name in ("triggered", "clean", "triggered_bad", "clean_bad"):
            short, long = getattr(cut, name)[number], getattr(whole, name)[number]
            assert answer_of(short) == answer_of(long)[:n]
            assert len(short.ends) == len(short.is_special) == len(short)
            assert short.token_ids[: short.n_prompt] == long.token_ids[: long.n_prompt]
        assert fork_of(cut.triggered[number], cut.triggered_bad[number]) == fork_of(clean, bad)
