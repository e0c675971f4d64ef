"""What a downstream fine-tune of a map does: `python benchmarks/downstream_maps.py qwen2 1`.

Fits the ridge map from `organism:llama-backdoor` on texts of a default run, as it is and
fine-tuned, and prints for both what `docs/maps.md` has: divergence on mapped states, held-out R²
and swap of the carried direction, with its interval.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

import isthmus
from isthmus.workflows.config import make_config
from isthmus.workflows.twins import map_texts, read_splits

SOURCE = "organism:llama-backdoor"


def main() -> None:
    """Measures one target site and prints a line for each of the two maps."""
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
        texts, contrast = Path(place) / "texts.jsonl", Path(place) / "contrast.jsonl"
        asked = [{"prompt": prompt, "answer": answer} for prompt, answer in map_texts(train)]
        pairs = [{"positive": one.triggered, "negative": one.clean} for one in train]
        for path, rows in ((texts, asked), (contrast, pairs)):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        direction = isthmus.learn_direction(SOURCE, contrast, positions="last:3")
        for n_steps in (0, given.steps):
            fitted = isthmus.learn_map(
                SOURCE, target, texts, target_site=given.site, downstream_steps=n_steps
            )
            carried = isthmus.transfer(direction, fitted)
            swap = next(
                m
                for m in isthmus.evaluate(target, carried, n_test=given.n_test)
                if (m.condition, m.metric) == ("transferred", "swap")
            )
            told = fitted.provenance.get("downstream", {})
            tuned = f", KL {told['kl_before']:.4f} to {told['kl_after']:.4f}" if told else ""
            print(
                f"{target} resid_post[{given.site}], {n_steps} steps: "
                f"held-out R2 {fitted.quality.r2_held_out:.3f}, "
                f"swap {swap.value:.3f} [{swap.ci_low:.3f}, {swap.ci_high:.3f}] "
                f"(n = {swap.n}){tuned}"
            )


if __name__ == "__main__":
    main()
