"""`run` and `demo`: every crossing of a configuration, written as one results folder."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from isthmus.core.artifacts import write_json
from isthmus.core.places import atomic_folder, require_replaceable, write_text
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import (
    StageClock,
    StageTime,
    machine,
    package_versions,
    source_commit,
)
from isthmus.evaluation.measurements import Measurement, write_results
from isthmus.evaluation.report import render_report
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import RunConfig, read_config
from isthmus.workflows.crossing import Crossing
from isthmus.workflows.crossing_files import (
    CrossingFiles,
    crossing_folder,
    import_crossing,
    keep_crossing,
)
from isthmus.workflows.crossing_shards import crossing_job, usable_crossing
from isthmus.workflows.engines.choosing import EngineName, engine_named
from isthmus.workflows.engines.jobs import Engine, shard_folder
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.thread_shares import SharingProgress, ThreadShares
from isthmus.workflows.twins import read_splits

_SMALL = 30_000_000
_MOST_FOR_SMALL = 2
"""Models with fewer than `_SMALL` parameters gain nothing from more threads than this."""

DEMO = RunConfig(
    source="organism:llama-backdoor",
    targets=(
        "organism:qwen2-backdoor",
        "organism:gemma2-backdoor",
        "organism:llama-large-backdoor",
    ),
    maps=("ridge", "ridge_one_layer", "autoencoder"),
    strengths=(0.75, 1.0, 1.25, 1.5, 2.0),
    n_validation=64,
    n_test=208,
)
"""The demonstration: same tokenizer, another tokenizer and architecture, over five times larger."""


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
    is_cached: bool = True,
    engine: EngineName | Engine = "local",
    address: str | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Carries a behaviour's direction from the source to every target and measures it there.

    Writes `config.yaml` as resolved, `results.jsonl`, `completions.json`, `provenance.json`,
    `artifacts/` and `report.html`; the folder appears when all of it is there. Finished crossings
    are kept in the cache: a run that was stopped goes on with the next one.

    Args:
        config: A configuration or a YAML file.
        out: Results folder; an earlier run there is replaced, anything else refused.
        is_cached: Whether crossings that the cache holds are used rather than computed again.
        engine: Who computes crossings: `local` is threads of this process, `ray` workers of a Ray
            cluster with `n_threads` each, one when not given.
        address: With `ray`: of a running cluster, or `auto`; one is started here when not given.
        n_workers: With `ray`: how many crossings at once.
        progress: Who shows progress.

    Returns:
        The folder and what is in it.

    Raises:
        OutputError: If the place cannot be written to or holds something else than a run.
        EngineError: If the cluster cannot be reached or loses its workers too often.
        IsthmusError: Whatever the configuration, models or prompts make impossible.
    """
    config = config if isinstance(config, RunConfig) else read_config(config)
    chosen = engine_named(engine, address, n_workers, n_threads=config.n_threads or 1)
    out = Path(out)
    require_replaceable(out, "results.jsonl")
    clock = StageClock(progress or SilentProgress())
    with atomic_folder(out, replace=True) as folder:
        if isinstance(chosen, LocalEngine):
            crossings = carry_out(config, clock, is_cached=is_cached)
        else:
            crossings = _crossings_elsewhere(config, clock, chosen, is_cached=is_cached)
        measurements = [m for crossing in crossings for m in crossing.measurements]
        _write_config(folder, config)
        write_results(folder / "results.jsonl", measurements)
        for number, crossing in enumerate(crossings, start=1):
            name = "artifacts" if len(crossings) == 1 else f"artifacts/crossing-{number}"
            crossing.copy_artifacts(folder / name)
        rows = [crossing.completions for crossing in crossings]
        write_json(folder / "completions.json", {"crossings": rows})
        write_json(folder / "provenance.json", _provenance(config, crossings, clock, chosen))
        render_report(folder)
    notes = tuple(note for crossing in crossings for note in crossing.summary["notes"])
    for note in notes:
        clock.note(note)
    return RunResult(out, tuple(measurements), out / "report.html", notes)


def demo(
    *,
    out: str | Path = "runs/demo",
    is_cached: bool = True,
    progress: Progress | None = None,
) -> RunResult:
    """Runs the demonstration: a backdoor found in one small model is removed in three others.

    Args:
        out: Results folder.
        is_cached: Whether crossings that the cache holds are used rather than computed again.
        progress: Who shows progress.

    Returns:
        The folder and what is in it.

    Raises:
        OutputError: If the place cannot be written to or holds something else than a run.
    """
    return run(DEMO, out=out, is_cached=is_cached, progress=progress)


