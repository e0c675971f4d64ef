import pytest
import torch
from tests.fakes import n_hooks, shift, tiny_model

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.interventions.positions import parse_positions
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs
from isthmus.models.shared_passes import (
    answer_logprobs_of_copies,
    is_faithful,
    share,
    whole_logprobs,
)

PROMPTS = ["What is the colour of the fox?", "Name three things, a lamp and a rope", "12 + 34"]
ANSWERS = ["The fox is red.", "A drum", "46 is easy to see"]


def texts_of(lm: LanguageModel) -> list[EncodedText]:
    return encode_prompts(lm.tokenizer, PROMPTS, answers=ANSWERS)


def starts_of(texts: list[EncodedText]) -> list[int]:
    return [text.n_prompt - 3 for text in texts]


def added(batch: TokenBatch, layer: int) -> list[PlacedEdit]:
    masks = parse_positions("last:3").masks(batch)
    return [PlacedEdit(Site(layer), shift(), masks.given, masks.generated)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom", "opt", "mistral"])
@pytest.mark.parametrize("layer", [None, 1])
def test_an_edited_copy_that_shares_ends_as_a_whole_pass(family: str, layer: int | None):
    lm = tiny_model(family, n_layers=3)
    texts = texts_of(lm)
    shared = share(lm, texts, starts_of(texts), range(3), 8)
    (own,) = shared.batches
    assert own.n_before >= max(starts_of(texts)) > 0
    assert own.n_run < max(map(len, texts))
    edits = added(own.batch, 1)
    found = answer_logprobs_of_copies(lm, shared, 0, 1, edits, layer)
    whole = answer_logprobs(lm, texts, edits=lambda batch: added(batch, 1))
    expected = torch.cat([whole[i] for i in own.indices])
    plain = torch.cat([answer_logprobs(lm, texts)[i] for i in own.indices])
    assert (expected - plain).abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-5)
    assert is_faithful(lm, shared, layer, whole_logprobs(lm, shared))
    assert n_hooks(lm) == 0


def test_a_model_without_keys_and_values_reads_every_token():
    lm = tiny_model("mamba")
    texts = texts_of(lm)
    shared = share(lm, texts, starts_of(texts), [0], 8)
    assert {own.n_before for own in shared.batches} == {0}
    assert is_faithful(lm, shared, 0, whole_logprobs(lm, shared))


def test_states_of_another_block_are_noticed():
    lm = tiny_model(n_layers=3)
    texts = texts_of(lm)
    shared = share(lm, texts, starts_of(texts), range(3), 8)
    (own,) = shared.batches
    own.states[1].add_(1.0)
    assert not is_faithful(lm, shared, 1, whole_logprobs(lm, shared))
    assert is_faithful(lm, shared, 2, whole_logprobs(lm, shared))


def test_a_start_behind_the_prompt_is_refused():
    lm = tiny_model()
    texts = texts_of(lm)
    with pytest.raises(DataError, match="starts at"):
        share(lm, texts, [text.n_prompt for text in texts], [0], 8)
