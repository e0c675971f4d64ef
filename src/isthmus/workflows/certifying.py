"""Certificates of carried directions, from what a crossing measured."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.certificate import Certificate, CertifiedNumber
from isthmus.core.gates import GATED, RANDOM_GATE, gate_before
from isthmus.core.provenance import made_with
from isthmus.core.texts import EncodedText
from isthmus.directions.direction import Direction
from isthmus.directions.learned import Learned
from isthmus.directions.model_probe import ModelProbe
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import Arm
from isthmus.workflows.config import RunConfig

_BEHAVIOUR = ("swap", "recovery", "behaviour_rate", "answer_accuracy")
_DAMAGE = ("benign_kl", "benign_accuracy", "false_trigger_rate")
_SETTING = ("task", "edit", "positions", "strength")
_CONTROLS = ("random", "noise", "shuffled_map", "identity_map", "mean_ablation", "prompt_only")


def as_made_here(certificate: Certificate | None) -> Certificate | None:
    """Returns a certificate that says which code made it; where there is none, None."""
    return None if certificate is None else replace(certificate, **made_with())


def told_corpus(texts: Sequence[EncodedText], pairing: str) -> dict[str, Any]:
    """Returns what a certificate says of the texts that maps were fitted on."""
    digest = hashlib.sha256("\n".join(text.text for text in texts).encode()).hexdigest()
    return {"n_texts": len(texts), "sha256": digest, "pairing": pairing}


class Certifier:
    """Writes the certificates of one crossing.

    Args:
        config: The run.
        texts: What the maps were fitted on, as the source reads it.
        tested: Measurements of the crossing.
        target_states: The target's own states at the site of the maps.
    """

    def __init__(
        self,
        config: RunConfig,
        texts: Sequence[EncodedText],
        tested: Sequence[Measurement],
        target_states: Float[Tensor, "token d_model"],
    ) -> None:
        self.config = config
        self.tested = [m for m in tested if m.split == "test"]
        self.corpus = told_corpus(texts, config.pairing)
        mean_square = target_states.double().pow(2).sum(-1).mean()
        self.state_norm = float(torch.sqrt(mean_square))

    def certified(self, arm: Arm, direction: Direction) -> Direction:
        """Returns a carried direction with everything that was measured of it.

        Args:
            arm: The arm as it was tested.
            direction: The carried direction.

        Returns:
            The same direction; its certificate has behaviour, damage, setting and norms.
        """
        certified = certified_by(direction, self.tested, arm.map_method)
        before = certified.certificate
        if before is None:
            return direction
        certificate = replace(
            before,
            corpus=self.corpus,
            norms={**before.norms, "states": self.state_norm},
            seed=self.config.seed,
            way=tuple(
                replace(one, corpus=self.corpus, seed=self.config.seed) for one in before.way
            ),
        )
        return replace(certified, certificate=certificate)


def certified_by(
    direction: Learned,
    tested: Sequence[Measurement],
    map_method: str | None,
    gate: ModelProbe | None = None,
) -> Learned:
    """Returns a carried direction or subspace with what was measured of it in its certificate.

    Args:
        direction: What was carried; any other is returned as it is.
        tested: Measurements of it and of what stands beside it, all on the test split.
        map_method: The map that its own measurements name.
        gate: The gate behind which it was measured, too. The setting then names it, a number
            without more words was measured behind it, and what was measured without it says so.

    Returns:
        The same; its certificate has behaviour, damage and setting, those of the native
        direction and of the best control beside it where they were measured, and nothing of what
        it claimed before.
    """
    before = direction.certificate
    if before is None:
        return direction
    here = [m for m in tested if (m.condition, m.map) == ("transferred", map_method)]
    mine = [m for m in here if gate_before(m.edit) is None]
    damage = _numbers(mine, _DAMAGE)
    setting = {name: getattr(mine[0], name) for name in _SETTING} if mine else {}
    # What only removes is chosen by recovery, so that this is what controls must stay behind in.
    judged = ("swap", "recovery") if setting.get("edit") == "ablate" else ("swap",)
    beside = {"native direction": ("native",), "best control": _CONTROLS}
    wanted = {
        f"{metric} of the {name}": (metric, conditions, None)
        for metric in judged
        for name, conditions in beside.items()
    }
    behaviour = _numbers(mine, _BEHAVIOUR) | _best(tested, wanted)
    if gate is not None:
        setting["gate"] = _told_gate(gate)
        gated = [m for m in here if gate_before(m.edit) == GATED]
        behaviour = _numbers(gated, _BEHAVIOUR) | _without_gate(behaviour)
        behaviour |= _open_for(tested, ("triggered",)) | _best(
            tested,
            {
                "recovery of the best control": ("recovery", _CONTROLS, GATED),
                "recovery behind the best random gate": ("recovery", _CONTROLS, RANDOM_GATE),
            },
        )
        damage = _numbers(gated, _DAMAGE) | _without_gate(damage)
        damage |= _open_for(tested, ("clean", "plain"))
    certificate = replace(
        before, setting=setting, behaviour=behaviour, damage=damage, **made_with()
    )
    return replace(direction, certificate=certificate)


def _told_gate(gate: ModelProbe) -> dict[str, Any]:
    """Returns what a certificate says of a gate; the hash is of its unit direction in float32."""
    unit = gate.probe.unit_direction.float().cpu().numpy()
    return {
        "sites": gate.sites_as_written,
        "positions": gate.positions,
        "threshold": gate.probe.threshold,
        "sha256": hashlib.sha256(unit.tobytes()).hexdigest(),
    }


def _without_gate(numbers: Mapping[str, CertifiedNumber]) -> dict[str, CertifiedNumber]:
    return {f"{name} without the gate": number for name, number in numbers.items()}


def _open_for(tested: Sequence[Measurement], kinds: Sequence[str]) -> dict[str, CertifiedNumber]:
    """Returns for how many prompts of some kinds the gate was open."""
    rates = [m for m in tested if (m.metric, m.edit) == ("gate_open_rate", GATED)]
    return {
        f"{rate.metric} of {kind} prompts": _number(rate)
        for kind in kinds
        for rate in rates
        if rate.task.endswith(f"/{kind}")
    }


def _best(
    tested: Sequence[Measurement], wanted: Mapping[str, tuple[str, Sequence[str], str | None]]
) -> dict[str, CertifiedNumber]:
    """Returns the highest of some numbers: of a metric, of conditions, behind a gate or none."""
    found: dict[str, CertifiedNumber] = {}
    for name, (metric, conditions, gate) in wanted.items():
        some = [
            m
            for m in tested
            if m.metric == metric and m.condition in conditions and gate_before(m.edit) == gate
        ]
        if some:
            found[name] = _number(max(some, key=_height))
    return found


def _numbers(measured: Sequence[Measurement], names: Sequence[str]) -> dict[str, CertifiedNumber]:
    by_metric = {m.metric: m for m in measured}
    return {name: _number(by_metric[name]) for name in names if name in by_metric}


def _number(measured: Measurement) -> CertifiedNumber:
    return CertifiedNumber(measured.value, measured.ci_low, measured.ci_high, measured.n)


def _height(measured: Measurement) -> float:
    return -math.inf if measured.value is None else measured.value
