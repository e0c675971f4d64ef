"""What studies of travelling directions share: choosing, controls, test numbers, the picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from isthmus.carrying.scaling import match_norm, random_direction_like
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import swap_loss
from isthmus.evaluation.study_plots import NumberGrid, number_grids
from isthmus.models.language_model import LanguageModel
from isthmus.tasks import TASKS, task_named
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.selection import Cell, Scored, make_selector
from isthmus.workflows.twin_directions import at_one_site
from isthmus.workflows.twins import TwinSplits

COLUMNS = {
    "native": "native",
    "transferred": "carried",
    "random": "random",
    "shuffled_map": "shuffled map",
}
"""Columns of the picture by condition."""

Misled = Callable[[Site, str], Direction | None]
"""Gives what arrives at a site, for some positions, through a map that knows nothing."""


def config_for(task: str, ends: tuple[str, str], sizes: Mapping[str, int]) -> RunConfig:
    """Returns the settings of a study of one task, with the strengths that the task recommends.

    Args:
        task: `backdoor` or a task of the package.
        ends: Names of a source and a target.
        sizes: Sizes of splits, draws and seed, as `RunConfig` names them.

    Returns:
        The configuration.
    """
    known = {"strengths": task_named(task).recommended.strengths} if task in TASKS else {}
    return make_config({"task": task, "source": ends[0], "target": ends[1], **sizes, **known})


@dataclass(frozen=True)
class Tested:
    """One chosen direction and what it did on test questions.

    Attributes:
        chosen: Its arm, with effect and damage on validation.
        scores: Losses on test questions.
        measurements: Of it and of its controls.
    """

    chosen: Scored
    scores: ArmScores
    measurements: tuple[Measurement, ...]

    @property
    def arm(self) -> Arm:
        """What was done to the target."""
        return self.chosen.arm


class Arrivals:
    """One model at which directions arrive: chooses on validation, measures on test.

    Args:
        lm: The model.
        splits: Questions.
        config: Task, strengths, draws, seed.
        progress: Who shows progress.
    """

    def __init__(
        self, lm: LanguageModel, splits: TwinSplits, config: RunConfig, progress: Progress
    ) -> None:
        self.config, self.name = config, lm.identity.name
        self._test = Bench(lm, splits.test, config)
        recorder = Recorder(config, self.name, self.name, "validation")
        validation = Bench(lm, splits.validation, config)
        self._selector = make_selector(validation, recorder, progress)

    def measure(
        self,
        arriving: Mapping[str, Direction],
        source: str,
        task: str,
        misled: Misled | None = None,
    ) -> Tested:
        """Chooses place and strength of a direction and measures it, with controls if it travelled.

        Args:
            arriving: The direction by kind of positions, at every site among which to choose.
            source: Where it was learned, for results.
            task: What results call it.
            misled: Gives the control through a map that knows nothing; None for a native
                direction, which has no controls.

        Returns:
            What was chosen and measured.
        """
        condition = "native" if misled is None else "transferred"
        cells = [Cell(site, p) for p, one in arriving.items() for site in one.sites]

        def make(cell: Cell) -> Arm:
            here = at_one_site(arriving[cell.positions], cell.site)
            place = (cell.site, cell.positions, self.config.edit, 1.0, here)
            used_map = None if misled is None else "ridge"
            return Arm(condition, *place, map_method=used_map, seed=self.config.seed)

        chosen = self._selector.choose_cell(condition, cells, make)
        recorder = Recorder(self.config, source, self.name, "test")
        scores = self._test.score(chosen.arm)
        found = numbers_of(self._test, recorder, chosen.arm, scores)
        if misled is not None:
            for control in self._controls(chosen.arm, misled):
                # The strongest of all draws is compared by swap; one answers for them.
                is_repeated = control.seed != self.config.seed
                found += numbers_of(
                    self._test, recorder, control, self._test.score(control), is_brief=is_repeated
                )
        return Tested(chosen, scores, tuple(replace(m, task=task) for m in found))

    def placed_as(
        self, other: Tested, compared: Tested, arriving: Mapping[str, Direction]
    ) -> Tested:
        """Measures a direction where and as strongly as validation placed another.

        So that what a way lost is told from what another choice of place lost.

        Args:
            other: What gives place and strength.
            compared: What was chosen and measured for the direction itself.
            arriving: The direction by kind of positions, at every site of the model.

        Returns:
            The direction there, likelihoods only; its task ends in `, same place`.

        Raises:
            ConfigError: If the other has no place.
        """
        arm = other.arm
        if arm.site is None or arm.positions is None:
            raise ConfigError(f"the {arm.condition} arm has no place")
        here = at_one_site(arriving[arm.positions], arm.site)
        placed = replace(compared.arm.at(arm.strength or 1.0), direction=here)
        placed = replace(placed, site=arm.site, positions=arm.positions)
        like = compared.measurements[0]
        scores = self._test.score(placed)
        recorder = Recorder(self.config, like.source or self.name, self.name, "test")
        found = numbers_of(self._test, recorder, placed, scores, is_brief=True)
        task = f"{like.task}, same place"
        chosen = replace(compared.chosen, arm=placed)
        return Tested(chosen, scores, tuple(replace(m, task=task) for m in found))

    def loss(self, kept: Tested, compared: Tested) -> Measurement:
        """Returns how much less of the swap is left than under another direction, by question.

        Args:
            kept: What is compared with.
            compared: What may have lost something.

        Returns:
            A `swap_loss` with the fields of what is compared.
        """
        loss = swap_loss(
            (kept.scores.removal, kept.scores.induction),
            (compared.scores.removal, compared.scores.induction),
            seed=self.config.seed,
        )
        like = next(m for m in compared.measurements if m.metric == "swap")
        low, high = (loss.low, loss.high) if loss.is_defined else (None, None)
        without = replace(like, ci_low=None, ci_high=None)
        return replace(without, metric="swap_loss", value=loss.value, ci_low=low, ci_high=high)

    def _controls(self, arm: Arm, misled: Misled) -> list[Arm]:
        if arm.direction is None or arm.site is None or arm.positions is None:
            raise ConfigError(f"the {arm.condition} arm has no direction or place")
        controls = []
        for seed in range(self.config.seed, self.config.seed + self.config.n_random):
            drawn = random_direction_like(arm.direction, torch.Generator().manual_seed(seed))
            controls.append(
                replace(arm, condition="random", direction=drawn, map_method=None, seed=seed)
            )
        if (other := misled(arm.site, arm.positions)) is not None:
            like = match_norm(other, arm.direction.norms)
            controls.append(replace(arm, condition="shuffled_map", direction=like))
        return controls


def numbers_of(
    bench: Bench, recorder: Recorder, arm: Arm, scores: ArmScores, *, is_brief: bool = False
) -> list[Measurement]:
    """Returns what an arm did on test questions.

    Args:
        bench: The questions.
        recorder: Names the numbers.
        arm: What was done.
        scores: Its losses.
        is_brief: Whether likelihoods are enough, and nothing is written.

    Returns:
        Recoveries, swap and damage, and, unless brief, rates of completions.
    """
    damage = recorder.divergence(arm, bench.damage(arm), bench.benign_turns)
    likely = [*recorder.effects(arm, scores), damage]
    if is_brief:
        return likely
    return [
        *likely,
        *recorder.behaviour(arm, bench.complete(arm), bench.asked(arm)),
        *recorder.benign(arm, bench.complete_benign(arm), bench.benign_turns),
    ]


def swap_grid(study: str, task: str, measured: Sequence[Measurement]) -> dict[str, str]:
    """Draws the swap of every row of a study under every condition.

    Args:
        study: First part of the tasks in `measured`, which read `STUDY/TASK/ROW`.
        task: Second part.
        measured: Every number; of several random draws the strongest is shown.

    Returns:
        The picture as SVG by its title; nothing when no swap is defined.
    """
    cells: dict[tuple[str, str], Measurement] = {}
    for m in measured:
        if m.metric == "swap":
            key = (m.task.removeprefix(f"{study}/{task}/"), COLUMNS[m.condition])
            if key not in cells or (m.value or 0) > (cells[key].value or 0):
                cells[key] = m
    rows = tuple(reversed(dict.fromkeys(row for row, _ in cells)))
    title = f"Swap: {study.replace('_', ' ')}, {task}"
    grid = NumberGrid(title, rows, tuple(COLUMNS.values()), cells)
    svg = number_grids([grid], f"{study}-{task}", title)
    return {} if svg is None else {title: svg}
