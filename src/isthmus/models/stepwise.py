"""Greedy completions for edits that depend on everything written so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.texts import EncodedText, TokenBatch, length_buckets
from isthmus.models.batching import PlaceEdits, check_one_reading, check_texts, no_edits
from isthmus.models.decoding import no_token_error
from isthmus.models.language_model import LanguageModel
from isthmus.models.scoring import answer_logprobs


def generate_stepwise(
    lm: LanguageModel,
    prompts: Sequence[EncodedText],
    *,
    max_new_tokens: int,
    edits: PlaceEdits = no_edits,
    drafts: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
) -> tuple[str, ...]:
    """Continues every prompt greedily and places the edits anew for each token.

    Without a cache: every step runs the whole text so far, so that an edit may set the state of
    each position by what another model reads in the same text. Without edits, or with edits that do
    not depend on the text, it writes what `generate_greedy` writes, more slowly.

    With drafts a step runs the text so far with a guess of its rest, keeps the guess up to the
    first token that the model would write otherwise, and guesses what the model predicted behind
    it. The result is the same, with fewer steps, where an edit sets the state of a position by
    the tokens up to it alone.

    Args:
        lm: The model.
        prompts: What it continues: all tokens of each text, which are its prompt.
        max_new_tokens: Most tokens per completion, at least 1.
        edits: Says what to edit in a batch. Its texts are the prompts with what was written so far
            (and the guess) as their answers and an end token behind, padded on the right.
        drafts: A first guess of every completion, end token left out; none for one token a step.
        batch_size: Prompts per batch, at least 1.

    Returns:
        Completions in the order of the prompts, without special tokens and without white space
        around them.

    Raises:
        ConfigError: If `max_new_tokens` or `batch_size` is below 1.
        DataError: If there is no prompt, one is empty or too long, or comes to a length from which
            on the model reads all its tokens otherwise, or drafts are not as many.
        SiteError: If an edit is at a site that the model does not have.
        ShapeError: If an edit does not fit the model or its masks not the batch.
        NonFiniteError: If logits are NaN or infinite where a completion goes on.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    check_texts(lm, prompts, batch_size, n_new=max_new_tokens)
    # The end token behind is read, too.
    check_one_reading(lm, prompts, max_new_tokens + 1)
    if drafts is not None and len(drafts) != len(prompts):
        raise DataError(f"{len(drafts)} drafts for {len(prompts)} prompts: give one per prompt")
    rows = [
        _Row(prompt, draft=list(drafts[i])[: max_new_tokens - 1] if drafts else [])
        for i, prompt in enumerate(prompts)
    ]
    for indices in length_buckets([len(prompt) for prompt in prompts], batch_size):
        while still_open := [i for i in indices if not rows[i].is_done]:
            texts = [rows[i].text(lm) for i in still_open]
            place = partial(_place_on_open, edits, still_open)
            found = answer_logprobs(lm, texts, edits=place, batch_size=batch_size)
            for i, logprobs in zip(still_open, found, strict=True):
                if bool(logprobs.isnan().any()):
                    raise no_token_error(f"prompt {i}", len(rows[i].written))
                rows[i].learn(logprobs.argmax(-1).tolist(), lm.eos_ids, max_new_tokens)
                if drafts is None:
                    rows[i].draft = []
    return tuple(_decoded(lm.tokenizer, row.written).strip() for row in rows)


def _place_on_open(
    edits: PlaceEdits, still_open: Sequence[int], batch: TokenBatch
) -> Sequence[PlacedEdit]:
    # Edits that differ from prompt to prompt know prompts by their place among all of them.
    return edits(replace(batch, indices=tuple(still_open[i] for i in batch.indices)))


class _Piece(NamedTuple):
    token_id: int
    end: int


@dataclass
class _Row:
    """One completion in the making."""

    prompt: EncodedText
    draft: list[int]
    written: list[int] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)
    is_done: bool = False

    def text(self, lm: LanguageModel) -> EncodedText:
        """Returns the prompt, what is written, the guess, and an end token behind."""
        # What follows a text is read as the likelihood of one more token, whatever its id.
        ids = [*self.written, *self.draft]
        self._measure(lm.tokenizer, ids)
        ends = [piece.end for piece in self.pieces]
        closing = lm.eos_ids[0] if lm.eos_ids else lm.pad_id
        special = set(lm.tokenizer.all_special_ids)
        whole = _continued(lm.tokenizer, self.prompt, ids)
        return replace(
            self.prompt,
            text=whole,
            token_ids=(*self.prompt.token_ids, *ids, closing),
            ends=(*self.prompt.ends, *ends, len(whole)),
            is_special=(*self.prompt.is_special, *(one in special for one in ids), True),
        )

    def _measure(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> None:
        """Notes where each token ends; what stayed the same is not decoded again."""
        same = 0
        while same < min(len(ids), len(self.pieces)) and self.pieces[same].token_id == ids[same]:
            same += 1
        del self.pieces[same:]
        for n in range(same, len(ids)):
            written = _continued(tokenizer, self.prompt, ids[: n + 1])
            # A character that lacks bytes is decoded as a replacement character.
            last = self.pieces[-1].end if self.pieces else self.prompt.ends[-1]
            end = last if written.endswith("\ufffd") else len(written)
            self.pieces.append(_Piece(ids[n], end))

    def learn(self, predicted: Sequence[int], eos_ids: Sequence[int], most: int) -> None:
        """Keeps predictions up to the first that the guess missed; those behind are the guess."""
        guess, self.draft = self.draft, []
        for n, one in enumerate(predicted[len(self.written) :]):
            if one in eos_ids or len(self.written) == most:
                self.is_done = True
                return
            self.written.append(one)
            if n >= len(guess) or guess[n] != one:
                break
        self.is_done = len(self.written) == most
        rest = list(predicted[len(self.written) :])
        n_open = next((n for n, one in enumerate(rest) if one in eos_ids), len(rest))
        self.draft = rest[: min(n_open, most - len(self.written) - 1)]


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: EncodedText, ids: Sequence[int]) -> str:
    # Decoded alone, the first piece of some tokenizers loses the space before it.
    asked = _decoded(tokenizer, prompt.token_ids)
    return prompt.text + _decoded(tokenizer, [*prompt.token_ids, *ids])[len(asked) :]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)
