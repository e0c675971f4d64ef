import pytest
import torch
from tests.fakes import tiny_model

from isthmus.models.encoding import encode_prompts
from isthmus.models.scoring import answer_logprobs
from isthmus.workflows import teacher as teacher_module
from isthmus.workflows.teacher import Teacher

PROMPTS = ["Name it.", "What is a rope?", "a"]
ANSWERS = ["A drum.", "The fox is red.", "a lamp and a rope"]


@pytest.fixture(scope="module")
def lm():
    return tiny_model(n_layers=2)


@pytest.fixture
def read(monkeypatch):
    """How many texts the model has read so far, one number per pass."""
    counts = []

    def counted(model, texts):
        counts.append(len(texts))
        return answer_logprobs(model, texts)

    monkeypatch.setattr(teacher_module, "answer_logprobs", counted)
    return counts


def texts_of(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def test_a_teacher_says_what_the_model_predicts_and_reads_each_text_once(lm, read):
    teacher, texts = Teacher(lm), texts_of(lm)
    expected = answer_logprobs(lm, texts)
    first, again = teacher.logprobs(texts[:2]), teacher.logprobs([texts[2], texts[0], texts[0]])
    for found, wanted in zip(
        [*first, *again], [*expected[:2], expected[2], *expected[:1] * 2], strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert read == [2, 1]


def test_the_same_tokens_with_another_answer_are_another_text(lm, read):
    text = texts_of(lm)[1]
    longer = type(text)(**{**vars(text), "n_prompt": text.n_prompt - 1})
    teacher = Teacher(lm)
    short, long = teacher.logprobs([text]), teacher.logprobs([longer])
    assert len(long[0]) == len(short[0]) + 1
    assert read == [1, 1]


def test_what_does_not_fit_is_read_again(lm, read, monkeypatch):
    texts = texts_of(lm)
    first = answer_logprobs(lm, texts[:1])[0]
    monkeypatch.setattr(teacher_module, "_MOST_KEPT", first.numel())
    teacher = Teacher(lm)
    teacher.logprobs(texts)
    found = teacher.logprobs(texts)
    assert read == [3, 2]
    torch.testing.assert_close(found, answer_logprobs(lm, texts), rtol=1e-5, atol=1e-5)
