"""Which part of a batch forward passes still compute, when rows have left it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LiveRows:
    """The rows of a batch that are still run, in their order.

    Edits are placed on whole batches, and may do something else in every row: what is left of a
    batch is spread over all its rows before they see it.

    Attributes:
        n_rows: Rows of the whole batch.
        rows: Those that are still run.
        index: The same as a tensor.
        n_cut: First columns that nothing holds any more, as they were padding in all these rows.

    Args:
        n_rows: Rows of the batch.
        device: Where `index` is kept, the CPU when not given.
    """

    n_rows: int
    rows: list[int]
    index: Int[Tensor, " live"]
    n_cut: int

    def __init__(self, n_rows: int, device: torch.device | None = None) -> None:
        self.n_rows = n_rows
        self.index = torch.arange(n_rows, device=device)
        self.rows = list(range(n_rows))
        self.n_cut = 0

    @property
    def is_whole(self) -> bool:
        """Whether no row has left."""
        return len(self.rows) == self.n_rows

    @property
    def mask(self) -> Bool[Tensor, " batch"]:
        """True for rows that are still run; on the CPU."""
        kept = set(self.rows)
        return torch.tensor([row in kept for row in range(self.n_rows)])

    def keep(self, places: Sequence[int], n_cut: int = 0) -> None:
        """Lets all other rows leave.

        Args:
            places: Which of those that are still run stay.
            n_cut: How many first columns leave with them.
        """
        self.n_cut += n_cut
        self.rows = [self.rows[place] for place in places]
        self.index = torch.tensor(self.rows, dtype=torch.long, device=self.index.device)

    def spread(self, live: Float[Tensor, "live pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Returns activations of all rows: zeros for those that have left.

        Args:
            live: Activations of the rows that are still run.

        Returns:
            A new tensor.
        """
        whole = live.new_zeros(self.n_rows, *live.shape[1:])
        return whole.index_copy_(0, self.index.to(live.device), live)

    def gathered(
        self, whole: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "live pos d_model"]:
        """Returns activations of the rows that are still run.

        Args:
            whole: Activations of all rows.

        Returns:
            A new tensor.
        """
        return whole.index_select(0, self.index.to(whole.device))
