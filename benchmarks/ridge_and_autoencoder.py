"""What a ridge fit costs beside training an autoencoder: `ridge_and_autoencoder.py --help`.

1. Pairs are those of a default run from `organism:llama-backdoor` to one site of each target.
2. Ridge goes from rows to map: moments, decomposition, choice of its strength.
3. Autoencoders are the paper's (AdamW at 1e-4, 3 epochs) and a well-trained one (standardised,
   twice as wide, cosine), the latter for several numbers of steps, each a training of its own, so
   that its schedule ends where it stops. The shortest that is no worse than ridge on held-out pairs
   is what ridge is compared with.
4. Rounds take turns; seconds are those of the processor, of one thread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.results import conditions

from isthmus.core.artifacts import write_json
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.maps.autoencoder import AutoencoderSettings
from isthmus.maps.autoencoder_training import train_autoencoder
from isthmus.maps.base import ActivationMap
from isthmus.maps.quality import held_out_quality_on_rows
from isthmus.maps.ridge import RidgeFitter
from isthmus.maps.rows import PairedRows, moments_of
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import make_config
from isthmus.workflows.pairing import Part, paired_rows
from isthmus.workflows.twins import map_texts, read_splits

OUT = Path(__file__).resolve().parent / "results" / "ridge-and-autoencoder.json"
SOURCE = "organism:llama-backdoor"
TARGETS = {"qwen2": 1, "gemma2": 2, "llama-large": 3}
STEPS = (100, 200, 400, 800)


def read_rows(target: str, layer: int) -> dict[Part, PairedRows]:
    """Reads both models over the texts of a default run."""
    train = read_splits(make_config({"source": SOURCE, "targets": [target]})).train
    asked = map_texts(train)
    models = load_language_model(SOURCE), load_language_model(target)
    prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
    ours, theirs = (encode_prompts(lm.tokenizer, prompts, answers=answers) for lm in models)
    sites = models[0].sites("all"), Site(layer)
    return paired_rows(*models, (ours, theirs), sites, progress=SilentProgress())


def fits_of(rows: dict[Part, PairedRows]) -> dict[str, Callable[[], ActivationMap]]:
    """Returns what is compared, by name."""

    def ridge() -> ActivationMap:
        return RidgeFitter().fit(moments_of(rows["train"]), moments_of(rows["selection"]))

    def train(settings: AutoencoderSettings) -> ActivationMap:
        draws = torch.Generator().manual_seed(0)
        return train_autoencoder(rows["train"], settings, draws, selection=rows["selection"])

    well = {
        f"well trained, {n} steps": partial(train, AutoencoderSettings.well_trained(n))
        for n in STEPS
    }
    return {"ridge": ridge, "the paper's": partial(train, AutoencoderSettings.paper()), **well}


def compared(target: str, layer: int, n_rounds: int) -> dict[str, Any]:
    """Measures every fit of one target in turns."""
    rows = read_rows(f"organism:{target}-backdoor", layer)
    fits = fits_of(rows)
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    scores: dict[str, float] = {}
    for n in range(n_rounds):
        for name in fits if n % 2 == 0 else reversed(fits):
            start = time.process_time()
            fitted = fits[name]()
            seconds[name].append(time.process_time() - start)
            held_out = rows["held_out"]
            quality = held_out_quality_on_rows(
                fitted, held_out.source, held_out.target, len(rows["train"].source)
            )
            scores[name] = quality.r2_held_out
    ratios = {
        name: [took / bare for took, bare in zip(found, seconds["ridge"], strict=True)]
        for name, found in seconds.items()
    }
    as_good = [name for name in fits if name != "ridge" and scores[name] >= scores["ridge"]]
    return {
        "target": target,
        "site": str(Site(layer)),
        "n_train": len(rows["train"].source),
        "n_held_out": len(rows["held_out"].source),
        "widths": [rows["train"].d_source, rows["train"].d_target],
        "r2_held_out": scores,
        "seconds": seconds,
        "times_ridge": {
            name: {"median": statistics.median(found), "range": [min(found), max(found)]}
            for name, found in ratios.items()
        },
        "shortest_as_good": as_good[0] if as_good else None,
    }


def main() -> None:
    """Measures, prints a line per fit and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="again for several")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for target in given.target or TARGETS:
        found.append(compared(target, TARGETS[target], given.rounds))
        row = found[-1]
        for name, ratio in row["times_ridge"].items():
            low, high = ratio["range"]
            print(
                f"{target} {row['site']}: {name}: held-out R2 {row['r2_held_out'][name]:.3f}, "
                f"{ratio['median']:.1f} [{low:.1f}, {high:.1f}] times ridge",
                flush=True,
            )
        print(f"{target}: no worse than ridge first: {row['shortest_as_good']}", flush=True)
        write_json(given.out, {"conditions": conditions({"threads": 1}), "targets": found})


if __name__ == "__main__":
    main()
