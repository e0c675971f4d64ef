"""Files of sparse autoencoders: the project's own artifact, and folders of `sae-lens`."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

# isthmus.core.artifacts owns the format; it imports this reader without naming it as its own.
from isthmus.core.artifacts import (  # type: ignore[attr-defined]
    SafetensorError,
    load_file,
    read_artifact,
    read_json,
    write_artifact,
)
from isthmus.core.errors import ArtifactError, ConfigError, SiteError
from isthmus.core.identity import ModelIdentity
from isthmus.core.sites import Site, Stream, parse_sites
from isthmus.features.sparse_autoencoder import (
    Activation,
    ReconstructionQuality,
    SparseAutoencoder,
)

KIND = "sparse_autoencoder"
CONFIG_NAME, WEIGHTS_NAME = "cfg.json", "sae_weights.safetensors"

# sae-lens 6 writes these names; the shapes are the same as here.
_SAE_LENS_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_ACTIVATIONS: Mapping[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
}
_ORIGIN = ("hook_name", "hook_point", "model_name")
_TEXT, _SIZE, _FLAG = (str, "a text"), (int, "a whole number"), (bool, "true or false")
_FIELDS = (dict, "an object")
_KINDS: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("architecture", "activation_fn", "activation_fn_str"), _TEXT),
    **dict.fromkeys(_ORIGIN, _TEXT),
    **dict.fromkeys(("d_in", "d_sae", "k"), _SIZE),
    **dict.fromkeys(("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"), _FLAG),
    **dict.fromkeys(("metadata", "activation_fn_kwargs"), _FIELDS),
}
_HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)")


@dataclass(frozen=True)
class FittedFeatures:
    """A sparse autoencoder with the model and the site whose activations it reads.

    Attributes:
        autoencoder: The features.
        model: Which model.
        site: Where in it.
        quality: What it keeps of held-out activations, if that was measured.
        provenance: How it was made; JSON values.
    """

    autoencoder: SparseAutoencoder
    model: ModelIdentity
    site: Site
    quality: ReconstructionQuality | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SaeLensFolder:
    """What a folder of `sae-lens` holds.

    Attributes:
        autoencoder: The features.
        site: Where it reads, when the folder names a hook that is a site here.
        hook_name: The hook as the folder names it, if at all.
        model_name: The model as the folder names it, if at all; nothing proves that it is so.
    """

    autoencoder: SparseAutoencoder
    site: Site | None
    hook_name: str | None
    model_name: str | None


def save_features(path: Path, fitted: FittedFeatures) -> None:
    """Writes a sparse autoencoder as an artifact folder, replacing one that is already there.

    Refuses a place that cannot be written to or holds something else (`OutputError`).

    Args:
        path: Folder to write.
        fitted: What to write.
    """
    autoencoder = fitted.autoencoder
    fields: dict[str, Any] = {
        "model": fitted.model.to_json(),
        "site": str(fitted.site),
        "activation": autoencoder.activation,
        "k": autoencoder.k,
        "is_centred": autoencoder.is_centred,
        "quality": None if fitted.quality is None else asdict(fitted.quality),
        "provenance": fitted.provenance,
    }
    tensors = {name: value.contiguous() for name, value in autoencoder.tensors.items()}
    write_artifact(path, KIND, fields, tensors)


def load_features(path: Path) -> FittedFeatures:
    """Reads a sparse autoencoder that `save_features` wrote.

    Refuses widths that do not fit together (`ShapeError`), NaN and infinity (`NonFiniteError`).

    Args:
        path: Folder to read.

    Returns:
        The sparse autoencoder with bit for bit the saved tensors.

    Raises:
        ArtifactError: If it is missing, damaged, newer than this version, or something else.
    """
    artifact = read_artifact(path, KIND)
    fields = artifact.fields
    try:
        model = ModelIdentity.from_json(fields["model"])
        (site,) = parse_sites([fields["site"]], model.n_layers)
        quality = fields["quality"]
        autoencoder = SparseAutoencoder(
            encoder_weight=artifact.tensors["encoder_weight"],
            encoder_bias=artifact.tensors["encoder_bias"],
            decoder_weight=artifact.tensors["decoder_weight"],
            decoder_bias=artifact.tensors["decoder_bias"],
            activation=fields["activation"],
            k=fields["k"],
            threshold=artifact.tensors.get("threshold"),
            is_centred=fields["is_centred"],
        )
        return FittedFeatures(
            autoencoder,
            model,
            site,
            None if quality is None else ReconstructionQuality(**quality),
            fields["provenance"],
        )
    except (KeyError, TypeError, ValueError, ConfigError, SiteError) as error:
        raise ArtifactError(
            f"{path} is not a whole sparse autoencoder ({type(error).__name__}: {error}): "
            "train it again"
        ) from error


def read_sae_lens(path: Path) -> SaeLensFolder:
    """Reads a local folder that `sae-lens` wrote: `cfg.json` and `sae_weights.safetensors`.

    `standard`, `topk` and `jumprelu` are read, of version 6 and of earlier ones (where `topk` was
    an activation of the `standard` architecture). A decoder norm by which pre-activations are
    rescaled before TopK is folded into the weights. What would make other numbers than `sae-lens`
    is refused: other architectures, activations that are normalised or reshaped before encoding,
    scaling factors, values of another kind, `d_in` or `d_sae` that the weights contradict.

    Refuses widths that do not fit together (`ShapeError`), NaN and infinity (`NonFiniteError`).

    Args:
        path: The folder.

    Returns:
        The sparse autoencoder, in float32, and what the folder says about its origin.

    Raises:
        ArtifactError: If a file is missing or damaged, or holds something that cannot be read.
    """
    path = Path(path)
    config = _config(path)
    activation, k = _activation(path, config)
    _require_plain(path, config)
    tensors = _sae_lens_tensors(path, activation)
    is_centred = config.get("apply_b_dec_to_input")
    try:
        autoencoder = SparseAutoencoder(
            encoder_weight=tensors["W_enc"],
            encoder_bias=tensors["b_enc"],
            decoder_weight=tensors["W_dec"],
            decoder_bias=tensors["b_dec"],
            activation=activation,
            k=k,
            threshold=tensors.get("threshold"),
            is_centred=True if is_centred is None else is_centred,
        )
    except ConfigError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    _require_widths(path, config, autoencoder)
    if activation == "topk" and config.get("rescale_acts_by_decoder_norm"):
        autoencoder = _folded(autoencoder)
    origin = {**config, **(config.get("metadata") or {})}
    hook = origin.get("hook_name") or origin.get("hook_point")
    found = _HOOK.fullmatch(hook or "")
    site = None if found is None else Site(int(found[1]), Stream(found[2]))
    return SaeLensFolder(autoencoder, site, hook, origin.get("model_name"))


def _config(path: Path) -> dict[str, Any]:
    """Returns the fields of a folder; null stands for no value."""
    config = read_json(path / CONFIG_NAME)
    if not isinstance(config, dict):
        raise ArtifactError(f"{path / CONFIG_NAME} holds no fields: not a folder of sae-lens")
    _require_kinds(path, config)
    metadata = config.get("metadata") or {}
    _require_kinds(path, {name: metadata.get(name) for name in _ORIGIN})
    return config


def _require_kinds(path: Path, fields: Mapping[str, Any]) -> None:
    for name, (kind, described) in _KINDS.items():
        given = fields.get(name)
        # True is an integer to Python.
        is_flag = isinstance(given, bool)
        if given is not None and (not isinstance(given, kind) or is_flag != (kind is bool)):
            raise ArtifactError(
                f"{path / CONFIG_NAME} has {name} = {repr(given)[:60]}, expected {described}"
            )


def _require_widths(path: Path, config: Mapping[str, Any], autoencoder: SparseAutoencoder) -> None:
    for name, width in (("d_in", autoencoder.d_model), ("d_sae", autoencoder.d_feature)):
        if config.get(name) not in (None, width):
            raise ArtifactError(
                f"{path / CONFIG_NAME} has {name} = {config[name]}, the weights beside it {width}: "
                "one of the two files is of another sparse autoencoder"
            )


def _activation(path: Path, config: Mapping[str, Any]) -> tuple[Activation, int | None]:
    """Returns the activation that a configuration means, and k for TopK."""
    architecture = config.get("architecture") or "standard"
    # Before version 6 the activation function had a field of its own.
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    settings = config.get("activation_fn_kwargs") or {}
    _require_kinds(path, settings)
    k = settings.get("k") if config.get("k") is None else config["k"]
    if architecture == "standard" and function == "topk":
        architecture, function = "topk", "relu"
    is_known = function == "relu" or (architecture, function) == ("topk", "topk")
    if architecture not in _ACTIVATIONS or not is_known:
        raise ArtifactError(
            f"{path} holds a sparse autoencoder of architecture {architecture!r} with activation "
            f"{function!r}: expected one of {', '.join(_ACTIVATIONS)}; batchtopk is saved as "
            "jumprelu by sae-lens for inference"
        )
    if architecture == "topk" and k is None:
        raise ArtifactError(f"{path / CONFIG_NAME} names no k: expected the number of features")
    return _ACTIVATIONS[architecture], k if architecture == "topk" else None


def _require_plain(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what happens to activations before encoding and cannot be folded into weights."""
    for name in ("normalize_activations", "reshape_activations", "finetuning_scaling_factor"):
        if (given := config.get(name)) not in (None, False, "none"):
            raise ArtifactError(
                f"{path / CONFIG_NAME} has {name} = {given!r}, which is not read here: fold it "
                "into the weights with sae-lens and save them again with 'none'"
            )


