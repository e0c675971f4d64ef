"""Compares ways of pairing tokens by what their maps carry: `pairing_methods.py --help`.

1. Both models read the same texts once; every pairing takes its rows from there.
2. A ridge map per pairing carries the source's direction to one site of the target. Validation
   chooses each strength, test questions measure swap: removal and induction, the smaller one.
3. The map is measured on the pairs of its own kind and on those by character end, the same for all:
   figures of different pairs cannot be compared.
4. Controls at the same place and strength: a map fitted on shuffled pairs of the same kind, and a
   random direction, both as long as what was carried. Native is the mark to reach.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.results import conditions
from torch import Tensor

from isthmus.carrying.directions import carry_direction
from isthmus.carrying.scaling import match_norm, random_direction_like
from isthmus.core.artifacts import write_json
from isthmus.core.errors import IsthmusError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.directions.direction import Direction
from isthmus.evaluation.intervals import Interval, paired_bootstrap
from isthmus.evaluation.measurements import Measurement
from isthmus.maps.base import ActivationMap
from isthmus.maps.files import FittedMap
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Bench
from isthmus.workflows.config import Pairing, RunConfig
from isthmus.workflows.map_fitting import MapEnds, fit_map, shuffled_map
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.pairing import PairedRows, Part, part_of_text, row_pickers
from isthmus.workflows.selection import make_selector
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twin_directions import at_one_site, learn_twin_direction
from isthmus.workflows.twins import map_texts, read_splits

OUT = Path(__file__).resolve().parent / "results" / "pairing-methods.json"
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
STRENGTHS = (0.75, 1.0, 1.5, 2.0)
HEADINGS = (
    "pairing",
    "pairs fitted on",
    "R² on its own pairs",
    "R² on pairs by character end",
    "strength",
    "swap",
    "shuffled map",
    "random",
)


@dataclass(frozen=True)
class ReadTexts:
    """What both models make of the same texts.

    Attributes:
        source: The texts as the source sees them.
        target: The texts as the target sees them.
        states: For every text the source's states, sites side by side, and the target's.
    """

    source: Sequence[EncodedText]
    target: Sequence[EncodedText]
    states: Sequence[tuple[Tensor, Tensor]]

    def pairs(self, index: int, pairing: Pairing) -> tuple[Tensor, Tensor]:
        """Returns the rows of one text that belong together."""
        pickers = row_pickers(self.source[index], self.target[index], pairing)
        x, y = (pick(rows) for pick, rows in zip(pickers, self.states[index], strict=True))
        return x, y

    def rows(self, pairing: Pairing) -> dict[Part, PairedRows]:
        """Returns the rows of all texts by part."""
        found: dict[Part, list[tuple[Tensor, Tensor]]] = {}
        for i in range(len(self.states)):
            found.setdefault(part_of_text(i), []).append(self.pairs(i, pairing))
        return {
            part: PairedRows(torch.cat([x for x, _ in some]), torch.cat([y for _, y in some]))
            for part, some in found.items()
        }

    def r2(self, fitted: ActivationMap) -> tuple[Interval, int]:
        """Returns R² on held-out pairs by character end, over texts, and how many pairs."""
        held_out = [i for i in range(len(self.states)) if part_of_text(i) == "held_out"]
        kept = [self.pairs(i, "character_end") for i in held_out]
        mean = torch.cat([y for _, y in kept]).double().mean(0)
        total = np.array([float((y.double() - mean).square().sum()) for _, y in kept])
        error = np.array([float((y - fitted(x)).double().square().sum()) for x, y in kept])
        found = paired_bootstrap(lambda i: 1 - error[i].sum(1) / total[i].sum(1), len(kept))
        return found, sum(len(y) for _, y in kept)


class Comparison:
    """Carries one direction through the maps of several pairings.

    Args:
        models: Source and target.
        config: Sizes, positions, seed.
        site: The target site.
    """

    def __init__(
        self, models: tuple[LanguageModel, LanguageModel], config: RunConfig, site: Site
    ) -> None:
        self.models, self.config, self.site = models, config, site
        self.splits = read_splits(config)
        sites = thinned_sites(models[0], "all")
        self.ends = MapEnds(models[0].identity, models[1].identity, sites, site)
        self.texts = self._read()
        recorder = Recorder(config, models[0].identity.name, models[1].identity.name, "test")
        validation = Bench(models[1], self.splits.validation, config)
        self.recorder, self.test = recorder, Bench(models[1], self.splits.test, config)
        self.selector = make_selector(validation, recorder, SilentProgress())
        self.direction = self._learned(models[0], sites)

    def _read(self) -> ReadTexts:
        texts = map_texts(self.splits.train)
        prompts, answers = [prompt for prompt, _ in texts], [answer for _, answer in texts]
        source, target = (
            encode_prompts(lm.tokenizer, prompts, answers=answers) for lm in self.models
        )
        ours = all_token_activations(self.models[0], source, self.ends.source_sites)
        theirs = all_token_activations(self.models[1], target, [self.site])
        joined = [torch.cat(rows, dim=-1) for rows in zip(*ours.values(), strict=True)]
        return ReadTexts(source, target, list(zip(joined, theirs[self.site], strict=True)))

    def _learned(self, lm: LanguageModel, sites: Sequence[Site]) -> Direction:
        return learn_twin_direction(
            lm, self.splits.train, sites, self.config.positions, self.config
        )

    def native(self) -> list[dict[str, Any]]:
        """Measures the direction that the target has itself."""
        own = at_one_site(self._learned(self.models[1], [self.site]), self.site)
        return self._measured(self.selector.choose_strength(self._arm("native", own)).arm)

    def of(self, pairing: Pairing) -> dict[str, Any]:
        """Returns the figures of one pairing as JSON values."""
        rows = self.texts.rows(pairing)
        fitted = fit_map("ridge", rows, self.ends, self.config.seed, SilentProgress())
        carried = carry_direction(self.direction, fitted)
        arm = self.selector.choose_strength(self._arm("transferred", carried)).arm
        shuffled = carry_direction(self.direction, shuffled_map(rows, self.ends, self.config.seed))
        generator = torch.Generator().manual_seed(self.config.seed)
        controls = {
            "shuffled_map": match_norm(shuffled, carried.norms),
            "random": random_direction_like(carried, generator),
        }
        figures = self._measured(arm)
        for condition, direction in controls.items():
            figures += self._measured(self._arm(condition, direction).at(arm.strength))
        return {"pairing": pairing, **self._quality(fitted), "figures": figures}

    def _quality(self, fitted: FittedMap) -> dict[str, Any]:
        r2, n_pairs = self.texts.r2(fitted.map)
        return {
            "n_train_pairs": fitted.quality.n_train,
            "r2_own_pairs": {"value": fitted.quality.r2_held_out, "n": fitted.quality.n_held_out},
            "r2_character_end_pairs": {**vars(r2), "n": n_pairs},
        }

    def _arm(self, condition: str, direction: Direction) -> Arm:
        positions, edit = self.config.positions, self.config.edit
        return Arm(condition, self.site, positions, edit, 1.0, direction, seed=self.config.seed)

    def _measured(self, arm: Arm) -> list[dict[str, Any]]:
        found = self.recorder.effects(arm, self.test.score(arm))
        found.append(self.recorder.divergence(arm, self.test.damage(arm)))
        return [_as_json(one) for one in found if one.metric != "edited_positions"]


def _as_json(one: Measurement) -> dict[str, Any]:
    names = ("condition", "metric", "strength", "value", "ci_low", "ci_high", "n", "seed")
    return {name: getattr(one, name) for name in names}


def table_of(report: Mapping[str, Any]) -> str:
    """Returns a Markdown table of a comparison.

    Args:
        report: What the JSON file holds.

    Returns:
        Lines of Markdown, the last one ended.
    """
    lines = [
        f"| {' | '.join(HEADINGS)} |",
        f"| {' | '.join('---' for _ in HEADINGS)} |",
    ]
    for row in report["pairings"]:
        swaps = {m["condition"]: m for m in row["figures"] if m["metric"] == "swap"}
        r2 = row["r2_character_end_pairs"]
        cells = [
            f"`{row['pairing']}`",
            str(row["n_train_pairs"]),
            f"{row['r2_own_pairs']['value']:.2f}",
            f"{r2['value']:.2f} [{r2['low']:.2f}, {r2['high']:.2f}]",
            f"{swaps['transferred']['strength']:g}",
            *(_cell(swaps[name]) for name in ("transferred", "shuffled_map", "random")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    native = next(m for m in report["native"] if m["metric"] == "swap")
    lines.append(f"| native | – | – | – | {native['strength']:g} | {_cell(native)} | – | – |")
    return "\n".join(lines) + "\n"


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.2f} [{figure['ci_low']:.2f}, {figure['ci_high']:.2f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares the pairings, writes the JSON file, prints a table and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when something cannot be read, fitted or measured.
    """
    given = _parse(arguments)
    torch.set_num_threads(1)
    names = ("source", "positions", "n_train", "n_validation", "n_test", "seed")
    settings = {name: getattr(given, name) for name in names}
    try:
        models = load_language_model(given.source), load_language_model(given.target)
        config = RunConfig(targets=(given.target,), strengths=STRENGTHS, **settings)
        site = models[1].site(given.site)
        comparison = Comparison(models, config, site)
        where = {**settings, "target": given.target, "site": str(site), "strengths": STRENGTHS}
        report = {
            "conditions": conditions(where),
            "pairings": [comparison.of(pairing) for pairing in given.pairings],
            "native": comparison.native(),
        }
        write_json(given.out, report)
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table_of(report))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares ways of pairing tokens by their maps.")
    parser.add_argument("--source", default="organism:llama-backdoor")
    parser.add_argument("--target", default="organism:gemma2-backdoor")
    parser.add_argument("--site", default="0.5", help="target site (default: half the depth)")
    parser.add_argument("--positions", default="last:3", help="where edits act")
    parser.add_argument("--pairings", nargs="+", choices=PAIRINGS, default=list(PAIRINGS))
    parser.add_argument("--n-train", type=int, default=80)
    parser.add_argument("--n-validation", type=int, default=48)
    parser.add_argument("--n-test", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
