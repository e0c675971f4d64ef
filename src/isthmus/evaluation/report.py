"""The report: one self-contained HTML page, made from the files of a run's folder and nothing else.

1. Measurements are grouped into crossings, and within each into arms (a condition and its map).
2. Every arm is shown at one setting: the one that did best on the validation split; for controls
   the one that did best on the test split, which counts against the transfer.
3. `judge` compares the transferred arm with the strongest control and with native.
4. The page is written in the order in which a sceptic reads: the finding, the numbers, the
   completions, how the setting was chosen, and what it takes to repeat the run.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, ValidationError

from isthmus.core.artifacts import read_json, sha256_of_file
from isthmus.core.errors import ArtifactError
from isthmus.core.places import write_text
from isthmus.evaluation.figure_style import STYLES
from isthmus.evaluation.measurements import Measurement, read_results
from isthmus.evaluation.plots import (
    Arm,
    arm_label,
    arm_of,
    dose_response,
    effect_bars,
    layer_heat_map,
    sorted_arms,
    span_of,
)

REPORT_NAME = "report.html"
CONTROLS = ("random", "shuffled_map", "identity_map", "noise", "mean_ablation")
_HEADLINE = {
    "recovery": "Recovery ↑",
    "swap": "Swap ↑",
    "behaviour_rate": "Behaviour rate ↓",
    "answer_accuracy": "Answer accuracy ↑",
    "benign_kl": "Benign KL ↓",
    "benign_accuracy": "Benign accuracy ↑",
    "false_trigger_rate": "False triggers ↓",
}
_INPUTS = ("results.jsonl", "config.yaml", "provenance.json", "completions.json")
_File = TypeVar("_File", bound=BaseModel)
_REPEATED = re.compile(r"(\S.{1,60}?)(?: \1){2,}", re.DOTALL)


class Outcome(StrEnum):
    """What a crossing showed; the value completes "the transfer …"."""

    WORKED = "worked"
    PARTLY = "worked in part"
    FAILED = "did not work"
    UNCHECKED = "was not checked"


def judge(
    transferred: Measurement | None, native: Measurement | None, control: Measurement | None
) -> tuple[Outcome, str]:
    """Says in words whether a transfer worked.

    It worked when its interval lies above the strongest control's and its value is at least 0.3 and
    at least 0.8 of native; without native, or below that, it worked in part.

    Args:
        transferred: Swap (or recovery) of the transferred intervention.
        native: The same of the target's own intervention.
        control: The same of the strongest control.

    Returns:
        The outcome, and its reason as the rest of a sentence.
    """
    span, limit, own = span_of(transferred), span_of(control), span_of(native)
    if transferred is None or span is None or limit is None or transferred.ci_low is None:
        return _unjudged(transferred, limit)
    if span[1] <= limit[2]:
        return Outcome.FAILED, "it cannot be told from the strongest control"
    if span[0] < 0.3:
        return Outcome.FAILED, f"it beats the controls, but {transferred.metric} stays below 0.3"
    if own is None:
        return Outcome.PARTLY, "it beats every control, but native is missing or undefined"
    if span[0] < 0.8 * own[0]:
        return Outcome.PARTLY, "it beats every control, but stays clearly behind native"
    return Outcome.WORKED, "it beats every control and keeps up with native"


def _unjudged(transferred: Measurement | None, limit: object) -> tuple[Outcome, str]:
    if transferred is None:
        return Outcome.UNCHECKED, "nothing transferred was measured on the test split"
    if transferred.value is None:
        return Outcome.FAILED, f"{transferred.metric} is undefined, as the trigger does little"
    missing = "a control" if limit is None else "an interval"
    return Outcome.UNCHECKED, f"{transferred.metric} was measured without {missing}"


@dataclass(frozen=True)
class Row:
    """An arm at the setting at which it is shown.

    Attributes:
        arm: Condition and map.
        cells: One measurement of the test split for every metric.
    """

    arm: Arm
    cells: Mapping[str, Measurement]


@dataclass(frozen=True)
class Crossing:
    """One source, one target, and everything measured between them.

    Attributes:
        task: What was steered.
        source: Model the intervention comes from, if any.
        target: Model that was measured, if any.
        metric: The headline: swap, or recovery where the edit only removes or swap is missing.
        rows: Every arm of the test split.
        validation: What settings were chosen on.
        quality: How well the maps predict held-out activations.
        costs: What the target was asked for, by condition and metric.
    """

    task: str
    source: str | None
    target: str | None
    metric: str
    rows: tuple[Row, ...]
    validation: tuple[Measurement, ...]
    quality: tuple[Measurement, ...]
    costs: Mapping[str, float | None]

    def reference(self, condition: str) -> Row | None:
        """Returns the first arm of a condition."""
        return next((row for row in self.rows if row.arm[0] == condition), None)

    @property
    def transferred(self) -> Row | None:
        """The arm of the chosen map: the one measured most fully, then the best on validation."""

        def merit(row: Row) -> tuple[object, ...]:
            shown = list(row.cells.values())
            tried = [m for m in self.validation if arm_of(m) == row.arm]
            same = [m for m in tried if _setting(m) == _setting(shown[0])]
            return len(shown), _score(same, self.metric), _score(shown, self.metric)

        rows = [row for row in self.rows if row.arm[0] == "transferred"]
        return max(rows, key=merit, default=None)

    @property
    def control(self) -> Row | None:
        """The control that came closest to working."""
        rows = [row for row in self.rows if row.arm[0] in CONTROLS]
        return max(rows, key=lambda row: _score(row.cells.values(), self.metric), default=None)

    def headline(self, row: Row | None) -> Measurement | None:
        """Returns a row's measurement of the headline metric."""
        return row.cells.get(self.metric) if row else None

    @property
    def cells(self) -> list[Measurement]:
        """Every shown measurement of the test split."""
        return [m for row in self.rows for m in row.cells.values()]

    @property
    def quality_by_map(self) -> dict[tuple[object, ...], dict[str, Measurement]]:
        """Map scores by condition, map and sites, then by metric."""
        scores: dict[tuple[object, ...], dict[str, Measurement]] = {}
        for m in self.quality:
            key = (m.condition, m.map, m.source_site, m.target_site)
            scores.setdefault(key, {})[m.metric] = m
        return scores

    @property
    def noise(self) -> Row | None:
        """The push without meaning that recovers most: noise or a random direction."""
        rows = [row for row in self.rows if row.arm[0] in ("noise", "random")]
        best = max(rows, key=lambda row: _score(row.cells.values(), "recovery"), default=None)
        return best if best and span_of(best.cells.get("recovery")) else None

    @property
    def verdict(self) -> tuple[Outcome, str]:
        """Outcome and reason."""
        return judge(*map(self.headline, (self.transferred, self.native, self.control)))

    @property
    def native(self) -> Row | None:
        """The target's own intervention."""
        return self.reference("native")


