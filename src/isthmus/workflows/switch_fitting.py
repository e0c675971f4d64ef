"""Reads a model and the one it shall imitate over the same texts, and fits a switch's edits.

1. The imitated model answers every prompt; texts are the prompts with these answers, so that states
   are those that a perfect switch would visit.
2. Sites are taken in the order of the forward pass. At each one the carrier is read under the edits
   fitted so far, and what is missing to the wanted state is fitted on what is there.
3. `independent` reads the carrier without earlier edits: what earlier edits have mended is then
   mended again.
4. A reading starts where the one before ended, for models whose blocks allow it: all sites together
   take about one forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus.carrying.switches import fit_affine_edit, in_forward_order
from isthmus.core.errors import ConfigError, FitError
from isthmus.core.progress import Progress
from isthmus.core.sites import Site, Stream
from isthmus.core.texts import EncodedText, TokenBatch
from isthmus.interventions.affine import AffineEdit
from isthmus.interventions.intervention import Intervention
from isthmus.interventions.positions import PositionSelector
from isthmus.maps.controls import shuffled_rows
from isthmus.maps.moments import PairMoments
from isthmus.models.batching import padded_batches
from isthmus.models.encoding import encode_prompts
from isthmus.models.generation import generate_greedy
from isthmus.models.hooks import editing, run_until_captured
from isthmus.models.language_model import LanguageModel
from isthmus.models.resuming import PrefixStates, resuming, start_above

Wanted = Callable[
    [Site, tuple[int, ...], TokenBatch],
    tuple[Float[Tensor, "batch pos d_model"], Bool[Tensor, "batch pos"]],
]
"""Says which states are wanted at a site for a batch, and at which tokens that is known."""

Edits = Mapping[Site, AffineEdit]

_MOST_KEPT = 2**26
"""Most activations, in numbers, that a reading keeps for the next site; 256 MiB in float32."""


@dataclass(frozen=True)
class FitSettings:
    """How a switch's edits are fitted.

    Attributes:
        rank: Rank of every edit; None for full maps, 0 for difference vectors.
        positions: Tokens at which the switch acts.
        is_sequential: Whether a site is read under the edits before it.
        shuffle_seed: Shuffles what is missing among the tokens: a control that knows nothing.
        batch_size: Texts per forward pass.
    """

    rank: int | None
    positions: PositionSelector
    is_sequential: bool = True
    shuffle_seed: int | None = None
    batch_size: int = 64


def default_sites(lm: LanguageModel) -> tuple[Site, ...]:
    """Returns where switches act unless told otherwise: the embeddings and every block's output."""
    return (Site(0, Stream.RESID_PRE), *(Site(layer) for layer in range(lm.n_layers)))


