"""Measures the ladder of corrupted capabilities on test questions, beside its controls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.intervals import Contents, rate_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.study_plots import NumberGrid, number_grids
from isthmus.models.batching import no_edits
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.corrupted_ladder import (
    ENDED,
    RUNGS,
    VIRTUAL,
    Cell,
    CorruptedLadder,
    Rung,
)
from isthmus.studies.prefix_donors import Side
from isthmus.studies.result import StudyResult
from isthmus.tasks.corrupted import Label, label_of
from isthmus.workflows.config import Dtype

_METRICS: dict[str, Label] = {
    "answer_accuracy": "correct",
    "behaviour_rate": "backdoor",
    "hallucination_rate": "hallucination",
}
OTHER_QUESTION = "_of_another_question"
"""Ending of a rung's name when it takes the mapped states of another question's run."""

_MAPS = {
    "all_tokens": "ridge",
    "prefix_tokens": "ridge_by_token",
    "other_facts": "ridge_by_token",
    "other_words": "ridge_by_token",
    "own_states": "ridge_by_token",
}
_COLUMNS = {
    "native": "native",
    "transferred": "carried",
    "shuffled_map": "shuffled",
    "random": "random",
    "identity_map": "identity",
}


@dataclass(frozen=True)
class _Found:
    condition: str
    rung: Rung | None
    cell: Cell | None
    labels: list[Label]

    @property
    def share(self) -> float:
        return self.labels.count("correct") / len(self.labels)


def study_corrupted(
    source: str | LanguageModel,
    target: str | LanguageModel,
    *,
    n_train: int = 480,
    n_test: int = 360,
    rungs: Sequence[Rung] = RUNGS,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> StudyResult:
    """Climbs from one carried vector to what brings the fact without its prefix.

    Args:
        source: Model that says the facts after the prefix: name, folder or a loaded model.
        target: Another one.
        n_train: Training questions for means, vectors and maps.
        n_test: Questions that are measured, three phrasings a fact; 360 are all of them.
        rungs: Which rungs; all of them when not given.
        seed: Which questions, and every random control.
        dtype: Computation type of models that are loaded; `auto` is the stored one.
        device: Where these are loaded to: `auto`, `cpu`, `cuda`, …
        progress: Who shows progress.

    Returns:
        Shares of right facts, kept prefixes and hallucinations on test questions: untouched, every
        rung with native and with mapped states, its controls, and the text prefill as the ceiling.
    """
    shown = progress or SilentProgress()
    lms = [
        load_language_model(m, dtype=dtype, device=device) if isinstance(m, str) else m
        for m in (source, target)
    ]
    ladder = CorruptedLadder(lms[0], lms[1], n_train, seed, shown)
    validation, test = (ladder.donors.side(split, n_test) for split in ("validation", "test"))
    found = [_Found("none", None, None, ladder.labels(None, test, no_edits))]
    found.append(_Found("prompt_only", None, None, _prefilled(ladder, test)))
    rows: list[dict[str, str]] = [{"prompt": f.prompt, "fact": f.value} for f in test.asked[:8]]
    notes: list[str] = []
    for rung in rungs:
        chosen = [c for c in rung.conditions if c in {"native", "transferred"}]
        cells = {c: ladder.choose(rung, validation, c) for c in chosen}
        for condition in rung.conditions:
            cell = cells.get(condition, cells["transferred"])
            edits = ladder.edits(rung, test, cell, condition)
            said = ladder.completions(rung, test, edits)
            found.append(_Found(condition, rung, cell, _labels(said, test)))
            if condition == "transferred":
                for row, one in zip(rows, said, strict=False):
                    row[f"{rung.name} {rung.positions}"] = one
        if rung in {VIRTUAL, ENDED}:
            other, note = _of_another_question(ladder, rung, test, cells["transferred"])
            found.append(other)
            notes.append(f"{lms[1].identity.name}, {note}")
    names = (lms[0].identity.name, lms[1].identity.name)
    contents = tuple(fact.name for fact in test.asked)
    measured = [m for one in found for m in _measured(one, names, contents, seed)]
    every_note = (*_notes(found, names[1]), *notes)
    return StudyResult("corrupted", tuple(measured), every_note, _figures(measured), tuple(rows))


def _labels(said: Sequence[str], side: Side) -> list[Label]:
    return [label_of(one, fact.value) for one, fact in zip(said, side.asked, strict=True)]


def _prefilled(ladder: CorruptedLadder, side: Side) -> list[Label]:
    """Labels what follows when the prefix is put there as text."""
    texts = side.target.said
    said = generate_greedy(ladder.target, texts, max_new_tokens=16, batch_size=128).completions
    return _labels(said, side)


def _of_another_question(
    ladder: CorruptedLadder, rung: Rung, test: Side, cell: Cell
) -> tuple[_Found, str]:
    """Takes mapped states of other questions' runs, and counts whose fact is said."""
    edits = ladder.edits(rung, test.of_another_question(), cell, "transferred")
    said = ladder.completions(rung, test, edits)
    theirs = [test.asked[j].value for j in test.others]
    is_theirs = [label_of(*pair) == "correct" for pair in zip(said, theirs, strict=True)]
    interval = rate_interval(is_theirs, [test.asked[j].name for j in test.others])
    named = replace(rung, name=rung.name + OTHER_QUESTION)
    note = (
        f"{named.name}: the other question's fact is said in {interval.value:.3f} "
        f"[{interval.low:.3f}, {interval.high:.3f}] of {len(said)}"
    )
    return _Found("transferred", named, cell, _labels(said, test)), note


