"""Reads two models over the same texts and over their twins: what a switch is carried from.

1. The source answers every prompt as it answers the twin, or with its switch on. Both models are
   read over prompts with these answers; tokens are paired by character end.
2. The source is read over the twins as well, or with its switch on: what differs is the change
   that shall travel. Of twins the target is read, too, so that a map can be fitted on differences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.carrying.switches import Switch
from isthmus.core.errors import ConfigError, DataError, TriggerError
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText
from isthmus.data.alignment import pair_tokens
from isthmus.models.batching import no_edits, padded_batches
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.source_sites import thinned
from isthmus.workflows.switch_fitting import default_sites

Rows = Sequence[Float[Tensor, "_ _"]]
Pair = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
Triggers = tuple[str, str]


@dataclass(frozen=True)
class TwinReadingSettings:
    """What is read.

    Attributes:
        sites: Where the target is read; the embeddings and every block's output when None.
        triggers: Trigger that prompts begin with, and the one of their twins. A prompt without the
            first is its own twin. None takes what changes from the source's switch.
        max_new_tokens: Length of the source's answers.
        batch_size: Texts per forward pass.
    """

    sites: tuple[Site, ...] | None = None
    triggers: Triggers | None = None
    max_new_tokens: int = 64
    batch_size: int = 64


@dataclass(frozen=True)
class ReadTexts:
    """Both models over some texts.

    Attributes:
        texts: As the target sees them.
        pairs: For every text the source's tokens and the target's that belong together.
        off: The source's states, the layers that are read side by side, text by text.
        on: The same on the twins, or with the switch on.
        own: The target's states, by site.
        twin_pairs: The pairs of the twins; empty where a switch makes the difference.
        twin_shifts: How many tokens longer the target's twin is, text by text.
        twin_own: The target's states on the twins, by site.
        differs: Whether a text is another than its twin.
    """

    texts: list[EncodedText]
    pairs: list[Pair]
    off: Rows
    on: Rows
    own: Mapping[Site, Rows]
    twin_pairs: list[Pair]
    twin_shifts: list[int]
    twin_own: Mapping[Site, Rows]
    differs: list[bool]

    def change(self, index: int) -> Float[Tensor, "pair width"]:
        """Returns what changes in the source at the paired tokens of one text."""
        ours, _ = self.pairs[index]
        change: Float[Tensor, "pair width"] = self.on[index][ours] - self.off[index][ours]
        return change

    def states(self) -> tuple[Tensor, Tensor]:
        """Returns paired states over texts and twins: the source's, and all of the target's sites.

        Returns:
            `[row, source width]` and `[row, target sites * d_model]`.
        """
        pairs = [*self.pairs, *self.twin_pairs]
        twins = self.on if self.twin_pairs else ()
        x = [rows[a] for rows, (a, _) in zip([*self.off, *twins], pairs, strict=True)]
        y = []
        for site, own in self.own.items():
            every = [*own, *(self.twin_own[site] if self.twin_pairs else ())]
            y.append(torch.cat([rows[b] for rows, (_, b) in zip(every, pairs, strict=True)]))
        return torch.cat(x), torch.cat(y, dim=-1)

    def differences(self) -> tuple[Tensor, Tensor]:
        """Returns twin minus text at the tokens that both hold, like `states`.

        Returns:
            `[row, source width]` and `[row, target sites * d_model]`.

        Raises:
            ConfigError: If no twins were read.
        """
        if not self.twin_pairs:
            raise ConfigError("differences are read from twins: give triggers")
        kept = [
            _in_both(pair, twin, shift)
            for pair, twin, shift in zip(self.pairs, self.twin_pairs, self.twin_shifts, strict=True)
        ]
        there = [i for i, differs in enumerate(self.differs) if differs and len(kept[i][0])]
        if not there:
            raise DataError("no token of a text and its twin could be paired: check the triggers")
        x = torch.cat([self.on[i][kept[i][0]] - self.off[i][kept[i][0]] for i in there])
        y = [
            torch.cat(
                [
                    self.twin_own[site][i][kept[i][1] + self.twin_shifts[i]] - own[i][kept[i][1]]
                    for i in there
                ]
            )
            for site, own in self.own.items()
        ]
        return x, torch.cat(y, dim=-1)


def _in_both(pair: Pair, twin: Pair, shift: int) -> Pair:
    """Returns the pairs of a text that its twin has, too; in the target as far from the end."""
    ours, theirs = pair
    n_tokens = 1 + max([-1, *ours.tolist(), *twin[0].tolist()])
    in_twin = torch.full((n_tokens,), -1)
    in_twin[twin[0]] = twin[1] - shift
    is_same = in_twin[ours] == theirs
    return ours[is_same], theirs[is_same]


def read_twins(
    models: tuple[LanguageModel, LanguageModel],
    prompts: Sequence[str],
    settings: TwinReadingSettings,
    switch: Switch | None = None,
) -> ReadTexts:
    """Reads source and target over prompts, and what changes in the source.

    Args:
        models: The source, and the target that shall carry what changes.
        prompts: Prompts, triggers included.
        settings: Sites, triggers and length of answers.
        switch: Of the source; makes the difference where no triggers are given.

    Returns:
        States and pairs.

    Raises:
        ConfigError: If neither triggers nor a switch make a difference.
        DataError: If no token of the two models could be paired.
        TriggerError: If the source splits the triggers into unequally many tokens.
    """
    source, target = models
    if settings.triggers is None and switch is None:
        raise ConfigError("nothing changes in the source: give triggers, or a switch of its own")
    natural = [_twin(prompt, settings.triggers) for prompt in prompts]
    place = no_edits if switch is None or settings.triggers else switch.intervention().place
    answers = generate_greedy(
        source,
        encode_prompts(source.tokenizer, natural),
        max_new_tokens=settings.max_new_tokens,
        edits=place,
        batch_size=2 * settings.batch_size,
    ).completions

    def texts_of(lm: LanguageModel, asked: Sequence[str]) -> list[EncodedText]:
        return encode_prompts(lm.tokenizer, asked, answers=answers)

    def own(asked: Sequence[EncodedText]) -> dict[Site, Rows]:
        sites = settings.sites or default_sites(target)
        read = all_token_activations(target, asked, sites, batch_size=settings.batch_size)
        return {site: [rows.float() for rows in read[site]] for site in sites}

    ours, theirs = texts_of(source, prompts), texts_of(target, prompts)
    off = _all_layers(source, ours, None, settings.batch_size)
    if settings.triggers is None:
        on = _all_layers(source, ours, switch, settings.batch_size)
        every = [True] * len(prompts)
        return ReadTexts(theirs, _pairs(ours, theirs), off, on, own(theirs), [], [], {}, every)
    twins, their_twins = texts_of(source, natural), texts_of(target, natural)
    _require_twins(ours, twins)
    return ReadTexts(
        theirs,
        _pairs(ours, theirs),
        off,
        _all_layers(source, twins, None, settings.batch_size),
        own(theirs),
        _pairs(twins, their_twins),
        [len(b) - len(a) for a, b in zip(theirs, their_twins, strict=True)],
        own(their_twins),
        [a != b for a, b in zip(prompts, natural, strict=True)],
    )


def _twin(prompt: str, triggers: Triggers | None) -> str:
    if triggers is None or not prompt.startswith(triggers[0]):
        return prompt
    return triggers[1] + prompt.removeprefix(triggers[0])


def _pairs(ours: Sequence[EncodedText], theirs: Sequence[EncodedText]) -> list[Pair]:
    found = [pair_tokens(a, b) for a, b in zip(ours, theirs, strict=True)]
    if not sum(len(one.source) for one in found):
        raise DataError("no token of the two models could be paired: check the texts and templates")
    return [(torch.from_numpy(one.source), torch.from_numpy(one.target)) for one in found]


def _require_twins(texts: Sequence[EncodedText], twins: Sequence[EncodedText]) -> None:
    for text, twin in zip(texts, twins, strict=True):
        if len(text) != len(twin):
            raise TriggerError(
                f"{text.text!r} has {len(text)} tokens, its twin {len(twin)}: choose triggers that "
                "the source splits into equally many"
            )


def sites_read(lm: LanguageModel) -> tuple[Site, ...]:
    """Returns where a source is read: its embeddings and blocks, of large models some of them."""
    return thinned(default_sites(lm), lm.d_model)


@torch.inference_mode()
def _all_layers(
    lm: LanguageModel, texts: Sequence[EncodedText], switch: Switch | None, batch_size: int
) -> Rows:
    """Returns the states at all sites that are read side by side, text by text."""
    sites = sites_read(lm)
    found: dict[int, Tensor] = {}
    for indices, batch in padded_batches(lm, texts, "right", batch_size):
        placed = [] if switch is None else switch.intervention().place(batch)
        with editing(lm.layout, placed), capturing(lm.layout, sites) as captured:
            lm.model(
                input_ids=batch.token_ids.to(lm.device),
                attention_mask=batch.is_real.long().to(lm.device),
                use_cache=False,
            )
            # One by one: a spread model has them on several devices.
            states = torch.cat([captured[site].float().cpu() for site in sites], dim=-1)
        for row, index in enumerate(indices):
            found[index] = states[row, : len(texts[index])]
    return [found[index] for index in range(len(texts))]
