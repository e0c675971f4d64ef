"""Organisms as files: packed in the package, unpacked into a cache as plain model folders.

1. A base is packed as float16 weights; a fine-tune as what it adds to its base as packed: per
   matrix a 4-bit integer for every entry with a float16 scale per row, per vector the plain
   difference in float16.
2. `organism_folder` unpacks an organism once into a folder that `transformers` can load, named by
   the hash of what it was unpacked from, and checks every file's hash before handing it out.
"""

import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from isthmus.core.artifacts import (
    MANIFEST_NAME,
    Artifact,
    SafetensorError,
    read_artifact,
    read_fields,
    read_json,
    sha256_of_file,
    write_artifact,
    write_json,
)
from isthmus.core.errors import (
    ArtifactError,
    NonFiniteError,
    OrganismError,
    OutputError,
    ShapeError,
)
from isthmus.core.places import atomic_folder

_KIND = "organism"
_HASHES_NAME = "isthmus-files.json"


def cache_folder() -> Path:
    """Returns where to keep what can be made again: `$ISTHMUS_CACHE` or `~/.cache/isthmus`."""
    given = os.environ.get("ISTHMUS_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "isthmus"


def _shipped_folder() -> Path:
    return Path(str(resources.files("isthmus"))) / "organisms"


def packed_folder(name: str) -> Path:
    """Returns where an organism lies packed: built in the cache, else shipped with the package.

    Args:
        name: Name of an organism, without `organism:`.

    Returns:
        A folder written by `pack_organism`.

    Raises:
        OrganismError: If it is neither built nor shipped.
    """
    for place in (cache_folder() / "built" / name, _shipped_folder() / name):
        if (place / MANIFEST_NAME).is_file():
            return place
    known = ", ".join(shipped_organisms())
    raise OrganismError(
        f"no organism {name!r}: it neither comes with the package ({known}) nor lies in "
        f"{cache_folder() / 'built'}. If it has a recipe ('isthmus organism list --all'), "
        f"'isthmus organism build {name}' trains it once"
    )


def shipped_organisms() -> tuple[str, ...]:
    """Returns the names of the organisms that come with the package."""
    folder = _shipped_folder()
    found = folder.iterdir() if folder.is_dir() else ()
    return tuple(sorted(p.name for p in found if (p / MANIFEST_NAME).is_file()))


def pack_organism(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    fields: Mapping[str, Any],
    *,
    base: PreTrainedModel | None = None,
) -> None:
    """Writes an organism's weights, configuration and tokenizer as one artifact.

    Args:
        path: Folder to write.
        model: The organism.
        tokenizer: Its tokenizer.
        fields: Recipe, measured competence and the name of the base (`base`), if there is one.
        base: The base model; when given, only what differs from it is stored.

    Raises:
        OutputError: If the place cannot be written to.
        ShapeError: If the model's parameters are not those of its base.
        NonFiniteError: If what is stored holds NaN or infinity, also because a weight is too large
            for float16.
    """
    weights = _stored_weights(model)
    weights = _as_half(weights) if base is None else _difference(weights, _stored_weights(base))
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    manifest: dict[str, Any] = {"config": config, **fields}
    if base is None:
        manifest["tokenizer"] = _tokenizer_fields(tokenizer)
    write_artifact(path, _KIND, manifest, weights)


def _tokenizer_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "tokenizer_json": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "bos_token": tokenizer.bos_token,
    }


def _stored_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns every parameter once (a tied head is left out)."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _difference(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if _shapes(weights) != _shapes(base):
        raise ShapeError(
            "the parameters are not those of the base: give the base it was tuned from"
        )
    stored = {}
    for name, weight in weights.items():
        delta = weight.float() - base[name].float()
        if delta.ndim == 2:
            stored[f"{name}.nibbles"], stored[f"{name}.scale"] = to_nibbles(delta)
        else:
            stored |= _as_half({name: delta})
    return stored


def _as_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    halved = {name: weight.half() for name, weight in weights.items()}
    for name, weight in halved.items():
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                f"{name} holds NaN, infinity or more than float16 can: train again"
            )
    return halved


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def to_nibbles(
    matrix: Float[Tensor, "row column"],
) -> tuple[UInt8[Tensor, "row half"], Float16[Tensor, " row"]]:
    """Rounds a matrix to 15 levels per row and packs two entries into a byte.

    q = round(x / scale) from -7 to 7 with scale = max|row| / 7: every entry is off by at most half
    a scale, or by 7 · 2⁻²⁵ where that is more (float16 has no finer scales).

    Args:
        matrix: Any matrix; a column of zeros is added when it has an odd number of them.

    Returns:
        Packed levels and the scale of every row.

    Raises:
        NonFiniteError: If the matrix holds NaN or infinity, or a scale is too large for float16.
    """
    scale = (matrix.abs().amax(1) / 7).half()
    if not bool(torch.isfinite(scale).all()):
        raise NonFiniteError(
            "a matrix to pack holds NaN, infinity or more than float16 can: train again"
        )
    # Divided by the rounded scale, so that levels and scale fit; a row of zeros has scale 0.
    levels = matrix / scale.float().clamp(min=1e-12)[:, None]
    codes = (levels.round().clamp(-7, 7) + 8).to(torch.uint8)
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1), value=8)
    return codes[:, ::2] * 16 + codes[:, 1::2], scale


