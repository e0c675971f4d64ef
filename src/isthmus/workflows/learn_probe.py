"""`learn-probe`: a classifier of a model's states from a file of contrasting prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.core.artifacts import require_free, sha256_of_file
from isthmus.core.certificate import CertifiedNumber
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites
from isthmus.data.prompts import ContrastPrompts, Question, read_contrast, split_by_content
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe import Probe, fit_probe
from isthmus.directions.probe_files import KIND, save_probe
from isthmus.evaluation.intervals import wilson_interval
from isthmus.evaluation.ranking import auroc_interval, unpaired_auroc_interval
from isthmus.interventions.positions import parse_positions
from isthmus.models.language_model import load_language_model
from isthmus.workflows.class_reading import encoded_class
from isthmus.workflows.config import Dtype
from isthmus.workflows.gating import states_read

_HELD_OUT = 0.25
_FEWEST = 8
"""Fewest prompts of a class: a quarter of them is held out."""

_ALIKE = 1e-5
"""Share of a state's length within which another state differs by rounding alone."""


def learn_probe(
    model: str | Path,
    prompts: str | Path,
    *,
    out: str | Path | None = None,
    site: GivenSites = 0.5,
    positions: str = "last:1",
    triggers: tuple[str, str] | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelProbe:
    """Learns a probe that tells positive from negative prompts, and measures it on held-out ones.

    It is fitted on three quarters of the prompts, chosen by a hash of their text; prompts of one
    row stay together, so that no twin of a held-out prompt was fitted on. A held-out prompt that
    shows the probe a state which it was fitted on measures nothing and is not counted: before a
    trigger at the beginning all prompts of a class are one state.

    Args:
        model: Hub name, local folder or `organism:NAME`.
        prompts: JSONL with `positive` and `negative` on every line, or `prompt` and `label`; at
            least 8 of each.
        out: Folder to write; nothing is written when not given.
        site: Where it reads: `resid_post[3]`, `3`, `0.6`; several, such as `1,2` or `all`, are read
            side by side.
        positions: Tokens that are read: `last:1`, `trigger`, `prompt`; of several their mean.
        triggers: The positive and the negative trigger, for positions `trigger`.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Prompts per forward pass.
        seed: Which prompts are held out, and the bootstrap.
        progress: Who shows progress.

    Returns:
        The probe, with what it did on the held-out prompts; with nothing where those of a class all
        are states that it was fitted on.

    Raises:
        IsthmusError: If the model, a site, the prompts or the place cannot be used.
    """
    require_free(out, KIND)
    if parse_positions(positions).includes_generated:
        raise ConfigError(
            f"a probe reads the prompt, not positions '{positions}': use last:K, trigger or prompt"
        )
    split = _split(read_contrast(Path(prompts)), seed)
    lm = load_language_model(model, dtype=dtype, device=device)
    sites = lm.sites(site)

    def read(contrast: ContrastPrompts) -> _Classes:
        sides = enumerate((contrast.positive, contrast.negative))
        encoded = [encoded_class(lm, side, positions, triggers, i) for i, side in sides]
        return _Classes(*(states_read(lm, one, sites, positions, batch_size) for one in encoded))

    with (progress or SilentProgress()).stage("read both classes", 2) as advance:
        fitted_on = read(split.fitted_on)
        advance(1)
        held_out = read(split.held_out)
        advance(1)
    probe = fit_probe(*fitted_on)
    anew = _unlike(held_out, fitted_on)
    provenance = {
        "n_positive": len(split.fitted_on.positive),
        "n_negative": len(split.fitted_on.negative),
        "prompts_sha256": sha256_of_file(Path(prompts)),
        "triggers": list(triggers) if triggers else None,
        "seed": seed,
        "n_held_out_like_fitted": sum(map(len, held_out)) - sum(map(len, anew)),
        **made_with(),
    }
    measured = _measured(probe, anew, seed)
    learned = ModelProbe(probe, sites, positions, lm.identity, measured, provenance)
    if out is not None:
        save_probe(Path(out), learned)
    return learned


class _Classes(NamedTuple):
    """States of both classes."""

    positive: Float[Tensor, "positive_prompt width"]
    negative: Float[Tensor, "negative_prompt width"]


class _Split(NamedTuple):
    """Prompts that the probe is fitted on, and prompts that measure it."""

    fitted_on: ContrastPrompts
    held_out: ContrastPrompts


def _split(contrast: ContrastPrompts, seed: int) -> _Split:
    sides = {"positive": contrast.positive, "negative": contrast.negative}
    for side, prompts in sides.items():
        if len(prompts) < _FEWEST:
            raise DataError(
                f"{len(prompts)} {side} prompts: a probe needs at least {_FEWEST}, of which a "
                "quarter measure it"
            )
    if len(contrast.positive) != len(contrast.negative):
        # Without twins each class is split by itself: of the rarer one none might be held out.
        return _Split(*map(ContrastPrompts, *(_parts(side, seed) for side in sides.values())))
    twin_of = dict(zip(contrast.positive, contrast.negative, strict=True))
    return _Split(
        *(
            ContrastPrompts(part, tuple(twin_of[one] for one in part))
            for part in _parts(contrast.positive, seed)
        )
    )


def _parts(prompts: Sequence[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns what is fitted on, and what is held out."""
    shares = (1 - _HELD_OUT, 0.0, _HELD_OUT)
    parts = split_by_content([Question(one) for one in prompts], shares, seed=seed)
    fitted_on, held_out = (tuple(q.prompt for q in parts[part]) for part in ("train", "test"))
    return fitted_on, held_out


def _unlike(held_out: _Classes, fitted_on: _Classes) -> _Classes:
    """Returns the held-out states that are none of those that the probe was fitted on."""
    is_new = []
    for states, fitted in zip(held_out, fitted_on, strict=True):
        # In float32 too few digits of the distance of large states would be left.
        nearest = torch.cdist(states.double(), fitted.double()).min(-1).values
        is_new.append(nearest > _ALIKE * torch.linalg.vector_norm(states, dim=-1))
    if len(is_new[0]) == len(is_new[1]):
        # Twins stay twins.
        is_new = [is_new[0] & is_new[1]] * 2
    return _Classes(held_out.positive[is_new[0]], held_out.negative[is_new[1]])


def _measured(probe: Probe, held_out: _Classes, seed: int) -> dict[str, CertifiedNumber]:
    """Returns how well it ranks held-out prompts, and the share of both classes that it finds.

    Nothing where a class has no held-out state.
    """
    positive, negative = (probe.scores(states).double().numpy() for states in held_out)
    if not (positive.size and negative.size):
        return {}
    n = len(positive) + len(negative)
    area = (
        auroc_interval(positive, negative[:, None], seed=seed)
        if len(positive) == len(negative)
        else unpaired_auroc_interval(positive, negative, seed=seed)
    )
    found = {"auroc": CertifiedNumber(area.value, area.low, area.high, n)}
    for name, scores in (("positive", positive), ("negative", negative)):
        share = wilson_interval(int((scores > 0).sum()), len(scores))
        number = CertifiedNumber(share.value, share.low, share.high, len(scores))
        found[f"open_on_{name}"] = number
    return found
