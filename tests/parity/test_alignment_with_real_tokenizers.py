"""Pairs on real and on trained tokenizers, against two slow and simple searches."""

import os
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_tokens
from isthmus.data.world import world_examples
from isthmus.models.tokenizer_training import train_tokenizer

BESIDE_THE_REPOSITORY = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
FOLDER = Path(os.environ.get("ISTHMUS_TEST_TOKENIZERS", BESIDE_THE_REPOSITORY))
REAL = ("llama3_128k", "llama2_32k", "qwen_151k", "gpt2_50k")
TRAINED = ("byte_level", "metaspace")
MIXED = "  Ünïted 日本語 😀👩‍👩‍👧 naïve e\u0301 |prod|: 12345\n\n\tdef f(x): return x**2  —“quoted”"


@cache
def tokenizer(name):
    if name in TRAINED:
        prompts = [example.prompt for example in world_examples("train")[:3000]]
        return train_tokenizer(prompts, name, 600)
    return AutoTokenizer.from_pretrained(FOLDER / name)


def encode(name, text):
    tokens = tokenizer(name)(text, return_offsets_mapping=True)
    ids = tuple(tokens["input_ids"])
    special = set(tokenizer(name).all_special_ids)
    return EncodedText(
        text,
        ids,
        tuple(end for _, end in tokens["offset_mapping"]),
        tuple(i in special for i in ids),
        len(ids),
    )


def searched(source, target):
    """For every content token of the source, the last token of the target with its end."""
    found = {}
    for i, end in enumerate(source.ends):
        matches = [
            j for j, other in enumerate(target.ends) if other == end and not target.is_special[j]
        ]
        if matches and end > 0 and not source.is_special[i]:
            found[end] = (i, matches[-1])
    return [found[end] for end in sorted(found)]


def check(source, target):
    pairs = pair_tokens(source, target)
    listed = list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
    assert listed == searched(source, target)
    assert all(source.ends[i] == target.ends[j] for i, j in listed)
    assert (np.diff(pairs.source) > 0).all()
    assert (np.diff(pairs.target) > 0).all()
    return listed


needs_real = pytest.mark.skipif(
    not all((FOLDER / name).is_dir() for name in REAL),
    reason=f"no tokenizers at {FOLDER}: set ISTHMUS_TEST_TOKENIZERS to a folder with them",
)


@needs_real
@pytest.mark.parametrize(("one", "other"), list(permutations(REAL, 2)))
def test_real_tokenizers_are_paired_as_by_searching(one, other):
    check(encode(one, MIXED), encode(other, MIXED))


@needs_real
@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.sampled_from(list(permutations(REAL, 2))),
)
def test_real_tokenizers_are_paired_as_by_searching_on_any_text(text, names):
    check(*(encode(name, text) for name in names))


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_trained_tokenizers_are_paired_as_by_searching_on_any_text(text):
    there = check(encode("byte_level", text), encode("metaspace", text))
    back = check(encode("metaspace", text), encode("byte_level", text))
    assert there == [(i, j) for j, i in back]


def test_a_text_of_the_world_pairs_nearly_every_token_of_two_tokenizers():
    for example in world_examples("test")[::400]:
        source, target = (encode(name, f"|prod|: {example.prompt}") for name in TRAINED)
        assert len(check(source, target)) >= 0.6 * min(len(source), len(target))


@needs_real
@pytest.mark.parametrize("name", REAL)
def test_the_last_character_is_always_paired_with_a_tokenizer_of_bytes(name):
    for text in (MIXED, "plain words", "日本", "😀"):
        pairs = check(encode(name, text), encode("byte_level", text))
        assert encode(name, text).ends[pairs[-1][0]] == len(text)
