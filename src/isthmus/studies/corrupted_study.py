"""Measures the ladder of corrupted capabilities on test questions, beside its controls."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.intervals import wilson_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.models.batching import no_edits
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.corrupted_ladder import RUNGS, Cell, CorruptedLadder, Rung, Side
from isthmus.studies.result import StudyResult
from isthmus.tasks.corrupted import Label, label_of

_METRICS: dict[str, Label] = {
    "answer_accuracy": "correct",
    "behaviour_rate": "backdoor",
    "hallucination_rate": "hallucination",
}
CONTROLS = ("random", "shuffled_map", "identity_map")
"""What every rung is compared with, at the place and strength chosen for its transfer."""


@dataclass(frozen=True)
class _Found:
    condition: str
    rung: Rung | None
    cell: Cell | None
    labels: list[Label]


def study_corrupted(
    source: str | LanguageModel,
    target: str | LanguageModel,
    *,
    n_train: int = 200,
    n_test: int = 240,
    rungs: Sequence[Rung] = RUNGS,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Climbs from one carried vector to what brings the fact without its prefix.

    Args:
        source: Model that says the facts after the prefix: name, folder or a loaded model.
        target: Another one.
        n_train: Training questions for means, vectors and maps.
        n_test: Questions that are measured; a half-width of 5 points needs about 240.
        rungs: Which rungs; all of them when not given.
        seed: Which questions, and every random control.
        progress: Who shows progress.

    Returns:
        Shares of right facts, kept prefixes and hallucinations on test questions: untouched, every
        rung with native and with mapped states, its controls, and the text prefill as the ceiling.
    """
    shown = progress or SilentProgress()
    lms = [load_language_model(m) if isinstance(m, str) else m for m in (source, target)]
    ladder = CorruptedLadder(lms[0], lms[1], n_train, seed, shown)
    validation, test = ladder.side("validation", n_test), ladder.side("test", n_test)
    found = [_Found("none", None, None, ladder.labels(None, test, no_edits))]
    found.append(_Found("prompt_only", None, None, _prefilled(ladder, test)))
    rows: list[dict[str, str]] = [{"prompt": f.prompt, "fact": f.value} for f in test.asked[:8]]
    for rung in rungs:
        cells = {c: ladder.choose(rung, validation, c) for c in ("native", "transferred")}
        for condition in ("native", "transferred", *CONTROLS):
            cell = cells.get(condition, cells["transferred"])
            edits = ladder.edits(rung, test, cell, condition)
            said = ladder.completions(rung, test, edits)
            labels = [label_of(s, f.value) for s, f in zip(said, test.asked, strict=True)]
            found.append(_Found(condition, rung, cell, labels))
            if condition == "transferred":
                for row, one in zip(rows, said, strict=False):
                    row[f"{rung.name} {rung.positions}"] = one
    names = (lms[0].identity.name, lms[1].identity.name)
    measurements = [m for one in found for m in _measured(one, names, seed)]
    return StudyResult(
        "corrupted", tuple(measurements), tuple(_notes(found, names[1])), {}, tuple(rows)
    )


def _prefilled(ladder: CorruptedLadder, side: Side) -> list[Label]:
    """Labels what follows when the prefix is put there as text."""
    texts = side.target.said
    said = generate_greedy(ladder.target, texts, max_new_tokens=16, batch_size=128).completions
    return [label_of(s, f.value) for s, f in zip(said, side.asked, strict=True)]


def _measured(found: _Found, names: tuple[str, str], seed: int) -> list[Measurement]:
    n = len(found.labels)
    intervals = {m: wilson_interval(found.labels.count(x), n) for m, x in _METRICS.items()}
    return [
        Measurement(
            task="corrupted",
            source=names[0],
            target=names[1],
            target_site=None if found.cell is None else str(found.cell.site),
            map="ridge" if found.condition == "transferred" else None,
            condition=found.condition,
            edit=None if found.rung is None else found.rung.name,
            positions=None if found.rung is None else found.rung.positions,
            strength=None if found.cell is None else found.cell.strength,
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


def _share(found: Sequence[_Found], condition: str, is_added: bool) -> tuple[float, str]:  # noqa: FBT001
    best = (0.0, "nothing")
    for one in found:
        if one.rung is not None and one.condition == condition:
            adds = one.rung.positions == "placeholders"
            share = one.labels.count("correct") / len(one.labels)
            if adds == is_added and share > best[0]:
                best = (share, f"{one.rung.name} at {one.rung.positions}")
    return best


def _notes(found: Sequence[_Found], target: str) -> list[str]:
    ceiling = next(one for one in found if one.condition == "prompt_only")
    top = ceiling.labels.count("correct") / len(ceiling.labels)
    prompt, prompt_name = _share(found, "transferred", is_added=False)
    tokens, tokens_name = _share(found, "transferred", is_added=True)
    return [
        f"{target}, prompt tokens only: best carried rung {prompt_name}, {prompt:.3f} right",
        f"{target}, added tokens: {tokens_name}, {tokens:.3f} right; text prefill {top:.3f}",
        "both are the best of several rungs on test: read them beside each rung's own figure",
        "replace and virtual_prefix take states of the same question from a run of the source",
    ]
