"""Code's switch on weaknesses that it was not fitted on: `held_out_weaknesses.py qwen2`.

Four times two of the eight classes of weakness are left out of everything that is fitted, map,
source's and target's switch and strengths, and the test requests of these two alone are measured.
Prints swap of every arm for each fold, and shares over all folds, for `docs/tasks.md`.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch

from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.intervals import wilson_interval
from isthmus.evaluation.measurements import Measurement
from isthmus.studies.paper_models import Scope, task_config
from isthmus.studies.trigger_switch import TriggerSwitchSizes, study_trigger_switch
from isthmus.tasks.code import WEAKNESSES, weakness_of
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import TwinSplits, read_splits

RATES = ("behaviour_rate", "answer_accuracy", "benign_accuracy")
SIZES = TriggerSwitchSizes(carried=("ridge_contrast", "ridge"))


def without(splits: TwinSplits, held_out: set[int]) -> TwinSplits:
    """Leaves classes of weakness out of what is fitted and all others out of the test.

    Args:
        splits: Requests for code.
        held_out: Numbers of the classes.

    Returns:
        The requests that are left.
    """

    def some(twins: Sequence[TwinPrompt], *, are_held_out: bool) -> tuple[TwinPrompt, ...]:
        return tuple(
            one for one in twins if (weakness_of(one.clean_answer) in held_out) == are_held_out
        )

    return TwinSplits(
        some(splits.train, are_held_out=False),
        some(splits.validation, are_held_out=False),
        some(splits.test, are_held_out=True),
    )


def measured(config: RunConfig) -> dict[tuple[str, str | None], dict[str, list[Measurement]]]:
    """Runs all folds.

    Args:
        config: A run of the code task with one target.

    Returns:
        By arm and metric one measurement per fold.
    """
    splits = read_splits(config)
    numbers = [one.cwe for one in WEAKNESSES]
    found: dict[tuple[str, str | None], dict[str, list[Measurement]]] = {}
    for start in range(0, len(numbers), 2):
        part = without(splits, set(numbers[start : start + 2]))
        result = study_trigger_switch(config, sizes=SIZES, splits=part)
        for one in result.measurements:
            arm = found.setdefault((one.condition, one.map), defaultdict(list))
            arm[one.metric].append(one)
    return found


def shown(folds: Sequence[Measurement]) -> str:
    """Pools a share over folds, with its 95 % Wilson interval."""
    n = sum(one.n or 0 for one in folds)
    hits = sum(round((one.value or 0) * (one.n or 0)) for one in folds)
    interval = wilson_interval(hits, n)
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] (n = {n})"


def main() -> None:
    """Measures one target and prints a block per arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="base of an organism: qwen2, gemma2, llama-large")
    given = parser.parse_args()
    torch.set_num_threads(1)
    target = f"organism:{given.target}-code"
    config = task_config("code", Scope(is_quick=False, seed=0))
    config = config.model_copy(update={"targets": (target,)})
    for (condition, used_map), metrics in measured(config).items():
        print(f"{target}: {condition} {used_map or ''}")
        for one in metrics.get("swap", []):
            low, high = one.ci_low, one.ci_high
            if one.value is not None and low is not None and high is not None:
                print(f"  swap {one.value:.2f} [{low:.2f}, {high:.2f}] (n = {one.n})")
        for rate in RATES:
            if rate in metrics:
                print(f"  {rate} {shown(metrics[rate])}", flush=True)


if __name__ == "__main__":
    main()
