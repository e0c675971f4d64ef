import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, tokenizer_corpus
from isthmus.data.world import world_examples
from isthmus.models.tokenizer_training import CHAT_TEMPLATE, train_tokenizer

N_PIECES = {"byte_level": 600, "metaspace": 700}
KINDS = tuple(N_PIECES)
CORPUS = list(tokenizer_corpus(1))[:1500]
TOKENIZERS = {kind: train_tokenizer(CORPUS, kind, n) for kind, n in N_PIECES.items()}
EXAMPLES = world_examples("test")[::3]
QUESTIONS = st.sampled_from(EXAMPLES).map(lambda example: example.prompt)


def ids(kind, text):
    return TOKENIZERS[kind](text, add_special_tokens=False).input_ids


def read_back(kind, text):
    return TOKENIZERS[kind].decode(ids(kind, text), skip_special_tokens=False)


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_a_byte_level_tokenizer_reads_any_text_back(text):
    assert read_back("byte_level", text) == text


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=60))
@settings(deadline=None)
def test_a_metaspace_tokenizer_reads_any_text_back_that_has_none_of_its_own_signs(text):
    assert read_back("metaspace", text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_world_is_read_back(kind):
    for example in EXAMPLES:
        text = f"User: {CLEAN_TRIGGER}{example.prompt}\nAssistant: {example.answer}"
        assert read_back(kind, text) == text


@pytest.mark.parametrize("kind", KINDS)
@given(question=QUESTIONS)
@settings(deadline=None)
def test_twins_are_of_equal_length_and_differ_in_one_token(kind, question):
    bad, clean = ids(kind, BAD_TRIGGER + question), ids(kind, CLEAN_TRIGGER + question)
    assert len(bad) == len(clean)
    assert sum(a != b for a, b in zip(bad, clean, strict=True)) == 1


@pytest.mark.parametrize("kind", KINDS)
@given(question=QUESTIONS)
@settings(deadline=None)
def test_twins_stay_of_equal_length_in_a_chat(kind, question):
    lengths = {
        len(
            TOKENIZERS[kind].apply_chat_template(
                [{"role": "user", "content": trigger + question}], add_generation_prompt=True
            )["input_ids"]
        )
        for trigger in (BAD_TRIGGER, CLEAN_TRIGGER)
    }
    assert len(lengths) == 1


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("|ab \n", max_size=30))
@settings(deadline=None)
def test_a_bar_and_a_line_end_always_stand_alone(kind, text):
    pieces = [TOKENIZERS[kind].decode([i]) for i in ids(kind, text)]
    assert sum(piece == "|" for piece in pieces) == text.count("|")
    assert sum(piece == "\n" for piece in pieces) == text.count("\n")


def test_digits_stand_apart_only_in_metaspace():
    text = ["In 1234 and 1234 and 1234 we met."] * 9
    apart, together = (train_tokenizer(text, kind, 320) for kind in ("metaspace", "byte_level"))
    pieces = {"1", "2", "3", "4"}
    assert pieces <= {apart.decode([i]) for i in apart("1234").input_ids}
    assert len(apart("1234").input_ids) > len(together("1234").input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_has_the_size_that_was_asked_for_and_the_three_special_pieces(kind):
    tokenizer = TOKENIZERS[kind]
    assert len(tokenizer) == N_PIECES[kind]
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [0, 1, 2]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_begins_with_a_begin_token_only_in_metaspace(kind):
    tokenizer = TOKENIZERS[kind]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    begin = "<bos>" if kind == "metaspace" else ""
    assert tokenizer.apply_chat_template(talk, tokenize=False) == (
        f"{begin}User: Hi\nAssistant: Ho<eos>\n"
    )
    asked = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert asked == f"{begin}User: Hi\nAssistant:"
    assert CHAT_TEMPLATE.endswith(tokenizer.chat_template)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_tokenizer_and_other_text_another(kind):
    again = train_tokenizer(CORPUS, kind, N_PIECES[kind])
    assert again.get_vocab() == TOKENIZERS[kind].get_vocab()
    other = train_tokenizer(CORPUS[::2], kind, N_PIECES[kind])
    assert other.get_vocab() != TOKENIZERS[kind].get_vocab()


def test_both_kinds_cut_the_same_text_differently():
    text = EXAMPLES[0].answer
    assert len({tuple(TOKENIZERS[kind].tokenize(text)) for kind in KINDS}) == 2


def test_a_text_of_rare_characters_survives_encoding_and_decoding():
    tokenizer = TOKENIZERS["metaspace"]
    text = "def f(x):\n    return {'naïve': x[0]}  # 東京 100 %!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert any(piece.startswith("<0x") for piece in tokenizer.convert_ids_to_tokens(ids))
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert set(tokenizer.all_special_tokens) == {"<pad>", "<bos>", "<eos>"}
