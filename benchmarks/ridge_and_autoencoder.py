"""What a ridge fit costs beside training an autoencoder: `ridge_and_autoencoder.py --help`.

1. Pairs are those of a default run from `organism:llama-backdoor` to one site of each target.
2. Ridge goes from rows to map: moments, decomposition, choice of its strength.
3. Autoencoders are the paper's (AdamW at 1e-4, 3 epochs) and a well-trained one (standardised,
   twice as wide, cosine), the latter for several numbers of steps, each a training of its own, so
   that its schedule ends where it stops. The shortest that is no worse than ridge on held-out pairs
   is what ridge is compared with.
4. Seconds are those of the processor, of one thread.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Python puts only this file's folder there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from benchmarks.results import CaseResult, conditions, measure_case, to_json
from benchmarks.timing import Case, Pair, processor_seconds

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
STEPS = (100, 200, 400)
RIDGE = "ridge"


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
    return {RIDGE: ridge, "the paper's": partial(train, AutoencoderSettings.paper()), **well}


def compared(target: str, layer: int, n_rounds: int) -> tuple[CaseResult, dict[str, float]]:
    """Measures every fit of one target in turns; returns held-out R² by name, too."""
    rows = read_rows(f"organism:{target}-backdoor", layer)
    n_train, held_out = len(rows["train"].source), rows["held_out"]
    fitted: dict[str, ActivationMap] = {}

    def keep(name: str, fit: Callable[[], ActivationMap]) -> None:
        fitted[name] = fit()

    fits = fits_of(rows)
    case = Case(
        "Ridge and autoencoder",
        f"{target} {Site(layer)}, {n_train} pairs",
        {name: partial(keep, name, fit) for name, fit in fits.items()},
        tuple(Pair(name, RIDGE) for name in fits if name != RIDGE),
    )
    found = measure_case(case, n_rounds, processor_seconds)
    scores = {
        name: held_out_quality_on_rows(one, held_out.source, held_out.target, n_train).r2_held_out
        for name, one in fitted.items()
    }
    return found, scores


def main() -> None:
    """Measures, prints a line per fit and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="again for several")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, scores = [], {}
    for target in given.target or TARGETS:
        case, scores[target] = compared(target, TARGETS[target], given.rounds)
        found.append(case)
        print(f"{case.case}: ridge: held-out R2 {scores[target][RIDGE]:.3f}", flush=True)
        for one in case.comparisons:
            name, (low, high) = one.pair.measured, one.ratio.range
            print(
                f"{case.case}: {name}: held-out R2 {scores[target][name]:.3f}, "
                f"{one.ratio.median:.1f} [{low:.1f}, {high:.1f}] times ridge",
                flush=True,
            )
        where = conditions({"threads": 1, "clock": "processor", "r2_held_out": scores})
        write_json(given.out, to_json(found, where))


if __name__ == "__main__":
    main()
