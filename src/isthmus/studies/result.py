"""What a study returns: a question about two models, answered in numbers and pictures."""

from dataclasses import dataclass, field

from isthmus.evaluation.measurements import Measurement


@dataclass(frozen=True)
class StudyResult:
    """What one study found.

    Attributes:
        name: Which study, as in `results.jsonl`'s `task`.
        measurements: Every number.
        notes: What a reader should know, in sentences: choices made, what failed, what is missing.
        figures: Pictures as SVG text by title.
        rows: Completions side by side, for people; every row has the same names.
    """

    name: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    figures: dict[str, str] = field(default_factory=dict)
    rows: tuple[dict[str, str], ...] = ()
