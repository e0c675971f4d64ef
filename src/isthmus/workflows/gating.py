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
from isthmus.directions.probe_files import load_probe
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.twin_directions import read_states

GivenProbe = ModelProbe | str | Path
"""A probe or its folder."""


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
    probe = given if isinstance(given, ModelProbe) else load_probe(Path(given))
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
        scores: list[float | None] = [None] * len(prompts)
        reads_trigger = self.probe.positions == "trigger"
        asked = [i for i, one in enumerate(prompts) if not reads_trigger or one.trigger is not None]
        if not asked:
            raise TriggerError(
                "the gate reads the trigger and none is marked in any prompt: name it with "
                "--trigger, or use a probe that reads last:1"
            )
        states = states_read(
            lm, [prompts[i] for i in asked], self.probe.sites, self.probe.positions, batch_size
        )
        for index, score in zip(asked, self.probe.probe.scores(states).tolist(), strict=True):
            scores[index] = score
        return GateReading(tuple(scores))
