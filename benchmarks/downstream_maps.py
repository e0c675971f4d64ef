"""What a downstream fine-tune of a map does: `python benchmarks/downstream_maps.py qwen2 1`.

Fits the ridge map from `organism:llama-backdoor` on texts of a default run, as it is and
fine-tuned, and prints for both what `docs/maps.md` has: divergence on mapped states, held-out R²
and swap of the carried direction, with its interval. A ridge map of shuffled pairs, fine-tuned
alike, is the control: it shows what the fine-tune learns by itself.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import isthmus
from isthmus.core.progress import SilentProgress
from isthmus.directions.direction import Direction
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import make_config
from isthmus.workflows.map_fitting import MapEnds, fit_map, measured_again, shuffled_map
from isthmus.workflows.map_tuning import MapTuning, tune_map
from isthmus.workflows.pairing import paired_rows
from isthmus.workflows.source_sites import thinned_sites
from isthmus.workflows.twins import map_texts, read_splits

SOURCE = "organism:llama-backdoor"
SEED = 0


def fitted_maps(
    target: str, layer: int, asked: Sequence[tuple[str, str]], n_steps: int
) -> Iterator[tuple[str, FittedMap]]:
    """Fits the map and the control, and fine-tunes both.

    Args:
        target: Target model.
        layer: Layer of its site.
        asked: Prompts with their answers.
        n_steps: Steps of the fine-tune.

    Yields:
        tuple[str, FittedMap]: A name, and the map.
    """
    models = load_language_model(SOURCE), load_language_model(target)
    prompts, answers = ([one[i] for one in asked] for i in (0, 1))
    ours, theirs = (encode_prompts(lm.tokenizer, prompts, answers=answers) for lm in models)
    sites = thinned_sites(models[0], "all")
    ends = MapEnds(models[0].identity, models[1].identity, sites, models[1].site(layer))
    place = (sites, ends.target_site)
    pairs = paired_rows(*models, (ours, theirs), place, progress=SilentProgress())
    starts = {
        "ridge": fit_map("ridge", pairs, ends, SEED, SilentProgress()),
        "ridge of shuffled pairs": shuffled_map(pairs, ends, SEED),
    }
    settings = MapTuning(n_steps=n_steps, batch_size=16, seed=SEED)
    for name, start in starts.items():
        yield name, start
        tuned = tune_map(start, models, (ours, theirs), settings, SilentProgress())
        yield f"{name}, {n_steps} steps", measured_again(tuned, pairs, ends)


def line(target: str, name: str, fitted: FittedMap, direction: Direction, n_test: int) -> str:
    """Carries a direction through a map and returns what came of it, for people."""
    swap = next(
        m
        for m in isthmus.evaluate(target, isthmus.transfer(direction, fitted), n_test=n_test)
        if (m.condition, m.metric) == ("transferred", "swap")
    )
    told = fitted.provenance.get("downstream", {})
    tuned = f", KL {told['kl_before']:.4f} to {told['kl_after']:.4f}" if told else ""
    return (
        f"{target} {fitted.target_sites[0]}, {name}: "
        f"held-out R2 {fitted.quality.r2_held_out:.3f}, "
        f"swap {swap.value:.3f} [{swap.ci_low:.3f}, {swap.ci_high:.3f}] (n = {swap.n}){tuned}"
    )


def main() -> None:
    """Measures one target site and prints a line for each map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="base of an organism: qwen2, gemma2, llama-large")
    parser.add_argument("site", type=int, help="layer of the target")
    parser.add_argument("--steps", type=int, default=100, help="of the fine-tune")
    parser.add_argument("--n-test", type=int, default=96, help="test questions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    target = f"organism:{given.target}-backdoor"
    train = read_splits(make_config({"source": SOURCE, "targets": [target]})).train
    with tempfile.TemporaryDirectory() as place:
        contrast = Path(place) / "contrast.jsonl"
        pairs = [{"positive": one.triggered, "negative": one.clean} for one in train]
        contrast.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
        direction = isthmus.learn_direction(SOURCE, contrast, positions="last:3")
    for name, fitted in fitted_maps(target, given.site, map_texts(train), given.steps):
        print(line(target, name, fitted, direction, given.n_test), flush=True)


if __name__ == "__main__":
    main()
