"""A loaded model with its tokenizer, its layout and its identity; loading by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from isthmus.core.artifacts import SafetensorError
from isthmus.core.errors import ModelError
from isthmus.core.identity import ModelIdentity
from isthmus.core.options import require_word
from isthmus.core.sites import GivenSite, GivenSites, Site, parse_site, parse_sites
from isthmus.models.fingerprints import deciding_settings, hash_tokenizer, hash_weights
from isthmus.models.layouts import ModelLayout, find_parts
from isthmus.models.placement import Placement, device_of, find_placement, load_spread
from isthmus.models.probing import find_layout

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]

_ORGANISM = "organism:"

LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)
"""What transformers and the Hub client raise for folders and names that cannot be loaded."""


@dataclass(frozen=True)
class LanguageModel:
    """A decoder-only language model, ready to be read and edited.

    Attributes:
        model: The causal language model, in evaluation mode and without gradients.
        tokenizer: Its fast tokenizer, with a pad token.
        layout: Where its sites are.
        identity: What artifacts remember it by.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layout: ModelLayout
    identity: ModelIdentity

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.layout.d_model

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return self.layout.n_layers

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return device_of(self.layout.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return next(self.layout.embedding.parameters()).dtype

    @property
    def pad_id(self) -> int:
        """Token id that fills padding; it is masked everywhere."""
        given = self.tokenizer.pad_token_id
        return given if isinstance(given, int) else 0

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, from the tokenizer and the model's own settings."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        listed = own if isinstance(own, list) else [own]
        every = [self.tokenizer.eos_token_id, *listed]
        return tuple(sorted({one for one in every if isinstance(one, int)}))

    @property
    def n_positions(self) -> int | None:
        """How many tokens it can read at once, if it says so."""
        given = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return given if isinstance(given, int) else None

    def site(self, given: GivenSite) -> Site:
        """Reads a site of this model: `resid_post[12]`, `12`, `-1` or `0.6`.

        Args:
            given: A site in any spelling that `core.sites` accepts.

        Returns:
            The full site.

        Raises:
            SiteError: If it cannot be read or the model does not have it.
        """
        site = parse_site(given, self.n_layers)
        self.layout.module_at(site)
        return site

    def sites(self, given: GivenSites) -> tuple[Site, ...]:
        """Reads sites of this model: one, a list, a comma-separated text, or `all`.

        Args:
            given: Sites in any spelling that `core.sites` accepts.

        Returns:
            The full sites, in the given order.

        Raises:
            SiteError: If one cannot be read, does not exist or is named twice, or if none is given.
        """
        sites = parse_sites(given, self.n_layers)
        for site in sites:
            self.layout.module_at(site)
        return sites


def wrap_language_model(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str
) -> LanguageModel:
    """Makes a `LanguageModel` of loaded objects.

    The model is put into evaluation mode and its gradients are switched off; a tokenizer without a
    pad token uses its end token. Nothing else of the two objects changes.

    Args:
        model: A transformers causal language model, possibly inside a wrapper such as PEFT's.
        tokenizer: Its tokenizer.
        name: Name for people.

    Returns:
        The model without wrappers around it, with layout and identity.

    Raises:
        ModelError: If the model is no decoder-only language model or the tokenizer cannot say which
            characters a token covers.
        NonFiniteError: If a weight holds NaN or infinity.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} ({type(tokenizer).__name__}) gives no character offsets: "
            "convert it to a fast tokenizer (tokenizer.json)"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    model.requires_grad_(requires_grad=False)
    # Before the probe, so that damaged weights are called that.
    weights = hash_weights(find_parts(model).root)
    layout = find_layout(model)
    tokens = hash_tokenizer(tokenizer)
    settings = deciding_settings(getattr(layout.root, "config", None))
    identity = ModelIdentity(name, weights, tokens, layout.d_model, layout.n_layers, settings)
    return LanguageModel(layout.root, tokenizer, layout, identity)


def load_language_model(
    name: str | Path,
    *,
    dtype: DTypeName = "auto",
    device: str = "auto",
    revision: str | None = None,
) -> LanguageModel:
    """Loads a model by hub name, local folder or `organism:NAME`; never runs code that it brings.

    Without a network set `HF_HUB_OFFLINE=1`; then only what is in the local cache is found.

    Args:
        name: `org/model` on the Hugging Face Hub, a folder (a path, too), or `organism:NAME`.
        dtype: `auto` is as stored, except that float16 becomes float32 on a CPU.
        device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1` …; or a map for
            models larger than a device: `map:auto`, `map:balanced`, `map:{"module": "device"}`.
        revision: Branch, tag or commit on the Hub; the default branch when not given.

    Returns:
        The model on its device, in evaluation mode, without gradients.

    Raises:
        ModelError: If it cannot be loaded or is no decoder-only language model.
        ConfigError: If there is no such dtype, or the machine does not have the device, or
            accelerate for a map.
        NonFiniteError: If a weight holds NaN or infinity.
    """
    require_word("dtype", dtype, get_args(DTypeName))
    name, place = str(name), find_placement(device)
    where = _find_place(name)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    tokenizer = _load_tokenizer(name, where, options)

    def load(kind: DTypeName, more: dict[str, Any]) -> PreTrainedModel:
        return _load_model(name, where, kind, options | more)

    model = _placed(load, dtype, place)
    if dtype == "auto" and place.device.type == "cpu" and model.dtype == torch.float16:
        # Weights that accelerate keeps elsewhere cannot be changed: they are loaded again.
        is_spread = place.device_map is not None
        model = _placed(load, "float32", place) if is_spread else model.float()
    return wrap_language_model(model, tokenizer, name)


def _placed(
    load: Callable[[DTypeName, dict[str, Any]], PreTrainedModel], dtype: DTypeName, place: Placement
) -> PreTrainedModel:
    if place.device_map is not None:
        return load_spread(lambda more: load(dtype, more), place)
    model = load(dtype, {})
    nn.Module.to(model, device=place.device)
    return model


def _find_place(name: str) -> str:
    if name.startswith(_ORGANISM):
        # Only a run that asks for an organism needs the code that can build one.
        from isthmus.models.organisms import organism_folder  # noqa: PLC0415

        return str(organism_folder(name.removeprefix(_ORGANISM)))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"no model folder {name}: give a folder with config.json, a hub name such as "
            "org/model, or organism:NAME"
        )
    return name


def _load_tokenizer(name: str, where: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    except LOAD_ERRORS as error:
        raise _cannot_load("model", name, where, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} ({config.model_type}) is an encoder-decoder: load a decoder-only causal "
            "language model"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{name} ({config.model_type}) is of a class that AutoModelForCausalLM of transformers "
            "does not know: load a causal language model; of a model that reads images or sounds, "
            "too, save its language model alone (save_pretrained)"
        )
    try:
        # transformers gives every Qwen2 its own splitting rules and one more token, whatever
        # tokenizer.json says: an organism must read text as it did when it was trained.
        kind: Any = PreTrainedTokenizerFast if name.startswith(_ORGANISM) else AutoTokenizer
        tokenizer: Any = kind.from_pretrained(where, trust_remote_code=False, **options)
    except LOAD_ERRORS as error:
        raise _cannot_load("tokenizer", name, where, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not _reads(tokenizer):
        raise ModelError(f"{name} has no tokenizer: put its tokenizer.json into {where}")
    return tokenizer


def _reads(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer knows any text: without its file some have special tokens alone."""
    return bool({*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens})


def _load_model(
    name: str, where: str, dtype: DTypeName, options: dict[str, Any]
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except LOAD_ERRORS as error:
        raise _cannot_load("model", name, where, error) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]}: "
            "it is incomplete or not a causal language model"
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{name} is a {type(model).__name__}, not a transformers model")
    return model


def _cannot_load(what: str, name: str, where: str, error: Exception) -> ModelError:
    tried = f"the folder {where}" if Path(where).is_dir() else "no such folder, so the Hub"
    said = " ".join(str(error).split()) or type(error).__name__
    return ModelError(
        f"cannot load the {what} {name!r} (tried {tried}): {said[:300]}. Give a hub name, a folder "
        "with config.json, model.safetensors and tokenizer.json, or organism:NAME"
    )
