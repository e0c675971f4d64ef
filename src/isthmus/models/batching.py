"""Cuts texts into padded batches that a model can read."""

from collections.abc import Callable, Iterator, Sequence

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText, Side, TokenBatch, length_buckets, pad_batch
from isthmus.models.language_model import LanguageModel
from isthmus.models.padding import reads_padded
from isthmus.models.rotary_limits import limit_within, read_alike

PlaceEdits = Callable[[TokenBatch], Sequence[PlacedEdit]]
"""Says what to edit in one padded batch."""

OnBatch = Callable[[int], None]
"""Is told after every batch how many texts it held."""


def no_edits(_batch: TokenBatch) -> Sequence[PlacedEdit]:
    """Edits nothing."""
    return ()


def ignore(_n_texts: int) -> None:
    """Takes no notice of progress."""


def check_texts(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    batch_size: int,
    *,
    n_new: int = 0,
    first: int = 0,
) -> None:
    """Refuses texts that a model cannot read.

    Args:
        lm: The model.
        texts: What it is to read.
        batch_size: Texts per batch, at least 1.
        n_new: Tokens that will be generated after each text.
        first: Number of the first of them, for the message.

    Raises:
        ConfigError: If `batch_size` is below 1.
        DataError: If there is no text, or one is empty or too long.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    if not texts:
        raise DataError("no texts given: give at least one")
    most = lm.n_positions
    for index, text in enumerate(texts, start=first):
        if not len(text):
            raise DataError(f"text {index} has no tokens: leave it out")
        if most is not None and len(text) + n_new > most:
            raise DataError(
                f"text {index} needs {len(text) + n_new} positions, {lm.identity.name} has "
                f"{most}: shorten it"
            )


def check_open(lm: LanguageModel, prompts: Sequence[EncodedText]) -> None:
    """Refuses to continue prompts whose answer has ended.

    Args:
        lm: The model.
        prompts: What is to be continued.

    Raises:
        DataError: If one carries an answer and an end token behind it.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) > prompt.n_prompt and prompt.token_ids[-1] in lm.eos_ids:
            raise DataError(
                f"prompt {index} already ends with an answer and an end token: "
                "encode it without an answer"
            )


def check_one_reading(lm: LanguageModel, texts: Sequence[EncodedText], n_new: int) -> None:
    """Refuses to continue texts at a length from which on a model reads all their tokens anew.

    Args:
        lm: The model.
        texts: What is to be continued.
        n_new: Most tokens that each of them gets.

    Raises:
        DataError: If one comes to such a length.
    """
    for index, text in enumerate(texts):
        most = limit_within(lm, len(text), n_new)
        if most is not None:
            raise DataError(
                f"text {index} has {len(text)} tokens, and beyond {most} {lm.identity.name} turns "
                "the positions of all tokens at another rate (LongRoPE): ask for fewer new "
                "tokens, or use generate_greedy"
            )


def padded_batches(
    lm: LanguageModel,
    texts: Sequence[EncodedText],
    side: Side,
    batch_size: int,
    *,
    pass_cost: int | None = None,
    n_new: int = 0,
) -> Iterator[tuple[tuple[int, ...], TokenBatch]]:
    """Yields batches of texts of like length, with their indices.

    Texts that a model would read otherwise beside each other than alone are never put together.

    Args:
        lm: The model that will read them.
        texts: What to read.
        side: Where the padding goes.
        batch_size: Most texts in one batch.
        pass_cost: What a pass costs beside its tokens, in tokens, if batches are to be cut for it.
        n_new: Most tokens that will be generated after each text.

    Yields:
        tuple[tuple[int, ...], TokenBatch]: Indices of the texts, and the texts padded to the
            longest of them.
    """
    every = [len(text) for text in texts]
    for group in _groups(lm, every, n_new, is_padded_before=side == "left" and batch_size > 1):
        lengths = [len(texts[i]) for i in group]
        for bucket in length_buckets(lengths, batch_size, pass_cost=pass_cost):
            indices = [group[i] for i in bucket]
            yield tuple(indices), pad_batch([texts[i] for i in indices], lm.pad_id, side, indices)


def _groups(
    lm: LanguageModel, lengths: Sequence[int], n_new: int, *, is_padded_before: bool
) -> Iterator[list[int]]:
    for group in read_alike(lm, lengths, n_new):
        own = {lengths[index] for index in group}
        if not is_padded_before or len(own) == 1 or reads_padded(lm):
            yield group
            continue
        for length in sorted(own, reverse=True):
            yield [index for index in group if lengths[index] == length]
