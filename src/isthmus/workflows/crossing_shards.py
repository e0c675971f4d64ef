"""The crossings of a run as shards: what a worker computes and hands over."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.core.progress import Progress
from isthmus.core.provenance import StageClock
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.crossing import Crossing
from isthmus.workflows.crossing_files import (
    CrossingFiles,
    crossing_folder,
    find_crossing,
    keep_crossing,
)
from isthmus.workflows.engines.jobs import Job, Json, Shard
from isthmus.workflows.twins import TwinSplits

_WORKER = f"{__name__}:CrossingWorker"


def crossing_job(config: RunConfig, splits: TwinSplits, *, is_cached: bool) -> Job:
    """Returns the crossings of a run, one per target.

    Args:
        config: The run.
        splits: Its questions; they are in the job, so that no worker looks for their files.
        is_cached: Whether crossings that a worker's cache holds are used.

    Returns:
        The job; its workers leave a crossing's files and say where they lie in a cache.
    """
    fields = config.model_dump(mode="json", exclude_unset=True, exclude={"questions"})
    settings = {"config": fields, "splits": splits.to_json(), "is_cached": is_cached}
    shards = tuple(Shard({"target": one}, f"{config.source} → {one}") for one in config.targets)
    return Job("crossings", _WORKER, settings, shards)


@dataclass
class CrossingWorker:
    """Carries out crossings; loads the source once.

    Attributes:
        settings: Configuration, splits, and whether the cache is used.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress
    _source: LanguageModel | None = field(default=None, init=False)

    def work(self, asked: Json, place: Path) -> Json:
        """Carries out one crossing.

        Args:
            asked: The name of the `target`.
            place: Receives the crossing's files.

        Returns:
            `name` of the crossing's folder in a cache, `is_from_cache`, and what loading took.
        """
        config = make_config(self.settings["config"])
        splits = TwinSplits.from_json(self.settings["splits"])
        clock = StageClock(self.progress)
        if self._source is None:
            self._source = _load(config.source, config, clock)
        target = _load(asked["target"], config, clock)
        folder = crossing_folder(config, splits, self._source.identity, target.identity)
        found = usable_crossing(config, folder) if self.settings["is_cached"] else None
        if found is None:
            own = StageClock(self.progress)
            result = Crossing(self._source, target, splits, config, own).run()
            found = keep_crossing(folder, result, own)
        else:
            clock.note("found in the cache, nothing to compute")
        shutil.copytree(folder, place)
        return {
            "name": folder.name,
            "is_from_cache": found.is_from_cache,
            "stages": clock.to_json(),
        }


def _load(name: str, config: RunConfig, clock: StageClock) -> LanguageModel:
    with clock.stage(f"load {name}"):
        return load_language_model(name, dtype=config.dtype, device=config.device)


def usable_crossing(config: RunConfig, folder: Path) -> CrossingFiles | None:
    """Returns a finished crossing, unless an endpoint failed in it and may answer now.

    Args:
        config: The run.
        folder: Where it lies, if it does.

    Returns:
        The crossing, or None.
    """
    found = find_crossing(folder)
    if found is None:
        return None
    unjudged = [m.value for m in found.measurements if m.metric == "unjudged_rate"]
    return None if config.judge == "endpoint" and any(unjudged) else found
