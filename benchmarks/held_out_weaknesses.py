"""Code's switch on weaknesses that it was not fitted on: `held_out_weaknesses.py qwen2`.

Four times two of the eight classes of weakness are left out of everything that is fitted, map,
source's and target's switch and strengths, and the test requests of these two alone are measured.
Prints swap of every arm for each fold, and swap and shares over all folds, for `docs/tasks.md`;
intervals draw functions with all of their phrasings.
"""

import argparse
from collections.abc import Sequence

import torch

from isthmus.data.prompts import TwinPrompt
from isthmus.evaluation.measurements import Measurement
from isthmus.studies.paper_models import Scope, task_config
from isthmus.studies.trigger_switch import TriggerSwitchSizes, study_trigger_switch
from isthmus.tasks.code import WEAKNESSES, weakness_of
from isthmus.workflows.config import RunConfig
from isthmus.workflows.twins import TwinSplits, read_splits

SHOWN = ("swap", "behaviour_rate", "answer_accuracy", "benign_accuracy")
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


def folds_of(config: RunConfig) -> list[TwinSplits]:
    """Returns the requests of every fold: two classes of weakness are left out of each.

    Args:
        config: A run of the code task with one target.

    Returns:
        As many folds as there are pairs of classes.
    """
    splits, numbers = read_splits(config), [one.cwe for one in WEAKNESSES]
    return [without(splits, set(numbers[start : start + 2])) for start in range(0, len(numbers), 2)]


def shown(one: Measurement) -> str:
    """Returns a number with its 95 % interval and n; phrasings of one function count together."""
    if one.value is None or one.ci_low is None or one.ci_high is None:
        return "undefined"
    return f"{one.value:.2f} [{one.ci_low:.2f}, {one.ci_high:.2f}] (n = {one.n})"


def main() -> None:
    """Measures one target and prints a block per arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="base of an organism: qwen2, gemma2, llama-large")
    given = parser.parse_args()
    torch.set_num_threads(1)
    target = f"organism:{given.target}-code"
    config = task_config("code", Scope(is_quick=False, seed=0))
    config = config.model_copy(update={"targets": (target,)})
    result = study_trigger_switch(config, sizes=SIZES, folds=folds_of(config))
    arms = dict.fromkeys((one.condition, one.map) for one in result.measurements)
    for arm in arms:
        print(f"{target}: {arm[0]} {arm[1] or ''}")
        for one in result.measurements:
            if (one.condition, one.map) == arm and one.metric in SHOWN:
                fold = one.task.partition("/")[2]
                print(f"  {one.metric} {fold or 'in all'}: {shown(one)}", flush=True)


if __name__ == "__main__":
    main()
