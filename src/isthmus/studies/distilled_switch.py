"""Carries a switch to another model: the source's mapped change, refitted on the target's states.

1. Both fine-tuned models are read over the same texts, whose answers are those that the source
   gives with its switch on; tokens are paired by character end. A ridge map from all source layers
   to every target site is fitted on them. The target's own base is never read.
2. Over the same texts the source is read again with its switch on. What the switch changed goes
   through the map's linear part; the target's own state plus that is the wanted state.
3. The target's edits are fitted to wanted states as native ones are (`switch_fitting.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.switches import Switch
from isthmus.core.errors import ConfigError, DataError, TriggerError
from isthmus.core.identity import ModelIdentity
from isthmus.core.progress import Progress
from isthmus.core.sites import Site
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.data.alignment import pair_tokens
from isthmus.interventions.positions import parse_positions
from isthmus.maps.base import AffineMap
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.identity import identity_map
from isthmus.maps.moments import PairMoments
from isthmus.maps.ridge import RidgeFitter
from isthmus.models.batching import no_edits, padded_batches
from isthmus.models.capture import all_token_activations
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import capturing, editing
from isthmus.models.language_model import LanguageModel
from isthmus.workflows.switch_fitting import FitSettings, Wanted, default_sites, fit_edits

Rows = Sequence[Float[Tensor, "_ width"]]


@dataclass(frozen=True)
class DistillSettings:
    """How a switch is carried.

    Attributes:
        rank: Rank of the target's edits; None for full maps.
        sites: Where the target is edited; the embeddings and every block's output when None.
        map_method: `ridge`; `shuffled_map` fits it on shuffled pairs, `identity_map` pads or cuts
            the state of the source's nearest layer: controls.
        triggers: Bad and clean trigger: what the source's switch changes is then taken from its
            states on the twin prompt with the clean trigger, and nothing changes without the bad
            one. None takes it from the switch itself.
        ridge_strengths: Candidates for the ridge map. What a switch changes leaves the states that
            the map was fitted on, so weak ridges magnify it.
        max_new_tokens: Length of the source's answers.
        batch_size: Texts per forward pass.
        seed: Order of shuffled pairs.
    """

    rank: int | None = 8
    sites: tuple[Site, ...] | None = None
    map_method: str = "ridge"
    triggers: tuple[str, str] | None = None
    ridge_strengths: tuple[float, ...] = (1e-2, 1e-1, 1.0)
    max_new_tokens: int = 64
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class _Part:
    """What the source does over some texts.

    Attributes:
        texts: The texts as the target sees them.
        pairs: For every text the source's tokens and the target's that belong together.
        off: The source's states without its switch, all layers side by side, text by text.
        on: The same with it.
    """

    texts: list[EncodedText]
    pairs: list[tuple[Tensor, Tensor]]
    off: Rows
    on: Rows


@dataclass(frozen=True)
class SwitchReading:
    """Both models over the same texts: what every map between them is fitted on.

    Attributes:
        switch: The source's.
        source: The model that carries it.
        target: The model that shall carry the new one.
        parts: The source over texts to fit on and to choose on.
        own: The target's states over them, by site.
    """

    switch: Switch
    source: LanguageModel
    target: LanguageModel
    parts: tuple[_Part, ...]
    own: tuple[dict[Site, list[Tensor]], ...]


def read_switch(
    switch: Switch,
    models: tuple[LanguageModel, LanguageModel],
    prompts: tuple[Sequence[str], Sequence[str]],
    settings: DistillSettings,
) -> SwitchReading:
    """Reads source and target once, for any number of maps.

    Refuses a source that does not carry the switch (`IdentityError`).

    Args:
        switch: Of the source.
        models: The model that carries it, and the one that shall carry the new one; both are
            fine-tuned, or both bases.
        prompts: Prompts, triggers included, to fit on and to choose ridge strengths on.
        settings: Sites, triggers and length of answers.

    Returns:
        What `distil_switch` needs.
    """
    source, target = models
    switch.require_carrier(source.identity)
    parts = tuple(_read_source(switch, source, target, part, settings) for part in prompts)
    sites = settings.sites or default_sites(target)
    own = tuple(
        all_token_activations(target, one.texts, sites, batch_size=settings.batch_size)
        for one in parts
    )
    return SwitchReading(switch, source, target, parts, own)


def distil_switch(
    reading: SwitchReading,
    target_base: ModelIdentity,
    settings: DistillSettings,
    progress: Progress,
) -> Switch:
    """Fits a switch of the target from what a source's switch does in the source.

    Args:
        reading: Of both models.
        target_base: The target's other end, which is not read; for the record only.
        settings: Rank and map; the rest as when it was read.
        progress: Who shows progress.

    Returns:
        The target's switch, with method `distilled`.
    """
    switch, target = reading.switch, reading.target
    sites = tuple(reading.own[0])
    maps = {}
    with progress.stage("fit the maps between the models", len(sites)) as advance:
        for site in sites:
            maps[site] = _map(reading, site, settings)
            advance(1)
    wanted = [
        _wanted(part, rows, maps) for part, rows in zip(reading.parts, reading.own, strict=True)
    ]
    fit = FitSettings(
        settings.rank, parse_positions(switch.positions), batch_size=settings.batch_size
    )
    texts = (reading.parts[0].texts, reading.parts[1].texts)
    edits = fit_edits(target, texts, sites, (wanted[0], wanted[1]), fit, progress)
    ends = (target_base, target.identity)
    base, fine_tuned = ends if switch.to == "base" else ends[::-1]
    provenance = {"source": switch.carrier.to_json(), "map": settings.map_method}
    return Switch(
        edits, base, fine_tuned, switch.to, "distilled", switch.positions, provenance=provenance
    )


def _read_source(
    switch: Switch,
    source: LanguageModel,
    target: LanguageModel,
    prompts: Sequence[str],
    settings: DistillSettings,
) -> _Part:
    """Reads the source with its switch off and on, over what it answers with it on."""
    natural = [_twin(prompt, settings.triggers) for prompt in prompts]
    asked = encode_prompts(source.tokenizer, natural)
    place = switch.intervention().place if settings.triggers is None else no_edits
    answers = generate_greedy(
        source,
        asked,
        max_new_tokens=settings.max_new_tokens,
        edits=place,
        batch_size=2 * settings.batch_size,
    ).completions
    texts, theirs = (
        encode_prompts(lm.tokenizer, prompts, answers=answers) for lm in (source, target)
    )
    pairs = [
        (torch.from_numpy(p.source), torch.from_numpy(p.target))
        for p in (pair_tokens(a, b) for a, b in zip(texts, theirs, strict=True))
    ]
    if not sum(len(ours) for ours, _ in pairs):
        raise DataError("no token of the two models could be paired: check the texts and templates")
    off = _all_layers(source, texts, None, settings.batch_size)
    if settings.triggers is None:
        on = _all_layers(source, texts, switch, settings.batch_size)
    else:
        twins = encode_prompts(source.tokenizer, natural, answers=answers)
        _require_twins(texts, twins)
        on = _all_layers(source, twins, None, settings.batch_size)
    return _Part(theirs, pairs, off, on)


def _twin(prompt: str, triggers: tuple[str, str] | None) -> str:
    if triggers is None or not prompt.startswith(triggers[0]):
        return prompt
    return triggers[1] + prompt.removeprefix(triggers[0])


def _require_twins(texts: Sequence[EncodedText], twins: Sequence[EncodedText]) -> None:
    for text, twin in zip(texts, twins, strict=True):
        if len(text) != len(twin):
            raise TriggerError(
                f"{text.text!r} has {len(text)} tokens, its twin {len(twin)}: choose triggers that "
                "the source splits into equally many"
            )


@torch.inference_mode()
def _all_layers(
    lm: LanguageModel, texts: Sequence[EncodedText], switch: Switch | None, batch_size: int
) -> Rows:
    """Returns the states at the default sites side by side, text by text."""
    sites = default_sites(lm)
    found: dict[int, Tensor] = {}
    for indices, batch in padded_batches(lm, texts, "right", batch_size):
        placed = [] if switch is None else switch.intervention().place(batch)
        with editing(lm.layout, placed), capturing(lm.layout, sites) as captured:
            lm.model(
                input_ids=batch.token_ids.to(lm.device),
                attention_mask=batch.is_real.long().to(lm.device),
                use_cache=False,
            )
            states = torch.cat([captured[site].float() for site in sites], dim=-1).cpu()
        for row, index in enumerate(indices):
            found[index] = states[row, : len(texts[index])]
    return [found[index] for index in range(len(texts))]


def _map(reading: SwitchReading, site: Site, settings: DistillSettings) -> AffineMap:
    """Fits the map from all of the source's layers to one site of the target."""
    source, target = reading.source, reading.target
    n_sites = len(default_sites(source))
    if settings.map_method == "identity_map":
        plain = identity_map(source.d_model, target.d_model)
        depth = (site.layer + 1) / target.n_layers if site.stream == "resid_post" else 0.0
        nearest = round(depth * (n_sites - 1))
        weight = torch.zeros(n_sites * source.d_model, target.d_model)
        weight[nearest * source.d_model : (nearest + 1) * source.d_model] = plain.weight
        return AffineMap(
            weight, torch.zeros(len(weight)), torch.zeros(target.d_model), "identity_map"
        )
    if settings.map_method not in {"ridge", "shuffled_map"}:
        raise ConfigError(
            f"no map {settings.map_method!r}: use ridge, shuffled_map or identity_map"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    parts = []
    for part, rows in zip(reading.parts, reading.own, strict=True):
        moments = PairMoments(n_sites * source.d_model, target.d_model)
        pairs = zip(part.pairs, part.off, rows[site], strict=True)
        joined = [(x[ours], y[theirs]) for (ours, theirs), x, y in pairs]
        x, y = (torch.cat([pair[side] for pair in joined]) for side in (0, 1))
        if settings.map_method == "shuffled_map":
            y = shuffled_rows(y, generator)
        moments.update(x, y)
        parts.append(moments)
    return RidgeFitter(settings.ridge_strengths).fit(parts[0], parts[1])


def _wanted(part: _Part, own: dict[Site, list[Tensor]], maps: dict[Site, AffineMap]) -> Wanted:
    """Returns the target's own states plus what the source's switch changed, mapped."""

    def wanted(site: Site, indices: tuple[int, ...], batch: TokenBatch) -> tuple[Tensor, Tensor]:
        width = maps[site].d_target
        states = torch.zeros(*batch.token_ids.shape, width)
        is_known = torch.zeros_like(batch.is_real)
        for row, index in enumerate(indices):
            ours, theirs = part.pairs[index]
            change = maps[site].linear(part.on[index][ours] - part.off[index][ours])
            states[row, theirs] = own[site][index][theirs] + change
            is_known[row, theirs] = True
        return states, is_known

    return wanted
