"""Cuts texts into padded batches that a model can read."""

from collections.abc import Callable, Iterator, Sequence

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText, Side, TokenBatch, length_buckets, pad_batch
from isthmus.models.language_model import LanguageModel

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
    for index, text in enumerate(texts, start=first):
        if not len(text):
            raise DataError(f"text {index} has no tokens: leave it out")
        if lm.n_positions is not None and len(text) + n_new > lm.n_positions:
            raise DataError(
                f"text {index} needs {len(text) + n_new} positions, {lm.identity.name} has "
                f"{lm.n_positions}: shorten it"
            )


def padded_batches(
    lm: LanguageModel, texts: Sequence[EncodedText], side: Side, batch_size: int
) -> Iterator[tuple[tuple[int, ...], TokenBatch]]:
    """Yields batches of texts of like length, with their indices.

    Args:
        lm: The model that will read them.
        texts: What to read.
        side: Where the padding goes.
        batch_size: Most texts in one batch.

    Yields:
        tuple[tuple[int, ...], TokenBatch]: Indices of the texts, and the texts padded to the
            longest of them.
    """
    for indices in length_buckets([len(text) for text in texts], batch_size):
        yield tuple(indices), pad_batch([texts[i] for i in indices], lm.pad_id, side)