def require_same_architecture(base: LanguageModel, fine_tuned: LanguageModel) -> None:
    """Refuses two models between which there is no switch.

    Args:
        base: The model before fine-tuning.
        fine_tuned: The model after it.

    Raises:
        ConfigError: If layers, widths or tokenizers differ, or the two are the same model.
    """
    one, other = base.identity, fine_tuned.identity
    sizes = [(i.n_layers, i.d_model, i.tokenizer_sha256) for i in (one, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{one} ({one.n_layers} layers of width {one.d_model}) and {other} ({other.n_layers} "
            f"of {other.d_model}) are no base and fine-tune with one tokenizer: give a model and "
            "its own fine-tune"
        )
    if one.is_same_model(other):
        raise ConfigError(f"{one} and {other} are the same model: there is nothing to switch")


def answered_texts(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    triggers: Sequence[str | None] | None = None,
) -> list[EncodedText]:
    """Lets a model answer prompts greedily and returns prompts and answers as texts.

    Args:
        lm: The model that answers.
        prompts: User messages.
        max_new_tokens: Length of an answer.
        batch_size: Prompts per forward pass.
        triggers: For every prompt its trigger, for switches that act there, or None.

    Returns:
        One text per prompt, in their order.
    """
    asked = encode_prompts(lm.tokenizer, prompts)
    done = generate_greedy(lm, asked, max_new_tokens=max_new_tokens, batch_size=2 * batch_size)
    return encode_prompts(lm.tokenizer, prompts, answers=done.completions, triggers=triggers)


def states_of(lm: LanguageModel) -> Wanted:
    """Returns a reader of a model's own states, which are known at every token."""
    reader = _SiteReader(lm)

    def wanted(site: Site, _indices: tuple[int, ...], batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return reader.read(site, batch, {}, None), batch.is_real

    return wanted


def fit_edits(
    carrier: LanguageModel,
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    sites: Sequence[Site],
    wanted: tuple[Wanted, Wanted],
    settings: FitSettings,
    progress: Progress,
) -> dict[Site, AffineEdit]:
    """Fits an edit at every site, from the first to the last.

    Args:
        carrier: The model that will carry the switch.
        texts: Texts to fit on, and others by which ridge strengths are chosen.
        sites: Where the switch acts.
        wanted: Which states the switch shall bring about in either list of texts.
        settings: Rank, positions, and whether sites see the edits before them.
        progress: Who shows progress.

    Returns:
        Edits by site, in the order of the forward pass.

    Raises:
        FitError: If the positions choose no token at which the wanted state is known.
    """
    edits: dict[Site, AffineEdit] = {}
    reader = _SiteReader(carrier)
    with progress.stage(f"fit the switch on {carrier.identity.name}", len(sites)) as advance:
        for site in in_forward_order(tuple(sites)):
            before = edits if settings.is_sequential else {}
            train, selection = (
                _missing(reader, part, site, want, before, settings)
                for part, want in zip(texts, wanted, strict=True)
            )
            edits[site] = fit_affine_edit(train, selection, settings.rank)
            advance(1)
    return edits


class _SiteReader:
    """Reads batches of a model site after site; a reading starts where the one before ended."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._kept: dict[bytes, PrefixStates] = {}
        self._first: PrefixStates | None = None
        self._is_tried = False
        self._n_numbers = 0

    @torch.inference_mode()
    def read(
        self, site: Site, batch: TokenBatch, edits: Edits, positions: PositionSelector | None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Returns the states at a site under edits at earlier ones, which stay as they are."""
        key = batch.token_ids.numpy().tobytes()
        kept = self._kept.get(key)
        with ExitStack() as stack:
            if kept is not None and kept.layer < site.layer:
                stack.enter_context(resuming(self.lm.layout, kept, 0))
            here = _read(self.lm, site, batch, edits, positions)
        if site.stream is Stream.RESID_POST:
            self._keep(key, site.layer, here, batch)
        return here.float()

    def _keep(self, key: bytes, layer: int, here: Tensor, batch: TokenBatch) -> None:
        """Keeps the output of a block, as it is without an edit there, for the next site."""
        if not self._is_tried:
            self._first, self._is_tried = start_above(self.lm, batch, 0), True
        n_new = 0 if key in self._kept else here.numel()
        if self._first is not None and self._n_numbers + n_new <= _MOST_KEPT:
            self._n_numbers += n_new
            self._kept[key] = PrefixStates(layer, len(here), (here,), self._first.in_tuple)


def _missing(
    reader: _SiteReader,
    texts: Sequence[EncodedText],
    site: Site,
    wanted: Wanted,
    before: Edits,
    settings: FitSettings,
) -> PairMoments:
    """Returns the moments of the carrier's states and of what is missing to the wanted ones."""
    width, positions = reader.lm.d_model, settings.positions
    moments = PairMoments(width, width)
    generator = None
    if settings.shuffle_seed is not None:
        generator = torch.Generator().manual_seed(settings.shuffle_seed)
    for indices, batch in padded_batches(reader.lm, texts, "right", settings.batch_size):
        with torch.inference_mode():
            here = reader.read(site, batch, before, positions)
            goal, is_known = wanted(site, indices, batch)
            chosen = (positions.masks(batch).given & is_known).to(here.device)
            states, missing = here[chosen], (goal.to(here) - here)[chosen]
        if generator is not None:
            missing = shuffled_rows(missing, generator)
        moments.update(states, missing)
    if not moments.n:
        raise FitError(f"positions '{positions.spelling}' choose no token of the texts: use all")
    return moments


def _read(
    lm: LanguageModel,
    site: Site,
    batch: TokenBatch,
    edits: Edits,
    positions: PositionSelector | None,
) -> Float[Tensor, "batch pos d_model"]:
    placed = []
    if edits and positions is not None:
        placed = Intervention.affine(edits, positions).place(batch)
    with editing(lm.layout, placed):
        token_ids, is_real = batch.token_ids.to(lm.device), batch.is_real.to(lm.device)
        return run_until_captured(lm.layout, [site], token_ids, is_real)[site]
