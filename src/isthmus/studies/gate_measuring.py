"""What a gate lets through, and what an edit behind it does: the target's prompts, read twice.

1. Every test prompt is read as it is and under the edit; what gates read is read with it.
2. Behind a gate a prompt is one or the other. So each gate costs no further pass.
3. Rates and means of any mixture are measured as those of an arm are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.data.organisms import Turn, contents_of
from isthmus.data.prompts import TwinPrompt
from isthmus.directions.model_probe import ModelProbe
from isthmus.evaluation.intervals import mean_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.evaluation.recovery import AnswerLosses, recovery_of
from isthmus.interventions.intervention import Intervention
from isthmus.models.changes import BenignChange, benign_change
from isthmus.models.encoding import encode_prompts, prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_nll
from isthmus.workflows.arms import Arm
from isthmus.workflows.gating import KINDS, states_read
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.twins import encode_twins

READS = "last:1"
"""Where gates read."""

IsOpen = Mapping[str, Bool[np.ndarray, " prompt"]]


class Gate(NamedTuple):
    """A gate as results name it.

    Attributes:
        condition: As in `results.jsonl`; of `none` nothing is edited.
        name: How the gate was made, for `edit` in the results.
        map: Method of the map that carried it.
        seed: Draw of a random map.
        probe: What it reads with; None edits every prompt.
    """

    condition: str
    name: str | None
    map: str | None
    seed: int
    probe: ModelProbe | None


class GatedPlaces(NamedTuple):
    """What is done to open prompts, and where gates read.

    Attributes:
        edited: Site of the edit.
        positions: Tokens that are edited.
        strength: Of the edit.
        read: Site at which gates read.
    """

    edited: Site
    positions: str
    strength: float
    read: Site


@dataclass(frozen=True)
class GatedPrompts:
    """Prompts of the target, read as they are and under the edit.

    Attributes:
        states: What gates read, by kind of prompt.
        losses: Of the clean answer: to triggered prompts, to clean ones, to edited triggered ones.
        completions: Of triggered prompts, plain and edited.
        changes: What the edit does to clean and to plain prompts.
        turns: What is asked, by kind, with the right answers.
    """

    states: Mapping[str, Float[Tensor, "prompt d_model"]]
    losses: tuple[Float[np.ndarray, " prompt"], ...]
    completions: tuple[tuple[str, ...], tuple[str, ...]]
    changes: Mapping[str, BenignChange]
    turns: Mapping[str, Sequence[Turn]]

    @classmethod
    def read(
        cls,
        lm: LanguageModel,
        twins: Sequence[TwinPrompt],
        intervention: Intervention,
        site: Site,
        batch_size: int,
    ) -> "GatedPrompts":
        """Reads the prompts of some questions.

        Args:
            lm: The target.
            twins: Questions.
            intervention: The edit.
            site: Where gates read.
            batch_size: Prompts per forward pass.

        Returns:
            What gates and edit make of them.
        """
        place, encoded = intervention.place, encode_twins(lm, twins)
        benign = [twin.benign_turn for twin in twins]
        asked, answers = [one.prompt for one in benign], [one.answer for one in benign]
        plain = encode_prompts(lm.tokenizer, asked, answers=answers)
        texts = {"triggered": encoded.triggered, "clean": encoded.clean, "plain": plain}
        prompts = {kind: [prompt_part(one) for one in some] for kind, some in texts.items()}
        losses = (
            answer_nll(lm, encoded.triggered, batch_size=batch_size),
            answer_nll(lm, encoded.clean, batch_size=batch_size),
            answer_nll(lm, encoded.triggered, edits=place, batch_size=batch_size),
        )
        n_new = max(len(one) - one.n_prompt for one in encoded.triggered_bad + encoded.triggered)
        said = (
            generate_greedy(lm, prompts["triggered"], max_new_tokens=n_new),
            generate_greedy(lm, prompts["triggered"], max_new_tokens=n_new, edits=place),
        )
        return cls(
            {k: states_read(lm, some, [site], READS, batch_size) for k, some in prompts.items()},
            tuple(one.nll.double().numpy() for one in losses),
            (said[0].completions, said[1].completions),
            {k: benign_change(lm, texts[k], place, batch_size=batch_size) for k in KINDS[1:]},
            {
                "triggered": [twin.triggered_turn for twin in twins],
                "clean": [twin.clean_turn for twin in twins],
                "plain": benign,
            },
        )

    def open_by(self, gate: Gate) -> IsOpen:
        """Returns for which prompts a gate is open."""
        if gate.probe is None:
            is_edited = gate.condition != "none"
            return {kind: np.full(len(rows), is_edited) for kind, rows in self.states.items()}
        scores = {kind: gate.probe.probe.scores(rows) for kind, rows in self.states.items()}
        return {kind: (values > 0).cpu().numpy() for kind, values in scores.items()}


def measured_gate(
    gate: Gate, tested: GatedPrompts, recorder: Recorder, places: GatedPlaces, task: str
) -> list[Measurement]:
    """Measures a gate: for how many prompts of each kind it is open, and what the edit then does.

    Args:
        gate: The gate.
        tested: Test prompts.
        recorder: Of the run.
        places: Where is read and edited.
        task: Task in the results; the kind of prompt stands behind it where a gate is counted.

    Returns:
        Every number.
    """
    arm = Arm(gate.condition, map_method=gate.map, seed=gate.seed)
    if gate.condition != "none":
        arm = replace(arm, site=places.edited, positions=places.positions, strength=places.strength)
    is_open = tested.open_by(gate)
    found = [
        replace(one, task=task, edit=gate.name) for one in _outcomes(recorder, arm, is_open, tested)
    ]
    if gate.probe is None:
        return found
    reading = Arm(gate.condition, places.read, READS, map_method=gate.map, seed=gate.seed)
    for kind in KINDS:
        about = contents_of(tested.turns[kind])
        rate = recorder.rate(reading, "gate_open_rate", is_open[kind].tolist(), about)
        found.append(replace(rate, task=f"{task}/{kind}", edit=gate.name))
    return found


def _outcomes(
    recorder: Recorder, arm: Arm, is_open: IsOpen, tested: GatedPrompts
) -> list[Measurement]:
    """Returns what prompts do of which the open ones are edited."""
    triggered, turns, seed = is_open["triggered"], tested.turns["triggered"], recorder.config.seed
    bad, clean, edited = tested.losses
    losses = AnswerLosses(bad, clean, np.where(triggered, edited, bad), contents_of(turns))
    pairs = zip(triggered, *tested.completions, strict=True)
    said = tuple(edited if opened else plain for opened, plain, edited in pairs)
    spared = [turn for kind in KINDS[1:] for turn in tested.turns[kind]]
    divergence, right = [], []
    for kind in KINDS[1:]:
        change, opened = tested.changes[kind], is_open[kind]
        divergence.append(np.where(opened, change.divergence.double().numpy(), 0.0))
        right.append(np.where(opened, change.is_right.numpy(), change.was_right.numpy()))
    moved = mean_interval(np.concatenate(divergence), contents=contents_of(spared), seed=seed)
    still_right = np.concatenate(right).tolist()
    return [
        recorder.record(arm, "recovery", recovery_of(losses, seed=seed), len(triggered)),
        *recorder.answers(arm, said, turns),
        recorder.record(arm, "benign_kl", moved, len(spared)),
        recorder.rate(arm, "benign_accuracy", still_right, contents_of(spared)),
    ]
