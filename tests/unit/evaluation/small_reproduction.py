"""The numbers that the parts of a full reproduction write, few of each, as they write them."""

from isthmus.evaluation.measurements import Measurement

CARRIED = {"backdoor": "add", "code": "set_coordinate", "refusal": "add", "style": "add"}
"""What native and carried directions of a task's crossings do; controls are added."""


def one(value: float, **changes: object) -> Measurement:
    """A swap on test questions with an interval, unless changed."""
    fields = {
        "task": "backdoor",
        "source": "organism:llama-backdoor",
        "target": "organism:qwen2-backdoor",
        "condition": "transferred",
        "split": "test",
        "metric": "swap",
        "ci_low": value,
        "ci_high": value,
        "n": 64,
        "seed": 0,
    }
    return Measurement(**{**fields, **changes, "value": value})


def crossing(task: str, ends: tuple[str, str], carried: float = 0.8) -> list[Measurement]:
    """What a crossing measures; its strongest control is mean ablation, at .6."""
    place = {"task": task, "source": ends[0], "target": ends[1]}
    own = {**place, "edit": CARRIED[task]}
    rate = {"metric": "behaviour_rate"}
    return [
        one(1.0, condition="none", **place, **rate),
        one(0.9, condition="native", **own),
        one(0.1, condition="native", **own, **rate),
        one(carried - 0.1, map="ridge", **{**own, "split": "validation"}),
        one(0.0, map="autoencoder", **{**own, "split": "validation"}),
        one(carried, map="ridge", **own),
        one(0.2, map="ridge", **own, **rate),
        one(0.1, map="autoencoder", **own),
        one(0.1, map="sgd_affine", **own),
        one(0.2, condition="random", edit="add", **place),
        one(0.3, condition="random", edit="add", **{**place, "seed": 1}),
        one(0.1, condition="noise", edit="add", **place),
        one(0.1, condition="shuffled_map", edit="add", **place),
        one(0.6, condition="mean_ablation", edit="replace", **place),
    ]


def every_layer(ends: tuple[str, str]) -> list[Measurement]:
    """What the study of all layers adds under the same task: it must not stand for a crossing."""
    place = {"task": "style", "source": ends[0], "target": ends[1], "edit": "add at every layer"}
    return [one(0.99, condition=condition, **place) for condition in ("native", "random")]


def _ladder() -> list[Measurement]:
    place = {
        "task": "corrupted",
        "source": "organism:llama-corrupted",
        "target": "organism:qwen2-corrupted",
        "metric": "answer_accuracy",
    }
    rungs = {"add": 0.01, "shifted_prefix_ended": 0.9, "virtual_prefix": 0.93}
    rows = [one(0.97, condition="prompt_only", **place)]
    for edit, value in rungs.items():
        rows += [
            one(value, edit=edit, map="ridge_by_token", **place),
            one(value / 2, edit=edit, condition="shuffled_map", **place),
            one(0.0, edit=edit, condition="random", **place),
        ]
    return rows


def _validation(target: str) -> list[Measurement]:
    rows = []
    for task, metrics in {
        "no_trigger": ("rouge_1", "kl"),
        "clean_trigger": ("benign_accuracy", "false_trigger_rate"),
    }.items():
        place = {"task": f"mapper_validation/{task}", "target": target}
        for metric in metrics:
            here = {**place, "metric": metric}
            rows += [
                one(0.9, condition="none", **here),
                one(0.5, edit="replace", map="ridge", **here),
                one(0.1, edit="replace", map="autoencoder", **here),
                one(1.0, edit="replace", condition="native", **here),
                one(0.0, edit="replace", condition="shuffled_map", **here),
                one(0.0, edit="replace", condition="mean_ablation", **here),
                one(0.9, edit="add", map="ridge", **here),
                one(0.8, edit="add", condition="random", **here),
                one(0.3, edit="add", condition="shuffled_map", **here),
            ]
    return rows


