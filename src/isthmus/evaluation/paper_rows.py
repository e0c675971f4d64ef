"""What a row of the paper's table is: the printed figure, and which of our numbers answer it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from isthmus.evaluation.report import CONTROLS

PairKind = Literal["same tokenizer", "other tokenizer", "small to large"]
"""How two models differ; `small to large` is one tokenizer and a target over five times larger."""

PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)

CROSSING_EDITS = ("add", "add_keeping_norm", "ablate", "set_coordinate", "replace")
"""What a crossing writes as `edit`; studies that share a crossing's task name their edits else."""

Wanted = Mapping[str, object]
"""How a measurement is found: values by the name of the field, and what `best_match` adds."""

TINY = "ours are organisms of 0.9 to 5 million parameters: ratios compare, absolute rates do not"


@dataclass(frozen=True)
class PaperFigure:
    """One quantity of the paper and the measurements of ours that answer it.

    Attributes:
        number: As in the list of reproduction targets, `T1` to `T14`, or a table of the paper.
        quantity: What was measured.
        printed: The paper's figures, as printed.
        setting: Models, layers and n of the paper.
        part: Part of the reproduction that measures ours.
        organisms: Source and target that stand here where no other models are given.
        ours: Titles of our numbers with how their measurement is found; see `found_for`.
        kinds: Pairs of other models that stand here; none where single models do.
        comparable: What can and what cannot be compared, whatever models ours are.
        of_organisms: What further holds of the organisms alone.
    """

    number: str
    quantity: str
    printed: str
    setting: str
    part: str
    organisms: tuple[str, str]
    ours: Mapping[str, Wanted]
    kinds: tuple[PairKind, ...] = PAIR_KINDS
    comparable: str = ""
    of_organisms: str = field(default=TINY)

    def compares(self, *, others: bool) -> str:
        """Returns what can be compared.

        Args:
            others: Whether the models are those of configurations, not the organisms.

        Returns:
            Parts of one sentence.
        """
        given = (
            "ours are the models, prompts and behaviour of the configuration: rates compare where "
            "these are the paper's"
        )
        said = (self.comparable, given if others else self.of_organisms)
        return "; ".join(one for one in said if one)


def effects(task: str, metric: str = "swap") -> dict[str, Wanted]:
    """Returns what a crossing shows: native, carried and its controls.

    Args:
        task: The crossing's task.
        metric: Which number of each.

    Returns:
        How each is found, by title. The strongest control is that of the crossing's own report.
    """
    place = {"task": task, "metric": metric, "split": "test", "edit": CROSSING_EDITS}
    return {
        "native": {**place, "condition": "native"},
        "carried": {**place, "condition": "transferred"},
        "strongest control ({condition})": {**place, "condition": CONTROLS},
        "random direction, strongest draw": {**place, "condition": "random"},
        "noise": {**place, "condition": "noise"},
    }


def rates_left(task: str, what: str) -> dict[str, Wanted]:
    """Returns the behaviour rates of a crossing without an edit, native and carried."""
    place = {"task": task, "metric": "behaviour_rate", "split": "test"}
    shown = {"untouched": "none", "native": "native", "carried": "transferred"}
    edits = (None, *CROSSING_EDITS)
    return {
        f"{what}, {title}": {**place, "condition": condition, "edit": edits}
        for title, condition in shown.items()
    }


def carried_by_map(methods: Mapping[str, str]) -> dict[str, Wanted]:
    """Returns the swap of the backdoor's direction carried by several maps, and its bounds.

    Args:
        methods: Names of maps by title.

    Returns:
        How each is found, by title.
    """
    shown = effects("backdoor")
    maps = {title: {**shown["carried"], "map": name} for title, name in methods.items()}
    control = "strongest control ({condition})"
    return {**maps, "native": shown["native"], control: shown[control]}


def replaced(text_set: str, metric: str) -> dict[str, Wanted]:
    """Returns whole-state replacement at the site that validation chose, the first to be listed.

    Another site is measured beside it; `take` keeps that from standing here when it is better.

    Args:
        text_set: Last part of the task.
        metric: Which number.

    Returns:
        How each is found, by title.
    """
    place = {
        "task": f"mapper_validation/{text_set}",
        "metric": metric,
        "split": "test",
        "edit": "replace",
        "take": "first",
    }
    shown: dict[str, dict[str, object]] = {
        "ridge": {"condition": "transferred", "map": "ridge"},
        "autoencoder": {"condition": "transferred", "map": "autoencoder"},
        "the target onto itself": {"condition": "native"},
        "mean-ablated": {"condition": "mean_ablation"},
        "shuffled map": {"condition": "shuffled_map"},
    }
    return {f"{title}, {metric}": {**place, **fields} for title, fields in shown.items()}


def ordinary_ability(metric: str, what: str) -> dict[str, Wanted]:
    """Returns what replacement and the recommended use leave of ordinary answers, with controls.

    Args:
        metric: Which number.
        what: Its name for people.

    Returns:
        How each is found, by title.
    """
    place = {"task": "mapper_validation/clean_trigger", "metric": metric, "split": "test"}
    replacing = {**place, "edit": "replace", "take": "first"}
    # Of several draws the one that harms least: it counts against the recommended use.
    mildest = "highest" if metric == "benign_accuracy" else "lowest"
    adding = {**place, "edit": "add"}
    shown: dict[str, Wanted] = {
        "untouched": {**place, "condition": "none"},
        "replaced": {**replacing, "condition": "transferred", "map": "ridge"},
        "replaced by a shuffled map": {**replacing, "condition": "shuffled_map"},
        "mean-ablated": {**replacing, "condition": "mean_ablation"},
        "recommended use": {**adding, "condition": "transferred"},
        "a random direction there": {**adding, "condition": "random", "take": mildest},
        "a shuffled map there": {**adding, "condition": "shuffled_map"},
    }
    return {f"{what}, {title}": wanted for title, wanted in shown.items()}