def from_nibbles(
    packed: UInt8[Tensor, "row half"], scale: Float16[Tensor, " row"], n_columns: int
) -> Float[Tensor, "row column"]:
    """Returns the matrix that `to_nibbles` packed, up to rounding, in float32.

    Args:
        packed: Two levels per byte.
        scale: Scale of every row.
        n_columns: Columns of the matrix.

    Returns:
        The levels times the scale of their row.
    """
    codes = torch.stack([packed // 16, packed % 16], dim=-1).flatten(1)[:, :n_columns]
    return (codes.float() - 8) * scale.float()[:, None]


def unpack_organism(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Builds an organism from its packed form, float32, with its base where it needs one.

    Args:
        path: Folder written by `pack_organism`.

    Returns:
        The model, not in training mode, and its tokenizer.

    Raises:
        ArtifactError: If it is missing or damaged, or does not fit its base.
        OrganismError: If its base is not there.
    """
    artifact = read_artifact(path, _KIND)
    base_name = artifact.fields.get("base")
    needed = {"config", "tokenizer"} if base_name is None else {"config"}
    if lacking := needed - artifact.fields.keys():
        raise ArtifactError(f"{path} lacks {', '.join(sorted(lacking))}: build the organism again")
    if base_name is None:
        weights = {name: tensor.float() for name, tensor in artifact.tensors.items()}
        tokenizer = _tokenizer_from(artifact)
    else:
        base, tokenizer = unpack_organism(_base_folder(path, base_name))
        weights = _added(artifact.tensors, _stored_weights(base))
    return _model_from(path, artifact.fields["config"], weights), tokenizer


def _base_folder(packed: Path, base_name: str) -> Path:
    """Returns where the base of a packed fine-tune lies.

    A shipped fine-tune belongs to the shipped base, also when another of its name has been built.
    """
    shipped = _shipped_folder() / base_name
    if packed.parent == shipped.parent and (shipped / MANIFEST_NAME).is_file():
        return shipped
    return packed_folder(base_name)


def _model_from(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> PreTrainedModel:
    # The first random weights are replaced; nobody else's random numbers shall change with them.
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.float32
        )
    misfit = f"{path} does not hold the weights of a {type(model).__name__}: build it again"
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ArtifactError(misfit) from error
    if unexpected or set(missing) - _tied_names(model):
        raise ArtifactError(misfit)
    model.tie_weights()
    model.eval()
    return model


def _tied_names(model: PreTrainedModel) -> set[str]:
    return set(model.state_dict()) - {name for name, _ in model.named_parameters()}


def _added(stored: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, weight in base.items():
        levels = stored.get(f"{name}.nibbles")
        if levels is None:
            delta = stored.get(name)
        else:
            delta = from_nibbles(levels, stored[f"{name}.scale"], weight.shape[-1])
        if delta is None or delta.shape != weight.shape:
            raise ArtifactError(
                f"{name} of a fine-tune does not fit its base: build the base it was tuned from"
            )
        weights[name] = weight.float() + delta.float()
    return weights


def _tokenizer_from(artifact: Artifact) -> PreTrainedTokenizerFast:
    given = artifact.fields["tokenizer"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(given["tokenizer_json"]),
        pad_token=given["pad_token"],
        eos_token=given["eos_token"],
        bos_token=given["bos_token"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = given["chat_template"]
    return tokenizer


def organism_folder(name: str) -> Path:
    """Returns a plain model folder of an organism, unpacking it when the cache has no whole one.

    Args:
        name: Name of a shipped or built organism, without `organism:`.

    Returns:
        A folder in the cache; its files are those that were unpacked.

    Raises:
        OrganismError: If there is no such organism.
        ArtifactError: If its packed form is damaged.
        OutputError: If the cache cannot be written to.
    """
    packed = packed_folder(name)
    folder = cache_folder() / "organisms" / f"{name}-{_content_hash(packed)[:16]}"
    if _is_whole(folder):
        return folder
    model, tokenizer = unpack_organism(packed)
    try:
        with atomic_folder(folder, replace=folder.exists(), further=(SafetensorError,)) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            write_json(staging / _HASHES_NAME, _hashes(staging))
    except OutputError:
        # Another process may have unpacked it meanwhile; its folder is as good.
        if not _is_whole(folder):
            raise
    return folder


def _content_hash(packed: Path) -> str:
    """Returns a hash that changes with the organism or with any base below it."""
    hashes = [sha256_of_file(packed / MANIFEST_NAME)]
    base = read_fields(packed, _KIND).get("base")
    if base is not None:
        hashes.append(_content_hash(_base_folder(packed, base)))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _HASHES_NAME)
    return {str(p.relative_to(folder)): sha256_of_file(p) for p in files}


def _is_whole(folder: Path) -> bool:
    try:
        recorded = read_json(folder / _HASHES_NAME)
    except (ArtifactError, OSError):
        return False
    return bool(recorded == _hashes(folder))
