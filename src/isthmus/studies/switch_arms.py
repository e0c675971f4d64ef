"""The arms of the switch study: switches of every kind, and the alternatives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from isthmus.carrying.switches import Switch, Towards
from isthmus.core.progress import Progress
from isthmus.core.texts import EncodedText
from isthmus.models.language_model import LanguageModel
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench
from isthmus.studies.switch_questions import Where
from isthmus.studies.switch_scores import chosen_switch, score_of
from isthmus.workflows.learn_switch import SwitchMethod, SwitchRecipe, switch_from_texts
from isthmus.workflows.switch_fitting import default_sites
from isthmus.workflows.weight_patching import (
    Hybrid,
    uniform_layers,
    with_blocks,
    with_low_rank_weights,
    with_states,
)

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


@dataclass(frozen=True)
class Candidate:
    """A switch that validation may choose.

    Attributes:
        switch: What is chosen.
        maker: Who learned it, and learns its controls from the same texts.
    """

    switch: Switch
    maker: SwitchMaker


@dataclass(frozen=True)
class ClosedForms:
    """Switches in closed form.

    Attributes:
        candidates: Low-rank ones by label, at one site and site by site.
        others: What they are compared with: difference vectors, full maps, independent maps.
        notes: What was chosen among sites and ranks, in words.
    """

    candidates: dict[str, Candidate]
    others: list[SwitchArm]
    notes: list[str]


def closed_forms(maker: SwitchMaker, ranks: Sequence[int], validation: SwitchBench) -> ClosedForms:
    """Learns every kind of closed-form switch.

    Args:
        maker: Learns switches.
        ranks: Ranks of switches at all sites; none are learned when there is none.
        validation: Chooses the single site and the rank of the ablation.

    Returns:
        Switches and what they are compared with.
    """
    if not ranks:
        return ClosedForms({}, [], [])
    top = max(ranks)
    single = method_label("one_site", top)
    singles = {
        str(site): maker.learn_with(SwitchRecipe(rank=top, sites=(site,)))
        for site in default_sites(maker.carrier)
    }
    scores = {
        site: (one.n_parameters, score_of(validation.measure(maker.arm(one, single))))
        for site, one in singles.items()
    }
    site = chosen_switch(scores)
    by_rank = {rank: maker.learn("sequential", rank) for rank in ranks}
    labels = {rank: method_label("sequential", rank) for rank in ranks}
    best = min(
        ranks, key=lambda rank: validation.divergence(maker.arm(by_rank[rank], labels[rank]))
    )
    others = [
        maker.arm(maker.learn("difference", 0), "difference"),
        maker.arm(maker.learn("sequential", None), "sequential_full"),
        maker.arm(maker.learn("independent", best), method_label("independent", best)),
    ]
    switches = {single: singles[site]} | {labels[rank]: by_rank[rank] for rank in ranks}
    note = (
        f"to {maker.to}: on validation the single site is {site} by right answers, the rank of "
        f"the independent maps {best} by divergence"
    )
    return ClosedForms(
        {label: Candidate(switch, maker) for label, switch in switches.items()}, others, [note]
    )


def trained_switches(
    maker: SwitchMaker, places: Sequence[tuple[Where, int]]
) -> dict[str, Candidate]:
    """Trains a switch in each of several places.

    Args:
        maker: Learns switches.
        places: Places and ranks.

    Returns:
        The switches by label.
    """
    return {
        method_label(f"trained_{where}", rank): Candidate(maker.train(where, rank), maker)
        for where, rank in places
    }


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
