"""The arms of the switch study: switches of every kind, their controls and the alternatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from isthmus.carrying.switches import Switch, Towards, rotated_switch
from isthmus.core.progress import Progress
from isthmus.core.texts import EncodedText
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench
from isthmus.studies.switch_questions import Where
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

RESTORED, PLAIN_KL = 0.99, 0.02
"""What is asked: right answers restored, and nats per token on plain prompts."""


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

    def train(self, where: Where, rank: int) -> Switch:
        """Learns a trained switch at one of the places that are tried."""
        every = default_sites(self.carrier)
        sites = {"ends": (every[0], every[-1]), "all": every}.get(where, every[:1])
        positions = "trigger" if where == "trigger" else "all"
        recipe = SwitchRecipe(method="trained", rank=rank, sites=sites, positions=positions)
        return self.learn_with(recipe)

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
            switch.positions,
            seed,
        )


def closed_form_arms(
    maker: SwitchMaker, ranks: Sequence[int], validation: SwitchBench
) -> tuple[list[SwitchArm], list[str]]:
    """Learns every kind of closed-form switch.

    Args:
        maker: Learns switches.
        ranks: Ranks of switches at all sites.
        validation: Chooses the single site and the rank of the ablation.

    Returns:
        Arms, and what was chosen.
    """
    arms = [maker.arm(maker.learn("difference", 0), "difference")]
    singles = {}
    top = max(ranks)
    for site in default_sites(maker.carrier):
        switch = maker.learn_with(SwitchRecipe(rank=top, sites=(site,)))
        singles[site] = maker.arm(switch, method_label("one_site", top))
    site = min(singles, key=lambda one: validation.divergence(singles[one]))
    arms.append(singles[site])
    by_rank = {
        rank: maker.arm(maker.learn("sequential", rank), method_label("sequential", rank))
        for rank in ranks
    }
    arms += by_rank.values()
    best = min(by_rank, key=lambda rank: validation.divergence(by_rank[rank]))
    arms.append(maker.arm(maker.learn("sequential", None), "sequential_full"))
    arms.append(maker.arm(maker.learn("independent", best), method_label("independent", best)))
    chosen = f"the single site is {site} and the rank of the independent maps {best}"
    return arms, [f"to {maker.to}: {chosen}, both by divergence on validation"]


@dataclass(frozen=True)
class TrainedArms:
    """Trained switches, and which of them validation chose.

    Attributes:
        arms: All of them, then the controls of the chosen one.
        measured: What they did on validation.
        notes: What was chosen, in words.
    """

    arms: list[SwitchArm]
    measured: list[Measurement]
    notes: list[str]


def trained_arms(
    maker: SwitchMaker, places: Sequence[tuple[Where, int]], validation: SwitchBench
) -> TrainedArms:
    """Trains switches in several places and chooses the smallest that does what is asked.

    Args:
        maker: Learns switches.
        places: Places and ranks.
        validation: Chooses.

    Returns:
        The arms, the chosen one with its controls among them; none where no place is given.
    """
    if not places:
        return TrainedArms([], [], [])
    switches = {
        method_label(f"trained_{where}", rank): maker.train(where, rank) for where, rank in places
    }
    arms = {label: maker.arm(switch, label) for label, switch in switches.items()}
    measured = {label: validation.measure(arm) for label, arm in arms.items()}
    scores = {label: score_of(rows) for label, rows in measured.items()}
    label = chosen_switch({one: (arms[one].n_parameters, scores[one]) for one in arms})
    score = scores[label]
    note = (
        f"to {maker.to}: validation chose {label} ({arms[label].n_parameters} parameters): right "
        f"answers back {score.restored:.3f}, KL on plain prompts {score.plain_kl:.4f}"
        + ("" if score.suffices else "; no switch met both aims")
    )
    return TrainedArms(
        [*arms.values(), *_controls(maker, switches[label], label)],
        [row for rows in measured.values() for row in rows],
        [note],
    )


@dataclass(frozen=True)
class SwitchScore:
    """What a switch is chosen by.

    Attributes:
        restored: Share of the imitated model's right answers that are back under the bad trigger;
            of all its answers where none is right.
        plain_kl: Divergence on plain prompts.
    """

    restored: float
    plain_kl: float

    @property
    def suffices(self) -> bool:
        """Whether it does what is asked of a switch."""
        return self.restored >= RESTORED and self.plain_kl <= PLAIN_KL


def score_of(rows: Sequence[Measurement]) -> SwitchScore:
    """Reads from the measurements of one arm what it is chosen by."""
    found = {(m.task.partition("/")[2], m.metric): m.value or 0.0 for m in rows}
    # A backdoored model has no right answers under its trigger.
    agreement = found.get(("triggered", "agreement"), 0.0)
    return SwitchScore(found.get(("triggered", "accuracy"), agreement), found["plain", "kl"])


def chosen_switch(candidates: Mapping[str, tuple[int, SwitchScore]]) -> str:
    """Chooses the smallest switch that does what is asked, else the one that restores most.

    Args:
        candidates: Number of parameters and score by label, at least one.

    Returns:
        The label.
    """
    good = [label for label, (_, score) in candidates.items() if score.suffices]
    if good:
        return min(good, key=lambda label: candidates[label][0])
    return max(candidates, key=lambda label: candidates[label][1].restored)


def _controls(maker: SwitchMaker, switch: Switch, label: str) -> list[SwitchArm]:
    """Returns turned draws of a switch, and its closed form on shuffled pairs."""
    arms = []
    for draw in range(N_RANDOM):
        seed = maker.seed + draw
        turned = rotated_switch(switch, torch.Generator().manual_seed(seed))
        arms.append(maker.arm(turned, label, "random", seed))
    rank = max(edit.rank for edit in switch.edits.values())
    recipe = SwitchRecipe(
        rank=rank, sites=switch.sites, positions=switch.positions, shuffle_seed=maker.seed
    )
    return [*arms, maker.arm(maker.learn_with(recipe), label, "shuffled_map", maker.seed)]


def weight_arms(
    carrier: LanguageModel, imitated: LanguageModel, kinds: Sequence[str]
) -> list[SwitchArm]:
    """Returns the alternatives that exchange weights: patches, direct patches and LoRA.

    Args:
        carrier: The model that is changed; left unchanged itself.
        imitated: Where the weights come from.
        kinds: Beginnings of the labels that are wanted: `direct_patch`, `weights_of`, `lora`.

    Returns:
        One arm per layer, per number of layers and per rank.
    """
    layers = range(carrier.n_layers)
    makers: dict[str, Callable[[], Hybrid]] = {
        f"direct_patch_after_block_{i}": partial(with_states, carrier, imitated, i) for i in layers
    }
    for k in range(1, carrier.n_layers + 1):
        chosen = uniform_layers(carrier.n_layers, k)
        makers[f"weights_of_{k}_blocks"] = partial(with_blocks, carrier, imitated, chosen)
    makers["weights_of_embeddings"] = partial(with_blocks, carrier, imitated, (), embeddings=True)
    for rank in LORA_RANKS:
        makers[f"lora_rank_{rank}"] = partial(with_low_rank_weights, carrier, imitated, rank)
    hybrids = {label: make() for label, make in makers.items() if label.startswith(tuple(kinds))}
    return [
        SwitchArm("native", label, hybrid.lm, n_parameters=hybrid.n_parameters)
        for label, hybrid in hybrids.items()
    ]
