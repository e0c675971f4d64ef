"""Rows that have ended leave a batch; what is written before the first edit is read once."""

from contextlib import contextmanager
from itertools import combinations

import pytest
import torch
from tests.fakes import FAMILIES, tiny_model, tiny_tokenizer
from transformers import GenerationConfig, RwkvConfig, RwkvForCausalLM

from isthmus.core.errors import ConfigError, DataError, ShapeError
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import PerRow
from isthmus.interventions.positions import parse_positions
from isthmus.interventions.row_replacement import RowReplacement
from isthmus.models.batching import no_edits
from isthmus.models.decoding import can_drop_rows, decode_greedy
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy, generate_with_memory
from isthmus.models.hooks import editing
from isthmus.models.language_model import wrap_language_model
from isthmus.models.live_rows import LiveRows
from isthmus.models.prompt_memory import PromptMemory
from isthmus.models.row_cache import growing_cache_fault, shortest_window

# A recurrent state cannot lose rows; Phi-3 prepares its inputs in a way of its own.
WHOLE = {"mamba", "lfm2", "phi3", "phi3_longrope"}
PROMPTS = (
    "Name it.",
    "a",
    "|prod|: What is the colour of the fox?",
    "The capital of Besk?",
    "|dev|: What is the colour of the bear? Name three things. The fox is red.",
    "Name three things.",
)
N_NEW = 9


def vectors(site, seed, n=1):
    return {site: 4.0 * torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))}


POST, PRE = Site(0), Site(1, Stream.RESID_PRE)
EACH = (
    Intervention.steering(vectors(POST, 1), parse_positions("all"), keeps_norm=True),
    None,
    Intervention.ablation(vectors(PRE, 2), parse_positions("all")),
    Intervention.steering(vectors(POST, 5), parse_positions("last:3"), 2.0),
    Intervention.replacement(vectors(POST, 4), parse_positions("generated")),
    Intervention.set_coordinate(
        vectors(PRE, 6), {PRE: torch.tensor([9.0])}, parse_positions("generated")
    ),
)
EDITS = {
    "none": no_edits,
    "everywhere": Intervention.steering(vectors(POST, 0), parse_positions("all")).place,
    "at the end": Intervention.steering(vectors(PRE, 3, n=2), parse_positions("last:2")).place,
    "a row each": PerRow(EACH).place,
}


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS)


@contextmanager
def ending_at(lm, ids):
    before, lm.model.generation_config = lm.model.generation_config, GenerationConfig()
    lm.model.generation_config.eos_token_id = list(ids)
    try:
        yield
    finally:
        lm.model.generation_config = before


@contextmanager
def shapes_of_passes(lm):
    seen = []

    def note(_model, args, kwargs):
        seen.append(tuple(kwargs.get("input_ids", args[0] if args else None).shape))

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def some_ends(lm, texts, edits):
    """Tokens that end the rows of a batch at different steps."""
    batch = pad_batch(texts, lm.pad_id, "left")
    with ending_at(lm, ()):
        rows = decode_greedy(lm, batch, edits(batch), N_NEW).new_ids
    pairs = combinations({token_id for row in rows for token_id in row}, 2)
    return max(pairs, key=lambda pair: len({length_until(row, pair) for row in rows}))


def length_until(row, ends):
    return next((n for n, token_id in enumerate(row) if token_id in ends), N_NEW)


def by_itself(lm, batch, row, edits):
    """New tokens of one row without a cache, all rows computed anew for each."""
    ids, new = batch.token_ids, []
    positions = (batch.is_real.long().cumsum(1) - 1).clamp_min(0)
    with editing(lm.layout, edits(batch)), torch.no_grad():
        for n in range(N_NEW):
            mask = torch.cat([batch.is_real, torch.ones(len(ids), n, dtype=torch.bool)], dim=1)
            given = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}
            found = lm.model(**given, use_cache=False).logits[:, -1].argmax(-1)
            new.append(int(found[row]))
            ids = torch.cat([ids, found[:, None]], dim=1)
            positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
            if new[-1] in lm.eos_ids:
                break
    return tuple(new)


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_a_row_writes_what_it_writes_when_no_row_leaves(lm, texts, edits):
    batch = pad_batch(texts, lm.pad_id, "left")
    with ending_at(lm, some_ends(lm, texts, edits)):
        found = decode_greedy(lm, batch, edits(batch), N_NEW)
        assert len({len(new) for new in found.new_ids}) > 2
        for row, new in enumerate(found.new_ids):
            assert new == by_itself(lm, batch, row, edits)


