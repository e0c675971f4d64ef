"""Measures how far judges of refusal agree with people: `judge_agreement.py --help`."""

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import conditions

from isthmus.core.artifacts import write_json
from isthmus.core.errors import ConfigError, DataError, IsthmusError
from isthmus.evaluation.agreement import Agreement, measure_agreement
from isthmus.evaluation.intervals import Interval, wilson_interval
from isthmus.evaluation.judges import (
    EndpointJudge,
    Judge,
    RefusalRules,
    SubstringRules,
    Verdict,
    load_guard_judge,
)

OUT = Path(__file__).resolve().parent / "results" / "judge-agreement.json"
HALVES = ("development", "held_out")
"""The rules were written on the first and are reported on the second."""

MEANINGS = {
    "1_full_compliance": "complies",
    "2_full_refusal": "refuses",
    "3_partial_refusal": "refuses_then_complies",
}
"""Our word for each label of the annotators of XSTest; the last is the nearest, not the same."""

SCHEMES = ("any_refusal", "without_partial", "three_labels")
"""Partial refusal counts as refusal; is left out; is a label of its own."""


@dataclass(frozen=True)
class Labelled:
    """One completion with what people say of it.

    Attributes:
        file: Name of its file.
        prompt: What was asked.
        completion: What was answered.
        label: What the annotators agreed on.
        first: What the first annotator said.
        second: What the second annotator said.
    """

    file: str
    prompt: str
    completion: str
    label: str
    first: str
    second: str

    @property
    def half(self) -> str:
        """Which of `HALVES` it is in, by a hash of the prompt: answers to one stay together."""
        digest = hashlib.sha256(self.prompt.strip().encode()).hexdigest()
        return HALVES[int(digest[:8], 16) % 2]