def _score(rows: Collection[Measurement], metric: str) -> tuple[float, float]:
    def best(name: str) -> float:
        known = [(m.n or 0, m.value) for m in rows if m.metric == name and m.value is not None]
        return max(known)[1] if known else -math.inf

    return best(metric), best("recovery")


def _setting(m: Measurement) -> tuple[object, ...]:
    return m.source_site, m.target_site, m.edit, m.positions, m.strength


def _row(
    arm: Arm, test: Sequence[Measurement], validation: Sequence[Measurement], metric: str
) -> Row:
    mine = [m for m in test if arm_of(m) == arm]
    tried = [m for m in validation if arm_of(m) == arm]

    def merit(setting: tuple[object, ...]) -> tuple[float, float]:
        if arm[0] in CONTROLS:
            return _score([m for m in mine if (*_setting(m), m.seed) == setting], metric)
        return _score([m for m in tried if _setting(m) == setting[:-1]], metric)

    chosen = max(dict.fromkeys((*_setting(m), m.seed) for m in mine), key=merit)
    cells: dict[str, Measurement] = {}
    for m in sorted(mine, key=lambda m: (*_setting(m), m.seed) != chosen):
        cells.setdefault(m.metric, m)
    return Row(arm, cells)


def _headline(test: Sequence[Measurement]) -> str:
    carried = [m for m in test if m.condition == "transferred"] or test
    can_cause = any(m.edit != "ablate" and m.metric == "swap" for m in carried)
    return "swap" if can_cause else "recovery"


def group_crossings(measurements: Sequence[Measurement]) -> list[Crossing]:
    """Groups measurements by task, source and target.

    What names no source (native, controls) belongs to every crossing with its task and target.

    Args:
        measurements: All of a run.

    Returns:
        Crossings in the order in which they first occur.
    """
    keys = list(dict.fromkeys((m.task, m.source, m.target) for m in measurements))
    sourced = {(task, target) for task, source, target in keys if source is not None}
    crossings = []
    for task, source, target in keys:
        if source is None and (task, target) in sourced:
            continue
        alike = [m for m in measurements if (m.task, m.target) == (task, target)]
        mine = [m for m in alike if m.source in (source, None)]
        test = [m for m in mine if m.split == "test" and m.metric in _HEADLINE]
        validation = [m for m in mine if m.split == "validation" and m.metric in _HEADLINE]
        metric = _headline(test)
        rows = tuple(_row(arm, test, validation, metric) for arm in sorted_arms(test))
        quality = tuple(m for m in mine if m.metric.startswith("map_"))
        costs = {f"{m.condition} {m.metric}": m.value for m in mine if "_tokens" in m.metric}
        shown = (rows, tuple(validation), quality, costs)
        crossings.append(Crossing(task, source, target, metric, *shown))
    return crossings


