"""What a part of the reproduction is, and several of its studies as one."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.core.options import TaskName
from isthmus.core.progress import Progress
from isthmus.evaluation.report import short_name
from isthmus.studies.paper_models import Scope
from isthmus.studies.result import StudyResult


@dataclass(frozen=True)
class Part:
    """One part of the reproduction.

    Attributes:
        title: Heading, with the paper's section.
        task: Whose configurations name its models, where such are given.
        run: Does it.
        organisms: What it reads where none are given.
        has_shards: Whether it hands its work to the scope's engine by itself.
        when_named: Whether it is left out unless somebody names it: it has no place in the paper.
    """

    title: str
    task: TaskName
    run: Callable[[Scope, Progress], StudyResult]
    organisms: tuple[str, ...]
    has_shards: bool = False
    when_named: bool = False


def joined(name: str, results: Sequence[StudyResult]) -> StudyResult:
    """Returns studies of several pairs as one.

    Args:
        name: Its name.
        results: At least one.

    Returns:
        All numbers, notes and pictures, in order. A note that not all have says of which pair it
        is, and so does every title that does not name it.
    """
    pairs = [_pair_of(result) for result in results]
    is_one = len(set(pairs)) == 1
    n_notes = Counter(note for result in results for note in dict.fromkeys(result.notes))
    figures: dict[str, str] = {}
    notes: list[str] = []
    for number, (pair, result) in enumerate(zip(pairs, results, strict=True), start=1):
        for title, svg in result.figures.items():
            is_named = is_one or set(pair) <= set(re.findall(r"[^\s,:/()]+", title))
            named = title if is_named else f"{title} ({' → '.join(pair)})"
            figures[named if named not in figures else f"{named} ({number})"] = svg
        for note in result.notes:
            is_shared = n_notes[note] == len(results) or is_one
            notes.append(note if is_shared else f"{' → '.join(pair)}: {note}")
    return StudyResult(
        name,
        tuple(itertools.chain.from_iterable(r.measurements for r in results)),
        tuple(dict.fromkeys(notes)),
        figures,
        tuple(itertools.chain.from_iterable(r.rows for r in results)),
    )


def _pair_of(result: StudyResult) -> tuple[str, ...]:
    """Returns both ends of a study, or its model where it is one; its own name without numbers."""
    ends = dict.fromkeys((short_name(m.source), short_name(m.target)) for m in result.measurements)
    # A study of two models measures the source by itself, too.
    two = [pair for pair in ends if pair[0] != pair[1]]
    first = next(iter((*two, *ends)), (result.name,))
    return tuple(dict.fromkeys(first))