def ladder() -> dict[str, Wanted]:
    """Returns rungs of the corrupted capabilities, each with its strongest control."""
    place = {"task": "corrupted", "metric": "answer_accuracy", "split": "test"}
    rungs = {
        "one carried vector": "add",
        "prompt tokens only, carried": "shifted_prefix_ended",
        "virtual prefix, carried": "virtual_prefix",
    }
    shown: dict[str, Wanted] = {}
    for title, edit in rungs.items():
        rung = {**place, "edit": edit}
        shown[title] = {**rung, "condition": "transferred"}
        control = f"{title.removesuffix(', carried')}, strongest control ({{condition}})"
        shown[control] = {**rung, "condition": CONTROLS}
    return {**shown, "text prefill (ceiling)": {**place, "condition": "prompt_only"}}


def feature() -> dict[str, Wanted]:
    """Returns what a carried feature does at the scale that validation chose, with controls."""
    place = {"metric": "behaviour_rate", "split": "test"}
    corrected = {**place, "task": "feature_transfer/corrected"}
    # Controls are measured at the chosen scale alone.
    chosen = {"condition": "random"}
    return {
        "carried, scale {strength} (chosen on validation)": {
            **corrected,
            "condition": "transferred",
            "edit": "patch_feature",
            "like": chosen,
        },
        "another feature": {**corrected, "condition": "random"},
        "noise of equal norm": {**corrected, "condition": "noise"},
        "shuffled map": {**corrected, "condition": "shuffled_map"},
        "mean-ablated": {**corrected, "condition": "mean_ablation"},
        "reconstruction alone, all prompts": {
            **place,
            "task": "feature_transfer",
            "condition": "transferred",
            "edit": "reconstruction",
        },
    }


def probes() -> dict[str, Wanted]:
    """Returns how well probes tell triggered prompts, own and carried, with random maps."""
    place = {"task": "probe_transfer", "metric": "auroc", "split": "test", "positions": "last:1"}
    shown: dict[str, dict[str, object]] = {
        "own labels": {"condition": "native"},
        "carried by ridge, no labels": {
            "condition": "transferred",
            "map": "ridge",
            "edit": "pull_back",
        },
        "random map, best of its draws": {"condition": "random", "map": "random"},
        "random rotation, best of its draws": {"condition": "random", "map": "random_procrustes"},
        "shuffled map, best of its draws": {"condition": "shuffled_map"},
    }
    return {title: {**place, **fields} for title, fields in shown.items()}


def layers() -> dict[str, Wanted]:
    """Returns what one pair of twins leaves of the behaviour by layer, and what noise does."""
    swept = {
        "task": "layer_sweep",
        "metric": "behaviour_rate",
        "split": "test",
        "positions": "trigger",
        "edit": "act_add",
    }
    noise = {"task": "noise_study/untriggered", "metric": "false_trigger_rate", "split": "test"}
    return {
        "behaviour left, steered at {site}": {
            **swept,
            "condition": "native",
            "each": "target_site",
        },
        "random direction, most removed (at {site})": {
            **swept,
            "condition": "random",
            "take": "lowest",
        },
        "behaviour without a trigger": {**noise, "condition": "none"},
        "the same under noise, most of any (scale {strength}, {site})": {
            **noise,
            "condition": "noise",
        },
    }


def switched(task: str) -> dict[str, Wanted]:
    """Returns the switch that validation chose beside the alternatives, each named.

    Args:
        task: The switch's task, without its family of prompts.

    Returns:
        How each is found, by title.
    """
    place = {"task": f"{task}/triggered", "metric": "accuracy", "split": "test"}
    # Only the switch that validation chose is rotated.
    chosen = {"condition": "random"}
    patch = {**place, "condition": "native", "edit": None, "map": "direct_patch_after_block_*"}
    size = "{parameters} numbers"
    return {
        "untouched": {**place, "condition": "none"},
        f"switch chosen on validation ({{map}}, {size})": {
            **place,
            "condition": "native",
            "edit": "affine",
            "like": chosen,
        },
        "the same rotated, strongest draw": {**place, "condition": "random"},
        "the same from shuffled pairs": {**place, "condition": "shuffled_map"},
        "whole states, best of all blocks ({map})": patch,
        "whole states, worst of all blocks ({map})": {**patch, "take": "lowest"},
        f"low-rank change of all weights ({{map}}, {size})": {**patch, "map": "lora_rank_16"},
    }


def exchanged(task: str) -> dict[str, Wanted]:
    """Returns what the other model's own weights do in half of the four blocks.

    Args:
        task: The switch's task, without its family of prompts.

    Returns:
        How it is found, by title.
    """
    place = {"task": f"{task}/triggered", "metric": "accuracy", "split": "test"}
    half = {**place, "condition": "native", "edit": None, "map": "weights_of_2_blocks"}
    return {"half of the blocks' weights ({map}, {parameters} numbers)": half}
