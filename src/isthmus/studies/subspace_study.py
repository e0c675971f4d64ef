"""Whether several directions do more than one: subspaces of growing rank, native and carried.

1. Source and target learn a subspace of every rank from the same training twins; ridge maps, each
   from all sites of the source to one of the target, carry the source's.
2. For every edit and rank, site and positions are chosen on validation, for both alike. Ablation is
   judged by recovery, for it cannot bring a behaviour about; coordinates that are set, by swap.
3. Each is measured once on test questions. Beside the carried one stand, at its place, random
   subspaces of its rank, and the source's subspace through a map of shuffled pairs and through the
   identity.
4. What a rank gains over rank 1 is compared question by question. The direction with one vector per
   position stands beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isthmus.carrying.chains import carry_along
from isthmus.carrying.subspaces import carry_subspace
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.directions.subspace import Subspace, subspace_of
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, swap_loss
from isthmus.maps.files import FittedMap
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.travel_measuring import config_for, numbers_of
from isthmus.studies.travel_ways import Ways
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import ArmScores, Bench
from isthmus.workflows.config import EditKind, RunConfig, make_config
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.selection import Cell, make_selector
from isthmus.workflows.subspace_arms import SUBSPACE_EDITS, random_arms, subspace_arm
from isthmus.workflows.twin_directions import at_one_site
from isthmus.workflows.twins import TwinSplits, position_candidates, read_splits

NAME = "subspaces"
"""First part of the task in `results.jsonl`."""

DIRECTION = "direction"
"""Last part of the task of the direction, which has one vector per position."""

Found = Direction | Subspace


def study_subspaces(
    source: str | LanguageModel,
    target: str | LanguageModel,
    task: str = "backdoor",
    *,
    ranks: Sequence[int] = (1, 2, 4, 8),
    edits: Sequence[EditKind] = SUBSPACE_EDITS,
    n_train: int = 120,
    n_validation: int = 32,
    n_test: int = 96,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures what subspaces of several ranks do, native and carried, with controls.

    Tasks `subspaces/TASK/EDIT/rank K` name edit and rank, `subspaces/TASK/EDIT/direction` the
    direction. Nothing has a strength: coordinates are set entirely.

    Args:
        source: Model that shows the behaviour: name, folder or a loaded model.
        target: Another one.
        task: `backdoor` or a task of the package.
        ranks: Ranks to measure; what the others are compared with comes first.
        edits: `ablate`, `set_coordinate` or both.
        n_train: Training questions for subspaces and maps.
        n_validation: Questions that choose.
        n_test: Questions that are measured.
        n_random: Draws of random subspaces.
        seed: Which questions, and every random control.
        progress: Who shows progress.

    Returns:
        Recovery, swap, rates and damage of every rank, `swap_loss` of coordinates against the first
        rank, and in the notes what was chosen and gained.

    Raises:
        ConfigError: If no rank is given.
    """
    if not ranks:
        raise ConfigError("no rank to measure: give at least one, such as 1")
    shown = progress or SilentProgress()
    lms = [load_language_model(m) if isinstance(m, str) else m for m in (source, target)]
    names = (lms[0].identity.name, lms[1].identity.name)
    sizes = {"n_train": n_train, "n_validation": n_validation, "n_test": n_test}
    config = config_for(task, names, {**sizes, "n_random": n_random, "seed": seed})
    splits = read_splits(config)
    positions, note = position_candidates(lms, config, splits.train[0])
    ways = Ways(dict(zip(names, lms, strict=True)), splits.train, config, shown)
    room = _Room(ways, names, positions, ranks)
    measured: list[Measurement] = []
    notes = [note] if note else []
    for edit in edits:
        given = {**config.model_dump(exclude_unset=True), "edit": edit, "strengths": [1.0]}
        crossing = _Crossing(room, lms[1], splits, make_config(given), shown)
        found, said = crossing.measure()
        measured += found
        notes += said
    return StudyResult(NAME, tuple(measured), tuple(notes))


@dataclass(frozen=True)
class _Room:
    """What can be done to the target: directions and subspaces, native and carried.

    Attributes:
        ways: Directions of both models, and maps.
        names: Source and target.
        positions: Kinds of positions among which validation chooses.
        ranks: Ranks of subspaces.
    """

    ways: Ways
    names: tuple[str, str]
    positions: Sequence[str]
    ranks: Sequence[int]

    def candidates(self, condition: str, rank: int | None) -> dict[Cell, Found]:
        """Returns a direction, or a subspace, at every place where there is one of this rank."""
        found: dict[Cell, Found] = {}
        for positions in self.positions:
            learned = self.ways.learned(self.names[condition == "native"], positions)
            for site, own, way in self._ends(condition, learned):
                try:
                    one: Found = own if rank is None else subspace_of(own, rank)
                    found[Cell(site, positions)] = carry_along(one, way) if way else one
                except FitError:
                    # The twins differ in fewer dimensions there, or fewer arrive.
                    continue
        return found

    def _ends(
        self, condition: str, learned: Direction
    ) -> list[tuple[Site, Direction, list[FittedMap]]]:
        """Returns every site of the target, what is known of it, and the way there."""
        if condition == "native":
            return [(site, at_one_site(learned, site), []) for site in learned.sites]
        return [(one.target_sites[0], learned, [one]) for one in self.ways.leg(*self.names)]

    def misled(self, arm: Arm, rank: int) -> dict[str, Subspace]:
        """Returns what arrives at an arm's place through maps that know nothing."""
        if arm.site is None or arm.positions is None:
            raise ConfigError(f"the {arm.condition} arm has no place")
        learned = self.ways.learned(self.names[0], arm.positions)
        maps = {
            "shuffled_map": self.ways.shuffled(*self.names, arm.site),
            "identity_map": self.ways.identity(*self.names, arm.site),
        }
        arrived: dict[str, Subspace] = {}
        for condition, fitted in maps.items():
            if fitted is not None:
                here = {site: learned.at(site) for site in fitted.source_sites}
                own = subspace_of(replace(learned, by_site=here), rank)
                try:
                    arrived[condition] = carry_subspace(own, fitted)
                except FitError:
                    # The identity into a narrower space may cut dimensions off.
                    continue
        return arrived


