"""Rewrites the table of the demonstration in a document from a run's `results.jsonl`.

python benchmarks/demo_table.py [runs/demo/results.jsonl] [README.md]
"""

import argparse
from pathlib import Path

from isthmus.core.errors import ArtifactError
from isthmus.core.places import write_text
from isthmus.evaluation.measurements import read_results
from isthmus.evaluation.report import (
    Crossing,
    Row,
    group_crossings,
    interval,
    number,
    short_name,
)

BEGIN, END = "<!-- demo-table -->", "<!-- /demo-table -->"
_HEAD = (
    "carried to",
    "swap, carried",
    "swap, native",
    "swap, best control",
    "behaviour rate",
    "right answers",
    "benign KL",
)


def demo_table(results: Path) -> str:
    """Returns one Markdown row per crossing: headline, native, control, rates, damage.

    Args:
        results: A run's `results.jsonl`.

    Raises:
        ArtifactError: If the file is missing or damaged, or holds no crossing.
    """
    crossings = group_crossings(read_results(results))
    if not crossings:
        raise ArtifactError(f"{results} holds no crossing: run 'make demo' first")
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(crossing))} |" for crossing in crossings]
    source = short_name(crossings[0].source)
    n = max(m.n or 0 for crossing in crossings for m in crossing.cells)
    lines += ["", f"Source `{source}`; test split, at most {n} questions per cell; 95 % intervals."]
    return "\n".join(lines)


def _cells(crossing: Crossing) -> list[str]:
    carried, control = crossing.transferred, crossing.control
    headlines = [crossing.headline(row) for row in (carried, crossing.native, control)]
    name = f" ({control.arm[0].replace('_', ' ')})" if control else ""
    untouched = crossing.reference("none")
    damage = carried.cells.get("benign_kl") if carried else None
    return [
        f"`{short_name(crossing.target)}`",
        interval(headlines[0]),
        interval(headlines[1]),
        interval(headlines[2]) + name,
        f"{_share(untouched, 'behaviour_rate')} → {_share(carried, 'behaviour_rate')}",
        f"{_share(untouched, 'answer_accuracy')} → {_share(carried, 'answer_accuracy')}",
        number(damage.value, damage.metric) if damage else "not measured",
    ]


def _share(row: Row | None, metric: str) -> str:
    found = row.cells.get(metric) if row else None
    return number(found.value) if found else "not measured"


def with_table(document: str, table: str) -> str:
    """Returns a document with the table between the markers, all else as it was.

    Args:
        document: Text that holds `BEGIN` and, after it, `END`.
        table: What shall stand between them.

    Raises:
        ArtifactError: If a marker is missing, or the end comes first.
    """
    head, found, rest = document.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ArtifactError(f"no {BEGIN} … {END} in the document: put both markers back")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main() -> None:
    """Rewrites the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/demo/results.jsonl"))
    parser.add_argument("document", type=Path, nargs="?", default=Path("README.md"))
    given = parser.parse_args()
    text = given.document.read_text(encoding="utf-8")
    write_text(given.document, with_table(text, demo_table(given.results)))


if __name__ == "__main__":
    main()
