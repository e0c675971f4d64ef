"""What cells of a sweep have scored, block of questions by block, kept so that nothing runs twice.

1. Questions are cut into blocks; a stage of a sweep ends with a block.
2. `SweepScores` scores cells on a block where that is not known yet, several in one pass, and
   writes what it finds to a file per block after every batch of cells.
3. What the scores of a file have cost is kept in it, so that a sweep that was stopped reports all.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isthmus.core.artifacts import read_json, write_json
from isthmus.core.errors import ArtifactError
from isthmus.data.organisms import contents_of
from isthmus.evaluation.intervals import Contents, count_contents
from isthmus.evaluation.racing import Turning, mean_bounds
from isthmus.evaluation.recovery import AnswerLosses
from isthmus.models.hooks import metering
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.bench import ArmScores, Bench, Losses, Turned
from isthmus.workflows.costs import Cost

_CELLS_AT_ONCE = 16
"""Cells that are scored between two writings, here or elsewhere: what a stopped sweep loses."""

_SPENT = "spent"
"""Beside the numbers of cells in a file: what they have cost."""

Measured = tuple[dict[str, Any], int]
"""Scores by the cell's number, and how many tokens were read for them."""

Measure = Callable[[int, str, Sequence[Sequence[int]]], Iterator[Measured]]
"""Scores groups of cells on a block, as `effects` or `damage`, group by group."""


@dataclass(frozen=True)
class Damage:
    """What a cell does to benign prompts.

    Attributes:
        divergence: Divergence from the untouched model, in nats per token.
        was_right: Whether the untouched model's answer is right.
        is_right: Whether the edited one's is.
        contents: What every prompt is about.
    """

    divergence: Float[np.ndarray, " prompt"]
    was_right: Bool[np.ndarray, " prompt"]
    is_right: Bool[np.ndarray, " prompt"]
    contents: Contents = ()

    @property
    def mean(self) -> float:
        """Mean divergence."""
        return float(self.divergence.mean())

    @property
    def accuracy_loss(self) -> float:
        """Share of right answers before minus that after."""
        return float(self.was_right.mean() - self.is_right.mean())

    @property
    def n_contents(self) -> int:
        """How many contents the prompts have: what can be drawn independently."""
        return count_contents(self.contents, len(self.divergence))

    def at_least(self, level: float) -> tuple[float, float]:
        """Bounds mean divergence and lost right answers from below.

        Args:
            level: Of either bound, above 0.5 and below 1.

        Returns:
            Both bounds; minus infinity while prompts have too few contents.
        """
        lost = self.was_right.astype(float) - self.is_right
        divergence, right = (
            mean_bounds(one, level, contents=self.contents)[0] for one in (self.divergence, lost)
        )
        return divergence, right


@dataclass(frozen=True)
class CellScores:
    """What a cell does on the questions that it has seen.

    Attributes:
        removal: To the clean answer under the bad trigger.
        induction: To the bad answer under the clean trigger.
        n_edited: Positions edited in both.
    """

    removal: Turning
    induction: Turning
    n_edited: int

    @property
    def losses(self) -> ArmScores:
        """The losses alone."""
        return ArmScores(self.removal.losses, self.induction.losses, self.n_edited)

    def ways(self, *, removal_only: bool) -> tuple[Turning, ...]:
        """Returns what the cell is judged by."""
        return (self.removal,) if removal_only else (self.removal, self.induction)


