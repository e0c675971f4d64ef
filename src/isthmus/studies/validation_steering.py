"""The use of a map that we recommend, chosen on validation: it carries a steering vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.carrying.directions import carry_direction
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.interventions.intervention import Intervention
from isthmus.maps.files import FittedMap
from isthmus.models.language_model import LanguageModel
from isthmus.studies.replacement_measuring import Treatment
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig
from isthmus.workflows.controls import control_arms
from isthmus.workflows.map_fitting import MapEnds
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedRows, Part
from isthmus.workflows.selection import Cell, Selector, make_selector
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import TwinSplits

_CONTROLS = ("random", "shuffled_map")


@dataclass(frozen=True)
class Steering:
    """What validation chose for steering.

    Attributes:
        native: The target's own direction where it works; its site is the paper's rule for sites.
        transferred: The direction that the ridge map carries, where that works.
        source_direction: What it was before it was carried.
    """

    native: Arm
    transferred: Arm
    source_direction: Direction


def choose_steering(
    models: tuple[LanguageModel, LanguageModel],
    splits: TwinSplits,
    ridge: Mapping[Site, FittedMap],
    positions: Sequence[str],
    config: RunConfig,
    progress: Progress,
) -> Steering:
    """Chooses layer, positions and strength of steering on validation, native and carried.

    Args:
        models: Source and target.
        splits: Questions.
        ridge: The ridge map to every target site that may be chosen.
        positions: Positions that may be chosen.
        config: The run.
        progress: Who shows progress.

    Returns:
        The chosen arms.
    """
    source, target = models
    sites = list(ridge)
    source_sites = ridge[sites[0]].source_sites
    natives = {p: learn_twin_direction(target, splits.train, sites, p, config) for p in positions}
    sources = {
        p: learn_twin_direction(source, splits.train, source_sites, p, config) for p in positions
    }
    recorder = Recorder(config, source.identity.name, target.identity.name, "validation")
    bench = Bench(target, splits.validation, config)
    selector: Selector = make_selector(bench, recorder, progress)
    cells = [Cell(site, p) for site in sites for p in positions]

    def native(cell: Cell) -> Arm:
        direction = at_one_site(natives[cell.positions], cell.site)
        return Arm("native", cell.site, cell.positions, "add", 1.0, direction, seed=config.seed)

    def carried(cell: Cell) -> Arm:
        return Arm(
            "transferred",
            cell.site,
            cell.positions,
            "add",
            1.0,
            carry_direction(sources[cell.positions], ridge[cell.site]),
            map_method="ridge",
            source_sites=", ".join(map(str, source_sites)),
            seed=config.seed,
        )

    chosen = selector.choose_cell("transferred", cells, carried).arm
    own = selector.choose_cell("native", cells, native).arm
    return Steering(own, chosen, sources[str(chosen.positions)])


def steering_treatments(
    steering: Steering, rows: dict[Part, PairedRows], ends: MapEnds, config: RunConfig
) -> list[Treatment]:
    """Builds the treatments of the carried vector, of the native one and of their controls.

    Args:
        steering: What validation chose.
        rows: Paired activations at the transferred arm's site.
        ends: Models and sites there.
        config: The run.

    Returns:
        The transferred vector, the native one, random and shuffled-map vectors of equal norm.
    """
    controls = control_arms(steering.transferred, steering.source_direction, rows, ends, config)
    arms = [
        steering.transferred,
        steering.native,
        *(arm for arm in controls if arm.condition in _CONTROLS),
    ]
    placed: list[tuple[Arm, Intervention | None]] = [
        (arm, arm.intervention("removal")) for arm in arms
    ]
    return [Treatment(arm, what.place) for arm, what in placed if what is not None]
