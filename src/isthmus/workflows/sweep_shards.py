"""Cells of a sweep as shards: every worker makes the same cells and blocks, and scores some."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from typing_extensions import override

from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.models.calls import TokenMeter
from isthmus.models.hooks import metering
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import EditKind, RunConfig, make_config
from isthmus.workflows.engines.jobs import Crew, Json, Shard
from isthmus.workflows.sent_directions import received_direction, sent_direction
from isthmus.workflows.sweep_blocks import cut_into_blocks
from isthmus.workflows.sweep_cells import cells_of
from isthmus.workflows.sweep_scores import Measured, SweepScores
from isthmus.workflows.twins import TwinSplits

SWEEP_WORKER = f"{__name__}:SweepWorker"


@dataclass(frozen=True)
class SweptPlaces:
    """What a sweep tries, and on which questions.

    Attributes:
        direction: Of the model.
        sites: Where.
        edits: What is done.
        positions: At which tokens.
        config: The run, with the model as its one target.
        splits: The questions.
        cut: Questions of every block, and how much of an answer is scored.
    """

    direction: Direction
    sites: tuple[Site, ...]
    edits: tuple[EditKind, ...]
    positions: str
    config: RunConfig
    splits: TwinSplits
    cut: tuple[tuple[int, ...], int]

    def to_json(self) -> Json:
        """Returns everything as JSON values."""
        fields = self.config.model_dump(mode="json", exclude_unset=True, exclude={"questions"})
        return {
            "direction": sent_direction(self.direction),
            "sites": [str(site) for site in self.sites],
            "edits": list(self.edits),
            "positions": self.positions,
            "config": fields,
            "splits": self.splits.to_json(),
            "cut": [list(self.cut[0]), self.cut[1]],
        }


@dataclass(frozen=True)
class NotesOnly(SilentProgress):
    """Hands notes on and shows no stages: the sweep has one of its own for all rounds.

    Attributes:
        shown: Who shows notes.
    """

    shown: Progress

    @override
    def note(self, message: str) -> None:
        """Hands one line on."""
        self.shown.note(message)


@dataclass(frozen=True)
class FarScores:
    """Scores cells by the workers of an engine.

    Attributes:
        crew: Workers that stay from stage to stage.
        meter: Told what they read.
    """

    crew: Crew
    meter: TokenMeter

    def __call__(
        self, number: int, kind: str, parts: Sequence[Sequence[int]]
    ) -> Iterator[Measured]:
        """Yields the scores of groups of cells on a block and their tokens, in their order."""
        asked = {"block": number, "kind": kind}
        shards = [
            Shard({**asked, "cells": list(part)}, f"cells {part[0]} to {part[-1]}")
            for part in parts
        ]
        with TemporaryDirectory(prefix="isthmus-sweep-") as folder:
            for found in self.crew.ask("score cells", shards, Path(folder)):
                self.meter.add(found["n_tokens"], is_step=False)
                yield found["scores"], found["n_tokens"]


@dataclass
class SweepWorker:
    """Scores cells; loads the model and reads what cells share once.

    Attributes:
        settings: What `SweptPlaces.to_json` wrote.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress

    @cached_property
    def _scores(self) -> SweepScores:
        given = self.settings
        config = make_config(given["config"])
        lm = load_language_model(config.targets[0], dtype=config.dtype, device=config.device)
        arms = cells_of(
            received_direction(given["direction"]),
            lm.sites(tuple(given["sites"])),
            given["edits"],
            given["positions"],
            config,
        )
        sizes, n_tokens = given["cut"]
        twins = TwinSplits.from_json(given["splits"]).validation
        return SweepScores(cut_into_blocks(lm, twins, sizes, config, n_tokens), arms)

    def work(self, asked: Json, place: Path) -> Json:  # noqa: ARG002 - scores fit into the answer
        """Scores cells on one block.

        Args:
            asked: `block`, `kind` and `cells`.
            place: Stays empty.

        Returns:
            `scores` by the cell's number, and `n_tokens` that were read for them.
        """
        scores = self._scores
        with metering(scores.blocks[0].lm.layout) as meter:
            found = scores.measured(asked["block"], asked["kind"], asked["cells"])
        return {"scores": found, "n_tokens": meter.n_tokens}