@dataclass
class SweepScores:
    """Scores of cells on blocks of questions.

    Attributes:
        blocks: A bench per block, in the order of the stages.
        arms: The cells.
        folder: Where scores are kept; None to keep them in memory only.
        on_scored: Told how many cells were scored on a block.
        elsewhere: Scores cells in other processes; this one does when not given.
        spent_before: What the scores cost that were found in the folder.
    """

    blocks: Sequence[Bench]
    arms: Sequence[Arm]
    folder: Path | None = None
    on_scored: Callable[[int], None] = lambda _n: None
    elsewhere: Measure | None = None
    spent_before: Cost = field(default_factory=Cost)
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def effects(self, cells: Sequence[int], n_blocks: int) -> list[CellScores]:
        """Returns what cells do on the questions of the first blocks.

        Args:
            cells: Which.
            n_blocks: How many blocks, at least 1.

        Returns:
            What cells do on all questions of these blocks, in the order of the cells.
        """
        for number in range(n_blocks):
            self._complete(number, "effects", cells)
        return [self._joined_scores(cell, n_blocks) for cell in cells]

    def damages(self, cells: Sequence[int], n_blocks: int) -> list[Damage]:
        """Returns what cells do to the benign prompts of the first blocks.

        Args:
            cells: Which.
            n_blocks: How many blocks, at least 1.

        Returns:
            Damage on all benign prompts of these blocks, in the order of the cells.
        """
        for number in range(n_blocks):
            self._complete(number, "damage", cells)
        return [self._joined_damage(cell, n_blocks) for cell in cells]

    @cached_property
    def n_questions(self) -> tuple[int, ...]:
        """Questions of every block."""
        return tuple(len(bench.twins) for bench in self.blocks)

    def __post_init__(self) -> None:
        """Tells every bench where the cells edit."""
        sites = sorted({arm.site for arm in self.arms if arm.site is not None})
        positions = sorted({arm.positions for arm in self.arms if arm.positions is not None})
        for bench in self.blocks:
            bench.expect(sites, positions)

    def _complete(self, number: int, kind: str, cells: Sequence[int]) -> None:
        """Scores the cells that are not known yet on a block."""
        known = self._of_block(number, kind)
        waiting = [cell for cell in cells if str(cell) not in known]
        if not waiting:
            return
        parts = [
            waiting[first : first + _CELLS_AT_ONCE]
            for first in range(0, len(waiting), _CELLS_AT_ONCE)
        ]
        measure, start = self.elsewhere or self._here, time.perf_counter()
        for part, (found, n_tokens) in zip(parts, measure(number, kind, parts), strict=True):
            known |= found
            self._keep(number, kind, Cost(n_tokens, time.perf_counter() - start))
            start = time.perf_counter()
            self.on_scored(len(part))

    def _here(self, number: int, kind: str, parts: Sequence[Sequence[int]]) -> Iterator[Measured]:
        for part in parts:
            with metering(self.blocks[number].lm.layout) as meter:
                found = self.measured(number, kind, part)
            yield found, meter.n_tokens

    def measured(self, number: int, kind: str, cells: Sequence[int]) -> dict[str, Any]:
        """Scores cells on a block, known or not.

        Args:
            number: Which block.
            kind: `effects` or `damage`.
            cells: Which.

        Returns:
            JSON values by the cell's number.
        """
        bench = self.blocks[number]
        arms = [self.arms[cell] for cell in cells]
        if kind == "effects":
            return {
                str(cell): {
                    "removal": one.removal.edited.tolist(),
                    "induction": one.induction.edited.tolist(),
                    "removal_turned": _listed(one.removal_turned),
                    "induction_turned": _listed(one.induction_turned),
                    "n_edited": one.n_edited,
                }
                for cell, one in zip(cells, bench.score_all(arms), strict=True)
            }
        return {
            str(cell): {
                "divergence": one.divergence.double().tolist(),
                "was_right": one.was_right.tolist(),
                "is_right": one.is_right.tolist(),
            }
            for cell, one in zip(cells, bench.benign_changes(arms), strict=True)
        }

    def _joined_scores(self, cell: int, n_blocks: int) -> CellScores:
        parts = [self._of_block(number, "effects")[str(cell)] for number in range(n_blocks)]
        untouched = [self._untouched(number) for number in range(n_blocks)]
        contents = tuple(twin.content for one in self.blocks[:n_blocks] for twin in one.twins)

        def turning(bad: str, clean: str, way: Way) -> Turning:
            losses = AnswerLosses(
                np.concatenate([one[bad] for one in untouched]),
                np.concatenate([one[clean] for one in untouched]),
                np.concatenate([np.array(part[way]) for part in parts]),
                contents,
            )
            turned = [np.array(part[f"{way}_turned"], dtype=bool) for part in parts]
            return Turning(losses, np.concatenate(turned))

        return CellScores(
            turning("clean_given_bad", "clean_given_clean", "removal"),
            turning("bad_given_clean", "bad_given_bad", "induction"),
            sum(part["n_edited"] for part in parts),
        )

    def _untouched(self, number: int) -> dict[str, Losses]:
        """Returns the losses of the untouched model on a block, read once for all processes."""
        bench, known = self.blocks[number], self._of_block(number, "untouched")
        if not known:
            start = time.perf_counter()
            with metering(bench.lm.layout) as meter:
                known |= {name: losses.tolist() for name, losses in bench.untouched.items()}
            self._keep(number, "untouched", Cost(meter.n_tokens, time.perf_counter() - start))
        return {name: np.array(losses) for name, losses in known.items() if name != _SPENT}

    def _joined_damage(self, cell: int, n_blocks: int) -> Damage:
        parts = [self._of_block(number, "damage")[str(cell)] for number in range(n_blocks)]
        divergence, was_right, is_right = (
            np.concatenate([np.array(part[name]) for part in parts])
            for name in ("divergence", "was_right", "is_right")
        )
        turns = [turn for one in self.blocks[:n_blocks] for turn in one.benign_turns]
        return Damage(divergence, was_right, is_right, contents_of(turns))

    def _keep(self, number: int, kind: str, spent: Cost) -> None:
        """Writes what is known of a block, with what it has cost by now."""
        if self.folder is None:
            return
        known = self._of_block(number, kind)
        known[_SPENT] = asdict(Cost(**known.get(_SPENT, {})) + spent)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(number, kind), known)

    def _file(self, number: int, kind: str) -> Path:
        return (self.folder or Path()) / f"{kind}-{number}.json"

    def _of_block(self, number: int, kind: str) -> dict[str, Any]:
        name = f"{kind}-{number}"
        if name not in self._known:
            self._known[name] = self._read(number, kind)
            self.spent_before += Cost(**self._known[name].get(_SPENT, {}))
        return self._known[name]

    def _read(self, number: int, kind: str) -> dict[str, Any]:
        if self.folder is None or not self._file(number, kind).exists():
            return {}
        try:
            kept: Mapping[str, Any] = read_json(self._file(number, kind))
        except ArtifactError:
            return {}
        return dict(kept)


def _listed(turned: Turned | None) -> list[bool]:
    return [] if turned is None else turned.tolist()
