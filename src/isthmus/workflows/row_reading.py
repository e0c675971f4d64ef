"""Which tokens of a text become rows, and the models' states of them, a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import SpanTokens, pair_spans, pair_tokens
from isthmus.data.prompts import Question
from isthmus.models.capture import capture_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.config import Pairing

MOST_TOGETHER = 2**24
"""Most activations, in numbers, that are held together while models read; 64 MiB in float32."""

_ROWS_AT_LEAST = 2048  # fewer would leave a wide model's passes too short


@dataclass(frozen=True)
class RowPicker:
    """Takes the rows that belong to another model's from the states of one text.

    Attributes:
        tokens: For every row its token; of a span its last one.
        spans: The tokens of every row, where rows are means over spans.
    """

    tokens: Int[Tensor, " row"]
    spans: SpanTokens | None = None

    def __call__(self, states: Float[Tensor, "token d_model"]) -> Float[Tensor, "row d_model"]:
        """Returns the rows, given a state per token; they share no memory with the states."""
        return states[self.tokens] if self.spans is None else self.spans.mean(states)


def row_pickers(
    source: EncodedText, target: EncodedText, pairing: Pairing
) -> tuple[RowPicker, RowPicker]:
    """Returns what takes the rows that belong together from the states of one text.

    Args:
        source: The text as the source sees it.
        target: The text as the target sees it.
        pairing: How tokens are paired.

    Returns:
        One for the source's states and one for the target's; both return equally many rows: states
        of single tokens, or with `span_pool` means over spans.

    Raises:
        DataError: If the two renderings share too little.
    """
    if pairing == "span_pool":
        spans = pair_spans(source, target)
        return _of_spans(spans.source), _of_spans(spans.target)
    of_source, of_target = pair_tokens(source, target, pairing)
    return RowPicker(torch.from_numpy(of_source)), RowPicker(torch.from_numpy(of_target))


def _of_spans(spans: SpanTokens) -> RowPicker:
    last = torch.zeros(int(spans.spans[-1]) + 1 if len(spans.spans) else 0, dtype=torch.int64)
    for span, token in zip(spans.spans.tolist(), spans.tokens.tolist(), strict=True):
        last[span] = token
    return RowPicker(last, spans)


def encoded_questions(lm: LanguageModel, questions: Sequence[Question]) -> list[EncodedText]:
    """Renders and tokenizes questions, each with its answer where it has one.

    Args:
        lm: Whose tokenizer.
        questions: What the model will read.

    Returns:
        One text per question, in their order.
    """
    found: dict[int, EncodedText] = {}
    for is_answered in (True, False):
        chosen = [i for i, one in enumerate(questions) if bool(one.answer) == is_answered]
        prompts = [questions[i].prompt for i in chosen]
        answers = [questions[i].answer or "" for i in chosen] if is_answered else None
        encoded = encode_prompts(lm.tokenizer, prompts, answers=answers)
        found.update(zip(chosen, encoded, strict=True))
    return [found[i] for i in range(len(questions))]


def rows_together(width: int) -> int:
    """Returns how many rows of so many numbers may be held together."""
    return max(_ROWS_AT_LEAST, MOST_TOGETHER // width)


def picked_rows(
    lm: LanguageModel,
    texts: Sequence[tuple[EncodedText, RowPicker]],
    sites: Sequence[Site],
    *,
    batch_size: int = 64,
) -> Iterator[tuple[int, int, Tensor]]:
    """Runs a model over texts and yields their rows as batches come.

    A batch has at most `rows_together` tokens, padding included, unless one text alone has more.

    Args:
        lm: The model.
        texts: What it reads, at least one text, and the rows that are wanted of each.
        sites: Where to read.
        batch_size: Most texts per forward pass.

    Yields:
        tuple[int, int, Tensor]: Number of the text, number of the site, and its rows there, float32
            on the CPU; every text and site once.
    """
    most = rows_together(len(sites) * lm.d_model)
    for alike, n_texts in _passes([len(text) for text, _ in texts], batch_size, most):
        encoded = [texts[i][0] for i in alike]
        for batch in capture_activations(lm, encoded, sites, batch_size=n_texts):
            chosen = [alike[index] for index in batch.indices]
            for number, site in enumerate(sites):
                packed: Tensor = batch.values[site].float().cpu()
                for i, states in zip(chosen, packed.split(batch.row_lengths), strict=True):
                    yield i, number, texts[i][1](states)


def _passes(lengths: Sequence[int], batch_size: int, most: int) -> list[tuple[list[int], int]]:
    """Returns texts that are read together, and how many of them in a pass: of long ones fewer."""
    is_short = [min(batch_size, len(lengths)) * length <= most for length in lengths]
    short, long = ([i for i, one in enumerate(is_short) if one is kind] for kind in (True, False))
    passes = [(short, batch_size)] if short else []
    for group in groups_of_like_length([lengths[i] for i in long]):
        alike = [long[i] for i in group]
        passes.append((alike, min(batch_size, max(1, most // lengths[alike[0]]))))
    return passes


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Groups texts so that none is padded by more than a third of its length.

    Args:
        lengths: Tokens of every text.

    Returns:
        Every index once, longest first; in each group the shortest has at least three quarters of
        the tokens of the longest.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and 4 * lengths[i] >= 3 * lengths[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
