"""`run` and `demo`: every crossing of a configuration, written as one results folder."""

import json
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from isthmus.core.artifacts import atomic_folder, write_json, write_text
from isthmus.core.errors import OutputError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import StageClock, machine, package_versions, source_commit
from isthmus.directions.files import save_direction
from isthmus.evaluation.measurements import Measurement, write_results
from isthmus.evaluation.report import render_report
from isthmus.maps.files import save_map
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import RunConfig, read_config
from isthmus.workflows.crossing import Crossing, CrossingResult
from isthmus.workflows.twins import read_splits

DEMO = RunConfig(
    source="organism:llama-backdoor",
    targets=(
        "organism:qwen2-backdoor",
        "organism:gemma2-backdoor",
        "organism:llama-large-backdoor",
    ),
)
"""The demonstration: same tokenizer, another tokenizer and architecture, more than five times larger."""


@dataclass(frozen=True)
class RunResult:
    """What a run wrote and found.

    Attributes:
        folder: The results folder.
        measurements: Every number in `results.jsonl`.
        report: The HTML report.
        notes: What a reader should know.
    """

    folder: Path
    measurements: tuple[Measurement, ...]
    report: Path
    notes: tuple[str, ...]


def run(
    config: RunConfig | str | Path,
    *,
    out: str | Path = "runs/run",
    progress: Progress | None = None,
) -> RunResult:
    """Carries a behaviour's direction from the source to every target and measures it there.

    Writes `config.yaml` as resolved, `results.jsonl`, `completions.json`, `provenance.json`,
    `artifacts/` and `report.html`; the folder appears when all of it is there.

    Args:
        config: A configuration or a YAML file.
        out: Results folder; an earlier run there is replaced, anything else refused.
        progress: Who shows progress.

    Raises:
        OutputError: If the place cannot be written to or holds something else than a run.
        IsthmusError: Whatever the configuration, models or prompts make impossible.
    """
    config = config if isinstance(config, RunConfig) else read_config(config)
    out = Path(out)
    _require_place(out)
    clock = StageClock(progress or SilentProgress())
    with torch_threads(config.n_threads), atomic_folder(out, replace=True) as folder:
        source, results = _crossings(config, clock)
        measurements = [m for result in results.values() for m in result.measurements]
        notes = tuple(note for result in results.values() for note in result.notes)
        _write_config(folder, config)
        write_results(folder / "results.jsonl", measurements)
        _write_artifacts(folder / "artifacts", results)
        rows = [result.completions for result in results.values()]
        write_json(folder / "completions.json", {"crossings": rows})
        write_json(folder / "provenance.json", _provenance(config, source, results, clock))
        render_report(folder)
    for note in notes:
        clock.note(note)
    return RunResult(out, tuple(measurements), out / "report.html", notes)


def demo(*, out: str | Path = "runs/demo", progress: Progress | None = None) -> RunResult:
    """Runs the demonstration: a backdoor found in one small model is removed in three others.

    Args:
        out: Results folder.
        progress: Who shows progress.

    Raises:
        OutputError: If the place cannot be written to or holds something else than a run.
    """
    return run(DEMO, out=out, progress=progress)


def _require_place(out: Path) -> None:
    """Refuses a place that could not be written to, before anything is computed."""
    if out.exists() and not (out.is_dir() and _is_run_or_empty(out)):
        raise OutputError(f"{out} exists and is not a results folder: choose another --out")
    with atomic_folder(out.parent / f".{out.name}-probe", replace=True) as folder:
        write_text(folder / "probe", "")
    for leftover in (out.parent / f".{out.name}-probe").iterdir():
        leftover.unlink()
    (out.parent / f".{out.name}-probe").rmdir()


def _is_run_or_empty(folder: Path) -> bool:
    return (folder / "results.jsonl").is_file() or not any(folder.iterdir())


@contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """Runs the body on a number of torch threads, or as many as torch chooses.

    Args:
        n_threads: How many, or None.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _crossings(
    config: RunConfig, clock: StageClock
) -> tuple[LanguageModel, dict[str, CrossingResult]]:
    splits = read_splits(config)
    with clock.stage(f"load {config.source}"):
        source = load_language_model(config.source, dtype=config.dtype, device=config.device)
    results = {}
    for name in config.targets:
        with clock.stage(f"load {name}"):
            target = load_language_model(name, dtype=config.dtype, device=config.device)
        results[name] = Crossing(source, target, splits, config, clock).run()
    return source, results


def _write_config(folder: Path, config: RunConfig) -> None:
    fields = json.loads(config.model_dump_json())
    write_text(folder / "config.yaml", yaml.safe_dump(fields, sort_keys=False))


def _write_artifacts(folder: Path, results: dict[str, CrossingResult]) -> None:
    for number, result in enumerate(results.values(), start=1):
        place = folder if len(results) == 1 else folder / f"crossing-{number}"
        save_direction(place / "source-direction", result.source_direction)
        save_direction(place / "native-direction", result.native_direction)
        for method, fitted in result.maps.items():
            save_map(place / f"map-{method}", fitted)
            save_direction(place / f"transferred-{method}", result.transferred[method])


def _provenance(
    config: RunConfig,
    source: LanguageModel,
    results: dict[str, CrossingResult],
    clock: StageClock,
) -> dict[str, Any]:
    crossings = [
        {
            "source": result.source_direction.model.to_json(),
            "target": result.native_direction.model.to_json(),
            "best_map": result.best_map,
            "site": str(result.chosen.site),
            "positions": result.chosen.positions,
            "strength": result.chosen.strength,
            "notes": list(result.notes),
        }
        for result in results.values()
    ]
    models = [source.identity, *(r.native_direction.model for r in results.values())]
    return {
        "commit": source_commit(),
        "versions": package_versions(),
        "machine": {**machine(), "torch_threads": torch.get_num_threads()},
        "seeds": {"seed": config.seed, "random_draws": config.n_random},
        "models": {identity.name: identity.to_json() for identity in models},
        "crossings": crossings,
        "stages": clock.to_json(),
    }
