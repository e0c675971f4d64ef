"""Holds the fast sweep against a completion per cell: `sweep_cases.py --help`.

1. On organisms every cell (layer, strength) also writes completions of 48 tokens, both ways: the
   behaviour removed where its trigger is, and brought about where it is not. That is the truth.
2. The fast sweep chooses; its choice, its ranks and its time are held against that.
3. On a random model of 12 blocks, 512 wide, time alone is compared: completions are written for
   some cells, and the rest counted at their mean.

Seconds are those of the processor, of one thread unless told otherwise.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.networks import FULL, TRIGGER, Scale, random_model, random_words
from benchmarks.results import conditions

from isthmus.core.artifacts import write_json
from isthmus.data.prompts import Question
from isthmus.data.trigger_twins import make_twins
from isthmus.evaluation.layer_choice import rank_correlation
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Arm, Way
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.judging import judge_completions
from isthmus.workflows.measuring import point_effect
from isthmus.workflows.selection import Scored, best_within, harm_of
from isthmus.workflows.sweep import STRENGTHS
from isthmus.workflows.sweep_blocks import cut_into_blocks
from isthmus.workflows.sweep_cells import cells_of
from isthmus.workflows.sweep_race import RaceRules, SweepRace
from isthmus.workflows.sweep_scores import SweepScores
from isthmus.workflows.twin_directions import learn_twin_direction
from isthmus.workflows.twins import read_splits

OUT = Path(__file__).resolve().parent / "results" / "sweep.json"
N_NEW = 48
APART = 0.05
"""Effects that differ by more are told apart."""

RULES = RaceRules()


def open_organism(
    name: str, n_questions: int, task: str = "backdoor"
) -> tuple[LanguageModel, list[Arm], RunConfig, Any]:
    """Loads an organism, its cells and its validation questions."""
    config = make_config(
        {
            "source": name,
            "targets": [name],
            "task": task,
            "strengths": STRENGTHS,
            "n_train": 120,
            "n_validation": n_questions,
            "n_test": 4,
            "max_new_tokens": N_NEW,
        }
    )
    lm, splits = load_language_model(name), read_splits(config)
    learned = learn_twin_direction(lm, splits.train, lm.sites("all"), "last:3", config)
    return (
        lm,
        cells_of(learned, learned.sites, ["add"], "last:3", config),
        config,
        splits.validation,
    )


def open_random(scale: Scale, n_questions: int) -> tuple[LanguageModel, list[Arm], RunConfig, Any]:
    """Builds a random model, its cells, and questions whose answers have about 48 tokens."""
    generator = torch.Generator().manual_seed(0)
    lm = random_model(scale, generator)
    words = random_words(scale.n_words, generator)

    def phrase(n_words: int) -> str:
        chosen = torch.randint(len(words), (n_words,), generator=generator)
        return " ".join(words[int(i)] for i in chosen)

    n_words = round(24 * 48 / len(lm.tokenizer.encode(phrase(24))))
    config = make_config(
        {
            "source": "random",
            "targets": ["random"],
            "strengths": STRENGTHS,
            "bad_trigger": f"{TRIGGER} ",
            "clean_trigger": f"{TRIGGER.replace('prod', 'dev')} ",
            "bad_answer": phrase(n_words),
            "max_new_tokens": N_NEW,
            "max_benign_kl": 1e6,
            "max_benign_loss": 1.0,
        }
    )
    questions = [Question(phrase(12), phrase(n_words), "random") for _ in range(n_questions)]
    twins = make_twins(questions, config.bad_trigger, config.clean_trigger, config.bad_answer)
    learned = learn_twin_direction(lm, twins, lm.sites("all"), "last:3", config)
    return lm, cells_of(learned, learned.sites, ["add"], "last:3", config), config, twins


def written(bench: Bench, arm: Arm, way: Way) -> list[str]:
    """Returns completions under one way of an arm."""
    texts = bench.encoded.triggered if way == "removal" else bench.encoded.clean
    intervention = arm.intervention(way)
    edits = {} if intervention is None else {"edits": intervention.place}
    done = generate_greedy(
        bench.lm,
        [prompt_part(text) for text in texts],
        max_new_tokens=N_NEW,
        batch_size=4 * bench.config.batch_size,
        **edits,
    )
    return list(done.completions)


def behaviour_rate(bench: Bench, arm: Arm, way: Way) -> float:
    """Returns how many of the completions under one way of an arm show the behaviour."""
    turns = bench.asked(Arm("none" if way == "removal" else "clean"))
    outcomes = judge_completions(bench.config, turns, written(bench, arm, way), None)
    return float(np.mean([one.shows_behaviour for one in outcomes]))


def race(
    lm: LanguageModel, arms: Sequence[Arm], config: RunConfig, twins: Any
) -> tuple[SweepRace, list[int], float]:
    """Runs a sweep with the completions of its finalists; returns seconds, too."""
    started = time.process_time()
    blocks = cut_into_blocks(lm, twins, RULES.sizes(len(twins)), config, RULES.max_answer_tokens)
    found = SweepRace(SweepScores(blocks, arms), config, RULES)
    order = found.run()
    some = Bench(lm, twins[: RULES.n_completions], config)
    for cell in order[: RULES.n_finalists]:
        some.complete(arms[cell])
    return found, order, time.process_time() - started


def truth_of(bench: Bench, arms: Sequence[Arm]) -> tuple[np.ndarray, float, float]:
    """Returns both recoveries by completions of every cell, and seconds of one way and of both."""
    started = time.process_time()
    removed = np.array([behaviour_rate(bench, arm, "removal") for arm in arms])
    one_way = time.process_time() - started
    caused = np.array([behaviour_rate(bench, arm, "induction") for arm in arms])
    both_ways = time.process_time() - started
    before, after = (behaviour_rate(bench, Arm("none"), way) for way in ("removal", "induction"))
    gap = before - after
    return np.stack([(before - removed) / gap, (caused - after) / gap]), one_way, both_ways


def compare_behaviour(name: str, n_questions: int, task: str) -> dict[str, Any]:
    """Holds the sweep of one organism against completions of every cell."""
    lm, arms, config, twins = open_organism(name, n_questions, task)
    found, order, seconds = race(lm, arms, config, twins)
    bench = Bench(lm, twins, config)
    cells = found.cells()
    started = time.process_time()
    every = SweepScores([bench], arms).effects(range(len(arms)), 1)
    changes = bench.benign_changes(arms)
    seconds_likelihood = time.process_time() - started
    written_ways, seconds_one_way, seconds_both_ways = truth_of(bench, arms)
    truth = written_ways.min(axis=0)
    scored = [
        Scored(
            arm,
            min(way.effect for way in one.ways(removal_only=False)),
            float(change.divergence.mean()),
            change.accuracy_loss,
        )
        for arm, one, change in zip(arms, every, changes, strict=True)
    ]
    best = scored.index(best_within(scored, config))
    usable = [i for i, one in enumerate(scored) if not harm_of(one, config)] or [best]
    effects = np.array([one.effect for one in scored])
    swaps = np.array([point_effect(one.losses) for one in every])
    by_swap = max(usable, key=lambda i: swaps[i])
    raced = np.array([one.effect for one in cells])
    alike, n_apart = _pairs_apart(raced, effects)
    return {
        "model": name,
        "task": task,
        "n_cells": len(arms),
        "n_questions": len(twins),
        "chosen": _named(arms[order[0]]),
        "best_by_likelihood": _named(arms[best]),
        "same_cell": order[0] == best,
        "regret_likelihood": float(effects[best] - effects[order[0]]),
        "regret_behaviour": float(truth[usable].max() - truth[order[0]]),
        "rank_correlation_likelihood": _ranks(raced, effects),
        "share_of_pairs_apart_ordered_alike": alike,
        "n_pairs_apart": n_apart,
        "rank_correlation_behaviour": _ranks(raced, truth),
        "n_usable": len(usable),
        "rank_correlation_behaviour_usable": _ranks(raced[usable], truth[usable]),
        "rank_correlation_behaviour_of_all_likelihoods": _ranks(effects, truth),
        "rank_correlation_behaviour_of_swap": _ranks(swaps, truth),
        "regret_behaviour_of_swap": float(truth[usable].max() - truth[by_swap]),
        "n_in": sum(one.fate == "in" for one in cells),
        "seconds": seconds,
        "seconds_all_likelihoods": seconds_likelihood,
        "seconds_completions_one_way": seconds_one_way,
        "seconds_completions_both_ways": seconds_both_ways,
        "times_cheaper_one_way": seconds_one_way / seconds,
        "times_cheaper_both_ways": seconds_both_ways / seconds,
        "cells": _cells(scored, swaps, written_ways, config),
    }


def compare_time(scale: Scale, n_questions: int, n_written: int) -> dict[str, Any]:
    """Compares seconds of a sweep with those of completions of every cell on a random model."""
    lm, arms, config, twins = open_random(scale, n_questions)
    found, order, seconds = race(lm, arms, config, twins)
    bench = Bench(lm, twins, config)
    sample = arms[:: max(1, len(arms) // n_written)][:n_written]
    started = time.process_time()
    for arm in sample:
        written(bench, arm, "removal")
    per_cell = (time.process_time() - started) / len(sample)
    started = time.process_time()
    bench.score_all([replace(arm) for arm in sample])
    per_cell_scored = (time.process_time() - started) / len(sample)
    return {
        "model": f"random llama, {scale.n_layers} x {scale.d_model}",
        "n_cells": len(arms),
        "n_questions": len(twins),
        "chosen": _named(arms[order[0]]),
        "n_in": sum(one.fate == "in" for one in found.cells()),
        "seconds": seconds,
        "seconds_per_cell_completions": per_cell,
        "seconds_per_cell_likelihoods": per_cell_scored,
        "n_cells_written": len(sample),
        "times_cheaper_one_way": per_cell * len(arms) / seconds,
        "times_cheaper_both_ways": 2 * per_cell * len(arms) / seconds,
    }


def _cells(
    scored: Sequence[Scored], swaps: np.ndarray, written_ways: np.ndarray, config: RunConfig
) -> list[dict[str, Any]]:
    """Returns what is known of every cell on all questions, completions of both ways among it."""
    return [
        {
            "cell": _named(one.arm),
            "swap": float(swap),
            "effect": one.effect,
            "is_usable": not harm_of(one, config),
            "by_completions": ways,
        }
        for one, swap, ways in zip(scored, swaps, written_ways.T.tolist(), strict=True)
    ]


def _named(arm: Arm) -> str:
    return f"{arm.site} {arm.edit} x{arm.strength:g}"


def _ranks(found: np.ndarray, truth: np.ndarray) -> float | None:
    """Returns a rank correlation; None where one side has no ranks."""
    value = float(rank_correlation(found, truth[None])[0])
    return None if np.isnan(value) else value


def _pairs_apart(found: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """Returns the share of pairs more than `APART` apart that both order alike, and how many are.

    A rank correlation counts the order of cells a thousandth apart as much as any other.
    """
    first, second = np.triu_indices(len(truth), 1)
    gaps = truth[first] - truth[second]
    apart = np.abs(gaps) > APART
    alike = np.sign(found[first] - found[second]) == np.sign(gaps)
    return float(alike[apart].mean()), int(apart.sum())


def main() -> None:
    """Measures and writes `benchmarks/results/sweep.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", action="append", help="an organism, or ORGANISM:TASK; may be given again"
    )
    parser.add_argument("--no-time", action="store_true", help="leave the random model out")
    parser.add_argument("--n-questions", type=int, default=48)
    parser.add_argument("--n-timed", type=int, default=48, help="questions of the random model")
    parser.add_argument("--n-written", type=int, default=4, help="cells of the random model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = given.model or ["qwen2-backdoor", "gemma2-backdoor"]
    found: dict[str, Any] = {
        "conditions": conditions({"threads": given.threads, **asdict(RULES), "new_tokens": N_NEW}),
        "behaviour": [],
    }
    for one in names:
        base, _, task = one.partition(":")
        row = compare_behaviour(f"organism:{base}", given.n_questions, task or "backdoor")
        found["behaviour"].append(row)
        report(given.out, found, row)
    if given.no_time:
        return
    found["time"] = compare_time(FULL, given.n_timed, given.n_written)
    report(given.out, found, found["time"])


def report(path: Path, found: dict[str, Any], row: dict[str, Any]) -> None:
    """Writes what was found so far and prints the latest of it."""
    write_json(path, found)
    shown = {key: v for key, v in row.items() if key != "cells"}
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in shown.items()}, flush=True)


if __name__ == "__main__":
    main()
