"""Overwrites all states of one site of a model by what another model reads in the same text.

1. The reader sees the text of each row: the same token ids where both models have the same pieces
   and encode every prompt alike, else the text encoded again.
2. Tokens are paired by character end; the map turns the reader's states into states of the site.
3. Positions without a partner take the nearest earlier row, so that nothing of the model's own
   state is left from the first paired position on (`own` keeps it there, to measure the leak).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.core.edits import PlacedEdit
from isthmus.core.errors import DataError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.data.alignment import TokenPairs, pair_tokens
from isthmus.interventions.row_replacement import RowReplacement, take_earlier_rows
from isthmus.maps.base import ActivationMap
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompt, encode_prompts, prompt_part
from isthmus.models.language_model import LanguageModel

Unpaired = Literal["earlier", "own"]
"""What a position without a partner gets: the nearest earlier row, or its own state."""


@dataclass(frozen=True)
class Follower:
    """Turns texts as the edited model sees them into the same texts as the reader sees them.

    Attributes:
        reader: The model that reads.
        asked: User message by rendered prompt.
        known_ids: Token ids that mean the same to both models; empty if none does.
    """

    reader: LanguageModel
    asked: Mapping[str, str]
    known_ids: frozenset[int]

    def __call__(self, texts: Sequence[EncodedText]) -> list[EncodedText]:
        """Returns the texts themselves where their ids mean the same, else encoded again.

        Args:
            texts: Prompts with what was written so far as their answers.

        Returns:
            One text per text.

        Raises:
            DataError: If a text that is encoded again has a prompt that was not announced.
        """
        # The edited model may have, and write, a piece more than the reader.
        return [
            text if self.known_ids.issuperset(text.token_ids) else self._again(text)
            for text in texts
        ]

    def _again(self, text: EncodedText) -> EncodedText:
        given = prompt_part(text).text
        if given not in self.asked:
            raise DataError(f"the prompt {given!r} was not announced: name every prompt")
        answer = text.text[len(given) :]
        return encode_prompt(self.reader.tokenizer, self.asked[given], answer=answer)


def follow_texts(reader: LanguageModel, edited: LanguageModel, prompts: Sequence[str]) -> Follower:
    """Returns how the reader sees what the edited model reads.

    Args:
        reader: The model whose states are read.
        edited: The model that is edited.
        prompts: Every user message that will occur.

    Returns:
        A function of texts, which hands on token ids where both models read them alike.
    """
    rendered = encode_prompts(edited.tokenizer, prompts)
    asked = {text.text: prompt for text, prompt in zip(rendered, prompts, strict=True)}
    is_alike = reads_alike(reader, edited, prompts)
    known = reader.tokenizer.get_vocab().values() if is_alike else ()
    return Follower(reader, asked, frozenset(known))


def reads_alike(reader: LanguageModel, edited: LanguageModel, prompts: Sequence[str]) -> bool:
    """Says whether the token ids of texts mean the same to two models.

    Args:
        reader: One model.
        edited: The other.
        prompts: User messages to try.

    Returns:
        True if every piece that both have has one id, end tokens are equal and the prompts are
        encoded alike.
    """
    ours, theirs = reader.tokenizer.get_vocab(), edited.tokenizer.get_vocab()
    if reader.eos_ids != edited.eos_ids or any(ours[p] != theirs[p] for p in ours.keys() & theirs):
        return False
    return encode_prompts(reader.tokenizer, prompts) == encode_prompts(edited.tokenizer, prompts)


@dataclass
class StateReader:
    """Reads every token of texts at some sites, and remembers the batch that it read last.

    Attributes:
        lm: The model that reads.
        sites: Where.
    """

    lm: LanguageModel
    sites: tuple[Site, ...]
    _texts: tuple[tuple[int, ...], ...] = ()
    _latest: list[Float[Tensor, "_ d_concat"]] = field(default_factory=list)

    def __call__(self, texts: Sequence[EncodedText]) -> list[Float[Tensor, "_ d_concat"]]:
        """Returns the states of every text, sites side by side in their order.

        Args:
            texts: One batch. Who asks for the same again is given what was read.

        Returns:
            One float32 tensor per text, on the CPU.
        """
        asked = tuple(text.token_ids for text in texts)
        if asked != self._texts:
            read = all_token_activations(self.lm, texts, self.sites, batch_size=len(texts))
            by_text = zip(*(read[site] for site in self.sites), strict=True)
            self._texts, self._latest = asked, [torch.cat(one, dim=-1) for one in by_text]
        return self._latest


@dataclass(frozen=True)
class StateReplacer:
    """Says for every batch what stands at a site instead of the model's own states.

    Attributes:
        read: Who reads the states that are mapped.
        made: From there to the site that is overwritten.
        site: Which site that is.
        follow: How the reader sees a text.
        unpaired: What a position without a partner gets.
    """

    read: StateReader
    made: ActivationMap
    site: Site
    follow: Follower
    unpaired: Unpaired = "earlier"

    def place(self, batch: TokenBatch) -> list[PlacedEdit]:
        """Reads the texts of a batch and places the replacement of its states.

        Args:
            batch: Texts padded on either side, with or without their answers.

        Returns:
            One placed edit; begin tokens, which precede every paired position, keep their state.

        Raises:
            DataError: If a text cannot be followed or none of its tokens paired.
        """
        rows, is_given = self._paired_rows(batch)
        if self.unpaired == "earlier":
            filled = [take_earlier_rows(*one) for one in zip(rows, is_given, strict=True)]
            rows = torch.stack([one for one, _ in filled])
            is_given = torch.stack([mask for _, mask in filled]) & batch.is_real
        return [RowReplacement(rows, is_given).at(self.site)]

    def _paired_rows(
        self, batch: TokenBatch
    ) -> tuple[Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]]:
        texts = self.follow(batch.texts)
        read = self.read(texts)
        rows = torch.zeros(*batch.is_real.shape, self.made.d_target)
        is_given = torch.zeros_like(batch.is_real)
        for i, (text, own) in enumerate(zip(texts, batch.texts, strict=True)):
            in_reader, in_own = (
                _same_tokens(own) if text is own else pair_tokens(text, _with_space(own))
            )
            if not len(in_own):
                raise DataError(f"no token of {own.text!r} has a partner: check the templates")
            columns = torch.from_numpy(in_own) + batch.offsets[i]
            rows[i, columns] = self.made(read[i][in_reader]).to(rows)
            is_given[i, columns] = True
        return rows, is_given


def _same_tokens(text: EncodedText) -> TokenPairs:
    """Pairs every token but special ones with itself, those within a character, too."""
    every = np.flatnonzero(~np.array(text.is_special))
    return TokenPairs(every, every)


def _with_space(text: EncodedText) -> EncodedText:
    """Puts white space before an answer that a model began without it, as `encode_prompt` does.

    Without it the end of the prompt and the end of the answer are never both where the reader has
    them.
    """
    start = len(prompt_part(text).text)
    if not text.text[start:] or text.text[start].isspace() or text.text[start - 1].isspace():
        return text
    ends = tuple(end + (n >= text.n_prompt) for n, end in enumerate(text.ends))
    return replace(text, text=f"{text.text[:start]} {text.text[start:]}", ends=ends)
