"""Greedy completions of requests that come and go, each with its own edits, in one batch."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, NoEditError
from isthmus.core.texts import EncodedText, pad_batch
from isthmus.models.batching import (
    PlaceEdits,
    check_one_reading,
    check_open,
    check_texts,
    no_edits,
)
from isthmus.models.decoding import NO_TOKEN, next_token_ids, no_token_error, read_prompts
from isthmus.models.decoding_requests import DecodingRequest, Ending, NewToken, of_like_length
from isthmus.models.hooks import editing
from isthmus.models.language_model import LanguageModel
from isthmus.models.padding import require_reading_padded
from isthmus.models.rotary_limits import read_alike
from isthmus.models.row_cache import RowCache, require_growing_cache
from isthmus.models.site_edits import check_edits
from isthmus.models.text_pieces import TextPieces

MergeRows = Callable[
    [Sequence[Sequence[PlacedEdit]], Sequence[tuple[int, int]] | None], list[PlacedEdit]
]
"""Makes edits of a batch from those of its rows and the columns of their tokens, as
`interventions.merge_rows` does."""


class _Step(NamedTuple):
    """One more token of every row: on the model's device, as numbers, and what was edited."""

    ids: Int[Tensor, " batch"]
    found: list[int]
    n_edited: list[int]


