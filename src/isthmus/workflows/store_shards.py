"""The shards of a store of activations, captured by whatever engine there is.

1. Texts are cut into shards here, as `store_filling.py` does; their prompts travel.
2. A worker renders them again, runs its own models, and leaves the shard's file.
3. Files are named in the manifest in their order; one that is there is not captured again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from isthmus.core.errors import IdentityError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.data.activation_store import ActivationStore
from isthmus.data.parts import part_of_text
from isthmus.data.prompts import Question
from isthmus.data.store_checks import require_whole
from isthmus.data.store_format import Role, ShardPlan, StoredSide, StoreSpec
from isthmus.data.store_format import Shard as StoredShard
from isthmus.data.store_writer import PlannedShard, writing_store
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype, Pairing
from isthmus.workflows.engines.jobs import Engine, Job, Json, Shard, shard_folder
from isthmus.workflows.store_filling import (
    TextRows,
    capture_shard,
    shards_to_capture,
    spec_of_store,
    texts_to_store,
)

_WORKER = f"{__name__}:StoreShardWorker"


@dataclass(frozen=True)
class StoreSettings:
    """What makes the rows of a store, by names.

    Attributes:
        names: Hub names, folders or `organism:NAME` by role.
        sites: Sites by role, in any spelling.
        pairing: How tokens of two models are paired.
        dtype: Computation type.
        device: Where models run.
        batch_size: Texts per forward pass.
        storage: `storage_dtype` and `rows_per_shard`.
    """

    names: dict[Role, str]
    sites: dict[Role, str | tuple[Any, ...]]
    pairing: Pairing
    dtype: Dtype
    device: str
    batch_size: int
    storage: dict[str, Any]

    def to_json(self) -> Json:
        """Returns the settings as JSON values."""
        sites = {
            role: given if isinstance(given, str) else [_spelled(one) for one in given]
            for role, given in self.sites.items()
        }
        return {**vars(self), "sites": sites}

    def load(self) -> dict[Role, LanguageModel]:
        """Loads the models."""
        return {
            role: load_language_model(name, dtype=self.dtype, device=self.device)
            for role, name in self.names.items()
        }

    def spec(self, models: dict[Role, LanguageModel]) -> StoreSpec:
        """Returns what the rows of the store are."""
        sites = {role: lm.sites(self.sites[role]) for role, lm in models.items()}
        return spec_of_store(models, sites, pairing=self.pairing, **self.storage)


def _spelled(site: Any) -> Json:
    return str(site) if isinstance(site, Site) else site


@dataclass
class _Remembered:
    """Questions as they stream by, until the shard that holds them is planned.

    Attributes:
        questions: The stream.
        held: Those that no shard has taken yet, by number.
    """

    questions: Iterable[Question]
    held: dict[int, Question] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Question]:
        for index, one in enumerate(self.questions):
            self.held[index] = one
            yield one

    def take(self, plan: ShardPlan) -> list[list[str | None]]:
        """Returns prompts and answers of a shard, and forgets what came before its end."""
        numbers = range(plan.first_text, plan.stop_text)
        taken = [[self.held[i].prompt, self.held[i].answer] for i in numbers]
        self.held = {i: one for i, one in self.held.items() if i >= plan.stop_text}
        return taken


def fill_store_by(
    engine: Engine,
    folder: str | Path,
    settings: StoreSettings,
    questions: Iterable[Question],
    *,
    append: bool,
    progress: Progress,
) -> ActivationStore:
    """Makes a store, or goes on with one, its shards captured by an engine.

    Args:
        engine: Who captures.
        folder: The store.
        settings: What its rows are made by; models are loaded here, too, to cut the texts.
        questions: Every text from the first on; those of missing shards are held in memory.
        append: Whether texts may be added to a finished store.
        progress: Who shows progress.

    Returns:
        The finished store, with the bytes that one process would have written.

    Raises:
        IsthmusError: As `fill_store`; IdentityError if workers have other models.
    """
    models = settings.load()
    with writing_store(folder, settings.spec(models)) as writer:
        if not append:
            require_whole(writer.folder, writer.manifest)
        stream = _Remembered(questions)
        plans, shards = [], []
        for planned in shards_to_capture(writer, models, stream, append=append):
            plan = planned.plan
            asked = {"first": plan.first_text, "turns": stream.take(plan)}
            label = f"texts {plan.first_text} to {plan.stop_text - 1}"
            shards.append(Shard(asked, label, n_units=len(plan.texts)))
            plans.append(plan)
        job = Job("capture", _WORKER, settings.to_json(), tuple(shards))
        # What a killed process leaves under this name is removed when the store is opened.
        with TemporaryDirectory(prefix=".shard-", dir=writer.folder) as place:
            for number, answer in enumerate(engine.run(job, Path(place), progress)):
                made = StoredShard.from_json(answer["shard"])
                source, *target = map(StoredSide.from_json, answer["sides"])
                there = replace(writer.spec, source=source, target=next(iter(target), None))
                differences = writer.spec.differences_to(there)
                if differences or made.plan != plans[number]:
                    raise IdentityError(
                        f"a worker read other texts or with another model than here "
                        f"({'; '.join(differences) or 'other texts'}): give all machines the same"
                    )
                name = made.plan.name
                (shard_folder(Path(place), number) / name).replace(writer.folder / name)
                writer.register(made)
    return ActivationStore.open(folder)


@dataclass
class StoreShardWorker:
    """Captures shards; loads the models once.

    Attributes:
        settings: Those of `StoreSettings`.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress

    @cached_property
    def _given(self) -> StoreSettings:
        return StoreSettings(**self.settings)

    @cached_property
    def _models(self) -> dict[Role, LanguageModel]:
        return self._given.load()

    def work(self, asked: Json, place: Path) -> Json:
        """Captures one shard.

        Args:
            asked: `turns` of prompt and answer or null, and the number of the first one.
            place: Receives the shard's file.

        Returns:
            What the manifest is to name, and what the rows are.
        """
        spec = self._given.spec(self._models)
        questions = [Question(prompt, answer) for prompt, answer in asked["turns"]]
        read = list(texts_to_store(self._models, questions, self._given.pairing))
        texts = tuple(
            replace(text, part=part_of_text(asked["first"] + i)) for i, (text, _) in enumerate(read)
        )
        rows: tuple[TextRows, ...] = tuple(one for _, one in read)
        planned = PlannedShard(ShardPlan(asked["first"], texts), rows, is_written=False)
        place.mkdir(parents=True)
        made = capture_shard(place, spec, self._models, planned, batch_size=self._given.batch_size)
        sides = [side.to_json() for side in spec.sides.values()]
        return {"shard": made.to_json(), "sides": sides}
