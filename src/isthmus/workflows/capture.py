"""`capture`: reads a model's activations over a file of prompts and keeps them."""

from pathlib import Path

import torch

from isthmus.core.artifacts import write_artifact
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import package_versions
from isthmus.core.sites import Site
from isthmus.data.prompts import read_questions
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.config import Dtype

KIND = "activations"


def capture(
    model: str,
    prompts: str | Path,
    *,
    out: str | Path,
    sites: str | tuple[Site | str | int | float, ...] = "all",
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Path:
    """Writes the activations of every token of every prompt at the given sites.

    The artifact holds one tensor per site, `[token d_model]` in float32 with the prompts one below
    the other, and for every token its prompt (`prompt_index`), id (`token_ids`) and the character
    where it ends in the rendered text (`ends`).

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `prompt` (and `answer`, which is then read too), or one prompt per line.
        out: Folder to write.
        sites: `all`, or sites such as `resid_post[3]`, `3`, `0.6`.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        progress: Who shows progress.

    Returns:
        The folder.

    Raises:
        IsthmusError: If the model, a site, the prompts or the place cannot be used.
    """
    lm = load_language_model(model, dtype=dtype, device=device)
    wanted = lm.sites(sites)
    questions = read_questions(Path(prompts))
    texts = [
        text
        for question in questions
        for text in encode_prompts(
            lm.tokenizer,
            [question.prompt],
            answers=None if question.answer is None else [question.answer],
        )
    ]
    with (progress or SilentProgress()).stage("capture", len(texts)) as advance:
        read = all_token_activations(lm, texts, wanted, batch_size=batch_size, on_batch=advance)
    tensors = {str(site): torch.cat(rows) for site, rows in read.items()}
    lengths = torch.tensor([len(text) for text in texts])
    tensors["prompt_index"] = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    tensors["token_ids"] = torch.tensor([i for text in texts for i in text.token_ids])
    tensors["ends"] = torch.tensor([end for text in texts for end in text.ends])
    fields = {
        "model": lm.identity.to_json(),
        "sites": [str(site) for site in wanted],
        "texts": [text.text for text in texts],
        "versions": package_versions(),
    }
    write_artifact(Path(out), KIND, fields, tensors)
    return Path(out)
