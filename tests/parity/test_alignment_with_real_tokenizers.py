"""Pairs on real and on trained tokenizers, against what their pieces spell out byte by byte.

The reference looks at no offset: a token ends after n characters if the bytes of all pieces up to
it are those of the first n characters. It is slow, and written another way on purpose.
"""

import os
import unicodedata
from functools import cache
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from isthmus.data.alignment import pair_spans, pair_tokens
from isthmus.data.world import world_examples
from isthmus.models.encoding import encode_prompts
from isthmus.models.tokenizer_training import train_tokenizer

BESIDE_THE_REPOSITORY = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
FOLDER = Path(os.environ.get("ISTHMUS_TEST_TOKENIZERS", BESIDE_THE_REPOSITORY))
REAL = ("llama3_128k", "llama2_32k", "qwen_151k", "gpt2_50k")
TRAINED = ("byte_level", "metaspace")
OF_SPACES = ("llama2_32k", "metaspace")

needs_real = pytest.mark.skipif(
    not all((FOLDER / name).is_dir() for name in REAL),
    reason=f"no tokenizers at {FOLDER}: set ISTHMUS_TEST_TOKENIZERS to a folder with them",
)
EVERY = [
    pytest.param(TRAINED, id="trained"),
    pytest.param((*REAL, *TRAINED), id="real and trained", marks=needs_real),
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"
TEMPLATES = {"qwen_151k": CHATML, "llama3_128k": HEADERS, "llama2_32k": INST}

ENGLISH = (
    "The harbour was quiet when Mrs. Alder opened her shop at half past seven. She swept, "
    "counted yesterday's takings (forty-two pounds and 17 pence), and wrote a short note to her "
    "sister: the boats hadn't come back, but nobody seemed worried. By noon the fog had lifted; "
    "children were running along the wall, and an old man asked whether the ferry would leave on "
    "Thursday.\n\nIt would, she told him, unless the weather turned again. He thanked her and "
    "bought a newspaper, two oranges and a ball of string."
)
PIECES = (
    " ", "  ", "\n", "\t", "\u00a0", "\u3000", "▁", "e\u0301", "e\u0301\u0323", "o\u0302\u0323",
    "\u0301", "é", "\u212b", "\u1112\u1161\u11ab", "한국", "日本語", "漢", "ﬁ", "İ", "½", "\u0958",
    "नमस्ते", "ไทย", "שלום", "مرحبا", "\u202eabc\u202c", "😀", "👩‍👩‍👧", "👍🏽", "🇩🇪", "\ufe0f", "𝔘",
    "\U000f0000", "\ufffd", "\x00", "a", "Hello", " world", "42", "'s", "|prod|", "—“”", "<s", "xx",
)  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=10).map("".join),
)


@cache
def tokenizer(name, template="{{ messages[0].content }}"):
    if name in TRAINED:
        prompts = [example.prompt for example in world_examples("train")[:3000]]
        found = train_tokenizer(prompts, name, 600)
    else:
        found = AutoTokenizer.from_pretrained(FOLDER / name)
    found.chat_template = template
    return found


def encode(name, text):
    """The text alone, as no chat template would leave it."""
    (found,) = encode_prompts(tokenizer(name), [text])
    assert found.text == text
    return found


def byte_of_letter():
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


LETTERS = byte_of_letter()


def spelled(name, encoded):
    """The bytes of each piece; of a special one, of its name."""
    pieces = tokenizer(name).convert_ids_to_tokens(list(encoded.token_ids))
    found, is_start = [], name == "llama2_32k"
    for piece, special in zip(pieces, encoded.is_special, strict=True):
        if special:
            found.append(piece.encode())
        elif name not in OF_SPACES:
            found.append(bytes(LETTERS[letter] for letter in piece))
        elif len(piece) == 6 and piece.startswith("<0x"):
            found.append(bytes([int(piece[3:5], 16)]))
        else:
            # Llama 2 puts a space of its own before a text.
            found.append((piece[1:] if is_start else piece).replace("▁", " ").encode())
        is_start = special and name == "llama2_32k"
    return found


def as_read(name, text):
    """What a tokenizer makes of the characters before it looks for pieces."""
    if name == "qwen_151k":
        return unicodedata.normalize("NFC", text)
    return text.replace("▁", " ") if name in OF_SPACES else text


def belongs_to_the_one_before(text, place):
    before, character = text[place - 1], text[place]
    is_letter = 0x1160 <= ord(character) <= 0x11FF or ord(character) in {0xFF9E, 0xFF9F}
    is_mark = is_letter or unicodedata.category(character)[0] == "M"
    return is_mark and unicodedata.category(before) not in ("Cc", "Zl", "Zp")


@cache
def searched_ends(name, encoded):
    """For every place at which a token ends, which token; without looking at offsets."""
    text = encoded.text
    is_rewritten = name == "qwen_151k" and not unicodedata.is_normalized("NFKC", text)
    read = {}
    for n in range(1, len(text) + 1):
        is_within = n < len(text) and belongs_to_the_one_before(text, n)
        if not (is_rewritten and is_within):
            read.setdefault(as_read(name, text[:n]).encode(), n)
    found, spelled_so_far = {}, b""
    for i, piece in enumerate(spelled(name, encoded)):
        spelled_so_far += piece
        end = read.get(spelled_so_far)
        if piece and end and not encoded.is_special[i]:
            found.setdefault(end, i)
    return found


