"""Probes on the prompts of a model: the states they read, and the gate they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.errors import TriggerError
from isthmus.core.gates import GateReading
from isthmus.core.identity import require_same_model
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe
from isthmus.directions.probe_files import load_probe
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.twin_directions import read_states

GivenProbe = ModelProbe | str | Path
"""A probe or its folder."""

KINDS = ("triggered", "clean", "plain")
"""Prompts that bring the behaviour about, their harmless twins, and those that have neither."""


def loaded_probe(given: GivenProbe) -> ModelProbe:
    """Returns the probe that was given, read from its folder if need be."""
    return given if isinstance(given, ModelProbe) else load_probe(Path(given))


def probe_of(lm: LanguageModel, given: GivenProbe) -> ModelProbe:
    """Loads a probe and checks that it reads this model.

    Args:
        lm: Model whose states it will read.
        given: A probe or its folder.

    Returns:
        The probe.

    Raises:
        IdentityError: If it belongs to another model.
    """
    probe = loaded_probe(given)
    fix = (
        f"carry it there first: isthmus learn-map {lm.identity.name} {probe.model.name} "
        f"--target-site '{','.join(map(str, probe.sites))}', then isthmus transfer; or learn one "
        "on this model (isthmus learn-probe)"
    )
    require_same_model("probe", probe.model, lm.identity, fix)
    return probe


def states_read(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    sites: Sequence[Site],
    positions: str,
    batch_size: int,
) -> Float[Tensor, "prompt width"]:
    """Reads one state per prompt as probes do: sites side by side, the mean over the tokens.

    Args:
        lm: The unedited model.
        texts: Prompts.
        sites: Where.
        positions: Which tokens.
        batch_size: Prompts per forward pass.

    Returns:
        One row per prompt, in their order.
    """
    by_site = read_states(lm, texts, sites, positions, batch_size)
    # One by one: a spread model has them on several devices.
    return torch.cat([by_site[site].float().mean(1).cpu() for site in sites], dim=-1)


@dataclass(frozen=True)
class PromptStates:
    """What a probe reads of prompts: one state each, none of a prompt that lacks what it reads.

    Attributes:
        rows: States, of the prompts that have one.
        asked: Which prompts these are.
        n_prompts: How many prompts there are.
    """

    rows: Float[Tensor, "asked_prompt width"]
    asked: tuple[int, ...]
    n_prompts: int

    @classmethod
    def read(
        cls,
        lm: LanguageModel,
        probe: ModelProbe,
        prompts: Sequence[EncodedText],
        batch_size: int = 64,
    ) -> "PromptStates":
        """Reads prompts where a probe does.

        Args:
            lm: The probe's model, unedited.
            probe: Says where and which tokens.
            prompts: Prompts, their triggers marked where the probe reads these.
            batch_size: Prompts per forward pass.

        Returns:
            States in the order of the prompts.
        """
        reads_trigger = probe.positions == "trigger"
        asked = [i for i, one in enumerate(prompts) if not reads_trigger or one.trigger is not None]
        if not asked:
            return cls(torch.zeros(0, len(probe.probe.unit_direction)), (), len(prompts))
        some = [prompts[i] for i in asked]
        rows = states_read(lm, some, probe.sites, probe.positions, batch_size)
        return cls(rows, tuple(asked), len(prompts))

    def scored_by(self, probe: Probe) -> GateReading:
        """Scores every prompt with a probe of these states; those without a state have none."""
        scores: list[float | None] = [None] * self.n_prompts
        for index, score in zip(self.asked, probe.scores(self.rows).tolist(), strict=True):
            scores[index] = score
        return GateReading(tuple(scores))


@dataclass(frozen=True)
class PromptGate:
    """Decides once per prompt, on the states of the unedited model, whether it is edited.

    Source: Lee et al. 2024, arXiv 2409.05907: the condition is read on the prompt, and the edit
    then holds for what is generated, too.

    Attributes:
        probe: Of the model that is edited.
    """

    probe: ModelProbe

    def read(
        self, lm: LanguageModel, prompts: Sequence[EncodedText], batch_size: int = 64
    ) -> GateReading:
        """Scores prompts.

        Args:
            lm: The probe's model, unedited.
            prompts: Prompts, their triggers marked where the probe reads these.
            batch_size: Prompts per forward pass.

        Returns:
            Scores in the order of the prompts; none for a prompt without a trigger where the
            trigger is read.

        Raises:
            TriggerError: If the trigger is read and no prompt has one.
        """
        states = PromptStates.read(lm, self.probe, prompts, batch_size)
        if not states.asked:
            raise TriggerError(
                "the gate reads the trigger and none is marked in any prompt: name it with "
                "--trigger, or use a probe that reads last:1"
            )
        return states.scored_by(self.probe.probe)
