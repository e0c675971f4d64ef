"""Measures characters per second of encoding and pairing: `pairing_speed.py --help`.

1. One thread, processor time, the median over rounds; a round takes every variant once.
2. Pairing starts from encoded texts; encoding is that of both models.
3. The tokenizers library alone, on the source's rendered texts, is the floor of encoding.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

# Python puts only this file's folder there; threads are read when tokenizers start.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.results import conditions
from benchmarks.timing import Variant, interleaved_costs, processor_seconds
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from isthmus.core.artifacts import write_json
from isthmus.core.errors import DataError, IsthmusError
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_spans, pair_tokens
from isthmus.data.world import world_examples
from isthmus.models.encoding import encode_prompts
from isthmus.models.tokenizer_training import train_tokenizer

OUT = Path(__file__).resolve().parent / "results" / "pairing-speed.json"
N_CHARACTERS = 20_000

Pair = Sequence[tuple[EncodedText, EncodedText]]


def read_tokenizers(folder: Path | None) -> dict[str, PreTrainedTokenizerBase]:
    """Returns the tokenizers of a folder by name, or two that are trained here."""
    if folder is None:
        prompts = [example.prompt for example in world_examples("train")[:3000]]
        return {kind: train_tokenizer(prompts, kind, 768) for kind in ("byte_level", "metaspace")}
    found = sorted(path.parent for path in folder.glob("*/tokenizer.json"))
    if len(found) < 2:
        raise DataError(f"{len(found)} tokenizers in {folder}: give a folder with at least two")
    return {path.name: AutoTokenizer.from_pretrained(path) for path in found}


def read_texts(path: Path | None, length: int) -> list[str]:
    """Cuts a text, or the questions of the organisms' world, into prompts of one length."""
    text = (
        " ".join(example.prompt for example in world_examples("train"))
        if path is None
        else path.read_text(encoding="utf-8")
    )[:N_CHARACTERS]
    cut = (text[start : start + length].strip() for start in range(0, len(text), length))
    return [one for one in cut if one]


def variants_of(
    tokenizers: Sequence[PreTrainedTokenizerBase], texts: list[str]
) -> dict[str, Variant]:
    """Returns what is timed, by name."""
    pairs = list(zip(*(encode_prompts(one, texts) for one in tokenizers), strict=True))
    return {
        "character_end": partial(_pair_all, pairs, "character_end"),
        "chunk_boundary": partial(_pair_all, pairs, "chunk_boundary"),
        "span_pool": partial(_span_all, pairs),
        "encoding of both": partial(_encode_all, tokenizers, texts),
        "tokenizers library alone": partial(_split_all, tokenizers, [one.text for one, _ in pairs]),
    }


def _pair_all(pairs: Pair, method: Any) -> None:
    for source, target in pairs:
        pair_tokens(source, target, method)


def _span_all(pairs: Pair) -> None:
    for source, target in pairs:
        pair_spans(source, target)


def _encode_all(tokenizers: Sequence[PreTrainedTokenizerBase], texts: list[str]) -> None:
    for one in tokenizers:
        encode_prompts(one, texts)


def _split_all(tokenizers: Sequence[PreTrainedTokenizerBase], texts: list[str]) -> None:
    for one in tokenizers:
        one.backend_tokenizer.encode_batch(texts)


def measured(
    names: tuple[str, str],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    texts: list[str],
    n: int,
) -> dict[str, Any]:
    """Returns characters per second of one pair of tokenizers as JSON values."""
    variants = variants_of([tokenizers[name] for name in names], texts)
    costs = interleaved_costs(variants, n, processor_seconds)
    n_characters = sum(map(len, texts))
    rates = {
        name: {
            "median": round(n_characters / median(found)),
            "low": round(n_characters / max(found)),
            "high": round(n_characters / min(found)),
        }
        for name, found in costs.items()
    }
    both = [a + b for a, b in zip(costs["character_end"], costs["encoding of both"], strict=True)]
    together = round(n_characters / median(both))
    return {
        "source": names[0],
        "target": names[1],
        "n_texts": len(texts),
        "n_characters": n_characters,
        "n": n,
        "characters_per_second": {**rates, "encoding of both and character_end": together},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every pair of tokenizers, writes the JSON file and returns the exit code.

    Args:
        arguments: Command line; that of the process when not given.

    Returns:
        0, or 1 when there is nothing to measure.
    """
    given = _parse(arguments)
    try:
        tokenizers = read_tokenizers(given.tokenizers)
        rows = [
            {
                "length": length,
                **measured(names, tokenizers, read_texts(given.texts, length), given.repeats),
            }
            for length in given.lengths
            for names in combinations(tokenizers, 2)
        ]
        where = conditions({"clock": "processor", "threads": 1, "lengths": given.lengths})
        write_json(given.out, {"conditions": where, "pairs": rows})
    except (IsthmusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for row in rows:
        rates = row["characters_per_second"]
        shown = ", ".join(
            f"{name} {(rate if isinstance(rate, int) else rate['median']) / 1e6:.2f}"
            for name, rate in rates.items()
        )
        print(f"{row['source']} and {row['target']}, {row['length']} characters: {shown} M/s")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures the speed of pairing tokens.")
    parser.add_argument("--tokenizers", type=Path, help="folder of folders with tokenizer.json")
    parser.add_argument("--texts", type=Path, help="UTF-8 text (default: the organisms' world)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000], help="of prompts")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
