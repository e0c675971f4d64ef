"""What a way to an intervention costs in the target: tokens and seconds, part by part.

| part | what it holds |
| --- | --- |
| `bench` | the untouched target on validation prompts, which both ways need |
| `native` | extraction in the target, sweep over layers, positions and strengths |
| `map` | the target's side of the map's text, and the fits |
| `place` | the same sweep for the carried direction, or the rules that take its place |
| `contrasts` | contrast prompts, read in both models, and the strength of their map |
| `next` | another direction through the same map: a strength at a known place, without labels |
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from isthmus.carrying.strengths import strength_within_damage
from isthmus.core.errors import FitError
from isthmus.evaluation.measurements import Measurement
from isthmus.models.hooks import metering
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.contrast_maps import ON_CONTRASTS
from isthmus.workflows.measuring import Recorder

CostPart = Literal["bench", "native", "map", "place", "contrasts", "next"]

_WAYS: dict[str, tuple[CostPart, ...]] = {
    "native": ("bench", "native"),
    "transferred": ("bench", "map", "place"),
}

COST_OF_MAP: Mapping[str, CostPart] = {"ridge": "place", ON_CONTRASTS: "contrasts"}
"""Which part pays for the strength of a map; those of others are not counted."""


@dataclass(frozen=True)
class Cost:
    """What one part took.

    Attributes:
        n_tokens: Positions that the target was run on, padding included.
        seconds: Seconds that passed.
    """

    n_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.n_tokens + other.n_tokens, self.seconds + other.seconds)


@dataclass
class CostLedger:
    """Counts what one crossing asks of its target.

    Attributes:
        lm: The target.
        is_swept: Whether the carried direction's place is swept, too, and shares `bench`.
        parts: Costs so far.
    """

    lm: LanguageModel
    is_swept: bool = True
    parts: dict[CostPart, Cost] = field(default_factory=dict)

    @contextmanager
    def of(self, part: CostPart | None) -> Iterator[None]:
        """Charges what the target does in this block, in this thread, to a part.

        Args:
            part: Whose cost it is; None for nobody's.

        Yields:
            None: Nothing.
        """
        start = time.perf_counter()
        with metering(self.lm.layout) as meter:
            yield
        if part is None:
            return
        spent = Cost(meter.n_tokens, time.perf_counter() - start)
        self.parts[part] = self.parts.get(part, Cost()) + spent

    def calibrate(self, bench: Bench, arm: Arm, budget: float) -> float | None:
        """Finds a strength for an arm on benign prompts alone, and charges it to `next`.

        Args:
            bench: Whose benign prompts are read.
            arm: A carried direction at its place.
            budget: Most divergence on benign prompts, in nats per token.

        Returns:
            The largest strength within the budget; None if there is none.
        """

        def damage(strength: float) -> float:
            return float(bench.benign_change(arm.at(strength)).divergence.mean())

        with self.of("next"):
            try:
                return strength_within_damage(damage, budget)
            except FitError:
                return None

    def measurements(self, recorder: Recorder, arms: Sequence[Arm]) -> list[Measurement]:
        """Returns tokens and seconds of the first intervention either way, and of the next.

        The next one costs the native way as much as the first; only through a map it is cheaper,
        and of a map that was fitted on contrasts nobody knows what it does for other ones.

        Args:
            recorder: Writes them.
            arms: The native and the transferred arms that were chosen.

        Returns:
            `target_tokens`, `seconds` and, for `transferred`, `target_tokens_next` and
            `seconds_next`.
        """
        rows = []
        for arm in arms:
            has_contrasts = arm.map_method == ON_CONTRASTS
            way = (*_WAYS[arm.condition], *(("contrasts",) if has_contrasts else ()))
            if arm.condition == "transferred" and not self.is_swept:
                way = tuple(part for part in way if part != "bench")
            first = sum((self.parts.get(part, Cost()) for part in way), Cost())
            spent = {"target_tokens": first.n_tokens, "seconds": first.seconds}
            if arm.condition == "transferred" and "next" in self.parts and not has_contrasts:
                after = self.parts["next"]
                spent |= {"target_tokens_next": after.n_tokens, "seconds_next": after.seconds}
            rows += [recorder.record(arm, name, float(value), 1) for name, value in spent.items()]
        return rows
