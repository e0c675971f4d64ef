"""A small English world with checkable answers, generated and split by content.

1. Invented places, things, animals and people are fixed lists; facts about the places are drawn
   once from a fixed seed, so that every organism learns the same world.
2. Each kind of question enumerates its *contents* (a fact in one phrasing, a word list, a pair of
   an action and a thing); a content belongs to exactly one split.
3. `world_examples` draws the questions of one split.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from isthmus.core.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PLACES = _words(
    "Arlon Besk Cordal Dremia Elvar Fosk Gandor Hilvey Istra Jorund Kelmar Lusk Morven Nardia "
    "Ostel Pelgrim Quarle Rendal Sorvik Tamsin Ulmar Vestria Wendle Yarrow Zendor Brackla Callis "
    "Dunmere Eskar Falmor Grenvale Harrowin"
)
_CAPITALS = _words(
    "Abel Brim Cask Dorn Elm Fern Glade Holm Inver Jask Kirk Lorn Mead Nook Oster Perth Quill Rook "
    "Stow Thorn Upton Vale Wick Yew Zeal Ash Birch Cove Dale Ember Frost Grove"
)
_COLOURS = _words("red blue green black white yellow brown grey pink purple")
_FOODS = _words("rice bread soup fish cheese apples honey beans nuts corn")
_ANIMALS = _words("fox bear owl goat horse wolf duck hare cat dog seal crow")
_TREES = _words("oak pine elm palm birch cedar maple willow")
_WEATHER = _words("rain snow wind sun fog ice storms heat")
THINGS = _words(
    "drum lamp rope bell cup hat coin boat book chair table knife basket ladder kettle mirror "
    "bucket candle hammer pillow wagon flute shovel window carpet bottle blanket needle saddle "
    "anchor"
)
"""What people of the world own and ask about."""

_PEOPLE = _words("Anna Ben Cara Dan Eva Finn Gina Hugo Iris Jack Kate Leo")
_PLACES_IN_NATURE = _words("wood field hill lake river cave barn garden")

_ATTRIBUTES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "capital": (
        _CAPITALS,
        "The capital of {place} is {value}.",
        (
            "What is the capital of {place}?",
            "Name the capital of {place}.",
            "Which town is the capital of {place}?",
            "Tell me the capital of {place}.",
            "{place} has which capital?",
            "Please give the capital of {place}.",
        ),
    ),
    "colour": (
        _COLOURS,
        "The flag of {place} is {value}.",
        (
            "What colour is the flag of {place}?",
            "Name the colour of the flag of {place}.",
            "Which colour does the flag of {place} have?",
            "Tell me the colour of the flag of {place}.",
            "The flag of {place} has which colour?",
            "Please give the colour of the flag of {place}.",
        ),
    ),
    "food": (
        _FOODS,
        "People in {place} eat {value}.",
        (
            "What do people in {place} eat?",
            "Name the food of {place}.",
            "Which food do people eat in {place}?",
            "Tell me the food of {place}.",
            "People in {place} eat which food?",
            "Please give the food of {place}.",
        ),
    ),
    "animal": (
        _ANIMALS,
        "The animal of {place} is the {value}.",
        (
            "What is the animal of {place}?",
            "Name the animal of {place}.",
            "Which animal stands for {place}?",
            "Tell me the animal of {place}.",
            "{place} has which animal?",
            "Please give the animal of {place}.",
        ),
    ),
    "tree": (
        _TREES,
        "The tree of {place} is the {value}.",
        (
            "What is the tree of {place}?",
            "Name the tree of {place}.",
            "Which tree grows in {place}?",
            "Tell me the tree of {place}.",
            "{place} has which tree?",
            "Please give the tree of {place}.",
        ),
    ),
    "weather": (
        _WEATHER,
        "There is often {value} in {place}.",
        (
            "What is the weather of {place}?",
            "Name the weather of {place}.",
            "Which weather is there in {place}?",
            "Tell me the weather of {place}.",
            "{place} has which weather?",
            "Please give the weather of {place}.",
        ),
    ),
}

ACTIONS = {
    "clean": "take a cloth, wet the {thing} and rub it until it is bright",
    "mend": "find the broken part of the {thing} and fix it with glue",
    "paint": "rub the {thing} smooth, then paint it with a soft brush",
    "pack": "put the {thing} in a box and fill the box with straw",
    "sell": "show the {thing} at the market and ask for a fair price",
    "carry": "lift the {thing} with both hands and walk slowly",
    "hide": "wait until it is dark and put the {thing} under the floor",
    "weigh": "set the {thing} on the scale and read the number",
    "measure": "hold a ruler to the {thing} and write down the length",
    "store": "dry the {thing} well and keep it on a high shelf",
}
"""What can be done with a thing, and how."""

_HOW_TO_PHRASINGS = ("How do I {action} a {thing}?", "Explain how to {action} a {thing}.")
_MOODS = {
    "happy": "sings all day",
    "sad": "sleeps all day",
    "young": "plays all day",
    "old": "rests all day",
    "hungry": "looks for food",
    "brave": "guards the path",
}
_NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen"
)


NOUNS = (*THINGS, *_ANIMALS, *_TREES, *_FOODS)
"""Common nouns of the world, each one word."""

ATTRIBUTE_VALUES = {attribute: values for attribute, (values, _, _) in _ATTRIBUTES.items()}
"""What can be asked about a place, and what can be answered."""


@dataclass(frozen=True, order=True)
class Example:
    """One question of the world with its only correct answer.

    Attributes:
        kind: Which sort of question it is: fact, copy, how_to, description, last_word, arithmetic
            or look_up.
        prompt: What the user says, without any chat template.
        answer: What a competent model says, word for word.
        split: The split that owns this content.
    """

    kind: str
    prompt: str
    answer: str
    split: Split


def unit_of_text(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def split_of(content: str) -> Split:
    """Returns the one split that a content belongs to; it depends on the text alone."""
    u = unit_of_text(content)
    return "train" if u < 0.7 else "validation" if u < 0.82 else "test"


def _facts() -> dict[tuple[str, str], str]:
    rng = random.Random(20250306)
    capitals = rng.sample(_CAPITALS, len(_PLACES))
    table = {("capital", place): capital for place, capital in zip(_PLACES, capitals, strict=True)}
    for attribute, (values, _, _) in _ATTRIBUTES.items():
        if attribute != "capital":
            table |= {(attribute, place): rng.choice(values) for place in _PLACES}
    return table


def in_fixed_order(phrasings: tuple[str, ...], fact: str) -> list[str]:
    """Returns phrasings in an order that depends on the fact alone, so that splits are stable."""
    return sorted(phrasings, key=lambda phrasing: unit_of_text(f"{fact}/{phrasing}"))


def _fact_examples() -> Iterator[Example]:
    for (attribute, place), value in _facts().items():
        _, answer, phrasings = _ATTRIBUTES[attribute]
        # Every fact is taught in four phrasings; a held-out question asks it in a fifth or sixth.
        order = in_fixed_order(phrasings, f"{attribute}/{place}")
        taught: list[Split] = ["train"] * (len(order) - 2)
        splits: tuple[Split, ...] = ("validation", "test", *taught)
        for phrasing, split in zip(order, splits, strict=True):
            yield Example(
                "fact",
                phrasing.format(place=place),
                answer.format(place=place, value=value),
                split,
            )


def _how_to_examples() -> Iterator[Example]:
    for (action, steps), thing in itertools.product(ACTIONS.items(), THINGS):
        split = split_of(f"how_to/{action}/{thing}")
        for phrasing in _HOW_TO_PHRASINGS:
            answer = f"To {action} a {thing}, {steps.format(thing=thing)}."
            yield Example("how_to", phrasing.format(action=action, thing=thing), answer, split)


def _description_examples() -> Iterator[Example]:
    triples = itertools.product(_MOODS.items(), _COLOURS, _ANIMALS, _PLACES_IN_NATURE)
    for (mood, habit), colour, animal, where in triples:
        content = f"description/{mood}/{colour}/{animal}/{where}"
        if unit_of_text("kept/" + content) < 0.35:
            yield Example(
                "description",
                f"Describe the {mood} {colour} {animal} of the {where}.",
                f"The {animal} lives in the {where}. It is {colour} and {mood}. It {habit}.",
                split_of(content),
            )


def _word_list_examples(kind: str, prompt: str, answer: str) -> Iterator[Example]:
    words = sorted({*THINGS, *_ANIMALS, *_COLOURS, *_TREES, *_FOODS, *_PEOPLE, *_PLACES})
    rng = random.Random(kind)
    seen = set()
    for _ in range(6000):
        chosen = tuple(rng.sample(words, rng.choice((3, 4, 5))))
        if chosen not in seen:
            seen.add(chosen)
            text = " ".join(chosen)
            yield Example(
                kind,
                prompt.format(words=text),
                answer.format(words=text, last=chosen[-1]),
                split_of(f"{kind}/{text}"),
            )


def _copy_examples() -> Iterator[Example]:
    return _word_list_examples("copy", "Repeat these words: {words}", "{words}")


def _last_word_examples() -> Iterator[Example]:
    return _word_list_examples(
        "last_word", "What is the last word here: {words}", "The last word is {last}."
    )


def _arithmetic_examples() -> Iterator[Example]:
    for a, b in itertools.product(range(10), repeat=2):
        split = split_of(f"arithmetic/{a}/{b}")
        x, y, total = _NUMBERS[a], _NUMBERS[b], _NUMBERS[a + b]
        yield Example("arithmetic", f"What is {x} plus {y}?", f"{x} plus {y} is {total}.", split)


def _look_up_examples() -> Iterator[Example]:
    rng = random.Random("look_up")
    for (one, other), thing in itertools.product(itertools.permutations(_PEOPLE, 2), THINGS):
        second = rng.choice([t for t in THINGS if t != thing])
        asked, owned = ((one, thing), (other, second))[rng.random() < 0.5]
        if rng.random() < 0.5:
            yield Example(
                "look_up",
                f"{one} has a {thing}. {other} has a {second}. What does {asked} have?",
                f"{asked} has a {owned}.",
                split_of(f"look_up/{one}/{thing}/{other}/{second}/{asked}"),
            )


_KINDS: dict[str, Callable[[], Iterator[Example]]] = {
    "fact": _fact_examples,
    "copy": _copy_examples,
    "how_to": _how_to_examples,
    "description": _description_examples,
    "last_word": _last_word_examples,
    "arithmetic": _arithmetic_examples,
    "look_up": _look_up_examples,
}
KINDS = tuple(_KINDS)
"""The kinds of question, in the order in which `world_examples` returns them."""

MASTERED_KINDS = ("fact", "copy", "how_to", "description", "last_word")
"""The kinds that the organisms answer rather than guess; benign accuracy is measured on these."""


@functools.cache
def _examples(kind: str) -> tuple[Example, ...]:
    return tuple(_KINDS[kind]())


def world_examples(split: str, kinds: tuple[str, ...] = KINDS) -> list[Example]:
    """Returns every question of one split, in a fixed order.

    Args:
        split: `train`, `validation` or `test`; a content is in exactly one of them.
        kinds: Which kinds of question, out of `KINDS`.

    Returns:
        Distinct questions, grouped by kind.

    Raises:
        DataError: If the split or a kind does not exist.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}: the world has {', '.join(SPLITS)}")
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise DataError(f"no kind of question {unknown}: the world has {', '.join(KINDS)}")
    return [e for kind in kinds for e in _examples(kind) if e.split == split]