def read_labelled(folder: Path) -> list[Labelled]:
    """Reads the completions of XSTest that people have labelled.

    Args:
        folder: Folder with files named `xstest_v2_MODEL.csv`.

    Returns:
        Rows of all files, in order of file names.

    Raises:
        DataError: If there is no such file, or a row lacks a column or has an unknown label.
    """
    rows = []
    for path in sorted(folder.glob("xstest_v2_*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            rows += [_labelled(path.stem, row) for row in csv.DictReader(stream)]
    if not rows:
        raise DataError(f"no xstest_v2_*.csv in {folder}: give the folder that holds them")
    return rows


def agreement_rows(
    judge: str, rows: Sequence[Labelled], said: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Returns agreement with the final labels, by half, file and scheme.

    Args:
        judge: Name of the judge.
        rows: What people say.
        said: Label of the judge for every row.
        seed: Of the bootstrap over prompts.

    Returns:
        JSON values, one row per half, file (and all files) and scheme.
    """
    found = []
    files = sorted({row.file for row in rows})
    pairs = list(zip(rows, said, strict=True))
    for half in HALVES:
        for file in (*files, "all"):
            here = [(r, s) for r, s in pairs if r.half == half and file in (r.file, "all")]
            for scheme in SCHEMES:
                one = _agreement(here, scheme, seed)
                where = {"judge": judge, "half": half, "file": file, "scheme": scheme}
                found.append(where | as_json(one))
    return found


def edited_rows(folder: Path, judges: Sequence[Judge]) -> list[dict[str, Any]]:
    """Returns how many completions of each unlabelled file each judge calls refusals.

    The files hold answers to one set of harmless prompts, `_baseline` of the model as it is and
    `_actadd` with the refusal direction added. Nobody has labelled them.

    Args:
        folder: Folder with files named `rd_MODEL_harmless_CONDITION.jsonl`; there may be none.
        judges: Who judges.

    Returns:
        JSON values, one row per file and judge.
    """
    found = []
    for path in sorted(folder.glob("rd_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        prompts, completions = ([row[key] for row in rows] for key in ("prompt", "response"))
        for judge in judges:
            verdicts = judge.judge(prompts, completions)
            n_refusals = sum(v.opens_with_refusal for v in verdicts)
            found.append(
                {
                    "judge": judge.name,
                    "file": path.stem,
                    "refusals": interval_json(wilson_interval(n_refusals, len(verdicts))),
                    "n": len(verdicts),
                    "n_unjudged": sum(not v.is_judged for v in verdicts),
                }
            )
    return found


def as_json(one: Agreement) -> dict[str, Any]:
    """Returns an agreement as JSON values."""
    return {
        "accuracy": interval_json(one.accuracy),
        "kappa": interval_json(one.kappa),
        "labels": list(one.labels),
        "counts_people_by_judge": [list(row) for row in one.counts],
        "n": one.n,
        "n_prompts": one.n_groups,
    }


def interval_json(interval: Interval) -> dict[str, float] | None:
    """Returns an interval as JSON values, None where it is undefined."""
    if not interval.is_defined:
        return None
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: round(number, 4) for name, number in ends.items()}


def table_of(found: Iterable[Mapping[str, Any]], scheme: str = SCHEMES[0]) -> str:
    """Returns a Markdown table of one scheme.

    Args:
        found: What `agreement_rows` returned.
        scheme: One of `SCHEMES`.

    Returns:
        Lines of Markdown, the last one ended.
    """
    lines = [
        "| half | file | judge | n | accuracy | Cohen's kappa |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['half'].replace('_', '-')} | {row['file']} | {row['judge']} | {row['n']} "
        f"| {_cell(row['accuracy'])} | {_cell(row['kappa'])} |"
        for row in found
        if row["scheme"] == scheme
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the judges, writes the JSON file, prints the table and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when something cannot be read, judged or written.
    """
    given = _parse(arguments)
    try:
        judges = _judges(given)
        rows = read_labelled(given.data)
        found = _annotators(rows, given.seed)
        for judge in judges:
            verdicts = judge.judge([r.prompt for r in rows], [r.completion for r in rows])
            found += agreement_rows(judge.name, rows, [v.label for v in verdicts], given.seed)
            _tell_unjudged(judge, verdicts)
        edited = edited_rows(given.data, judges)
        report = {
            "conditions": conditions({"seed": given.seed}),
            "agreement": found,
            "edited_not_labelled": edited,
        }
        write_json(given.out, report)
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for scheme in SCHEMES:
        print(f"{scheme}\n\n{table_of(found, scheme)}")
    for row in edited:
        print(f"{row['file']}: {row['judge']}: refusals {_cell(row['refusals'])}, n {row['n']}")
    return 0


def _agreement(pairs: Sequence[tuple[Labelled, str]], scheme: str, seed: int) -> Agreement:
    kept = [
        (row, MEANINGS[row.label], said)
        for row, said in pairs
        if scheme != "without_partial" or row.label != "3_partial_refusal"
    ]
    reduce = str if scheme == "three_labels" else _any_refusal
    return measure_agreement(
        [reduce(people) for _, people, _ in kept],
        [reduce(said) for _, _, said in kept],
        [row.prompt.strip() for row, _, _ in kept],
        seed=seed,
    )


def _any_refusal(label: str) -> str:
    return "refuses" if Verdict(label, "").opens_with_refusal else label


def _annotators(rows: Sequence[Labelled], seed: int) -> list[dict[str, Any]]:
    """Returns how far each annotator agrees with the other: what a judge can hope for."""
    first = [
        Labelled(r.file, r.prompt, r.completion, label=r.first, first=r.first, second=r.second)
        for r in rows
    ]
    return agreement_rows("annotator 2 on 1", first, [MEANINGS[r.second] for r in rows], seed)


def _tell_unjudged(judge: Judge, verdicts: Sequence[Verdict]) -> None:
    reasons = [verdict.reason for verdict in verdicts if not verdict.is_judged]
    if reasons:
        print(f"{judge.name}: {len(reasons)} unjudged, first: {reasons[0]}", file=sys.stderr)


def _labelled(file: str, row: Mapping[str, str]) -> Labelled:
    try:
        prompt, completion = row["prompt"], row["completion"]
        label, first, second = row["final_label"], row["annotation_1"], row["annotation_2"]
    except KeyError as error:
        raise DataError(f"{file} has no column {error}: expected XSTest's own columns") from None
    if unknown := {label, first, second} - set(MEANINGS):
        raise DataError(f"{file}: label {unknown}, expected one of {', '.join(MEANINGS)}")
    return Labelled(file, prompt, completion, label, first, second)


def _cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _judges(given: argparse.Namespace) -> list[Judge]:
    judges: list[Judge] = [RefusalRules(), SubstringRules()]
    if given.endpoint:
        if not given.model:
            raise ConfigError("--endpoint without --model: say which model judges")
        judges.append(EndpointJudge(given.endpoint, given.model))
    if given.guard:
        meanings = dict(one.split("=", 1) for one in given.meaning)
        judges.append(load_guard_judge(given.guard, meanings))
    return judges


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures how far judges of refusal agree with people's labels: the rules, the "
        "usual list of phrases, and any endpoint or classifier of yours."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with xstest_v2_*.csv")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap over prompts")
    parser.add_argument("--endpoint", help="address of an OpenAI-compatible server to add")
    parser.add_argument("--model", help="model of that server")
    parser.add_argument("--guard", help="classifier to add: hub name or folder")
    parser.add_argument(
        "--meaning",
        nargs="+",
        default=[],
        metavar="LABEL=VERDICT",
        help="what each label of the classifier means",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
