"""What a model holds of prompts that it read unedited, kept for many edited generations."""

from collections.abc import Sequence

import torch

from isthmus.core.edits import PlacedEdit
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.decoding import can_drop_rows, read_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.row_cache import Held


class PromptMemory:
    """Keys and values of prompts, so that a generation reads them from the first edit on only.

    Nothing before the first edited token of a batch depends on the edits. Each batch is read whole
    and unedited once; as long as the memory lives its keys and values are kept, and the model must
    not be changed. Edits must do to a position what they do whatever positions a pass holds:
    Gaussian noise is drawn for the shape of a pass and comes out another.

    Args:
        lm: The model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._kept: dict[tuple[EncodedText, ...], Held] = {}

    def before(self, batch: TokenBatch, placed: Sequence[PlacedEdit]) -> Held | None:
        """Returns keys and values of the columns before the first one that is edited.

        Args:
            batch: Texts padded on the left.
            placed: What is done to them.

        Returns:
            One pair per layer; None where the first column is edited or the model keeps more than
            keys and values. The last column is never among them, as what follows it has to be
            predicted.
        """
        if not can_drop_rows(self.lm):
            return None
        edited = [one.given.any(0).nonzero() for one in placed]
        firsts = [int(columns[0, 0]) for columns in edited if len(columns)]
        n_before = min([batch.token_ids.shape[1] - 1, *firsts])
        if not n_before:
            return None
        if batch.texts not in self._kept:
            self._kept[batch.texts] = self._read(batch)
        return [(k[:, :, :n_before], v[:, :, :n_before]) for k, v in self._kept[batch.texts]]

    @torch.inference_mode()
    def _read(self, batch: TokenBatch) -> Held:
        rows, _ = read_prompts(self.lm, batch)
        return rows.held()