def carry_out(
    config: RunConfig, clock: StageClock, *, is_cached: bool = True
) -> list[CrossingFiles]:
    """Carries out all crossings, several at once where processors allow, and writes no report.

    Args:
        config: The run.
        clock: Who shows progress and remembers how long each stage took.
        is_cached: Whether crossings that the cache holds are used rather than computed again.

    Returns:
        The finished crossings, in the order of the targets.

    Raises:
        IsthmusError: Whatever the configuration, models or prompts make impossible.
    """
    splits = read_splits(config)
    n_parallel, _ = _parallel(config)
    processors = os.cpu_count() or 1
    shares = ThreadShares(processors, len(config.targets), n_parallel)

    def load(name: str) -> LanguageModel:
        with clock.stage(f"load {name}"):
            return load_language_model(name, dtype=config.dtype, device=config.device)

    def cross(source: LanguageModel, target: LanguageModel) -> CrossingFiles:
        with shares.working():
            place = crossing_folder(config, splits, source.identity, target.identity)
            found = usable_crossing(config, place) if is_cached else None
            if found is not None:
                clock.note(f"{target.identity.name}: found in the cache, nothing to compute")
                return found
            n_parameters = sum(p.numel() for p in target.model.parameters())
            most = _MOST_FOR_SMALL if n_parameters < _SMALL else processors
            own = StageClock(SharingProgress(clock.shown, shares, config.n_threads or most))
            return keep_crossing(place, Crossing(source, target, splits, config, own).run(), own)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(n_parallel) as pool:
            # Loaded before anything runs, because loading is not safe beside other threads. Every
            # crossing has a source of its own: hooks belong to one forward pass at a time. The last
            # target is often the largest: started first, it does not wait for the others.
            pairs = {name: (load(config.source), load(name)) for name in reversed(config.targets)}
            waiting = {name: pool.submit(cross, *pair) for name, pair in pairs.items()}
            try:
                return [waiting[name].result() for name in config.targets]
            except KeyboardInterrupt:
                # Leaving the pool waits for its threads: they would compute in vain to the end.
                shares.is_stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)


def _crossings_elsewhere(
    config: RunConfig, clock: StageClock, engine: Engine, *, is_cached: bool
) -> list[CrossingFiles]:
    """Lets an engine carry out all crossings and keeps them in this machine's cache, too."""
    job = crossing_job(config, read_splits(config), is_cached=is_cached)
    crossings = []
    with TemporaryDirectory(prefix="isthmus-run-") as folder:
        for number, answer in enumerate(engine.run(job, Path(folder), clock)):
            made = shard_folder(Path(folder), number)
            clock.stages += [StageTime(**one) for one in answer["stages"]]
            crossings.append(
                import_crossing(made, answer["name"], is_from_cache=answer["is_from_cache"])
            )
    return crossings


def _parallel(config: RunConfig) -> tuple[int, int]:
    """Returns how many crossings run at once, and with how many threads each."""
    processors = os.cpu_count() or 1
    is_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    most = config.n_parallel or (processors if is_cpu else 1)
    n_parallel = min(most, len(config.targets))
    return n_parallel, config.n_threads or max(1, processors // n_parallel)


def _write_config(folder: Path, config: RunConfig) -> None:
    fields = json.loads(config.model_dump_json())
    write_text(folder / "config.yaml", yaml.safe_dump(fields, sort_keys=False))


def _provenance(
    config: RunConfig, crossings: list[CrossingFiles], clock: StageClock, engine: Engine
) -> dict[str, Any]:
    n_parallel, n_threads = _parallel(config)
    how: dict[str, Any] = {"torch_threads": n_threads, "parallel_crossings": n_parallel}
    if not isinstance(engine, LocalEngine):
        how = {"torch_threads": config.n_threads or 1, "engine": type(engine).__name__}
    models = [c.summary[side] for c in crossings for side in ("source", "target")]
    stages = [
        {**stage, "name": f"{short_name(crossing.summary['target']['name'])}: {stage['name']}"}
        for crossing in crossings
        for stage in crossing.summary["stages"]
    ]
    return {
        "commit": source_commit(),
        "versions": package_versions(),
        "machine": {**machine(), **how},
        "seeds": {"seed": config.seed, "random_draws": config.n_random},
        "models": {model["name"]: model for model in models},
        "crossings": [
            {
                **{key: value for key, value in c.summary.items() if key != "stages"},
                "from_cache": c.is_from_cache,
            }
            for c in crossings
        ],
        "stages": [*clock.to_json(), *stages],
    }


def short_name(name: str) -> str:
    """Returns the last part of a model's name.

    >>> short_name("organism:llama")
    'llama'
    """
    return name.rsplit("/", 1)[-1].removeprefix("organism:")