@dataclass(frozen=True)
class _Tested:
    """What one rank did on test questions."""

    arm: Arm
    scores: ArmScores
    measurements: tuple[Measurement, ...]


class _Crossing:
    """One edit in one target: chooses on validation, measures on test."""

    def __init__(
        self,
        room: _Room,
        lm: LanguageModel,
        splits: TwinSplits,
        config: RunConfig,
        progress: Progress,
    ) -> None:
        self.room, self.config = room, config
        self._test = Bench(lm, splits.test, config)
        self._recorder = Recorder(config, *room.names, "test")
        validation = Recorder(config, *room.names, "validation")
        self._selector = make_selector(Bench(lm, splits.validation, config), validation, progress)

    def measure(self) -> tuple[list[Measurement], list[str]]:
        """Measures every rank and the direction, both ways.

        Returns:
            Measurements and notes.
        """
        measured: list[Measurement] = []
        notes: list[str] = []
        first: dict[str, _Tested] = {}
        for rank in (*self.room.ranks, None):
            row = DIRECTION if rank is None else f"rank {rank}"
            for condition in ("native", "transferred"):
                found = self.room.candidates(condition, rank)
                if not found:
                    notes.append(f"{self.config.edit}, {row}: no such {condition} subspace")
                    continue
                tested = self._tested(condition, found, rank)
                gain = self._gain(first.setdefault(condition, tested), tested)
                task = f"{NAME}/{self.config.task}/{self.config.edit}/{row}"
                measured += [replace(m, task=task) for m in (*tested.measurements, *gain.lost)]
                notes.append(f"{self.config.edit}, {row}, {condition}: {gain.said}")
        return measured, notes

    def _tested(self, condition: str, found: Mapping[Cell, Found], rank: int | None) -> _Tested:
        def make(cell: Cell) -> Arm:
            used_map = None if condition == "native" else "ridge"
            place = cell.site, cell.positions, self.config.edit, 1.0
            bare = Arm(condition, *place, map_method=used_map, seed=self.config.seed)
            one = found[cell]
            if isinstance(one, Subspace):
                return subspace_arm(bare, one)
            return replace(bare, direction=one)

        arm = self._selector.choose_cell(condition, list(found), make).arm
        scores = self._test.score(arm)
        numbers = numbers_of(self._test, self._recorder, arm, scores)
        if condition == "transferred" and rank is not None and arm.site and arm.positions:
            chosen = found[Cell(arm.site, arm.positions)]
            for control in self._controls(arm, chosen, rank):
                numbers += numbers_of(
                    self._test,
                    self._recorder,
                    control,
                    self._test.score(control),
                    is_brief=control.seed != self.config.seed,
                )
        return _Tested(arm, scores, tuple(numbers))

    def _controls(self, arm: Arm, chosen: Found, rank: int) -> list[Arm]:
        if not isinstance(chosen, Subspace):
            raise ConfigError(f"controls of the {arm.condition} arm need a subspace")
        bare = replace(arm, fixed={}, map_method=None)
        misled = self.room.misled(arm, rank)
        return [
            *random_arms(bare, chosen, self.config.n_random),
            *(subspace_arm(replace(bare, condition=c), one) for c, one in misled.items()),
        ]

    def _gain(self, first: _Tested, tested: _Tested) -> "_Gain":
        """Compares with the first rank, question by question."""
        of = _removal_twice if self.config.edit == "ablate" else _both
        lost = swap_loss(of(first.scores), of(tested.scores), seed=self.config.seed)
        said = f"at {tested.arm.site}, {tested.arm.positions}"
        if first is tested:
            return _Gain(said, ())
        if lost.is_defined:
            said += f"; gained {-lost.value:.3f} [{-lost.high:.3f}, {-lost.low:.3f}]"
        if self.config.edit == "ablate":
            return _Gain(said, ())
        like = next(m for m in tested.measurements if m.metric == "swap")
        ends = (lost.low, lost.high) if lost.is_defined else (None, None)
        bare = replace(like, ci_low=None, ci_high=None, metric="swap_loss", value=lost.value)
        return _Gain(said, (replace(bare, ci_low=ends[0], ci_high=ends[1]),))


@dataclass(frozen=True)
class _Gain:
    """What a rank does more than the first one: in words, and as a measurement."""

    said: str
    lost: tuple[Measurement, ...]


def _both(scores: ArmScores) -> tuple[AnswerLosses, AnswerLosses]:
    return scores.removal, scores.induction


def _removal_twice(scores: ArmScores) -> tuple[AnswerLosses, AnswerLosses]:
    """An ablation only removes: the smaller of a recovery and itself is that recovery."""
    return scores.removal, scores.removal
