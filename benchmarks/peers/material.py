"""What every library is given, as files: a model, prompts of mixed length, a steering vector."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.peers.run_isthmus import FIRST_CHARACTER
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from isthmus.core.artifacts import write_json

PAD_ID, EOS_ID = 0, 1
N_SPECIAL = 2

# Fields that transformers 4 and 5 call differently.
_OLD_FIELDS: Mapping[str, Any] = {
    "torch_dtype": "float32",
    "rope_theta": 10000.0,
    "rope_scaling": None,
}


@dataclass(frozen=True)
class Material:
    """How large everything is.

    Attributes:
        name: What results are called.
        n_layers: Decoder blocks.
        d_model: Width of the residual stream; a multiple of 64, or of 16 below 64.
        n_vocab: Tokens.
        n_prompts: Prompts that are captured.
        lengths: Tokens of the shortest and the longest of them.
        batch_size: Prompts captured at once.
        n_steered: Prompts that are continued at once.
        steered_length: Tokens of each of them.
        n_new: Tokens that are added.
        n_repeats: Rounds.
    """

    name: str
    n_layers: int
    d_model: int
    n_vocab: int
    n_prompts: int
    lengths: tuple[int, int]
    batch_size: int
    n_steered: int
    steered_length: int
    n_new: int
    n_repeats: int

    @property
    def layers(self) -> dict[str, int]:
        """Where is captured, by name."""
        return {"middle": (self.n_layers - 1) // 2, "last": self.n_layers - 1}


FULL = Material("peers", 12, 512, 3400, 24, (8, 256), 8, 8, 24, 48, 7)
"""What is reported."""

QUICK = Material("quick-peers", 4, 128, 500, 16, (8, 64), 8, 4, 8, 12, 3)
"""For trying things out."""


def mixed_lengths(material: Material, generator: torch.Generator) -> list[int]:
    """Draws lengths whose logarithm is uniform: many short prompts, few long ones.

    Args:
        material: Shortest, longest and how many.
        generator: Source of randomness.

    Returns:
        Lengths in tokens; the first is the longest possible.
    """
    low, high = (math.log(length) for length in material.lengths)
    shares = torch.rand(material.n_prompts, generator=generator).tolist()
    shares[0] = 1.0
    return [round(math.exp(low + share * (high - low))) for share in shares]


def write_material(folder: Path, material: Material, seed: int) -> None:
    """Writes `model/`, `setting.json` and `vector.safetensors`.

    Args:
        folder: Where to; made if it is not there.
        material: Sizes.
        seed: Decides weights, prompts and vector.
    """
    generator = torch.Generator().manual_seed(seed)
    _write_model(folder / "model", material, generator)
    mixed = [_prompt(material, n, generator) for n in mixed_lengths(material, generator)]
    steered = [
        _prompt(material, material.steered_length, generator) for _ in range(material.n_steered)
    ]
    setting = {
        "corpora": {"mixed": mixed, "sorted": sorted(mixed, key=len, reverse=True)},
        "batch_size": material.batch_size,
        "steered": steered,
        "n_new": material.n_new,
        "layer": material.layers["middle"],
    }
    write_json(folder / "setting.json", setting)
    # Larger than typical activations of a random model, so that what comes out changes.
    vector = torch.randn(material.d_model, generator=generator)
    save_file({"vector": vector}, folder / "vector.safetensors")


def _prompt(material: Material, n_tokens: int, generator: torch.Generator) -> list[int]:
    drawn = torch.randint(N_SPECIAL, material.n_vocab, (n_tokens,), generator=generator)
    ids: list[int] = drawn.tolist()
    return ids


def _write_model(folder: Path, material: Material, generator: torch.Generator) -> None:
    config = LlamaConfig(
        vocab_size=material.n_vocab,
        hidden_size=material.d_model,
        intermediate_size=material.d_model * 11 // 4,
        num_hidden_layers=material.n_layers,
        num_attention_heads=max(2, material.d_model // 64),
        num_key_value_heads=max(1, material.d_model // 128),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = LlamaForCausalLM(config)
        # Logit 0, below the largest of all others, so that every completion has the same length.
        network.lm_head.weight[[PAD_ID, EOS_ID]] = 0
    network.save_pretrained(folder)
    character_tokenizer(material.n_vocab).save_pretrained(folder)
    for name, fields in (
        ("config.json", _OLD_FIELDS),
        # transformers 4 has no class of the name that transformers 5 writes.
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        written = json.loads((folder / name).read_text(encoding="utf-8"))
        write_json(folder / name, {**written, **fields})


def character_tokenizer(n_vocab: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that writes every token as one character of its own.

    Args:
        n_vocab: Tokens.

    Returns:
        A fast tokenizer whose texts say which tokens they are.
    """
    vocab = {chr(FIRST_CHARACTER + i): i for i in range(n_vocab)}
    unknown = chr(FIRST_CHARACTER + PAD_ID)
    backend = Tokenizer(models.WordLevel(vocab, unk_token=unknown))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=unknown,
        eos_token=chr(FIRST_CHARACTER + EOS_ID),
        unk_token=unknown,
    )