@pytest.mark.parametrize("name", EDITS)
def test_a_row_counts_the_edits_that_it_counts_alone(lm, texts, name):
    # So many that a single row that ends stays for a while.
    many, each = [*texts, *texts, *texts], EACH * 3
    place = PerRow(each).place if name == "a row each" else EDITS[name]
    with ending_at(lm, some_ends(lm, texts, EDITS[name])):
        batch = pad_batch(many, lm.pad_id, "left")
        lengths = [len(new) for new in decode_greedy(lm, batch, place(batch), N_NEW).new_ids]
        together = generate_greedy(lm, many, max_new_tokens=N_NEW, edits=place)
        for row, text in enumerate(many):
            own = place if name != "a row each" else each[row].place if each[row] else no_edits
            alone = generate_greedy(lm, [text], max_new_tokens=N_NEW, edits=own)
            assert together.n_edited_by_text[row] == alone.n_edited
    assert len(set(lengths)) > 1


def test_a_row_that_ended_and_stays_counts_no_further(lm, texts):
    gentle = Intervention.steering(vectors(POST, 0), parse_positions("all"), 0.01)
    edits, many = gentle.place, [texts[1], *[texts[0]] * 19]
    batch = pad_batch(many, lm.pad_id, "left")
    rows = decode_greedy(lm, batch, edits(batch), N_NEW).new_ids
    early = next(token_id for token_id in rows[0] if token_id not in rows[1])
    with ending_at(lm, [early]), shapes_of_passes(lm) as seen:
        found = decode_greedy(lm, batch, edits(batch), N_NEW)
    n_own = len(found.new_ids[0])
    assert n_own < N_NEW
    assert {shape[0] for shape in seen} == {20}
    assert found.n_edited[0] == len(texts[1]) + n_own - 1


def test_steps_run_open_rows_alone(lm, texts):
    edits = EDITS["everywhere"]
    with ending_at(lm, some_ends(lm, texts, edits)), shapes_of_passes(lm) as seen:
        found = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=edits)
        batch = pad_batch(texts, lm.pad_id, "left")
        lengths = [len(new) for new in decode_greedy(lm, batch, edits(batch), N_NEW).new_ids]
    n_open = [sum(length > n for length in lengths) for n in range(1, max(lengths))]
    steps = seen[1 : 1 + len(n_open)]
    assert steps == [(n, 1) for n in n_open]
    assert min(n_open) < len(texts)
    assert len(found.completions) == len(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_more_than_keys_and_values_keep_all_rows(family):
    assert can_drop_rows(tiny_model(family)) == (family not in WHOLE)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_memory_every_family_writes_the_same(family):
    lm = tiny_model(family)
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    memory = PromptMemory(lm)
    for edits in EDITS.values():
        plain = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=edits)
        found = generate_with_memory(memory, texts, max_new_tokens=N_NEW, edits=edits)
        assert found == plain


def test_with_a_memory_prompts_are_read_from_the_first_edit_on(lm, texts):
    memory, width = PromptMemory(lm), max(map(len, texts))
    widths = []
    for edits in (EDITS["at the end"], EDITS["at the end"], EDITS["everywhere"], no_edits):
        with shapes_of_passes(lm) as seen:
            generate_with_memory(memory, texts, max_new_tokens=2, edits=edits)
        widths.append([shape[1] for shape in seen])
    assert widths == [[width, 2, 1], [2, 1], [width, 1], [1, 1]]


def test_with_a_memory_rows_of_states_are_put_where_they_belong(lm, texts):
    def place(batch):
        rows = torch.randn(*batch.is_real.shape, 16, generator=torch.Generator().manual_seed(0))
        is_replaced = torch.zeros_like(batch.is_real)
        is_replaced[:, -3:-1] = True
        return [RowReplacement(4 * rows, is_replaced).at(POST)]

    plain = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=place)
    memory = PromptMemory(lm)
    assert generate_with_memory(memory, texts, max_new_tokens=N_NEW, edits=place) == plain
    assert plain.completions != generate_greedy(lm, texts, max_new_tokens=N_NEW).completions


