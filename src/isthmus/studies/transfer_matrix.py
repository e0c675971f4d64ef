"""The transfer matrix: every ordered pair of several models that know one behaviour.

1. Every target's own direction is chosen and measured once: the diagonal.
2. Every other model's direction is carried to it, tokens paired where they end at the same
   character; between models with different tokenizers also with tokens paired by index.
3. Every entry is kept in the cache: a matrix that was stopped goes on with the next one.
4. What arrives is compared between pairs with one and with two tokenizers: `matrix_summary.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.matrix_measuring import Column, Reader
from isthmus.studies.matrix_summary import BY_CHARACTER, BY_INDEX, NAME, Matrix, summary_of
from isthmus.studies.result import StudyResult
from isthmus.studies.study_files import find_study, keep_study, study_folder
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import Pairing, RunConfig, TaskName, make_config
from isthmus.workflows.twins import read_splits

_PAIRINGS: tuple[tuple[str, Pairing], ...] = (
    (BY_CHARACTER, "character_end"),
    (BY_INDEX, "index"),
)


def transfer_matrix(
    models: Sequence[str],
    task: TaskName = "backdoor",
    *,
    settings: Mapping[str, Any] | None = None,
    is_cached: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Carries a behaviour's direction between every two of several models, both ways.

    Args:
        models: At least two models that show the behaviour: hub names, folders, `organism:NAME`.
            All are held in memory.
        task: Which behaviour.
        settings: Other fields of `RunConfig`: sizes of splits, strengths, questions.
        is_cached: Whether entries that the cache holds are used rather than computed again.
        seed: Seed of everything random.
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
    shown, splits = progress or SilentProgress(), read_splits(config)
    loaded = []
    for name in (config.source, *config.targets):
        with shown.stage(f"load {name}"):
            loaded.append(load_language_model(name, dtype=config.dtype, device=config.device))
    readers = [Reader(lm, splits, config, SilentProgress()) for lm in loaded]
    kept = _Kept(config, repr(splits), is_cached)
    measured: list[Measurement] = []
    with shown.stage(f"{task}: entries", len(models) ** 2) as advance:
        for target in readers:
            column = Column(target)
            measured += kept.or_made(NAME, [target.lm], column.native)
            advance(1)
            for source in readers:
                if source is target:
                    continue
                measured += _entry(column, source, kept)
                advance(1)
    tokenizers = {lm.identity.name: lm.identity.tokenizer_sha256 for lm in loaded}
    matrix = Matrix(task, tuple(tokenizers), tokenizers, tuple(measured))
    return summary_of(matrix, seed)


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


@dataclass(frozen=True)
class _Kept:
    """The entries of one matrix in the cache.

    Attributes:
        config: What every entry shares.
        questions: The questions in full.
        is_cached: Whether entries that are there are used.
    """

    config: RunConfig
    questions: str
    is_cached: bool

    def or_made(
        self, name: str, models: Sequence[LanguageModel], work: Callable[[], list[Measurement]]
    ) -> Sequence[Measurement]:
        """Returns an entry from the cache, or computes and keeps it."""
        fields = self.config.model_dump(mode="json", exclude={"source", "targets", "questions"})
        settings = {**fields, "entry": name, "questions": self.questions}
        place = study_folder("matrix", settings, [repr(lm.identity) for lm in models])
        found = find_study(place) if self.is_cached else None
        if found is None:
            own = tuple(replace(one, task=f"{name}/{self.config.task}") for one in work())
            found = StudyResult(name, own)
            keep_study(place, found)
        return found.measurements


def _entry(column: Column, source: Reader, kept: _Kept) -> list[Measurement]:
    """Measures one source in one target, under every pairing that differs."""
    models = [source.lm, column.target.lm]
    is_one_tokenizer = len({lm.identity.tokenizer_sha256 for lm in models}) == 1
    measured: list[Measurement] = []
    for name, pairing in _PAIRINGS[:1] if is_one_tokenizer else _PAIRINGS:
        measured += kept.or_made(name, models, partial(column.carried, source, pairing))
    return measured