def short_name(model: str | None) -> str:
    """Returns a model's name without the place it was loaded from."""
    return (model or "no source").rstrip("/").rsplit("/", 1)[-1].removeprefix("organism:")


def number(value: float | None, metric: str = "") -> str:
    """Returns a value for people: two decimals, three of a divergence, `undefined` for None."""
    if value is None:
        return "undefined"
    digits = 3 if metric.endswith("_kl") else 2
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def interval(measurement: Measurement | None) -> str:
    """Returns a value with its 95 % interval."""
    if measurement is None:
        return "not measured"
    ends = (measurement.value, measurement.ci_low, measurement.ci_high)
    value, low, high = (number(end, measurement.metric) for end in ends)
    return value if measurement.ci_low is None else f"{value} [{low}, {high}]"


def shortened(text: str) -> tuple[str, int]:
    """Returns what a completion says and how often it repeats that, so that a page stays readable.

    Args:
        text: What a model said.

    Returns:
        The phrase, cut after 400 characters, and how many times the text says it: usually 1.
    """
    if repeated := _REPEATED.fullmatch(text):
        return repeated[1], (len(text) + 1) // (len(repeated[1]) + 1)
    return (text if len(text) <= 400 else f"{text[:400]} …"), 1


def leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Returns the single facts inside nested JSON, each with the path to it."""
    if isinstance(value, dict) and value:
        nested = [leaves(v, f"{name} · {key}" if name else str(key)) for key, v in value.items()]
        return [leaf for facts in nested for leaf in facts]
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return leaves({str(i + 1): one for i, one in enumerate(value)}, name)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return [(name, "not recorded" if value in (None, {}, "") else str(value))]


class _CrossingTexts(BaseModel):
    source: str
    target: str
    rows: list[dict[str, str | None]]


class _Completions(BaseModel):
    crossings: list[_CrossingTexts] = []


class _Stage(BaseModel):
    name: str
    wall_s: float
    cpu_s: float | None = None


class _Provenance(BaseModel):
    model_config = ConfigDict(extra="allow")
    stages: list[_Stage] = []


def render_report(run_folder: Path) -> Path:
    """Writes `report.html` into a run's folder, from the files in that folder alone.

    A report that cannot be written is an `OutputError`.

    Args:
        run_folder: Holds `results.jsonl`, `config.yaml`, `provenance.json` and, optionally,
            `completions.json`; nothing but the report is written.

    Returns:
        Path of the report; the same files give the same bytes.

    Raises:
        ArtifactError: If a file is missing or damaged, or no measurement was recorded.
    """
    folder = Path(run_folder)
    crossings = group_crossings(read_results(folder / "results.jsonl"))
    if not crossings:
        raise ArtifactError(f"{folder / 'results.jsonl'} holds no measurement: run it again")
    provenance = _checked(_Provenance, folder / "provenance.json")
    said = folder / "completions.json"
    page = _environment().get_template("report.html.jinja")
    text = page.render(
        crossings=crossings,
        config=_read_config(folder / "config.yaml"),
        stages=provenance.stages,
        facts=provenance.model_extra or {},
        completions=_checked(_Completions, said) if said.exists() else None,
        digests={n: sha256_of_file(folder / n) for n in _INPUTS if (folder / n).exists()},
    )
    write_text(folder / REPORT_NAME, text)
    return folder / REPORT_NAME


def _environment() -> Environment:
    loader = PackageLoader("isthmus.evaluation")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    named = (arm_label, arm_of, effect_bars, dose_response, layer_heat_map)
    environment.globals |= {function.__name__: function for function in named}
    environment.globals |= {"styles": STYLES, "metrics": _HEADLINE}
    filters = (number, interval, short_name, shortened, leaves)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def _read_config(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArtifactError(f"cannot read {path} as YAML: {error}; run it again") from error
    return text


def _checked(model: type[_File], path: Path) -> _File:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise ArtifactError(
            f"{path} is damaged at {where}: {first['msg']}; run it again"
        ) from error
