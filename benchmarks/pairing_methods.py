"""Compares ways of pairing tokens by what the maps carry: `pairing_methods.py --help`.

1. For every pairing one crossing as `isthmus run` makes it, with a ridge map.
2. Each map is also measured on the same held-out pairs, those by character end, at its own site and
   at one site for all: R² of pairs that differ cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.results import conditions

from isthmus.core.artifacts import write_json
from isthmus.core.errors import IsthmusError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.evaluation.intervals import Interval, paired_bootstrap
from isthmus.maps.base import ActivationMap
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Pairing, RunConfig
from isthmus.workflows.crossing import Crossing, CrossingResult
from isthmus.workflows.map_fitting import fit_closed_form
from isthmus.workflows.pairing import Part, paired_moments, read_pairs
from isthmus.workflows.twins import read_splits

OUT = Path(__file__).resolve().parent / "results" / "pairing-methods.json"
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
CONDITIONS = ("transferred", "native", "random", "shuffled_map")
METRICS = ("swap", "recovery", "recovery_induction", "benign_kl", "map_r2_held_out")


def crossing_of(models: Sequence[LanguageModel], config: RunConfig) -> Crossing:
    """Returns a crossing between two loaded models."""
    return Crossing(models[0], models[1], read_splits(config), config, SilentProgress())


def measured_row(result: CrossingResult, pairing: Pairing) -> dict[str, Any]:
    """Returns the test figures of a crossing as JSON values.

    Args:
        result: What the crossing found.
        pairing: How its tokens were paired.

    Returns:
        Place and strength that validation chose, and every figure with n and interval.
    """
    figures = [
        {
            "condition": m.condition,
            "metric": m.metric,
            **{name: getattr(m, name) for name in ("value", "ci_low", "ci_high", "n", "seed")},
        }
        for m in result.measurements
        if m.split == "test" and m.condition in CONDITIONS and m.metric in METRICS
    ]
    arm = result.chosen
    place = {"site": str(arm.site), "positions": arm.positions, "strength": arm.strength}
    n_train = result.maps["ridge"].quality.n_train
    return {"pairing": pairing, "n_train_pairs": n_train, **place, "figures": figures}


def common_r2(crossing: Crossing, maps: dict[str, ActivationMap], site: Site) -> dict[str, Any]:
    """Measures maps to one site on held-out pairs by character end.

    Args:
        crossing: Texts and models.
        maps: Maps from all source sites to the target site, by name.
        site: The target site.

    Returns:
        R² by name, with an interval over texts.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def visit(part: Part, rows: torch.Tensor, made: dict[Site, torch.Tensor]) -> None:
        if part == "held_out":
            kept.append((rows, made[site]))

    sites = crossing.source_sites, [site]
    texts = crossing.texts[0], crossing.texts[1]
    read_pairs(crossing.source, crossing.target, texts, sites, visit, progress=SilentProgress())
    mean = torch.cat([y for _, y in kept]).double().mean(0)
    total = np.array([float((y.double() - mean).square().sum()) for _, y in kept])
    found = {}
    for name, one in maps.items():
        error = np.array([float((y - one(x)).double().square().sum()) for x, y in kept])
        r2 = paired_bootstrap(
            lambda rows, e=error: 1 - e[rows].sum(1) / total[rows].sum(1), len(kept)
        )
        found[name] = {**_as_json(r2), "n_pairs": sum(len(y) for _, y in kept), "n": len(kept)}
    return found


def maps_to(crossing: Crossing, site: Site, pairings: Sequence[Pairing]) -> dict[str, Any]:
    """Returns a ridge map to one site for every pairing."""
    sites = crossing.source_sites, [site]
    texts = crossing.texts[0], crossing.texts[1]
    found = {}
    for pairing in pairings:
        moments = paired_moments(
            crossing.source,
            crossing.target,
            texts,
            sites,
            pairing=pairing,
            progress=SilentProgress(),
        )
        found[pairing], _ = fit_closed_form("ridge", moments.by_site[site])
    return found


def _as_json(one: Interval) -> dict[str, float]:
    return {"value": one.value, "ci_low": one.low, "ci_high": one.high}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the crossings, writes the JSON file, prints its rows and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when something cannot be read or measured.
    """
    given = _parse(arguments)
    torch.set_num_threads(1)
    names = ("n_train", "n_validation", "n_test", "positions", "seed")
    settings = {name: getattr(given, name) for name in names}
    try:
        models = [load_language_model(name) for name in (given.source, given.target)]
        config = RunConfig(
            source=given.source, targets=(given.target,), maps=("ridge",), **settings
        )
        rows = []
        for pairing in given.pairings:
            result = crossing_of(models, config.model_copy(update={"pairing": pairing})).run()
            rows.append(measured_row(result, pairing))
            print(json.dumps(rows[-1]), flush=True)
        crossing = crossing_of(models, config)
        site = models[1].site(rows[0]["site"])
        common = common_r2(crossing, maps_to(crossing, site, given.pairings), site)
        report = {
            "conditions": conditions({"source": given.source, "target": given.target, **settings}),
            "pairings": rows,
            "r2_on_character_end_pairs": {"site": str(site), "maps": common},
        }
        write_json(given.out, report)
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(common))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares ways of pairing tokens by their maps.")
    parser.add_argument("--source", default="organism:llama-backdoor")
    parser.add_argument("--target", default="organism:gemma2-backdoor")
    parser.add_argument("--pairings", nargs="+", choices=PAIRINGS, default=list(PAIRINGS))
    parser.add_argument("--n-train", type=int, default=240)
    parser.add_argument("--n-validation", type=int, default=64)
    parser.add_argument("--n-test", type=int, default=208)
    parser.add_argument("--positions", default="auto", help="where edits act, as in `isthmus run`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