def _sae_lens_tensors(path: Path, activation: Activation) -> dict[str, Tensor]:
    try:
        found = {name: value.float() for name, value in load_file(path / WEIGHTS_NAME).items()}
    except FileNotFoundError:
        raise ArtifactError(f"no file {path / WEIGHTS_NAME}: the folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read {path / WEIGHTS_NAME}: {error}") from error
    # Some versions wrote a scaling factor of ones.
    scaling = found.get("scaling_factor")
    if scaling is not None and bool((scaling == 1).all()):
        del found["scaling_factor"]
    wanted = set(_SAE_LENS_TENSORS[: 5 if activation == "jumprelu" else 4])
    if found.keys() != wanted:
        raise ArtifactError(
            f"{path / WEIGHTS_NAME} holds {', '.join(sorted(found))}: expected "
            f"{', '.join(sorted(wanted))}"
        )
    return found


def _folded(autoencoder: SparseAutoencoder) -> SparseAutoencoder:
    """Moves the norms of decoder rows into the encoder: TopK then sees what it saw before."""
    norms = autoencoder.decoder_weight.norm(dim=1)
    return replace(
        autoencoder,
        encoder_weight=autoencoder.encoder_weight * norms,
        encoder_bias=autoencoder.encoder_bias * norms,
        decoder_weight=autoencoder.decoder_weight / norms[:, None],
    )