class ContinuousDecoder:
    """Continues texts greedily in one batch that they join and leave at any step.

    A request gets the tokens that it gets alone, whatever joins or leaves meanwhile. A slot is free
    again as soon as its request ends. Nothing stays on the model between steps, and a step that is
    interrupted leaves requests and cache as they were before.

    `submit` and a request's `cancel` may be called from other threads than the one that calls
    `step`. While a step is taken nothing else may run the model: its edits would act there, too.

    Args:
        lm: The model; every layer must be attention, full or with a sliding window.
        merge: How edits of single rows become edits of a batch: `interventions.merge_rows`.
        n_slots: Most requests that run at once, at least 1.
        max_cached_tokens: Most tokens, padding included, whose keys and values are kept at once; no
            bound when not given. A request waits for its slot until all that run, written to
            their ends, fit in.

    Raises:
        ConfigError: If `n_slots` or `max_cached_tokens` is below 1.
        ModelError: If a layer of the model keeps a recurrent state, or a padded text is not
            continued as it is alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        merge: MergeRows,
        *,
        n_slots: int = 32,
        max_cached_tokens: int | None = None,
    ) -> None:
        for name, value in (("n_slots", n_slots), ("max_cached_tokens", max_cached_tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        require_growing_cache(lm)
        require_reading_padded(lm)
        self.lm = lm
        self.merge = merge
        self.n_slots = n_slots
        self.max_cached_tokens = max_cached_tokens
        self._lock = threading.Lock()
        self._waiting: deque[DecodingRequest] = deque()
        self._running: list[DecodingRequest] = []
        self._rows: RowCache | None = None
        self._next_ids = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._edits: list[PlacedEdit] = []
        self._news: list[NewToken] = []

    @property
    def n_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._waiting or self._running or self._news)

    def submit(
        self, text: EncodedText, *, max_new_tokens: int, edits: PlaceEdits = no_edits
    ) -> DecodingRequest:
        """Lets a text wait for a free slot; it joins the batch at one of the next steps.

        Args:
            text: What is continued: all its tokens.
            max_new_tokens: Most tokens, at least 1.
            edits: Says what to edit, as an intervention's `place` does; asked once, here.

        Returns:
            The request, which fills as steps are taken.

        Raises:
            ConfigError: If `max_new_tokens` is below 1, or the text and these do not fit into
                `max_cached_tokens`.
            DataError: If the text is empty, too long or already ended, or comes to a length from
                which on the model reads all its tokens otherwise.
            SiteError: If an edit is at a site that the model does not have.
            ShapeError: If an edit does not fit the model.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
        check_texts(self.lm, [text], 1, n_new=max_new_tokens)
        check_open(self.lm, [text])
        check_one_reading(self.lm, [text], max_new_tokens)
        placed = tuple(edits(pad_batch([text], self.lm.pad_id, "left")))
        check_edits(self.lm.layout, placed)
        request = DecodingRequest(text, max_new_tokens, placed)
        if not self._fits([request]):
            raise ConfigError(
                f"{len(text)} tokens and {max_new_tokens} new ones are more than the "
                f"{self.max_cached_tokens} that may be kept: shorten the text, ask for fewer, or "
                "raise max_cached_tokens"
            )
        with self._lock:
            self._waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> tuple[NewToken, ...]:
        """Gives every running request one token, then the first one to those that get a slot.

        Requests that ended or were cancelled leave. One whose own pass fails, whose logits are NaN
        or infinite, or whose edits reached nothing, ends as `failed` with its error, and the others
        go on: where a pass of all fails, each gets its token alone.

        Returns:
            New tokens, and requests that ended without one. After a step that was interrupted, the
            next one returns what that one had already found.
        """
        self._drop_cancelled()
        self._advance()
        self._admit()
        news, self._news = tuple(self._news), []
        return news

    def run(self) -> None:
        """Takes steps until no request waits or runs."""
        while not self.is_idle:
            self.step()

    def stream(self, request: DecodingRequest) -> Iterator[str]:
        """Takes steps until a request ends and yields its text as it comes.

        An iterator that is closed before the end cancels the request.

        Args:
            request: One that was submitted here.

        Yields:
            str: Pieces of text, none of them empty; special tokens are left out.

        Raises:
            NoEditError: If its edits reached nothing.
            NonFiniteError: If its logits are NaN or infinite.
        """
        pieces, n_read = TextPieces(self.lm.tokenizer), 0
        try:
            while True:
                new, is_done = request.token_ids[n_read:], request.is_done
                n_read += len(new)
                if piece := "".join(map(pieces.add, new)) + (pieces.rest() if is_done else ""):
                    yield piece
                if is_done:
                    break
                self.step()
        finally:
            if not request.is_done:
                request.cancel()
        if request.error is not None:
            raise request.error

    def _drop_cancelled(self) -> None:
        with self._lock:
            leaving = [one for one in self._waiting if one.is_cancelled]
            for request in leaving:
                self._waiting.remove(request)
        for request in leaving:
            self._end(request, "cancelled")
        for request in self._running:
            if request.is_cancelled:
                self._end(request, "cancelled")
        self._drop_done()

    def _drop_done(self) -> None:
        kept = [row for row, one in enumerate(self._running) if not one.is_done]
        if len(kept) == len(self._running):
            return
        if not kept:
            self._rows = None
        elif self._rows is not None:
            self._rows.keep(kept)
        self._next_ids = self._next_ids[kept]
        self._running = [self._running[row] for row in kept]
        self._place_anew()

    def _place_anew(self) -> None:
        self._edits = self._placed_later(self._running)

    def _placed_later(self, requests: Sequence[DecodingRequest]) -> list[PlacedEdit]:
        """Merges what running rows edit at every token that they write."""
        rows = []
        for request in requests:
            nothing = torch.zeros(1, 0, dtype=torch.bool)
            later = [one for one in request.placed if bool(one.generated.any())]
            rows.append([replace(one, given=nothing) for one in later])
        return self.merge(rows, None)

    def _advance(self) -> None:
        if self._rows is None:
            return
        try:
            step = self._pass(self._rows, self._next_ids, self._edits)
        except Exception:  # noqa: BLE001 - whatever one request's edits raise is its own
            step = self._advance_apart(self._rows)
        self._next_ids = step.ids
        for request, token_id, n in zip(self._running, step.found, step.n_edited, strict=True):
            self._write(request, token_id, n)
        self._drop_done()

    def _pass(
        self, rows: RowCache, ids: Int[Tensor, " batch"], edits: Sequence[PlacedEdit]
    ) -> _Step:
        """Gives rows one more token; a pass that fails leaves them as they were."""
        held = rows.held()
        try:
            with editing(self.lm.layout, edits) as count:
                new_ids = next_token_ids(self.lm, rows, ids[:, None], rows.next_positions())
            found = new_ids.tolist()
        except BaseException:
            rows.put_back(held)
            raise
        rows.grow()
        return _Step(new_ids, found, count.by_row(len(found)))

    def _advance_apart(self, rows: RowCache) -> _Step:
        """Gives every row its token alone; a request that fails even so ends, the others go on."""
        failed: list[tuple[DecodingRequest, Exception]] = []
        left: list[tuple[DecodingRequest, RowCache, _Step]] = []
        for place, request in enumerate(self._running):
            own, ids = rows.row(place), self._next_ids[place : place + 1]
            try:
                left.append((request, own, self._pass(own, ids, self._placed_later([request]))))
            except Exception as error:  # noqa: BLE001 - as above
                failed.append((request, error))
        for request, its_error in failed:
            request.error = its_error
            self._end(request, "failed")
        self._running = [request for request, *_ in left]
        self._rows = left[0][1] if left else None
        for _, own, _ in left[1:]:
            left[0][1].join(own)
        self._place_anew()
        return _Step(
            torch.cat([self._next_ids[:0], *(step.ids for *_, step in left)]),
            [one for *_, step in left for one in step.found],
            [one for *_, step in left for one in step.n_edited],
        )

    def _admit(self) -> None:
        chosen: list[DecodingRequest] = []
        with self._lock:
            # In their order: a long request is not overtaken for ever by short ones.
            while self._waiting and self._fits([*self._running, *chosen, self._waiting[0]]):
                chosen.append(self._waiting.popleft())
        try:
            for group in of_like_length(chosen):
                self._start_together(group)
        except BaseException:
            with self._lock:
                self._waiting.extendleft(one for one in reversed(chosen) if not one.has_begun)
            raise

    def _fits(self, requests: Sequence[DecodingRequest]) -> bool:
        """Says whether requests may run at once, each to its last token and read as alone."""
        if len(read_alike(self.lm, [len(one.text) for one in requests])) > 1:
            return False
        longest = max(one.most_tokens for one in requests)
        most = self.max_cached_tokens
        return len(requests) <= self.n_slots and (most is None or len(requests) * longest <= most)

    def _start_together(self, group: Sequence[DecodingRequest]) -> None:
        try:
            self._start(group)
        except Exception as error:  # noqa: BLE001 - whatever one request's edits raise is its own
            if len(group) == 1:
                group[0].error = error
                self._end(group[0], "failed")
                return
            for request in group:
                self._start_together([request])

    def _start(self, group: Sequence[DecodingRequest]) -> None:
        """Reads the texts of requests, gives them their first token, and takes them in."""
        batch = pad_batch([one.text for one in group], self.lm.pad_id, "left")
        lengths, width = [len(one.text) for one in group], batch.token_ids.shape[1]
        spans = [(width - length, width) for length in lengths]
        edits = self.merge([_widened(one.placed, width) for one in group], spans)
        with editing(self.lm.layout, edits) as count:
            rows, ids = read_prompts(self.lm, batch)
        found = ids.tolist()
        if self._rows is None:
            self._rows = rows
        else:
            self._rows.join(rows)
        self._running.extend(group)
        self._next_ids = torch.cat([self._next_ids, ids])
        counted = count.by_row(len(group))
        for request, token_id, n in zip(group, found, counted, strict=True):
            self._write(request, token_id, n)
        self._place_anew()
        self._drop_done()

    def _write(self, request: DecodingRequest, token_id: int, n_edited: int) -> None:
        if token_id == NO_TOKEN:
            request.error = no_token_error(repr(request.text.text), len(request.token_ids))
            self._end(request, "failed")
            return
        request.token_ids.append(token_id)
        request.n_edited += n_edited
        is_full = len(request.token_ids) >= request.max_new_tokens
        # Without a reached position so far nor to come there is no point in going on.
        is_idle = bool(request.placed) and not request.n_edited and not request.edits_later
        if token_id in self.lm.eos_ids:
            self._end(request, "end_token", token_id)
        elif is_full or is_idle:
            self._end(request, "length", token_id)
        else:
            self._news.append(NewToken(request, token_id, is_last=False))

    def _end(self, request: DecodingRequest, ending: Ending, token_id: int | None = None) -> None:
        if ending in {"end_token", "length"} and request.placed and not request.n_edited:
            ending = "failed"
            request.error = NoEditError(
                f"the edits reached none of the positions of {request.text.text!r}: choose other "
                "positions, name the trigger, or send it without an intervention"
            )
        request.ending = ending
        self._news.append(NewToken(request, token_id, is_last=True))


def _widened(placed: Sequence[PlacedEdit], width: int) -> list[PlacedEdit]:
    """Moves edits of one text to the end of a wider row."""
    return [replace(one, given=pad(one.given, (width - one.given.shape[1], 0))) for one in placed]
