"""What kind a pair of models is of, told from their files without loading weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from isthmus.core.errors import IsthmusError
from isthmus.evaluation.paper_rows import PairKind
from isthmus.models.language_model import LOAD_ERRORS
from isthmus.models.organisms import organism_folder
from isthmus.workflows.config import RunConfig

_ORGANISM = "organism:"
_MUCH_LARGER = 5.0

_PAPERS_LARGE = ("llama-3.2-3b", "llama-3.1-8b")
"""In the names of what the paper calls small and large, where the ratio is 2.5."""


def kinds_of_pairs(given: Sequence[RunConfig]) -> dict[tuple[str, str], PairKind]:
    """Returns the kind of every pair of models whose files are on this machine.

    Tokenizers are the same when their vocabularies are, tokens aside that were added later.

    Args:
        given: Configurations.

    Returns:
        Kinds by source and target; a pair that was never downloaded is left out.
    """
    kinds: dict[tuple[str, str], PairKind] = {}
    for config in given:
        for target in config.targets:
            kind = _kind_of(config.source, target)
            if kind is not None:
                kinds[config.source, target] = kind
    return kinds


def _kind_of(source: str, target: str) -> PairKind | None:
    try:
        words = [_vocabulary(name) for name in (source, target)]
        small, large = (_n_parameters(name) for name in (source, target))
    except (IsthmusError, *LOAD_ERRORS):
        # What cannot be read was not measured either, and its part says why.
        return None
    if words[0] != words[1]:
        return "other tokenizer"
    named = zip(_PAPERS_LARGE, (source, target), strict=True)
    is_papers = all(part in name.lower() for part, name in named)
    return "small to large" if is_papers or large >= _MUCH_LARGER * small else "same tokenizer"


def _folder(name: str) -> str:
    if name.startswith(_ORGANISM):
        return str(organism_folder(name.removeprefix(_ORGANISM)))
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def _vocabulary(name: str) -> dict[str, int]:
    kind: Any = PreTrainedTokenizerFast if name.startswith(_ORGANISM) else AutoTokenizer
    read: PreTrainedTokenizerBase = kind.from_pretrained(
        _folder(name), trust_remote_code=False, local_files_only=True
    )
    added = read.get_added_vocab()
    return {word: index for word, index in read.get_vocab().items() if word not in added}


def _n_parameters(name: str) -> int:
    config = AutoConfig.from_pretrained(
        _folder(name), trust_remote_code=False, local_files_only=True
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return sum(one.numel() for one in model.parameters())