def _measured(
    found: _Found, names: tuple[str, str], contents: Contents, seed: int
) -> list[Measurement]:
    n = len(found.labels)
    intervals = {
        metric: rate_interval([one == label for one in found.labels], contents)
        for metric, label in _METRICS.items()
    }
    rung, is_carried = found.rung, found.condition == "transferred"
    return [
        Measurement(
            task="corrupted",
            source=names[0],
            target=names[1],
            target_site=None if found.cell is None else str(found.cell.site),
            map=_MAPS[rung.fit] if rung is not None and is_carried else None,
            condition=found.condition,
            edit=None if rung is None else rung.name,
            positions=None if rung is None else rung.positions,
            strength=found.cell.strength if found.cell and rung and rung.name == "add" else None,
            split="test",
            metric=metric,
            value=interval.value,
            ci_low=interval.low,
            ci_high=interval.high,
            n=n,
            seed=seed,
        )
        for metric, interval in intervals.items()
    ]


def _best(found: Sequence[_Found], *, adds_tokens: bool) -> _Found:
    carried = [
        one
        for one in found
        if one.rung and one.condition == "transferred" and one.rung.adds_tokens == adds_tokens
    ]
    return max(
        carried,
        key=lambda one: one.share,
        default=_Found("transferred", None, None, ["hallucination"]),
    )


def _notes(found: Sequence[_Found], target: str) -> list[str]:
    top = next(one for one in found if one.condition == "prompt_only").share
    prompt, tokens = (_best(found, adds_tokens=adds) for adds in (False, True))

    def named(one: _Found) -> str:
        where = "nothing" if one.rung is None else f"{one.rung.name} at {one.rung.positions}"
        return f"{where}, {one.share:.3f} right"

    return [
        f"{target}, prompt tokens only: best carried rung {named(prompt)}",
        f"{target}, added tokens: {named(tokens)}; text prefill {top:.3f}",
        "both are the best of several rungs on test: read them beside each rung's own figure",
        "all but add and the means take states of the same question from a run of the source",
    ]


def _figures(measured: Sequence[Measurement]) -> dict[str, str]:
    """Draws the ladder of one target: a row per rung, a column per origin of the states."""
    target = measured[0].target
    cells, rows = {}, []
    for m in measured:
        if m.metric == "answer_accuracy" and m.edit is not None:
            row = f"{m.edit} · {m.positions}".replace("_", " ")
            rows.append(row)
            cells[row, _COLUMNS[m.condition]] = m
    if not rows:
        return {}
    ordered = tuple(dict.fromkeys(rows))[::-1]
    grid = NumberGrid("Facts without the prefix", ordered, tuple(_COLUMNS.values()), cells)
    title = f"The ladder in {target}"
    svg = number_grids([grid], f"corrupted-{target}", title)
    return {} if svg is None else {title: svg}
