"""What the distributions over next tokens say of answers, for several copies of texts at once."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from isthmus.core.texts import EncodedText


def answer_ids(texts: Sequence[EncodedText], device: torch.device) -> Int[Tensor, " token"]:
    """Returns the answer tokens of all texts, one text after the other."""
    ids = [one for text in texts for one in text.token_ids[text.n_prompt :]]
    return torch.tensor(ids, device=device)


def answer_lengths(texts: Sequence[EncodedText]) -> list[int]:
    """Returns how many answer tokens every text has."""
    return [len(text) - text.n_prompt for text in texts]


def answer_losses(
    logprobs: Float[Tensor, "copy token vocab"], texts: Sequence[EncodedText]
) -> Float[Tensor, "copy text"]:
    """Returns the mean negative log-likelihood per answer token.

    Args:
        logprobs: log p(every token) where answer tokens are predicted, text after text.
        texts: Prompts with answers.

    Returns:
        Losses in nats, on the CPU.
    """
    ids = answer_ids(texts, logprobs.device)
    return answer_means(
        -logprobs.gather(2, ids.expand(len(logprobs), -1)[..., None])[..., 0], texts
    )


def answer_means(
    values: Float[Tensor, "copy token"], texts: Sequence[EncodedText]
) -> Float[Tensor, "copy text"]:
    """Returns means over the answer tokens of every text, on the CPU."""
    lengths = torch.tensor(answer_lengths(texts))
    owner = torch.arange(len(lengths)).repeat_interleave(lengths).to(values.device)
    sums = values.new_zeros(len(values), len(lengths)).index_add(1, owner, values)
    return (sums / lengths.to(values.device)).float().cpu()


def fork_of(text: EncodedText, rival: EncodedText) -> int:
    """Returns the first answer token in which two texts differ; 0 where one begins the other."""
    own, other = text.token_ids[text.n_prompt :], rival.token_ids[rival.n_prompt :]
    pairs = zip(own, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), 0)


def is_likelier(
    logprobs: Float[Tensor, "copy token vocab"],
    texts: Sequence[EncodedText],
    rivals: Sequence[EncodedText],
) -> Bool[Tensor, "copy text"]:
    """Says whether each answer is likelier than a rival at the first token in which they differ.

    Greedy decoding that has followed both up to there takes the one or the other road here.

    Args:
        logprobs: log p(every token) where answer tokens are predicted, text after text.
        texts: Prompts with answers.
        rivals: The same prompts with other answers.

    Returns:
        True where the answer's token is likelier, on the CPU; False where one answer is or begins
        the other.
    """
    at, own, other = [], [], []
    first = 0
    for text, rival in zip(texts, rivals, strict=True):
        fork = fork_of(text, rival)
        at.append(first + fork)
        own.append(text.token_ids[text.n_prompt + fork])
        other.append(rival.token_ids[rival.n_prompt + fork])
        first += len(text) - text.n_prompt
    found = logprobs[:, at, own] > logprobs[:, at, other]
    return found.cpu()
