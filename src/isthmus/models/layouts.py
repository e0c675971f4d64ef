"""What a decoder is made of: its blocks, embedding, final norm, head and residual writers."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from isthmus.core.errors import ModelError, SiteError
from isthmus.core.sites import Site, Stream


@dataclass(frozen=True)
class ResidualWriter:
    """A weight matrix whose product enters the residual stream.

    Attributes:
        name: Dotted path of the module in the model.
        module: `nn.Linear`, `nn.Embedding`, transformers' `Conv1D` (whose weight is transposed) or
            the experts of a mixture.
        norm: Dotted path of the norm between it and the stream; empty if there is none.
        scale: Factor between its output and what is added: 1 in most models; None where a norm
            stands between or a gate decides it for every token.
    """

    name: str
    module: nn.Module
    norm: str = ""
    scale: float | None = 1.0

    @property
    def is_exact(self) -> bool:
        """Whether an edit of the stream can be an edit of this matrix: no norm stands between."""
        return not self.norm


@dataclass(frozen=True)
class BlockLayout:
    """One decoder block.

    Attributes:
        name: Dotted path of the block in the model.
        module: The block.
        attn: The module whose output attention adds to the residual stream, if there is one.
        mlp: The module whose output the feed-forward part adds to it, if there is one.
        writers: The matrices that write to the residual stream, attention's first.
        missing: What writes to the stream though no matrix was found for it, and where was looked;
            empty when all writers were found.
        reason: Why `attn` and `mlp` are None; empty when they are not.
    """

    name: str
    module: nn.Module
    attn: nn.Module | None
    mlp: nn.Module | None
    writers: tuple[ResidualWriter, ...]
    missing: str
    reason: str

    @property
    def has_all_writers(self) -> bool:
        """Whether every matrix that writes to the residual stream was found."""
        return not self.missing


@dataclass(frozen=True)
class DecoderParts:
    """What the module tree alone says about a decoder.

    Attributes:
        root: The causal language model itself, without wrappers around it.
        embedding: Token embedding.
        lm_head: Output projection to the vocabulary.
        blocks: The decoder blocks by dotted path, in order.
    """

    root: PreTrainedModel
    embedding: nn.Module
    lm_head: nn.Module
    blocks: Mapping[str, nn.Module]


@dataclass(frozen=True)
class ModelLayout:
    """Where the sites of one loaded decoder are.

    Attributes:
        root: The causal language model itself, without wrappers around it.
        embedding: Token embedding.
        embedding_scale: Factor between an embedding's row and block 0's input: 1 in most models;
            None where they differ by more, as with added positions or a norm.
        stream_writers: The matrices whose rows begin the residual stream: the token embedding and
            learned positions; none where they were not found.
        blocks: The decoder blocks, in order.
        final_norm: The norm between the last block and the head, if there is one.
        lm_head: Output projection to the vocabulary.
        d_model: Width of the residual stream.
        writes_in_place: Whether what is read at a site is overwritten later in the pass, so that a
            capture has to copy.
    """

    root: PreTrainedModel
    embedding: nn.Module
    embedding_scale: float | None
    stream_writers: tuple[ResidualWriter, ...]
    blocks: tuple[BlockLayout, ...]
    final_norm: nn.Module | None
    lm_head: nn.Module
    d_model: int
    writes_in_place: bool

    @property
    def n_layers(self) -> int:
        """How many decoder blocks there are."""
        return len(self.blocks)

    @property
    def writers(self) -> tuple[ResidualWriter, ...]:
        """Every matrix that was found to write to the residual stream, the embedding's first."""
        return (*self.stream_writers, *(w for block in self.blocks for w in block.writers))

    @property
    def writes_exactly(self) -> bool:
        """Whether all writers were found and no norm stands between one and the stream."""
        is_found = bool(self.stream_writers) and all(b.has_all_writers for b in self.blocks)
        return is_found and all(writer.is_exact for writer in self.writers)

    def module_at(self, site: Site) -> nn.Module:
        """Returns the module at whose input (`resid_pre`) or output (all others) a site is.

        Args:
            site: With a layer from 0 to `n_layers - 1`.

        Returns:
            The block itself for the residual stream, one of its parts for what is added to it.

        Raises:
            SiteError: If the model has no such layer, or nothing there is what is added.
        """
        if not 0 <= site.layer < self.n_layers:
            raise SiteError(f"no site {site}: this model has layers 0 to {self.n_layers - 1}")
        block = self.blocks[site.layer]
        if site.stream in {Stream.RESID_PRE, Stream.RESID_POST}:
            return block.module
        part = block.attn if site.stream is Stream.ATTN_OUT else block.mlp
        if part is None:
            raise SiteError(f"no site {site}: {block.reason}; use resid_pre or resid_post")
        return part


def find_parts(model: nn.Module) -> DecoderParts:
    """Finds blocks, embedding and head of a decoder-only language model in its module tree.

    Args:
        model: A transformers model, possibly inside a wrapper such as PEFT's.

    Returns:
        Parts that were found without running the model.

    Raises:
        ModelError: If it is no decoder-only language model; the message names what is missing.
    """
    root = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if root is None:
        looked = "none of its modules is a PreTrainedModel"
        raise _not_a_decoder(model, "a transformers model", looked)
    if getattr(root.config, "is_encoder_decoder", False):
        looked = "its configuration says is_encoder_decoder"
        raise _not_a_decoder(root, "a decoder without an encoder", looked)
    lm_head = root.get_output_embeddings()
    if not isinstance(lm_head, nn.Module):
        looked = f"get_output_embeddings() returned {type(lm_head).__name__}"
        raise _not_a_decoder(root, "a language-model head", looked)
    try:
        embedding = root.get_input_embeddings()
    except NotImplementedError:
        looked = "get_input_embeddings() is not implemented"
        raise _not_a_decoder(root, "a token embedding", looked) from None
    return DecoderParts(root, embedding, lm_head, _find_blocks(root))


def _find_blocks(root: PreTrainedModel) -> dict[str, nn.Module]:
    names = {module: name for name, module in root.named_modules()}
    # A vision tower may have as many layers as the text decoder, so only the decoder is searched;
    # ModernBERT calls its head the decoder.
    places = (root.get_decoder(), root.base_model)
    every = (
        [m for m in one.modules() if isinstance(m, nn.ModuleList) and len(m)] for one in places
    )
    lists = next(filter(None, every), None)
    if lists is None:
        looked = "neither get_decoder() nor base_model holds an nn.ModuleList"
        raise _not_a_decoder(root, "a list of decoder blocks", looked)
    n_layers = getattr(root.config.get_text_config(), "num_hidden_layers", None)
    blocks = next((m for m in lists if len(m) == n_layers), max(lists, key=len))
    return {names[block]: block for block in blocks}


def _not_a_decoder(model: nn.Module, missing: str, looked: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} does not have {missing} ({looked}): "
        "load a decoder-only causal language model of transformers"
    )
