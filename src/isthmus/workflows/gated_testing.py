"""What arms do behind a gate: measured from what they do without one and what the plain model does.

1. The gate reads every test prompt once, on the unedited model, and so do random gates: random
   directions of norm 1, their thresholds set so that they are open for as many of these prompts.
2. Behind a gate an open prompt is as under the edit and a closed one as of the plain model, so that
   no prompt is scored or answered again.
3. Causing the behaviour is not measured: a gate is there to keep the edit from clean prompts.

Source: Lee et al. 2024, arXiv 2409.05907, for steering under a condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.errors import TriggerError
from isthmus.core.gates import GATED, RANDOM_GATE, behind
from isthmus.core.texts import EncodedText
from isthmus.data.organisms import Turn, contents_of
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe
from isthmus.evaluation.measurements import Measurement
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.gating import KINDS, PromptStates
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.testing import ArmReading, recorded
from isthmus.workflows.twin_directions import origin_of

_Open = Bool[np.ndarray, " prompt"]


def require_readable(probe: ModelProbe, twins: Sequence[TwinPrompt], task: str) -> None:
    """Refuses a gate that reads the trigger where prompts have none.

    Args:
        probe: The gate.
        twins: Prompts that it will be asked about.
        task: What they are of.

    Raises:
        TriggerError: If it would be closed to all of them.
    """
    if probe.positions == "trigger" and not all(twin.spans for twin in twins):
        raise TriggerError(
            f"the gate reads the trigger, and prompts of task {task!r} have none that could be "
            "pointed at: learn a probe that reads last:1 or prompt (isthmus learn-probe "
            "--positions)"
        )


class _Opened(NamedTuple):
    """A gate as results name it, and for which prompts of every kind it is open."""

    name: str
    seed: int
    by_kind: Mapping[str, _Open]

    def of_benign(self, n_clean: int) -> _Open:
        """Says it of benign prompts: the first clean ones, then the plain ones of other twins."""
        return np.concatenate([self.by_kind["clean"][:n_clean], self.by_kind["plain"][n_clean:]])


@dataclass(frozen=True)
class GatedTest:
    """A gate before the arms of one evaluation.

    Attributes:
        probe: The gate, of the model that is measured.
        bench: The target on the test split.
        recorder: Writes test measurements.
        n_random: How many random gates stand beside it.
    """

    probe: ModelProbe
    bench: Bench
    recorder: Recorder
    n_random: int

    def measured(self, reading: ArmReading, *, is_tested: bool) -> list[Measurement]:
        """Measures an arm behind the gate, and the one that is tested behind random gates, too.

        Args:
            reading: What the target did under it, prompt by prompt.
            is_tested: Whether it is the one that the evaluation is about; its numbers come with
                those of the gates themselves.

        Returns:
            Every number; none for an arm that edits nothing.
        """
        if reading.scores is None or reading.arm.intervention("removal") is None:
            return []
        gate, *others = self._gates
        found = self._behind(gate, reading)
        if is_tested:
            for other in others:
                arm = replace(reading.arm, condition="random", map_method=None, seed=other.seed)
                found += self._behind(other, replace(reading, arm=arm))
            found += [rate for one in self._gates for rate in self._open_rates(one)]
        return found

    @property
    def _turns(self) -> Mapping[str, Sequence[Turn]]:
        twins = self.bench.twins
        return {
            "triggered": [twin.triggered_turn for twin in twins],
            "clean": [twin.clean_turn for twin in twins],
            "plain": [twin.benign_turn for twin in twins],
        }

    @cached_property
    def _states(self) -> Mapping[str, PromptStates]:
        lm, encoded, config = self.bench.lm, self.bench.encoded, self.bench.config
        plain = encode_prompts(lm.tokenizer, [turn.prompt for turn in self._turns["plain"]])
        texts: Mapping[str, Sequence[EncodedText]] = {
            "triggered": [prompt_part(one) for one in encoded.triggered],
            "clean": [prompt_part(one) for one in encoded.clean],
            "plain": plain,
        }
        return {
            kind: PromptStates.read(lm, self.probe, texts[kind], config.batch_size)
            for kind in KINDS
        }

    @cached_property
    def _gates(self) -> tuple[_Opened, ...]:
        """Returns the gate, then the random ones."""
        states, seed = self._states, self.recorder.config.seed
        rows = torch.cat([states[kind].rows for kind in KINDS])
        n_open = int((self.probe.probe.scores(rows) > 0).sum())
        draws = range(seed, seed + self.n_random)
        drawn = [(RANDOM_GATE, draw, random_probe(rows, n_open, draw)) for draw in draws]

        def opened(probe: Probe) -> dict[str, _Open]:
            return {kind: np.array(states[kind].scored_by(probe).is_open) for kind in KINDS}

        every = [(GATED, seed, self.probe.probe), *drawn]
        return tuple(_Opened(name, draw, opened(probe)) for name, draw, probe in every)

    def _behind(self, gate: _Opened, reading: ArmReading) -> list[Measurement]:
        """Measures an arm of which only open prompts are edited."""
        bench, opened, arm = self.bench, gate.by_kind["triggered"], reading.arm
        found: list[Measurement] = []
        if reading.scores is not None:
            losses = reading.scores.removal
            mixed = replace(losses, edited=np.where(opened, losses.edited, losses.bad))
            found.append(self.recorder.removal(arm, mixed))
        benign = gate.of_benign(len(bench.twins) // 2)
        damage, said, to_benign = reading.damage, reading.completions, reading.benign
        plain = Arm("none")
        rest = ArmReading(
            arm,
            damage=None if damage is None else np.where(benign, damage, 0.0),
            completions=None if said is None else _mixed(opened, said, bench.complete(plain).texts),
            benign=None
            if to_benign is None
            else _mixed(benign, to_benign, bench.complete_benign(plain)),
        )
        found += recorded(rest, bench, self.recorder)
        return [replace(one, edit=behind(gate.name, arm.edit)) for one in found]

    def _open_rates(self, gate: _Opened) -> list[Measurement]:
        """Counts for how many prompts of every kind a gate is open."""
        origin, edit = origin_of(self.probe), behind(gate.name)
        condition = "native" if origin.map_method is None else "transferred"
        read_at = Arm(
            condition,
            self.probe.sites[0],
            self.probe.positions,
            map_method=origin.map_method,
            source_sites=origin.source_sites,
            seed=gate.seed,
        )
        if gate.name == RANDOM_GATE:
            read_at = replace(read_at, condition="random", map_method=None, source_sites=None)
        sites, rates = self.probe.sites_as_written, list[Measurement]()
        for kind in KINDS:
            hits, turns = gate.by_kind[kind].tolist(), self._turns[kind]
            rate = self.recorder.rate(read_at, "gate_open_rate", hits, contents_of(turns))
            named = replace(rate, task=f"{rate.task}/{kind}", source=origin.model)
            rates.append(replace(named, target_site=sites, edit=edit))
        return rates


def random_probe(states: Float[Tensor, "prompt width"], n_open: int, seed: int) -> Probe:
    """Draws a gate that knows nothing: a random direction, open for some number of prompts.

    Its threshold lies midway between the prompts on either side of it; prompts that are equal where
    gates read are open together.

    Args:
        states: What gates read of the prompts.
        n_open: How many of these shall lie above its threshold.
        seed: Which draw.

    Returns:
        A probe of norm 1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(states.shape[1], generator=generator)
    bare = Probe(drawn / drawn.norm(), 0.0)
    along = bare.scores(states).double().sort(descending=True).values
    ends = torch.cat([along[:1] + 1, along, along[-1:] - 1])
    return replace(bare, threshold=float(ends[n_open : n_open + 2].mean()))


def _mixed(opened: _Open, edited: Sequence[str], plain: Sequence[str]) -> tuple[str, ...]:
    rows = zip(opened, edited, plain, strict=True)
    return tuple(one if is_open else other for is_open, one, other in rows)
