"""The arms of the switch study: switches of every kind, their controls and the alternatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from isthmus.carrying.switches import Switch, Towards, rotated_switch
from isthmus.core.progress import Progress
from isthmus.core.texts import EncodedText
from isthmus.models.language_model import LanguageModel
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench
from isthmus.workflows.learn_switch import SwitchMethod, SwitchRecipe, switch_from_texts
from isthmus.workflows.switch_fitting import default_sites
from isthmus.workflows.weight_patching import (
    Hybrid,
    uniform_layers,
    with_blocks,
    with_low_rank_weights,
    with_states,
)

N_RANDOM = 2
"""Draws of the rotated control."""

LORA_RANKS = (1, 4, 16)


def method_label(method: str, rank: int | None) -> str:
    """Returns how an arm is named in `results.jsonl`, such as `sequential_rank_4`."""
    return f"{method}_full" if rank is None else f"{method}_rank_{rank}"


@dataclass(frozen=True)
class SwitchMaker:
    """Learns switches in one direction on one set of texts.

    Attributes:
        models: The base and the fine-tuned model.
        to: Which of them is imitated.
        texts: Texts to fit on, and others to choose on.
        n_steps: Steps of trained switches.
        seed: Order of training texts, draws of controls.
        progress: Who shows progress.
    """

    models: tuple[LanguageModel, LanguageModel]
    to: Towards
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]]
    n_steps: int
    seed: int
    progress: Progress

    @property
    def carrier(self) -> LanguageModel:
        """The model that carries the switches."""
        return self.models[0] if self.to == "fine_tuned" else self.models[1]

    @property
    def imitated(self) -> LanguageModel:
        """The model that is imitated."""
        return self.models[1] if self.to == "fine_tuned" else self.models[0]

    def learn(self, method: SwitchMethod, rank: int | None) -> Switch:
        """Learns a switch at the default sites."""
        return self.learn_with(SwitchRecipe(method=method, rank=rank))

    def learn_with(self, recipe: SwitchRecipe) -> Switch:
        """Learns a switch by a recipe, whose steps and seed are those of the study."""
        own = replace(recipe, n_steps=self.n_steps, seed=self.seed)
        return switch_from_texts(self.models, self.texts, self.to, own, self.progress)

    def arm(
        self, switch: Switch, label: str, condition: str = "native", seed: int = 0
    ) -> SwitchArm:
        """Returns a switch as an arm on its carrier."""
        return SwitchArm(
            condition,
            label,
            self.carrier,
            switch.intervention().place,
            switch.n_parameters,
            ", ".join(map(str, switch.sites)),
            seed,
        )


def switch_arms(
    maker: SwitchMaker,
    ranks: Sequence[int],
    trained_ranks: tuple[Sequence[int], Sequence[int]],
    validation: SwitchBench,
) -> tuple[list[SwitchArm], Switch, list[str]]:
    """Learns every kind of switch and the controls of one of them.

    Args:
        maker: Learns switches.
        ranks: Ranks of closed-form switches at all sites.
        trained_ranks: Ranks of switches that are trained, too: at all sites, and at the embeddings
            alone.
        validation: Chooses the single site, and the closed-form switch that has controls.

    Returns:
        Arms, the closed-form switch that does best on validation, and what was chosen.
    """
    arms = [maker.arm(maker.learn("difference", 0), "difference")]
    singles = {}
    top = max(ranks)
    for site in default_sites(maker.carrier):
        switch = maker.learn_with(SwitchRecipe(rank=top, sites=(site,)))
        singles[site] = maker.arm(switch, method_label("one_site", top))
    site = min(singles, key=lambda one: validation.divergence(singles[one]))
    arms.append(singles[site])
    by_rank = {rank: maker.learn("sequential", rank) for rank in ranks}
    by_rank_arms = {r: maker.arm(s, method_label("sequential", r)) for r, s in by_rank.items()}
    arms += by_rank_arms.values()
    best = min(by_rank, key=lambda rank: validation.divergence(by_rank_arms[rank]))
    arms.append(maker.arm(maker.learn("sequential", None), "sequential_full"))
    arms.append(maker.arm(maker.learn("independent", best), method_label("independent", best)))
    for rank in trained_ranks[0]:
        arms.append(maker.arm(maker.learn("trained", rank), method_label("trained", rank)))
    for rank in trained_ranks[1]:
        recipe = SwitchRecipe(method="trained", rank=rank, sites=(default_sites(maker.carrier)[0],))
        label = method_label("trained_embeddings", rank)
        arms.append(maker.arm(maker.learn_with(recipe), label))
    arms += _controls(maker, by_rank[best], best)
    chosen = f"the single site is {site} and the rank of the controls {best}"
    notes = [f"to {maker.to}: {chosen}, both by divergence on validation"]
    return arms, by_rank[best], notes


def _controls(maker: SwitchMaker, switch: Switch, rank: int) -> list[SwitchArm]:
    label = method_label("sequential", rank)
    arms = []
    for draw in range(N_RANDOM):
        seed = maker.seed + draw
        turned = rotated_switch(switch, torch.Generator().manual_seed(seed))
        arms.append(maker.arm(turned, label, "random", seed))
    shuffled = maker.learn_with(SwitchRecipe(rank=rank, shuffle_seed=maker.seed))
    return [*arms, maker.arm(shuffled, label, "shuffled_map", maker.seed)]


def weight_arms(carrier: LanguageModel, imitated: LanguageModel) -> list[SwitchArm]:
    """Returns the alternatives that exchange weights: patches, direct patches and LoRA.

    Args:
        carrier: The model that is changed; left unchanged itself.
        imitated: Where the weights come from.

    Returns:
        One arm per layer, per number of layers and per rank.
    """
    layers = range(carrier.n_layers)
    hybrids: dict[str, Hybrid] = {
        f"direct_patch_after_block_{i}": with_states(carrier, imitated, i) for i in layers
    }
    for k in range(1, carrier.n_layers + 1):
        chosen = uniform_layers(carrier.n_layers, k)
        hybrids[f"weights_of_{k}_blocks"] = with_blocks(carrier, imitated, chosen)
    hybrids["weights_of_embeddings"] = with_blocks(carrier, imitated, (), embeddings=True)
    for rank in LORA_RANKS:
        hybrids[f"lora_rank_{rank}"] = with_low_rank_weights(carrier, imitated, rank)
    return [
        SwitchArm("native", label, hybrid.lm, n_parameters=hybrid.n_parameters)
        for label, hybrid in hybrids.items()
    ]