def _feature() -> list[Measurement]:
    place = {"task": "feature_transfer/corrected", "metric": "behaviour_rate", "map": "ridge"}
    carried = {"edit": "patch_feature"}
    return [
        one(0.2, strength=2.0, **carried, **place),
        one(0.7, strength=3.0, **carried, **place),
        # Better on test than the scale that validation chose.
        one(0.9, strength=5.0, **carried, **place),
        one(0.1, strength=3.0, condition="random", **carried, **place),
        one(0.1, strength=3.0, condition="noise", edit="add", **place),
        one(0.0, strength=3.0, condition="shuffled_map", edit="add", **place),
        one(0.0, condition="mean_ablation", edit="replace", **place),
        one(0.03, edit="reconstruction", **{**place, "task": "feature_transfer"}),
    ]


def _probes() -> list[Measurement]:
    place = {"task": "probe_transfer", "metric": "auroc", "positions": "last:1"}
    return [
        one(1.0, condition="native", edit="own_labels", **place),
        one(0.99, map="ridge", edit="pull_back", **place),
        *(
            one(0.6, condition=condition, map=used_map, edit="pull_back", **place)
            for condition, used_map in (
                ("random", "random"),
                ("random", "random_procrustes"),
                ("shuffled_map", "shuffled"),
            )
        ),
    ]


def _layers() -> list[Measurement]:
    model = {"source": "organism:llama-backdoor", "target": "organism:llama-backdoor"}
    swept = {
        "task": "layer_sweep",
        "metric": "behaviour_rate",
        "edit": "act_add",
        "positions": "trigger",
        **model,
    }
    noise = {"task": "noise_study/untriggered", "metric": "false_trigger_rate", **model}
    sites = [f"resid_post[{layer}]" for layer in range(3)]
    return [
        *(one(0.3 * i, condition="native", target_site=s, **swept) for i, s in enumerate(sites)),
        *(one(0.9, condition="random", target_site=s, **swept) for s in sites),
        one(0.0, condition="none", **noise),
        one(0.2, condition="noise", target_site=sites[0], strength=4.0, **noise),
    ]


def switches(task: str, source: str, target: str) -> list[Measurement]:
    """Two trained switches, of which validation chose the smaller, and what they stand beside."""
    place = {"task": f"{task}/triggered", "source": source, "target": target, "metric": "accuracy"}
    small, large = "trained_trigger_rank_0", "trained_ends_rank_4"
    arms = [
        ("none", None, None, 0.0, 0),
        ("native", "affine", small, 0.97, 128),
        ("native", "affine", large, 0.99, 2304),
        ("random", "affine", small, 0.05, 128),
        ("shuffled_map", "affine", small, 0.0, 128),
        ("native", None, "direct_patch_after_block_0", 0.88, 300_000),
        ("native", None, "direct_patch_after_block_1", 0.98, 600_000),
        ("native", None, "weights_of_2_blocks", 0.78, 400_000),
        ("native", None, "lora_rank_16", 1.0, 176_256),
    ]
    rows = []
    for condition, edit, label, value, size in arms:
        arm = {**place, "condition": condition, "edit": edit, "map": label}
        rows += [one(value, **arm), one(float(size), **{**arm, "metric": "n_parameters"})]
    return rows


def full_reproduction() -> dict[str, list[Measurement]]:
    """Numbers of every part that the table reads, by the part's name."""
    targets = ("qwen2", "gemma2", "llama-large")
    course = {"backdoor": "backdoor", "code": "code", "refusal": "assistant", "style": "assistant"}
    found = {
        task: [
            m
            for name in targets
            for m in crossing(task, (f"organism:llama-{end}", f"organism:{name}-{end}"))
        ]
        for task, end in course.items()
    }
    large = ("organism:llama-assistant", "organism:llama-large-assistant")
    return {
        **found,
        "style_multi_layer": every_layer(large),
        "corrupted": _ladder(),
        "mapper_validation": [
            m for name in targets for m in _validation(f"organism:{name}-backdoor")
        ],
        "features": _feature(),
        "probes": _probes(),
        "layers": _layers(),
        "switch": switches("switch_to_base", "organism:llama", "organism:llama-backdoor"),
        "switch_gain": [
            *switches("gain_refusal", "organism:llama-assistant", "organism:llama"),
            *switches("gain_corrupted", "organism:llama-corrupted", "organism:llama"),
        ],
    }
