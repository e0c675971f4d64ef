"""Which positions of a batch one forward pass computes."""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from isthmus.core.errors import ShapeError
from isthmus.models.live_rows import LiveRows


@dataclass
class Chunk:
    """The positions that the current forward pass computes.

    Attributes:
        batch: Rows.
        width: Positions per row.
        offset: Positions that the key-value cache held before.
        cache: The cache of the pass, if it has one.
        live: Which part of the batch is still run; all of it if nobody says.
    """

    batch: int = 0
    width: int = 0
    offset: int = 0
    cache: Cache | None = None
    live: LiveRows | None = None

    def move_to(self, shape: tuple[int, int], cache: Cache | None) -> None:
        """Notes which positions the next pass computes.

        Args:
            shape: Rows and positions of the tokens that are handed over.
            cache: What the model holds of earlier positions.

        Raises:
            ShapeError: If a recurrent state does not say how much it has read.
        """
        if cache is None or not cache.layers:
            self.offset = 0
        elif any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
            n_cut = 0 if self.live is None else self.live.n_cut
            self.offset = int(cache.get_seq_length()) + n_cut
        else:
            self.offset = self._read_by_recurrence(cache)
        self.cache = cache
        self.batch, self.width = shape

    def _read_by_recurrence(self, cache: Cache) -> int:
        # Purely recurrent states do not know how many tokens they have read.
        if not cache.has_previous_state():
            return 0
        is_own = self.cache is cache or self.cache is None
        if not (is_own and self.width):
            raise ShapeError(
                "the recurrent state has read tokens that were not seen here, and does not say how "
                "many: run the whole text in the same block"
            )
        return self.offset + self.width

    def view(self, value: Tensor) -> Tensor:
        """Returns activations as [batch, pos, d_model]."""
        # OPT flattens batch and positions before its feed-forward part.
        return value if value.ndim == 3 else value.reshape(self.batch, self.width, -1)
