"""The transfer matrix: every ordered pair of several models that know one behaviour.

1. Every target's own direction is chosen and measured once: the diagonal.
2. Every other model's direction is carried to it, tokens paired where they end at the same
   character; between models with different tokenizers also with tokens paired by index.
3. Every entry is kept in the cache: a matrix that was stopped goes on with the next one.
4. What arrives is compared between pairs with one and with two tokenizers: `matrix_summary.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isthmus.core.errors import ConfigError
from isthmus.core.identity import ModelIdentity, require_same_model
from isthmus.core.options import TaskName
from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.measurements import Measurement, read_results
from isthmus.studies.matrix_shards import WORKER, matrix_settings, matrix_shards
from isthmus.studies.matrix_summary import Matrix, summary_of
from isthmus.studies.result import StudyResult
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.engines.jobs import Engine, Job, shard_folder
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.twins import read_splits


def transfer_matrix(
    models: Sequence[str],
    task: TaskName = "backdoor",
    *,
    settings: Mapping[str, Any] | None = None,
    is_cached: bool = True,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Carries a behaviour's direction between every two of several models, both ways.

    Args:
        models: At least two models that show the behaviour: hub names, folders, `organism:NAME`.
            A worker holds those in memory that it has read.
        task: Which behaviour.
        settings: Other fields of `RunConfig`: sizes of splits, strengths, questions.
        is_cached: Whether entries that the cache holds are used rather than computed again.
        seed: Seed of everything random.
        engine: Who computes the entries; this process when not given.
        progress: Who shows progress.

    Returns:
        Every entry with its controls, the mean share of native with and without a common tokenizer,
        and heat maps.

    Raises:
        ConfigError: If there are fewer than two models, or one twice.
        IsthmusError: If models or questions cannot be used.
    """
    if len(models) < 2 or len(set(models)) < len(models):
        raise ConfigError(f"a matrix of {', '.join(models)}: give at least two different models")
    config = matrix_config(models, task, settings or {}, seed)
    shown, names = progress or SilentProgress(), (config.source, *config.targets)
    shared = matrix_settings(config, read_splits(config), is_cached=is_cached)
    job = Job(f"{task}: entries", WORKER, shared, matrix_shards(names))
    measured: list[Measurement] = []
    known: dict[str, ModelIdentity] = {}
    with TemporaryDirectory(prefix="isthmus-matrix-") as folder:
        answers = (engine or LocalEngine()).run(job, Path(folder), shown)
        for number, answer in enumerate(answers):
            _require_one_model_per_name(known, map(ModelIdentity.from_json, answer))
            measured += read_results(shard_folder(Path(folder), number) / "results.jsonl")
    tokenizers = {name: known[name].tokenizer_sha256 for name in names}
    matrix = Matrix(task, names, tokenizers, tuple(measured))
    return summary_of(matrix, seed)


def _require_one_model_per_name(
    known: dict[str, ModelIdentity], seen: Iterable[ModelIdentity]
) -> None:
    """Refuses workers that found different models under one name; adds to what is known."""
    for one in seen:
        require_same_model(
            "an entry of the matrix",
            made_on=known.setdefault(one.name, one),
            used_on=one,
            fix="workers found different models under one name, give all machines the same",
        )


def matrix_config(
    models: Sequence[str], task: TaskName, settings: Mapping[str, Any], seed: int
) -> RunConfig:
    """Returns the configuration that every entry of a matrix shares.

    Args:
        models: The models.
        task: The behaviour.
        settings: Fields of `RunConfig` that differ from those of a matrix.
        seed: Seed of everything random.

    Returns:
        A configuration with fewer questions, strengths and random draws than a run has.

    Raises:
        ConfigError: If a field is unknown or out of range.
    """
    advice = task_named(task).recommended if task in TASKS else None
    return make_config(
        {
            "task": task,
            "source": models[0],
            "targets": list(models[1:]),
            "maps": ["ridge"],
            "edit": advice.edit if advice else "add",
            "strengths": [0.75, 1.0, 1.5],
            "n_train": 80,
            "n_validation": 24,
            "n_test": 64,
            "n_random": 1,
            **settings,
            "seed": seed,
        }
    )
