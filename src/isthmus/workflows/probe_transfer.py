"""What `transfer` does with a probe: carries it, and sets its threshold again where it is asked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from isthmus.carrying.model_probes import carry_probe_along, recalibrated
from isthmus.carrying.probes import require_share
from isthmus.core.artifacts import kind_at, sha256_of_file
from isthmus.core.errors import ConfigError
from isthmus.core.identity import ModelIdentity, require_same_model
from isthmus.data.prompts import read_questions
from isthmus.directions.model_probe import ModelProbe
from isthmus.directions.probe_files import KIND, save_probe
from isthmus.maps.files import FittedMap
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.certifying import as_made_here
from isthmus.workflows.config import Dtype
from isthmus.workflows.gating import GivenProbe, loaded_probe, states_read

_BATCH_SIZE = 64


def is_folder_of_probe(path: str | Path) -> bool:
    """Says whether a probe lies at a place, rather than a direction or nothing."""
    return kind_at(Path(path)) == KIND


def transfer_probe(
    given: GivenProbe,
    maps: Sequence[FittedMap],
    *,
    out: str | Path | None,
    unlabelled: str | Path | None,
    positive_share: float | None,
    dtype: Dtype,
    device: str,
) -> ModelProbe:
    """Carries a probe through maps, each whichever way it leads.

    Args:
        given: A probe or its folder.
        maps: In the order of the way.
        out: Folder to write; nothing is written when None.
        unlabelled: Prompts whose classes nobody knows, to set the threshold by; None keeps the one
            that was carried.
        positive_share: Share of them that lies above it; None takes the share that the probe finds
            on the same prompts in the model in which it was learned.
        dtype: Computation type of models that read the prompts.
        device: Where they run.

    Returns:
        The probe in the last model.

    Raises:
        ConfigError: If a share is given without prompts or is none, a map is not affine, or
            unlabelled prompts are given to a probe that reads the trigger.
        DataError: If the file of prompts cannot be used.
        IdentityError: If the probe belongs to neither model of a map, or a model that is read is
            not any more the one it was.
        SiteError: If a map has other sites than the probe.
    """
    if positive_share is not None and unlabelled is None:
        raise ConfigError(
            f"positive_share {positive_share} without unlabelled prompts: name a file of them, or "
            "leave the share out"
        )
    if positive_share is not None:
        require_share(positive_share)
    probe = loaded_probe(given)
    prompts = [] if unlabelled is None else _prompts(probe, Path(unlabelled))
    carried = carry_probe_along(probe, maps)
    if unlabelled is not None:
        share, told = positive_share, {"unlabelled_sha256": sha256_of_file(Path(unlabelled))}
        if share is None:
            scores = probe.probe.scores(_read(probe, prompts, dtype, device))
            share = float((scores > 0).double().mean())
        carried = recalibrated(carried, _read(carried, prompts, dtype, device), share, dict(told))
    carried = replace(carried, certificate=as_made_here(carried.certificate))
    if out is not None:
        save_probe(Path(out), carried)
    return carried


def _prompts(probe: ModelProbe, path: Path) -> list[str]:
    if probe.positions == "trigger":
        raise ConfigError(
            "the probe reads the trigger, which is not marked in unlabelled prompts: leave "
            "unlabelled out, or learn a probe that reads last:1"
        )
    return [question.prompt for question in read_questions(path)]


def _read(
    probe: ModelProbe, prompts: Sequence[str], dtype: Dtype, device: str
) -> Float[Tensor, "prompt width"]:
    lm = _model(probe.model, dtype, device)
    texts = encode_prompts(lm.tokenizer, prompts)
    return states_read(lm, texts, probe.sites, probe.positions, _BATCH_SIZE)


def _model(identity: ModelIdentity, dtype: Dtype, device: str) -> LanguageModel:
    lm = load_language_model(identity.name, dtype=dtype, device=device)
    fix = "put the model whose unlabelled prompts are read back where it was loaded from"
    require_same_model("probe", identity, lm.identity, fix)
    return lm
