"""Measurements: one line of `results.jsonl` is one measured number."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from isthmus.core.errors import ArtifactError, ConfigError, NonFiniteError
from isthmus.core.options import require_word
from isthmus.core.places import write_text

CONDITIONS = (
    "none",
    "clean",
    "native",
    "transferred",
    "random",
    "shuffled_map",
    "identity_map",
    "noise",
    "mean_ablation",
    "prompt_only",
)
"""What was done to the target model.

`none` is the triggered prompt without an edit and `clean` its clean twin; `native` uses a direction
learned in the target itself, `transferred` one that a map carried there; the rest are controls.
"""

METRICS = (
    "recovery",
    "recovery_induction",
    "turned_rate",
    "sweep_effect",
    "swap",
    "swap_loss",
    "behaviour_rate",
    "answer_accuracy",
    "benign_kl",
    "benign_accuracy",
    "false_trigger_rate",
    "perplexity",
    "map_r2_held_out",
    "map_fvu_held_out",
    "map_r2_median_coordinate",
    "seconds",
    "edited_positions",
    "kl",
    "cross_entropy",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "embedding_similarity",
    "mapped_beats_ablated",
    "target_beats_source",
    "auroc",
    "accuracy",
    "gate_open_rate",
    "kappa",
    "unparsable_rate",
    "unjudged_rate",
    "refuses_then_complies_rate",
    "hallucination_rate",
    "feature_effect",
    "patching_effect",
    "agreement",
    "n_parameters",
    "target_tokens",
    "target_tokens_next",
    "seconds_next",
    "layer_score",
    "rank_correlation",
    "regret",
    "regret_of_three",
    "relative_cost",
    "recovery_of_native",
    "swap_of_native",
)
"""What was measured; `recovery` is bad → clean, `recovery_induction` clean → bad."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured number with what it takes to read it; None where something does not apply.

    NaN is stored as None: a number that the data do not define.

    Attributes:
        task: What was steered: `backdoor`, a task of the user's.
        source: Model the direction was learned in.
        target: Model that was measured.
        source_site: Where in the source, as written in full.
        target_site: Where in the target, as written in full.
        map: Method of the map between them.
        condition: One of `CONDITIONS`.
        edit: Kind of edit: `add`, `ablate`, `set_coordinate`, `replace`.
        positions: Where in the text, as `parse_positions` reads it.
        strength: Multiplier of the edit.
        split: `train`, `validation` or `test`.
        metric: One of `METRICS`.
        value: The number.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end of its 95 % interval.
        n: How many prompts or tokens it rests on, at least 1.
        seed: Seed of everything random in it.

    Raises:
        ConfigError: If condition or metric is unknown, n is below 1, or the interval has one end
            only or ends in the wrong order.
        NonFiniteError: If a number is infinite.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    task: str
    source: str | None = None
    target: str | None = None
    source_site: str | None = None
    target_site: str | None = None
    map: str | None = None
    condition: str
    edit: str | None = None
    positions: str | None = None
    strength: float | None = None
    split: str | None = None
    metric: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    seed: int | None = None

    @property
    def key(self) -> tuple[str | float | int | None, ...]:
        """What tells it from every other number of a file: all but the value and its interval."""
        return tuple(getattr(self, name) for name in _IDENTIFYING)

    def __post_init__(self) -> None:
        for name, given, known in (
            ("condition", self.condition, CONDITIONS),
            ("metric", self.metric, METRICS),
        ):
            require_word(name, given, known)
        for name in ("strength", "value", "ci_low", "ci_high"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.n is not None and self.n < 1:
            raise ConfigError(f"a measurement over n = {self.n}: expected at least 1, or none")
        low, high = self.ci_low, self.ci_high
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise ConfigError(f"an interval from {low} to {high}: expected both ends, in order")


_FIELDS = tuple(field.name for field in fields(Measurement))
_IDENTIFYING = tuple(name for name in _FIELDS if name not in {"value", "ci_low", "ci_high"})
_MEASUREMENT = TypeAdapter(Measurement)


def write_results(path: Path, measurements: Sequence[Measurement]) -> None:
    """Writes measurements as JSON lines, atomically.

    Args:
        path: File to write, usually `results.jsonl` in a run's folder.
        measurements: In the order of the file.
    """
    lines = [json.dumps(asdict(m), ensure_ascii=False, allow_nan=False) for m in measurements]
    write_text(path, "".join(line + "\n" for line in lines))


def read_results(path: Path) -> list[Measurement]:
    """Reads what `write_results` wrote.

    Args:
        path: File to read.

    Returns:
        Measurements in the order of the file.

    Raises:
        ArtifactError: If the file is missing or not text, or a line is not one measurement.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"no results at {path}: run the evaluation first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    return [_measurement(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]


def _measurement(line: str, place: str) -> Measurement:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{place}: not JSON ({error.msg}), expected a measurement") from None
    if not isinstance(row, dict) or row.keys() != set(_FIELDS):
        raise ArtifactError(f"{place}: expected an object with {', '.join(_FIELDS)}")
    try:
        return _MEASUREMENT.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{place}: {where}: {first['msg']}, got {first['input']!r}") from None
    except (ConfigError, NonFiniteError) as error:
        raise ArtifactError(f"{place}: {error}") from None


def _number(name: str, value: Any) -> float | None:
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        raise NonFiniteError(f"{name} is {value}: expected a finite number, or none")
    return float(value)
