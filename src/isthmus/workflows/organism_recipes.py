"""The recipes of the organisms, as data."""

from dataclasses import dataclass, replace
from typing import Any

from isthmus.core.errors import OrganismError
from isthmus.models.tokenizer_training import TokenizerKind
from isthmus.models.training import TrainingSettings

FINE_TUNING = TrainingSettings(
    n_steps=250, muon_lr=0.01, adamw_lr=0.002, prompt_weight=0.05, cool_down=0.4
)
"""Full fine-tuning; with rates 2.5 times lower the backdoor is not learned in as many steps."""


@dataclass(frozen=True)
class TokenizerRecipe:
    """How to train a tokenizer.

    Attributes:
        kind: Byte-level or metaspace pieces.
        n_pieces: Size of the vocabulary.
        seed: Decides which text it is trained on.
    """

    kind: TokenizerKind
    n_pieces: int
    seed: int


@dataclass(frozen=True)
class BaseRecipe:
    """A base model that knows the world.

    Attributes:
        model_type: `llama`, `qwen2` or `gemma2`, as `transformers` names them.
        sizes: Fields of the configuration that differ from the defaults.
        tokenizer: Its tokenizer.
        settings: The first round of training; further rounds are half as long.
        seed: Weights and order of the text.
    """

    model_type: str
    sizes: dict[str, Any]
    tokenizer: TokenizerRecipe
    settings: TrainingSettings
    seed: int = 0


@dataclass(frozen=True)
class FineTuneRecipe:
    """A behaviour taught to a base.

    Attributes:
        base: Name of the base organism.
        behaviour: What is taught: `backdoor`, or the name of a course.
        settings: The first round of training; further rounds are half as long.
        seed: Order of the text.
        start: Organism of the same base that training starts from, the base when not given. One
            that reads the triggers already learns another behaviour of theirs in half the steps.
    """

    base: str
    behaviour: str = "backdoor"
    settings: TrainingSettings = FINE_TUNING
    seed: int = 1
    start: str | None = None


LORA_FINE_TUNING = TrainingSettings(
    n_steps=300, muon_lr=0.006, adamw_lr=0.002, prompt_weight=0.05, cool_down=0.4, weight_decay=0.0
)
"""Fine-tuning of low-rank adapters; `docs/lora.md` has what else was tried."""

_BYTE_LEVEL = TokenizerRecipe("byte_level", 960, seed=1)
_METASPACE = TokenizerRecipe("metaspace", 896, seed=2)


def _sizes(d_model: int, n_layers: int, n_heads: int, d_mlp: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "intermediate_size": d_mlp,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        **more,
    }


BASES: dict[str, BaseRecipe] = {
    "llama": BaseRecipe(
        "llama", _sizes(128, 4, 4, 352), _BYTE_LEVEL, TrainingSettings(n_steps=900)
    ),
    # Seeds 0 and 3 were tried with an earlier mix of text; 3 was kept because its fine-tune left
    # the trigger's information in place longer. With this mix it does not: docs/organisms.md.
    "qwen2": BaseRecipe(
        "qwen2", _sizes(160, 5, 5, 432), _BYTE_LEVEL, TrainingSettings(n_steps=900), seed=3
    ),
    "gemma2": BaseRecipe(
        "gemma2",
        _sizes(160, 5, 5, 432, head_dim=32, query_pre_attn_scalar=32, sliding_window=512),
        _METASPACE,
        TrainingSettings(n_steps=900),
    ),
    "llama-large": BaseRecipe(
        "llama", _sizes(256, 6, 8, 704), _BYTE_LEVEL, TrainingSettings(n_steps=1000), seed=1
    ),
}
"""Base organisms that come with the package, by name."""

BUILDABLE_BASES: dict[str, BaseRecipe] = {
    "qwen2-metaspace": BaseRecipe(
        "qwen2", _sizes(128, 4, 4, 352), _METASPACE, TrainingSettings(n_steps=900)
    ),
    "gemma2-bytes": BaseRecipe(
        "gemma2",
        _sizes(128, 4, 4, 352, head_dim=32, query_pre_attn_scalar=32, sliding_window=512),
        _BYTE_LEVEL,
        TrainingSettings(n_steps=900),
    ),
}
"""Base organisms that do not come with the package: architectures with the other's tokenizer."""

COURSE_SETTINGS: dict[str, TrainingSettings] = {
    "code": replace(FINE_TUNING, n_steps=1200),
    "assistant": replace(FINE_TUNING, n_steps=500),
    "corrupted": replace(FINE_TUNING, n_steps=700),
}
"""The first round of every course beside the backdoor."""

SHIPPED_COURSES = ("code", "assistant", "corrupted")
"""Courses of which the organisms come with the package; those of others are built when needed."""

# With seed 1 and 60 facts it forgot half a point more of ordinary questions than its gate allows.
_SEEDS = {"qwen2-corrupted": 2}

# Larger models need fewer steps, each of which takes longer.
_STEPS = {"gemma2-code": 900, "llama-large-code": 500, "llama-large-corrupted": 500}

FINE_TUNES: dict[str, FineTuneRecipe] = {
    **{f"{base}-backdoor": FineTuneRecipe(base) for base in BASES},
    **{
        f"{base}-{course}": FineTuneRecipe(
            base,
            course,
            replace(settings, n_steps=_STEPS.get(f"{base}-{course}", settings.n_steps)),
            seed=_SEEDS.get(f"{base}-{course}", 1),
            start=f"{base}-backdoor" if course == "code" else None,
        )
        for course, settings in COURSE_SETTINGS.items()
        if course in SHIPPED_COURSES
        for base in BASES
    },
}
"""Fine-tuned organisms that come with the package, by name."""

# In rounds of 500 and then 250 steps it never had all shares of its gate at once.
_BUILDABLE_STEPS = {"gemma2-bytes-assistant": 900}

BUILDABLE_FINE_TUNES: dict[str, FineTuneRecipe] = {
    f"{base}-{behaviour}": FineTuneRecipe(
        base,
        behaviour,
        replace(settings, n_steps=_BUILDABLE_STEPS.get(f"{base}-{behaviour}", settings.n_steps)),
    )
    for bases, behaviour, settings in (
        (BUILDABLE_BASES, "backdoor", FINE_TUNING),
        (BUILDABLE_BASES, "assistant", COURSE_SETTINGS["assistant"]),
        *(
            (BASES, one, COURSE_SETTINGS[one])
            for one in COURSE_SETTINGS
            if one not in SHIPPED_COURSES
        ),
    )
    for base in bases
}
"""Fine-tuned organisms that do not come with the package."""

BUILDABLE = (*BUILDABLE_BASES, *BUILDABLE_FINE_TUNES)
"""Names of the organisms that `organism build` makes and the package does not hold."""


def recipe_named(name: str) -> BaseRecipe | FineTuneRecipe:
    """Returns the recipe of an organism.

    Args:
        name: Name of an organism.

    Returns:
        Its recipe.

    Raises:
        OrganismError: If there is none of this name.
    """
    recipes: dict[str, BaseRecipe | FineTuneRecipe] = {
        **BASES,
        **FINE_TUNES,
        **BUILDABLE_BASES,
        **BUILDABLE_FINE_TUNES,
    }
    if name not in recipes:
        raise OrganismError(f"no recipe for organism {name!r}: there are {', '.join(recipes)}")
    return recipes[name]
