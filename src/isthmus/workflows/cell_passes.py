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
from jaxtyping import Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import NonFiniteError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.noise import GaussianNoise
from isthmus.interventions.per_row import merge_rows
from isthmus.interventions.positions import PositionSelector
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import last_shared_layer
from isthmus.models.scoring import BenignChange
from isthmus.models.shared_passes import (
    SharedBatch,
    SharedTexts,
    answer_logprobs_of_copies,
    is_faithful,
    share,
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
    """

    nll: Float[Tensor, " text"]
    n_edited: int


@dataclass(frozen=True)
class _Copies:
    """One pass: interventions side by side, the block it starts above, and what comes out."""

    cells: tuple[int, ...]
    placed: tuple[tuple[PlacedEdit, ...], ...]
    own: SharedBatch
    logprobs: Float[Tensor, "copy token vocab"]


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

    def nll(
        self, texts: Sequence[EncodedText], interventions: Sequence[Intervention]
    ) -> list[CellLosses]:
        """Scores the answers that texts carry under every intervention.

        Args:
            texts: Prompts with answers.
            interventions: What is done, each in a copy of its own.

        Returns:
            Losses as `answer_nll` gives them, one result per intervention.

        Raises:
            NonFiniteError: If a likelihood is NaN or zero.
        """
        losses = torch.zeros(len(interventions), len(texts))
        n_edited = [0] * len(interventions)
        for copies in self._passes(texts, interventions):
            for cell, placed, row in zip(copies.cells, copies.placed, _losses(copies), strict=True):
                losses[cell, list(copies.own.indices)] = row
                n_edited[cell] += _n_edited(placed)
        _require_finite(losses, "the answer's likelihood")
        return [CellLosses(row, n) for row, n in zip(losses, n_edited, strict=True)]

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
        shape = (len(interventions), len(texts))
        divergence, nll = torch.zeros(shape), torch.zeros(shape)
        was_right, is_right = (
            torch.zeros(shape, dtype=torch.bool),
            torch.zeros(shape, dtype=torch.bool),
        )
        for copies in self._passes(texts, interventions):
            device = copies.logprobs.device
            indices = list(copies.own.indices)
            if unedited is None:
                plain = self._unedited(copies.own).to(device)
            else:
                plain = torch.cat([unedited[i] for i in indices]).to(device)
            answers = _answers(copies.own, device)
            change = (plain.exp() * (plain - copies.logprobs)).sum(-1).clamp_min(0)
            right = copies.logprobs.argmax(-1) == answers
            found = _means(copies.own, change)
            hits = _means(copies.own, right.float()) == 1
            before = _means(copies.own, (plain.argmax(-1) == answers)[None].float()) == 1
            losses = _losses(copies)
            for row, cell in enumerate(copies.cells):
                divergence[cell, indices] = found[row]
                nll[cell, indices] = losses[row]
                is_right[cell, indices] = hits[row]
                was_right[cell, indices] = before[0]
        _require_finite(divergence, "the divergence")
        rows = zip(divergence, was_right, is_right, nll, strict=True)
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

    def _unedited(self, own: SharedBatch) -> Tensor:
        shared = share(self.lm, own.batch.texts, [0] * len(own.indices), (), len(own.indices))
        # Cut anew, the texts lie in another order.
        found = answer_logprobs_of_copies(self.lm, shared, 0, 1, (), None)
        order = shared.batches[0].indices
        parts = found.split([len(own.batch.texts[i]) - own.batch.texts[i].n_prompt for i in order])
        by_text = dict(zip(order, parts, strict=True))
        return torch.cat([by_text[i] for i in range(len(order))])

    def _passes(
        self, texts: Sequence[EncodedText], interventions: Sequence[Intervention]
    ) -> Iterator[_Copies]:
        for group in _by_positions(interventions):
            for cells in self._packed(texts, [(c, interventions[c]) for c in group]):
                own = [interventions[cell] for cell in cells]
                lowest = min(_layer(one.sites) for one in own)
                positions = None if _needs_whole_batches(own[0]) else own[0].positions
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
        joined = placed[0] if len(placed) == 1 else _side_by_side(placed, own)
        logprobs = answer_logprobs_of_copies(
            self.lm, shared, number, len(cells), joined, layer
        ).unflatten(0, (len(cells), -1))
        return _Copies(tuple(cells), placed, own, logprobs)

    def _packed(
        self, texts: Sequence[EncodedText], cells: Sequence[tuple[int, Intervention]]
    ) -> list[list[int]]:
        """Puts interventions of one kind of positions together in passes."""
        if _needs_whole_batches(cells[0][1]):
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
        if layer not in shared.batches[0].states:
            return shared, None
        if layer not in self._starts_above:
            self._starts_above[layer] = is_faithful(self.lm, shared, layer)
        return shared, layer if self._starts_above[layer] else None

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
        starts = [0] * len(texts) if positions is None else _starts(texts, positions)
        shared = share(self.lm, texts, starts, layers, self.batch_size)
        if positions is not None and self._skips_tokens is None:
            self._skips_tokens = is_faithful(self.lm, shared, None)
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


def pack(
    layers: dict[int, int], most: int, n_tokens: int, n_layers: int, pass_in_tokens: int
) -> list[list[int]]:
    """Decides which cells go through a model together.

    A pass starts at the lowest of its cells. Cells that start higher join where the blocks that
    they run in vain cost less than calling all their blocks once more.

    Args:
        layers: For every cell the block above which it could start; -1 for the embeddings.
        most: Most cells in a pass.
        n_tokens: Tokens that a cell adds to a pass.
        n_layers: Blocks of the model.
        pass_in_tokens: How many tokens through a block cost as much as calling it.

    Returns:
        Cells pass by pass, lower blocks first.

    >>> pack({0: 3, 1: 3, 2: 0}, 8, 1000, 8, 100)
    [[2], [0, 1]]
    >>> pack({0: 3, 1: 3, 2: 0}, 8, 1, 8, 100)
    [[2, 0, 1]]
    """
    passes: list[list[int]] = []
    by_layer: dict[int, list[int]] = {}
    for cell in sorted(layers, key=lambda cell: layers[cell]):
        by_layer.setdefault(layers[cell], []).append(cell)
    for layer, cells in by_layer.items():
        if passes and len(passes[-1]) + len(cells) <= most:
            in_vain = (layer - layers[passes[-1][0]]) * len(cells) * n_tokens
            if in_vain < (n_layers - 1 - layer) * pass_in_tokens:
                passes[-1] += cells
                continue
        passes += [cells[i : i + most] for i in range(0, len(cells), most)]
    return passes


def _by_positions(interventions: Sequence[Intervention]) -> list[list[int]]:
    groups: dict[tuple[str, bool], list[int]] = {}
    for cell, one in enumerate(interventions):
        key = (one.positions.spelling, _needs_whole_batches(one))
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _needs_whole_batches(intervention: Intervention) -> bool:
    """Says whether what an edit does depends on the shape of what it is given."""
    edits = (edit for site in intervention.edits.values() for edit in site)
    return any(isinstance(edit, GaussianNoise) for edit in edits)


def _layer(sites: Sequence[Site]) -> int:
    layer = last_shared_layer(sites)
    return _EMBEDDINGS if layer is None else layer


def _starts(texts: Sequence[EncodedText], positions: PositionSelector) -> list[int]:
    """Returns the first token of every text that is edited or predicts an answer token."""
    masks = positions.masks(pad_batch(texts, 0, "right")).given
    first = torch.where(masks.any(1), masks.long().argmax(1), masks.shape[1]).tolist()
    return [min(start, text.n_prompt - 1) for start, text in zip(first, texts, strict=True)]


def _side_by_side(
    placed: Sequence[Sequence[PlacedEdit]], own: SharedBatch
) -> tuple[PlacedEdit, ...]:
    rows = [
        [
            PlacedEdit(e.site, e.edit, e.given[row : row + 1], e.generated[row : row + 1])
            for e in copy
        ]
        for copy in placed
        for row in range(len(own.indices))
    ]
    return tuple(merge_rows(rows))


def _n_edited(placed: Sequence[PlacedEdit]) -> int:
    sites = {one.site for one in placed}
    masks = [torch.stack([e.given for e in placed if e.site == site]).any(0) for site in sites]
    return sum(int(mask.sum()) for mask in masks)


def _answers(own: SharedBatch, device: torch.device) -> Tensor:
    ids = [one for text in own.batch.texts for one in text.token_ids[text.n_prompt :]]
    return torch.tensor(ids, device=device)


def _losses(copies: _Copies) -> Float[Tensor, "copy text"]:
    """Returns the mean loss of every text's answer in every copy."""
    answers = _answers(copies.own, copies.logprobs.device)
    found = -copies.logprobs.gather(2, answers.expand(len(copies.cells), -1)[..., None])
    return _means(copies.own, found[..., 0])


def _means(own: SharedBatch, values: Float[Tensor, "copy token"]) -> Float[Tensor, "copy text"]:
    lengths = torch.tensor([len(text) - text.n_prompt for text in own.batch.texts])
    owner = torch.arange(len(lengths)).repeat_interleave(lengths).to(values.device)
    sums = values.new_zeros(len(values), len(lengths)).index_add(1, owner, values)
    return (sums / lengths.to(values.device)).float().cpu()


def _require_finite(values: Float[Tensor, "cell text"], what: str) -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        cell, text = bad.nonzero()[0].tolist()
        raise NonFiniteError(
            f"{what} of text {text} is NaN or infinite under intervention {cell}: weaken the edit, "
            "or load the model with dtype float32"
        )
