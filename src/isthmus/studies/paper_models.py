"""The models of a reproduction: the organisms, or those of the configurations that were given."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from isthmus.core.artifacts import sha256_of_file
from isthmus.core.errors import ConfigError
from isthmus.core.options import TaskName
from isthmus.models.organisms import packed_folder
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.config import MapMethod, RunConfig
from isthmus.workflows.engines.jobs import Engine

SOURCE = "llama"
TARGETS = ("qwen2", "gemma2", "llama-large")
"""Same tokenizer, other tokenizer and architecture, over five times larger."""

COURSE_OF: dict[TaskName, str] = {
    "backdoor": "backdoor",
    "code": "code",
    "refusal": "assistant",
    "style": "assistant",
    "corrupted": "corrupted",
}
"""Ending of the names of the organisms that have learned a task."""

_PREFIX = "organism:"


@dataclass(frozen=True)
class Pair:
    """Two models that a study reads.

    Attributes:
        source: Model that is mapped from.
        target: Model that is mapped to.
        settings: Other fields of `RunConfig` that were given.
        seed: Seed of everything random.
    """

    source: str
    target: str
    settings: dict[str, Any]
    seed: int = 0


@dataclass(frozen=True)
class Scope:
    """What a reproduction measures, and how much.

    Attributes:
        is_quick: Fewer questions, fewer maps.
        seed: Seed of everything random on the organisms; configurations have their own.
        given: Configurations whose models take the place of the organisms.
        is_alone: Whether nothing else of this reproduction runs at the same time.
        engine: Who computes the shards of parts that have some; this process when not given.
    """

    is_quick: bool
    seed: int
    given: tuple[RunConfig, ...] = ()
    is_alone: bool = True
    engine: Engine | None = None

    def pick(self, quick: int, full: int) -> int:
        """Returns the number that this scope asks for."""
        return quick if self.is_quick else full

    def to_json(self) -> dict[str, Any]:
        """Returns the scope as JSON values; fields that were not given stay so."""
        given = [one.model_dump(mode="json", exclude_unset=True) for one in self.given]
        return {"is_quick": self.is_quick, "seed": self.seed, "given": given}

    @classmethod
    def from_json(cls, fields: dict[str, Any], *, is_alone: bool) -> "Scope":
        """Reads what `to_json` wrote.

        Args:
            fields: Every field by name.
            is_alone: Whether nothing else of the reproduction runs at the same time.

        Returns:
            The scope that was written.
        """
        given = tuple(RunConfig.model_validate(one) for one in fields["given"])
        return cls(fields["is_quick"], fields["seed"], given, is_alone)

    def crossings(self, task: TaskName) -> tuple[RunConfig, ...]:
        """Returns the crossings of one task.

        Args:
            task: The task.

        Returns:
            Those given, or one source and its targets among the organisms.

        Raises:
            ConfigError: If configurations were given but none for this task.
        """
        if not self.given:
            return (task_config(task, self),)
        found = tuple(config for config in self.given if config.task == task)
        if not found:
            raise ConfigError(f"no --config has 'task: {task}': give one to measure this part")
        return found

    def pairs(self, task: TaskName) -> tuple[Pair, ...]:
        """Returns the pairs that studies of one task read.

        Args:
            task: The task.

        Returns:
            Every source with every target; of organisms one pair in a quick scope.

        Raises:
            ConfigError: If configurations were given but none for this task.
        """
        pairs = tuple(
            Pair(config.source, target, self._settings(config), config.seed)
            for config in self.crossings(task)
            for target in config.targets
        )
        return pairs if self.given else pairs[: self.pick(1, len(pairs))]

    def models(self, task: TaskName) -> tuple[Pair, ...]:
        """Returns every model of one task.

        Args:
            task: The task.

        Returns:
            Each as both ends of a pair, once for every seed; of organisms two in a quick scope.

        Raises:
            ConfigError: If configurations were given but none for this task.
        """
        named = {
            (name, config.seed): self._settings(config)
            for config in self.crossings(task)
            for name in (config.source, *config.targets)
        }
        models = tuple(Pair(name, name, settings, seed) for (name, seed), settings in named.items())
        return models if self.given else models[: self.pick(2, len(models))]

    def _settings(self, config: RunConfig) -> dict[str, Any]:
        if not self.given:
            return {}
        left_out = {"source", "targets", "seed"}
        return {name: getattr(config, name) for name in config.model_fields_set - left_out}


def left_out_maps(part: str, config: RunConfig) -> str | None:
    """Says which maps of a configuration a part has no use for: it fits ridge at every layer.

    Args:
        part: Its name.
        config: What was given.

    Returns:
        A sentence, or None where no map is left out.

    Raises:
        ConfigError: If maps are named and ridge is not among them.
    """
    if "maps" not in config.model_fields_set:
        return None
    if "ridge" not in config.maps:
        raise ConfigError(
            f"part {part} carries through ridge maps alone, and 'maps' names "
            f"{', '.join(config.maps)}: add ridge, or leave the part out with --only"
        )
    others = ", ".join(one for one in config.maps if one != "ridge")
    return f"carried through ridge maps alone; not used here: {others}" if others else None


def organisms_of(course: str) -> tuple[str, ...]:
    """Returns the source and the targets that one course made."""
    return tuple(f"{base}-{course}" for base in (SOURCE, *TARGETS))


def task_config(task: TaskName, scope: Scope) -> RunConfig:
    """Returns the crossings of one task on the organisms.

    Args:
        task: The task.
        scope: How much is measured.

    Returns:
        A configuration of one source and three targets; of two, without the largest, in a quick
        scope.
    """
    source, *targets = (f"{_PREFIX}{name}" for name in organisms_of(COURSE_OF[task]))
    advice = task_named(task).recommended if task in TASKS else None
    return RunConfig(
        task=task,
        source=source,
        targets=tuple(targets[: scope.pick(2, len(targets))]),
        maps=_maps_of(task, scope),
        edit=advice.edit if advice else "add",
        strengths=advice.strengths if advice else (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0),
        n_train=scope.pick(96, 240),
        n_validation=scope.pick(16, 32),
        n_test=scope.pick(24, 96) if task == "code" else scope.pick(40, 112),
        n_random=scope.pick(2, 3),
        seed=scope.seed,
    )


def _maps_of(task: TaskName, scope: Scope) -> tuple[MapMethod, ...]:
    if scope.is_quick:
        return ("ridge", "autoencoder")
    # The paper's affine map is compared on the backdoor alone (its Table 5).
    affine: tuple[MapMethod, ...] = ("sgd_affine",) if task == "backdoor" else ()
    # A direction for code acts where the answer decides, of which a map of states sees too little.
    contrast: tuple[MapMethod, ...] = ("ridge_contrast",) if task == "code" else ()
    return ("ridge", "ridge_one_layer", "autoencoder", *affine, *contrast)


def keys_of_models(names: Sequence[str]) -> list[str] | None:
    """Returns what changes when one of some models does, without loading any.

    Args:
        names: Hub names, local folders or `organism:NAME`.

    Returns:
        One text per model; None when one of them is not on this machine yet.
    """
    keys = [_key_of_model(name) for name in names]
    found = [key for key in keys if key is not None]
    return found if len(found) == len(keys) else None


def _key_of_model(name: str) -> str | None:
    if name.startswith(_PREFIX):
        return sha256_of_file(packed_folder(name.removeprefix(_PREFIX)) / "artifact.json")
    if Path(name).is_dir():
        digest = hashlib.sha256()
        for path in sorted(p for p in Path(name).rglob("*") if p.is_file()):
            stat = path.stat()
            line = f"{path.relative_to(name)} {stat.st_size} {stat.st_mtime_ns}\n"
            digest.update(line.encode())
        return digest.hexdigest()
    try:
        # The place of a downloaded file names its commit.
        return str(cached_file(name, "config.json", local_files_only=True))
    except OSError:
        return None