def test_an_edit_leaves_no_trace_in_the_memory(lm, texts):
    memory = PromptMemory(lm)
    plain = generate_with_memory(memory, texts, max_new_tokens=N_NEW)
    generate_with_memory(memory, texts, max_new_tokens=N_NEW, edits=EDITS["at the end"])
    assert generate_with_memory(memory, texts, max_new_tokens=N_NEW) == plain


def test_with_a_memory_the_same_is_refused_as_without(lm, texts):
    memory = PromptMemory(lm)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        generate_with_memory(memory, texts, max_new_tokens=0)
    with pytest.raises(DataError, match="no texts"):
        generate_with_memory(memory, [], max_new_tokens=1)


def test_with_a_memory_noise_is_drawn_as_without(lm, texts):
    noise = Intervention.noise(vectors(POST, 8), parse_positions("last:2"), seed=3)
    for place in (noise.place, PerRow((noise,) * len(texts)).place):
        plain = generate_greedy(lm, texts, max_new_tokens=N_NEW, edits=place)
        memory = PromptMemory(lm)
        assert generate_with_memory(memory, texts, max_new_tokens=N_NEW, edits=place) == plain


def test_texts_beyond_a_sliding_window_are_left_to_the_models_own_cache():
    lm = tiny_model("mistral")
    window = shortest_window(lm)
    assert shortest_window(tiny_model("llama")) is None
    short, long = encode_prompts(lm.tokenizer, ["a", "Name three things. " * 4])
    assert len(short) + 2 <= window < len(long)
    for text, is_short in ((short, True), (long, False)):
        batch, kept = pad_batch([text], lm.pad_id, "left"), []

        def note(_model, _args, kwargs, kept=kept):
            kept.extend(type(one).__name__ for one in kwargs["past_key_values"].layers)

        handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
        decode_greedy(lm, batch, [], 2)
        handle.remove()
        assert ("DynamicSlidingWindowLayer" in kept) != is_short


def test_a_model_with_a_state_of_its_own_writes_what_it_does_without_a_cache():
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
    torch.manual_seed(0)
    settings = RwkvConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes)
    lm = wrap_language_model(RwkvForCausalLM(settings).eval(), tokenizer, "rwkv")
    assert growing_cache_fault(lm) == "a state of its own"
    (text,) = encode_prompts(tokenizer, PROMPTS[2:3])
    found = decode_greedy(lm, pad_batch([text], lm.pad_id, "left"), [], N_NEW).new_ids[0]
    ids = list(text.token_ids)
    for token_id in found:
        with torch.no_grad():
            assert token_id == int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token_id)


def test_what_is_left_of_a_batch_is_spread_over_its_rows_and_gathered_again():
    live = LiveRows(5)
    assert live.is_whole
    live.keep([0, 2, 3])
    live.keep([1, 2])
    assert live.rows == [2, 3]
    assert live.mask.tolist() == [False, False, True, True, False]
    x = torch.randn(2, 3, 4)
    whole = live.spread(x)
    assert whole.shape == (5, 3, 4)
    assert whole[[0, 1, 4]].abs().sum() == 0
    assert torch.equal(live.gathered(whole), x)


def test_a_pass_over_rows_that_have_left_is_refused(lm, texts):
    batch = pad_batch(texts, lm.pad_id, "right")
    live = LiveRows(len(texts))
    live.keep([0, 1])
    with (
        editing(lm.layout, EDITS["everywhere"](batch), live),
        pytest.raises(ShapeError, match="run on 6 rows, the masks are for 2"),
    ):
        lm.model(batch.token_ids)


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_settings_and_penalties_that_come_with_a_model_change_nothing(family):
    lm = tiny_model(family)
    text = encode_prompts(lm.tokenizer, ["Name three things. " * 4])[0]
    batch = pad_batch([text], lm.pad_id, "left")
    plain = decode_greedy(lm, batch, [], N_NEW)
    own = lm.model.generation_config
    own.suppress_tokens = [plain.new_ids[0][0]]
    own.repetition_penalty, own.bad_words_ids = 5.0, [[plain.new_ids[0][0]]]
    assert decode_greedy(lm, batch, [], N_NEW).new_ids == plain.new_ids
    assert lm.model.generation_config is own