def searched(names, source, target):
    ours, theirs = (
        searched_ends(name, text) for name, text in zip(names, (source, target), strict=True)
    )
    return [(ours[end], theirs[end]) for end in sorted(ours.keys() & theirs.keys())]


def listed(pairs):
    return list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))


def decoded(name, encoded, n_tokens):
    """What the tokenizer itself says that its first tokens are, in one normal form."""
    ids = list(encoded.token_ids[:n_tokens])
    text = tokenizer(name).decode(ids, clean_up_tokenization_spaces=False)
    return unicodedata.normalize("NFC", text.replace("▁", " ")).removeprefix(" ")


def check(names, source, target):
    pairs = listed(pair_tokens(source, target))
    assert pairs == searched(names, source, target)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert not any(source.is_special[i] or target.is_special[j] for i, j in pairs)
    for i, j in pairs:
        assert source.ends[i] == target.ends[j]
        assert decoded(names[0], source, i + 1) == decoded(names[1], target, j + 1)
    return pairs


@pytest.mark.parametrize("names", EVERY)
@settings(deadline=None, max_examples=15)
@given(TEXTS)
def test_all_tokenizers_are_paired_as_their_bytes_say_on_any_text(names, text):
    encoded = {name: encode(name, text) for name in names}
    for one, other in permutations(names, 2):
        there = check((one, other), encoded[one], encoded[other])
        back = listed(pair_tokens(encoded[other], encoded[one]))
        assert there == [(i, j) for j, i in back]
        spans = pair_spans(encoded[one], encoded[other])
        for side, last in zip(spans, zip(*there, strict=True), strict=False):
            assert [int(side.tokens[side.spans == n][-1]) for n in range(len(last))] == list(last)


@pytest.mark.parametrize("names", EVERY)
@settings(deadline=None, max_examples=10)
@given(TEXTS)
def test_a_text_cut_off_where_a_token_ends_spells_the_same_again(names, text):
    for name in names:
        whole = encode(name, text)
        for end in sorted(set(whole.ends) - {0}):
            again = encode(name, text[:end])
            n_tokens = whole.ends.index(end) + 1
            assert again.ends[-1] == end
            assert b"".join(spelled(name, again)) == b"".join(spelled(name, whole)[:n_tokens])


@pytest.mark.parametrize("names", EVERY)
@pytest.mark.parametrize("text", ["日本", "😀", "x😀", "한국 e\u0301", "שלום", ENGLISH])
def test_the_last_character_is_always_paired(names, text):
    for one, other in permutations(names, 2):
        pairs = check((one, other), encode(one, text), encode(other, text))
        assert encode(one, text).ends[pairs[-1][0]] == len(text)


@needs_real
@pytest.mark.parametrize("names", list(permutations(REAL, 2)), ids=" to ".join)
def test_nine_in_ten_tokens_of_the_coarser_side_are_paired_on_english(names):
    source, target = (encode(name, ENGLISH) for name in names)
    assert len(check(names, source, target)) >= 0.9 * min(len(source), len(target))


def test_nine_in_ten_chunks_of_english_are_paired_by_trained_tokenizers():
    for asked in world_examples("test")[::400]:
        source, target = (encode(name, f"|prod|: {asked.prompt}") for name in TRAINED)
        n_words = len(asked.prompt.split())
        assert len(check(TRAINED, source, target)) >= 0.9 * n_words


@needs_real
@pytest.mark.parametrize("names", list(permutations((*TEMPLATES, "gpt2_50k"), 2)), ids=" to ".join)
@settings(deadline=None, max_examples=4)
@given(message=TEXTS.filter(str.strip), answer=TEXTS.filter(str.strip))
@example(message="\ufe00A\u0300", answer="0")
def test_between_chat_templates_content_is_paired_with_content_and_roles_with_roles(
    names, message, answer
):
    texts = []
    for name in names:
        spoken = tokenizer(name, TEMPLATES.get(name))
        texts += encode_prompts(spoken, [message.strip()], answers=[answer.strip()])
    source, target = texts
    pairs = listed(pair_tokens(source, target))
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    assert not any(source.is_special[i] or target.is_special[j] for i, j in pairs)
    assert (source.n_prompt - 1, target.n_prompt - 1) in pairs
    for i, j in pairs:
        ours, theirs = place(source, i), place(target, j)
        assert ours[0] == theirs[0]
        assert ours[0] == "template" or ours == theirs
    words = [source.text[: source.ends[i]].lower() for i, _ in pairs]
    role = ("user", "inst")
    assert any(one.endswith(role) and "\n" not in one.strip() for one in words)


def place(text, token):
    """Which part a token ends in, and how far from where that part begins."""
    end, n_characters = text.ends[token], text.ends[text.n_prompt - 1]
    if end > n_characters:
        return "answer", len(text.text) - end
    is_message = text.message[0] < end <= text.message[1]
    return ("message", end - text.message[0]) if is_message else ("template", 0)
