"""What a model holds of prompts that it read unedited, kept for many edited generations."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from isthmus.core.edits import BatchEdit, PlacedEdit, depends_on_shape
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.models.decoding import can_drop_rows, read_prompts
from isthmus.models.language_model import LanguageModel
from isthmus.models.row_cache import Held


class PromptMemory:
    """Keys and values of prompts, so that a generation reads them from the first edit on only.

    Nothing before the first edited token of a batch depends on the edits. Each batch is read whole
    and unedited once; as long as the memory lives its keys and values are kept, and the model must
    not be changed. Noise is drawn for the shape of a pass: with it a prompt is read whole.

    Args:
        lm: The model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._kept: dict[tuple[EncodedText, ...], Held] = {}

    def start(
        self, batch: TokenBatch, placed: Sequence[PlacedEdit]
    ) -> tuple[Held, list[PlacedEdit]]:
        """Returns keys and values of the columns before the first one that is edited.

        Args:
            batch: Texts padded on the left.
            placed: What is done to them.

        Returns:
            One pair per layer, and the edits for a pass over the other columns. No pair where the
            first column is edited, an edit depends on the shape of a pass, or the model keeps more
            than keys and values. The last column is never among those that are kept, as what
            follows it has to be predicted.
        """
        n_before = self._n_before(batch, placed)
        if not n_before:
            return [], list(placed)
        if batch.texts not in self._kept:
            self._kept[batch.texts] = self._read(batch)
        held = [(k[:, :, :n_before], v[:, :, :n_before]) for k, v in self._kept[batch.texts]]
        return held, [_from_column(one, n_before) for one in placed]

    def _n_before(self, batch: TokenBatch, placed: Sequence[PlacedEdit]) -> int:
        if not can_drop_rows(self.lm) or any(depends_on_shape(one.edit) for one in placed):
            return 0
        edited = [one.given.any(0).nonzero() for one in placed]
        firsts = [int(columns[0, 0]) for columns in edited if len(columns)]
        return min([batch.token_ids.shape[1] - 1, *firsts])

    @torch.inference_mode()
    def _read(self, batch: TokenBatch) -> Held:
        rows, _ = read_prompts(self.lm, batch)
        return rows.held()


def _from_column(placed: PlacedEdit, start: int) -> PlacedEdit:
    edit = placed.edit
    return replace(placed, edit=edit.from_column(start)) if isinstance(edit, BatchEdit) else placed
