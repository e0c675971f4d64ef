"""How much two texts have in common: ROUGE-1, ROUGE-2 and ROUGE-L, as F1.

1. Texts become lower-case words of letters and digits; everything else separates words.
2. ROUGE-N counts the n-grams both share, each as often as the rarer side has it.
3. ROUGE-L takes the longest common subsequence of words instead.
4. F1 is the harmonic mean of what share of either text that is.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class TextOverlap:
    """F1 of each kind of ROUGE, from 0 to 1.

    Attributes:
        rouge_1: Of single words.
        rouge_2: Of pairs of neighbouring words.
        rouge_l: Of the longest common subsequence of words.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float


def text_overlap(text: str, reference: str) -> TextOverlap:
    """Measures what two texts share, 2 · shared / (length of one + length of the other).

    Symmetric; 1 for the same words in the same order, 0 for a text without a word. Words are not
    stemmed and every script but the Latin one counts as a separator.

    Source: Lin 2004, ROUGE: a package for automatic evaluation of summaries, sections 2 and 3.

    Args:
        text: One text.
        reference: The other.

    Returns:
        The three scores.
    """
    ours, theirs = _words(text), _words(reference)
    return TextOverlap(
        rouge_1=_shared_ngrams(ours, theirs, 1),
        rouge_2=_shared_ngrams(ours, theirs, 2),
        rouge_l=_f1(_longest_common(ours, theirs), len(ours), len(theirs)),
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(n_shared: int, n_ours: int, n_theirs: int) -> float:
    return 2 * n_shared / (n_ours + n_theirs) if n_shared else 0.0


def _shared_ngrams(ours: Sequence[str], theirs: Sequence[str], n: int) -> float:
    counts, others = (
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for words in (ours, theirs)
    )
    return _f1((counts & others).total(), counts.total(), others.total())


def _longest_common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Returns the length of the longest subsequence of both, row by row of the usual table."""
    before = [0] * (len(theirs) + 1)
    for word in ours:
        row = [0]
        for j, other in enumerate(theirs):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
        before = row
    return before[-1]
