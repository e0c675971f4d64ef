"""What travels: directions through several models, there and back, and of several sources.

1. Every model learns its own direction; ridge maps, each from all sites of one model to all sites
   of the next, carry it along a route.
2. In the last model place and strength are chosen on validation, for every route and for the native
   direction alike.
3. Each is measured once on test questions beside random directions as long and the same route whose
   last map was fitted on shuffled pairs; `swap_loss` is what it lost against a shorter route, the
   best single source, or the native direction, question by question: at its own place, and, as
   task `…, same place`, at the place and strength of what it is compared with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isthmus.carrying.scaling import cosine
from isthmus.core.errors import ConfigError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.sites import Site
from isthmus.directions.direction import Direction
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.travel_measuring import Arrivals, Tested, config_for, swap_grid
from isthmus.studies.travel_ways import Route, Ways
from isthmus.workflows.twins import position_candidates, read_splits

NAME = "travel"
"""First part of the task in `results.jsonl`."""

BEST_SOURCE = "the best single source"
"""Stands, as `Route.compared_with`, for the best on validation of the ways that are averaged."""

ROUTES = (
    Route((("llama", "qwen2"),)),
    Route((("llama", "gemma2", "qwen2"),), "llama → qwen2"),
    Route((("llama", "llama-large", "qwen2"),), "llama → qwen2"),
    Route((("llama", "qwen2", "llama"),)),
    Route((("llama", "llama-large"),)),
    Route((("qwen2", "llama-large"),)),
    Route((("gemma2", "llama-large"),)),
    Route(
        (("llama", "llama-large"), ("qwen2", "llama-large"), ("gemma2", "llama-large")), BEST_SOURCE
    ),
)
"""Two chains beside the direct way, a round trip, and three sources alone and averaged."""


def study_travel(
    task: str = "backdoor",
    *,
    models: Mapping[str, str | LanguageModel] | None = None,
    routes: Sequence[Route] = ROUTES,
    n_train: int = 120,
    n_validation: int = 32,
    n_test: int = 96,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures what directions lose on longer ways, and what several sources gain together.

    Tasks `travel/TASK/ROUTE` name the routes, `travel/TASK/native in MODEL` the native directions.

    Args:
        task: `backdoor` or a task of the package, such as `refusal`.
        models: Models that show the behaviour by the names that routes use; the organisms when not
            given.
        routes: Ways to measure; what a route is compared with comes before it.
        n_train: Training questions for directions and maps.
        n_validation: Questions that choose.
        n_test: Questions that are measured.
        n_random: Draws of random directions.
        seed: Which questions, and every random control.
        progress: Who shows progress.

    Returns:
        Swap, recoveries, behaviour rate, right answers and damage of every route with its controls,
        losses, and a picture.
    """
    shown = progress or SilentProgress()
    named = _models(task, models, routes)
    sizes = {
        "n_train": n_train,
        "n_validation": n_validation,
        "n_test": n_test,
        "n_random": n_random,
        "seed": seed,
    }
    config = config_for(task, (routes[0].ways[0][0], routes[0].target), sizes)
    splits = read_splits(config)
    positions, note = position_candidates(list(named.values()), config, splits.train[0])
    ways = Ways(named, splits.train, config, shown)
    measured: list[Measurement] = []
    notes = [note] if note else []
    for target in dict.fromkeys(route.target for route in routes):
        place = _Terminus(target, ways, positions, Arrivals(named[target], splits, config, shown))
        found, said = place.measure([route for route in routes if route.target == target])
        measured += found
        notes += said
    return StudyResult(NAME, tuple(measured), tuple(notes), swap_grid(NAME, task, measured))


def _models(
    task: str, given: Mapping[str, str | LanguageModel] | None, routes: Sequence[Route]
) -> dict[str, LanguageModel]:
    names = dict.fromkeys(name for route in routes for way in route.ways for name in way)
    ending = "backdoor" if task == "backdoor" else "assistant"
    found: Mapping[str, str | LanguageModel] = given or {
        name: f"organism:{name}-{ending}" for name in names
    }
    if missing := [name for name in names if name not in found]:
        raise ConfigError(f"routes name {', '.join(missing)}, models only {', '.join(found)}")
    return {
        name: load_language_model(one) if isinstance(one := found[name], str) else one
        for name in names
    }


@dataclass(frozen=True)
class _Terminus:
    """One model that routes lead to.

    Attributes:
        name: Its short name.
        ways: What arrives.
        positions: Kinds of positions among which validation chooses.
        arrivals: Chooses and measures.
    """

    name: str
    ways: Ways
    positions: Sequence[str]
    arrivals: Arrivals

    def measure(self, routes: Sequence[Route]) -> tuple[list[Measurement], list[str]]:
        """Measures the native direction and every route with its controls.

        Args:
            routes: Into this model; what is compared with comes first.

        Returns:
            Measurements and notes.
        """
        label = f"{NAME}/{self.ways.config.task}"
        own = {p: self.ways.learned(self.name, p) for p in self.positions}
        native = self.arrivals.measure(own, self.name, f"{label}/native in {self.name}")
        tested: dict[str | None, Tested] = {None: native}
        measured, notes = [*native.measurements], []
        for route in routes:
            reference = _reference(route, tested)
            arriving = {p: self.ways.carried(route, p) for p in self.positions}
            starts = ", ".join(way[0] for way in route.ways)
            done = self.arrivals.measure(
                arriving, starts, f"{label}/{route.name}", self._misled(route)
            )
            tested[route.name] = done
            loss = self.arrivals.loss(tested[reference], done)
            placed = self.arrivals.placed_as(tested[reference], done, arriving)
            measured += [*done.measurements, loss, self.arrivals.loss(tested[reference], placed)]
            notes.append(self._note(route, done, loss, reference or "the native direction"))
        return measured, notes

    def _misled(self, route: Route) -> Callable[[Site, str], Direction | None]:
        return lambda site, positions: self.ways.misled(route, positions, site)

    def _note(self, route: Route, done: Tested, loss: Measurement, reference: str) -> str:
        arm = done.arm
        said = f"{route.name}: at {arm.site}, {arm.positions}, strength {arm.strength:g}"
        if loss.value is not None:
            said += f"; swap lost against {reference}: {loss.value:.3f}"
        if arm.direction is not None and arm.site is not None and arm.positions is not None:
            own = self.ways.learned(self.name, arm.positions).at(arm.site).vectors
            cosines = cosine(arm.direction.at(arm.site).vectors, own).tolist()
            said += f"; cosine with the native vectors {', '.join(f'{c:.2f}' for c in cosines)}"
        return said


def _reference(route: Route, tested: Mapping[str | None, Tested]) -> str | None:
    """Returns the name of what a route is compared with; None for the native direction."""
    wanted = route.compared_with
    if wanted == BEST_SOURCE:
        alone = [name for way in route.ways if (name := Route((way,)).name) in tested]
        if alone:
            return max(alone, key=lambda name: tested[name].chosen.effect)
    elif wanted in tested:
        return wanted
    raise ConfigError(
        f"{route.name} is compared with {wanted}, which no route before it is: there are "
        f"{', '.join(name for name in tested if name) or 'none'}"
    )
