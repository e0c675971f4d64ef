"""Scores many interventions on the same texts with as few passes and tokens as they need.

1. What lies before the first edited token, and below the lowest edited block, is read once per list
   of texts and kept (`models/shared_passes.py`).
2. Interventions at one kind of positions are packed: side by side in one batch where they start at
   the same block, or at blocks so near that one pass costs less than two.
3. A model that ends such a pass otherwise than a whole one is run as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import NonFiniteError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import PositionSelector
from isthmus.models.changes import BenignChange
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import last_shared_layer
from isthmus.models.scoring import answer_logprobs, answer_nll
from isthmus.models.shared_passes import (
    SharedBatch,
    SharedTexts,
    answer_logprobs_of_copies,
    is_faithful,
    share,
    whole_logprobs,
)
from isthmus.workflows.answer_scores import (
    answer_ids,
    answer_lengths,
    answer_losses,
    answer_means,
    is_likelier,
)
from isthmus.workflows.cell_packing import (
    by_positions,
    n_edited_in,
    needs_whole_batches,
    pack,
    side_by_side,
)

_MOST_STATES = 2**26
"""Most activations, in numbers, that are kept per list of texts; 256 MiB in float32."""

_MOST_HELD = 2**28
"""Most activations, keys and values of all lists together, before they are read again; 1 GiB."""

_MOST_LOGITS = 2**26
"""Most logits that one pass computes, where it holds several copies."""

_ROWS_PER_PASS = 4
"""How many times `batch_size` rows a pass holds, as in generation: copies share what is kept."""

_PASS_IN_TOKENS = {"cpu": 128, "cuda": 8192}
"""How many tokens through a block cost as much as calling it: below that, passes are joined."""

_EMBEDDINGS = -1


@dataclass(frozen=True)
class CellLosses:
    """How likely answers are under one intervention.

    Attributes:
        nll: Mean negative log-likelihood per answer token, as `answer_nll` gives it.
        n_edited: How many (position, site) pairs were edited.
        turned: Whether the answer is likelier than its rival where the two part; None without.
    """

    nll: Float[Tensor, " text"]
    n_edited: int
    turned: Bool[Tensor, " text"] | None = None


@dataclass(frozen=True)
class _Copies:
    """One pass: interventions side by side, the block it starts above, and what comes out."""

    cells: tuple[int, ...]
    placed: tuple[tuple[PlacedEdit, ...], ...]
    shared: SharedTexts
    number: int
    logprobs: Float[Tensor, "copy token vocab"]

    @property
    def own(self) -> SharedBatch:
        return self.shared.batches[self.number]


@dataclass
class CellPasses:
    """Runs one model under many interventions.

    Attributes:
        lm: The model.
        batch_size: Texts per batch.
    """

    lm: LanguageModel
    batch_size: int
    _kept: dict[tuple[int, str, tuple[int, ...]], tuple[Sequence[EncodedText], SharedTexts]] = (
        field(default_factory=dict)
    )
    _skips_tokens: bool | None = None
    _starts_above: dict[int, bool] = field(default_factory=dict)
    _compared: tuple[SharedTexts, Tensor] | None = None

    def nll(
        self,
        texts: Sequence[EncodedText],
        interventions: Sequence[Intervention],
        rivals: Sequence[EncodedText] | None = None,
    ) -> list[CellLosses]:
        """Scores the answers that texts carry under every intervention.

        Args:
            texts: Prompts with answers.
            interventions: What is done, each in a copy of its own.
            rivals: For every text one with the answer that it should not be given.

        Returns:
            Losses as `answer_nll` gives them, one result per intervention.

        Raises:
            NonFiniteError: If a likelihood is NaN or zero.
        """
        losses = torch.zeros(len(interventions), len(texts))
        turned = torch.zeros(len(interventions), len(texts), dtype=torch.bool)
        n_edited = [0] * len(interventions)
        for copies in self._passes(texts, interventions):
            indices, own = list(copies.own.indices), copies.own.batch.texts
            where = torch.tensor(copies.cells)[:, None], torch.tensor(indices)
            losses[where] = answer_losses(copies.logprobs, own)
            if rivals is not None:
                turned[where] = is_likelier(copies.logprobs, own, [rivals[i] for i in indices])
            for cell, placed in zip(copies.cells, copies.placed, strict=True):
                n_edited[cell] += n_edited_in(placed)
        _require_finite(losses, "the answer's likelihood")
        return [
            CellLosses(row, n, None if rivals is None else likelier)
            for row, n, likelier in zip(losses, n_edited, turned, strict=True)
        ]

    def changes(
        self,
        texts: Sequence[EncodedText],
        interventions: Sequence[Intervention],
        unedited: Sequence[Float[Tensor, "_ vocab"]] | None,
    ) -> list[BenignChange]:
        """Measures what every intervention does to texts that it should leave alone.

        Args:
            texts: Prompts with answers.
            interventions: What is done, each in a copy of its own.
            unedited: Log-probabilities without an edit, one tensor per text; computed beside the
                edited ones when not given.

        Returns:
            Divergence, rightness and loss, one result per intervention; edits are not counted.

        Raises:
            NonFiniteError: If a divergence is NaN or infinite.
        """
        measured = torch.zeros(4, len(interventions), len(texts))
        for copies in self._passes(texts, interventions):
            own, device = copies.own, copies.logprobs.device
            indices = list(own.indices)
            if unedited is None:
                plain = self._unedited(copies)
            else:
                plain = torch.cat([unedited[i] for i in indices]).to(device)
            answers = answer_ids(own.batch.texts, device)
            change = (plain.exp() * (plain - copies.logprobs)).sum(-1).clamp_min(0)
            was_right = (plain.argmax(-1) == answers)[None].expand_as(change)
            is_right = copies.logprobs.argmax(-1) == answers
            means = [
                answer_means(one.float(), own.batch.texts) for one in (change, was_right, is_right)
            ]
            here = torch.stack((*means, answer_losses(copies.logprobs, own.batch.texts)))
            for row, cell in enumerate(copies.cells):
                measured[:, cell, indices] = here[:, row]
        divergence, before, after, nll = measured
        _require_finite(divergence, "the divergence")
        rows = zip(divergence, before == 1, after == 1, nll, strict=True)
        return [BenignChange(*row) for row in rows]

    def prepare(
        self, texts: Sequence[EncodedText], positions: PositionSelector, sites: Sequence[Site]
    ) -> None:
        """Reads and keeps what passes that edit some sites at some positions share.

        Args:
            texts: Prompts with answers.
            positions: Where they will be edited.
            sites: At which sites.
        """
        for site in sites:
            self._start(texts, positions, _layer([site]))

    def unedited_nll(self, texts: Sequence[EncodedText]) -> Float[Tensor, " text"]:
        """Scores the answers that texts carry without an edit.

        Texts that were read for edits cost no pass but the head: their last states are kept.

        Args:
            texts: Prompts with answers.

        Returns:
            Losses as `answer_nll` gives them.

        Raises:
            NonFiniteError: If a likelihood is NaN or zero.
        """
        kept = self._read_to_the_end(texts)
        if kept is None:
            return answer_nll(self.lm, texts, batch_size=self.batch_size).nll
        losses = torch.zeros(len(texts))
        for copies in self._heads(kept):
            losses[list(copies.own.indices)] = answer_losses(
                copies.logprobs, copies.own.batch.texts
            )[0]
        _require_finite(losses[None], "the answer's likelihood")
        return losses

    def unedited_logprobs(self, texts: Sequence[EncodedText]) -> list[Float[Tensor, "_ vocab"]]:
        """Returns log p(every token) where answers are predicted, without an edit.

        Args:
            texts: Prompts with answers; few, as for `answer_logprobs`.

        Returns:
            What `answer_logprobs` returns.
        """
        kept = self._read_to_the_end(texts)
        if kept is None:
            return answer_logprobs(self.lm, texts, batch_size=self.batch_size)
        found: dict[int, Tensor] = {}
        for copies in self._heads(kept):
            own = copies.own
            parts = copies.logprobs[0].cpu().split(answer_lengths(own.batch.texts))
            found.update(zip(own.indices, parts, strict=True))
        return [found[index] for index in range(len(texts))]

    def _read_to_the_end(self, texts: Sequence[EncodedText]) -> SharedTexts | None:
        """Returns texts that were read, where their last states stand for a whole pass."""
        last = self.lm.n_layers - 1
        for own, shared in self._kept.values():
            if own is texts and self._is_faithful(shared, last):
                return shared
        return None

    def _heads(self, shared: SharedTexts) -> Iterator[_Copies]:
        last = self.lm.n_layers - 1
        return (self._head(shared, number, last) for number in range(len(shared.batches)))

    def _head(self, shared: SharedTexts, number: int, layer: int) -> _Copies:
        logprobs = answer_logprobs_of_copies(self.lm, shared, number, 1, (), layer)
        return _Copies((0,), ((),), shared, number, logprobs[None])

    def _unedited(self, copies: _Copies) -> Tensor:
        if self._is_faithful(copies.shared, last := self.lm.n_layers - 1):
            return self._head(copies.shared, copies.number, last).logprobs[0]
        texts = copies.own.batch.texts
        return torch.cat(answer_logprobs(self.lm, texts, batch_size=len(texts))).to(self.lm.device)

    def _passes(
        self, texts: Sequence[EncodedText], interventions: Sequence[Intervention]
    ) -> Iterator[_Copies]:
        for group in by_positions(interventions):
            for cells in self._packed(texts, [(c, interventions[c]) for c in group]):
                own = [interventions[cell] for cell in cells]
                lowest = min(_layer(one.sites) for one in own)
                positions = None if needs_whole_batches(own[0]) else own[0].positions
                shared, layer = self._start(texts, positions, lowest)
                for number in range(len(shared.batches)):
                    yield self._pass(shared, number, cells, own, layer)

    def _pass(
        self,
        shared: SharedTexts,
        number: int,
        cells: Sequence[int],
        interventions: Sequence[Intervention],
        layer: int | None,
    ) -> _Copies:
        own = shared.batches[number]
        placed = tuple(tuple(one.place(own.batch)) for one in interventions)
        joined = placed[0] if len(placed) == 1 else side_by_side(placed, len(own.indices))
        logprobs = answer_logprobs_of_copies(
            self.lm, shared, number, len(cells), joined, layer
        ).unflatten(0, (len(cells), -1))
        return _Copies(tuple(cells), placed, shared, number, logprobs)

    def _packed(
        self, texts: Sequence[EncodedText], cells: Sequence[tuple[int, Intervention]]
    ) -> list[list[int]]:
        """Puts interventions of one kind of positions together in passes."""
        if needs_whole_batches(cells[0][1]):
            return [[cell] for cell, _ in cells]
        rows = min(self.batch_size, len(texts))
        width = max(len(text) for text in texts)
        per_copy = rows * width * len(self.lm.tokenizer)
        most = max(1, min(_ROWS_PER_PASS * self.batch_size // rows, _MOST_LOGITS // per_copy))
        return pack(
            {cell: _layer(one.sites) for cell, one in cells},
            most,
            rows * width,
            self.lm.n_layers,
            _PASS_IN_TOKENS.get(self.lm.device.type, _PASS_IN_TOKENS["cuda"]),
        )

    def _start(
        self, texts: Sequence[EncodedText], positions: PositionSelector | None, layer: int
    ) -> tuple[SharedTexts, int | None]:
        """Returns what passes from a block on share, and where they can start."""
        shared = self._shared(texts, positions, layer)
        return shared, layer if self._is_faithful(shared, layer) else None

    def _is_faithful(self, shared: SharedTexts, layer: int) -> bool:
        """Says whether passes may start above a block, whose states must have been kept."""
        if layer not in shared.batches[0].states:
            return False
        if layer not in self._starts_above:
            self._starts_above[layer] = is_faithful(self.lm, shared, layer, self._whole(shared))
        return self._starts_above[layer]

    def _whole(self, shared: SharedTexts) -> Tensor:
        """Returns what whole passes predict; every block is held against the same ones."""
        if self._compared is None or self._compared[0] is not shared:
            self._compared = shared, whole_logprobs(self.lm, shared)
        return self._compared[1]

    def _shared(
        self, texts: Sequence[EncodedText], positions: PositionSelector | None, layer: int
    ) -> SharedTexts:
        """Reads texts for edits at some positions, None for edits that need them whole."""
        is_rare = positions is None
        if self._skips_tokens is False:
            positions = None
        layers = self._layers_to_keep(texts, layer)
        is_short = len(layers) < self.lm.n_layers
        if is_rare and layer != _EMBEDDINGS:
            # Few arms need texts whole: one block, and no pass beyond it.
            layers = [one for one in layers if one == layer]
        where = "whole" if positions is None else positions.spelling
        key = (id(texts), where, tuple(layers))
        if key in self._kept:
            return self._kept[key][1]
        held = sum(shared.n_numbers for _, shared in self._kept.values())
        if is_short or held > _MOST_HELD:
            # One at a time where memory is short.
            self._kept.clear()
            self._compared = None
        starts = [0] * len(texts) if positions is None else _starts(texts, positions)
        shared = share(self.lm, texts, starts, layers, self.batch_size)
        if positions is not None and self._skips_tokens is None:
            self._skips_tokens = is_faithful(self.lm, shared, None, self._whole(shared))
            if not self._skips_tokens:
                return self._shared(texts, None, layer)
        # With its texts: another list could come to lie where a forgotten one was.
        self._kept[key] = texts, shared
        return shared

    def _layers_to_keep(self, texts: Sequence[EncodedText], layer: int) -> Sequence[int]:
        size = sum(len(text) for text in texts) * self.lm.d_model
        if size * self.lm.n_layers <= _MOST_STATES:
            return range(self.lm.n_layers)
        return [layer] if size <= _MOST_STATES and layer != _EMBEDDINGS else []


def _layer(sites: Sequence[Site]) -> int:
    layer = last_shared_layer(sites)
    return _EMBEDDINGS if layer is None else layer


def _starts(texts: Sequence[EncodedText], positions: PositionSelector) -> list[int]:
    """Returns the first token of every text that is edited or predicts an answer token."""
    masks = positions.masks(pad_batch(texts, 0, "right")).given
    first = torch.where(masks.any(1), masks.long().argmax(1), masks.shape[1]).tolist()
    return [min(start, text.n_prompt - 1) for start, text in zip(first, texts, strict=True)]


def _require_finite(values: Float[Tensor, "cell text"], what: str) -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        cell, text = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"{what} of text {text} is NaN or infinite under intervention {cell}: weaken the edit, "
            "or load the model with dtype float32"
        )
