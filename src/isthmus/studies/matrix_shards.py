"""The entries of a transfer matrix as shards: what a worker computes, keeps and hands over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.matrix_measuring import Column, Reader
from isthmus.studies.matrix_summary import BY_CHARACTER, BY_INDEX, NAME
from isthmus.studies.result import StudyResult
from isthmus.studies.study_files import find_study, keep_study, study_folder
from isthmus.workflows.config import Pairing, RunConfig, make_config
from isthmus.workflows.engines.jobs import Json, Shard
from isthmus.workflows.twins import TwinSplits

WORKER = f"{__name__}:MatrixWorker"

_PAIRINGS: tuple[tuple[str, Pairing], ...] = (
    (BY_CHARACTER, "character_end"),
    (BY_INDEX, "index"),
)


def matrix_settings(config: RunConfig, splits: TwinSplits, *, is_cached: bool) -> Json:
    """Returns what every worker of a matrix knows.

    Args:
        config: What every entry shares.
        splits: The questions.
        is_cached: Whether entries that a worker's cache holds are used.

    Returns:
        A JSON value; questions are in it, so that no worker looks for their files.
    """
    fields = config.model_dump(mode="json", exclude_unset=True, exclude={"questions"})
    return {"config": fields, "splits": splits.to_json(), "is_cached": is_cached}


def matrix_shards(models: Sequence[str]) -> tuple[Shard, ...]:
    """Returns one shard per ordered pair, column by column, the native one first.

    Args:
        models: Names of the models.

    Returns:
        Shards, those of one target in one group.
    """
    return tuple(
        Shard({"source": source, "target": target}, f"{source} → {target}", group=target)
        for target in models
        for source in (target, *(one for one in models if one != target))
    )


@dataclass
class MatrixWorker:
    """Measures entries; loads each model once and keeps it.

    Attributes:
        settings: What `matrix_settings` returned.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress
    _readers: dict[str, Reader] = field(default_factory=dict, init=False)
    _column: Column | None = field(default=None, init=False)

    def work(self, asked: Json, place: Path) -> Json:
        """Measures one source in one target, under every pairing that differs.

        Args:
            asked: Names of `source` and `target`; native where they are one.
            place: Receives the entry as a study.

        Returns:
            Name and hash of weights and tokenizer of both models.
        """
        source, target = self._reader(asked["source"]), self._reader(asked["target"])
        if self._column is None or self._column.target is not target:
            # One at a time: its benches hold states of every layer.
            self._column = Column(target)
        measured = self._entry(self._column, source)
        keep_study(place, StudyResult(NAME, tuple(measured)))
        return [one.lm.identity.to_json() for one in (source, target)]

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            config = make_config(self.settings["config"])
            splits = TwinSplits.from_json(self.settings["splits"])
            with self.progress.stage(f"load {name}"):
                lm = load_language_model(name, dtype=config.dtype, device=config.device)
            self._readers[name] = Reader(lm, splits, config, SilentProgress())
        return self._readers[name]

    def _entry(self, column: Column, source: Reader) -> list[Measurement]:
        models = [source.lm, column.target.lm]
        if source is column.target:
            return [*self._kept_or_made(NAME, models[:1], column.native)]
        is_one_tokenizer = len({lm.identity.tokenizer_sha256 for lm in models}) == 1
        return [
            one
            for name, pairing in (_PAIRINGS[:1] if is_one_tokenizer else _PAIRINGS)
            for one in self._kept_or_made(name, models, partial(column.carried, source, pairing))
        ]

    def _kept_or_made(
        self, name: str, models: Sequence[LanguageModel], work: Callable[[], list[Measurement]]
    ) -> Sequence[Measurement]:
        """Returns an entry from the cache, or computes and keeps it."""
        config = make_config(self.settings["config"])
        fields = config.model_dump(mode="json", exclude={"source", "targets", "questions"})
        entry = {**fields, "entry": name, "questions": self.settings["splits"]}
        place = study_folder("matrix", entry, [repr(lm.identity) for lm in models])
        found = find_study(place) if self.settings["is_cached"] else None
        if found is None:
            own = tuple(replace(one, task=f"{name}/{config.task}") for one in work())
            found = StudyResult(name, own)
            keep_study(place, found)
        return found.measurements
