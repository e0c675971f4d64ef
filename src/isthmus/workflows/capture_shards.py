"""Captures as shards: a worker reads the activations of some prompts.

Prompts are cut every `PROMPTS_PER_SHARD`, whoever computes them: which texts share a batch decides
the last bits of their activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.core.artifacts import write_artifact
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.data.prompts import Question
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.engines.jobs import Job, Json, Shard

KIND = "activations"
PROMPTS_PER_SHARD = 256

_WORKER = f"{__name__}:CaptureWorker"


def capture_job(
    questions: Sequence[Question], settings: dict[str, Any], sites: str | tuple[Any, ...]
) -> Job:
    """Returns the reading of prompts, some at a time.

    Args:
        questions: Prompts, with answers where those are read, too.
        settings: `model`, `dtype`, `device`, `batch_size`.
        sites: Sites in any spelling.

    Returns:
        The job; its workers leave an artifact of activations per shard.
    """
    spelled = sites if isinstance(sites, str) else [_spelled(one) for one in sites]
    shards = []
    for start in range(0, len(questions), PROMPTS_PER_SHARD):
        here = questions[start : start + PROMPTS_PER_SHARD]
        asked = {"start": start, "turns": [[one.prompt, one.answer] for one in here]}
        label = f"prompts {start} to {start + len(here) - 1}"
        shards.append(Shard(asked, label, n_units=len(here)))
    return Job("capture", _WORKER, {**settings, "sites": spelled}, tuple(shards))


def _spelled(site: Any) -> Json:
    return str(site) if isinstance(site, Site) else site


@dataclass
class CaptureWorker:
    """Reads activations; loads the model once.

    Attributes:
        settings: `model`, `dtype`, `device`, `batch_size` and `sites`.
        progress: Who shows progress.
    """

    settings: Json
    progress: Progress

    @cached_property
    def _lm(self) -> LanguageModel:
        names = ("dtype", "device")
        name = self.settings["model"]
        return load_language_model(name, **{one: self.settings[one] for one in names})

    def work(self, asked: Json, place: Path) -> Json:
        """Reads the activations of every token of some prompts.

        Args:
            asked: `turns` of prompt and answer or null, and the number of the first one, `start`.
            place: Receives the artifact.

        Returns:
            The model's identity and the sites.
        """
        sites = self._lm.sites(self.settings["sites"])
        texts = [
            text
            for prompt, answer in asked["turns"]
            for text in encode_prompts(
                self._lm.tokenizer, [prompt], answers=None if answer is None else [answer]
            )
        ]
        read = all_token_activations(self._lm, texts, sites, batch_size=self.settings["batch_size"])
        tensors: dict[str, Tensor] = {str(site): torch.cat(rows) for site, rows in read.items()}
        lengths = torch.tensor([len(text) for text in texts])
        numbers = torch.arange(len(texts)) + asked["start"]
        tensors["prompt_index"] = torch.repeat_interleave(numbers, lengths)
        tensors["token_ids"] = torch.tensor([i for text in texts for i in text.token_ids])
        tensors["ends"] = torch.tensor([end for text in texts for end in text.ends])
        fields = {
            "model": self._lm.identity.to_json(),
            "sites": [str(site) for site in sites],
            "texts": [text.text for text in texts],
        }
        write_artifact(place, KIND, fields, tensors)
        return {"n_texts": len(texts)}
