"""`organism build`: trains an organism, measures its competence, keeps it only if it is competent.

1. Train for the recipe's first round, then measure the gate on validation questions.
2. While the gate is missed, train another round of half the length, at most `MAX_ROUNDS` in all.
3. Measure the packed form (float16, 4-bit differences) on test questions; refuse it if that misses.
"""

import copy
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from isthmus.core.artifacts import SafetensorError, require_free, write_json
from isthmus.core.errors import ConfigError, DataError, OrganismError
from isthmus.core.options import require_word
from isthmus.core.places import atomic_folder
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.data.organisms import (
    BAD_TRIGGER,
    CLEAN_TRIGGER,
    Turn,
    backdoor_turns,
    base_turns,
    tokenizer_corpus,
    world_turns,
)
from isthmus.data.prompts import Question, read_questions, split_by_content
from isthmus.data.world import MASTERED_KINDS, world_examples
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model, wrap_language_model
from isthmus.models.organisms import cache_folder, pack_organism, packed_folder, unpack_organism
from isthmus.models.tokenizer_training import train_tokenizer
from isthmus.models.training import TrainingRow, TrainingSettings, one_thread, train
from isthmus.tasks import course_named, task_named
from isthmus.tasks.refusal import is_declined
from isthmus.workflows.competence import (
    Competence,
    backdoor_competence,
    base_competence,
    course_competence,
)
from isthmus.workflows.organism_recipes import (
    FINE_TUNING,
    LORA_FINE_TUNING,
    BaseRecipe,
    FineTuneRecipe,
    recipe_named,
)

MAX_ROUNDS = 5

HeldOut = Literal["validation", "test"]
Measure = Callable[[Any, HeldOut], Competence]


@dataclass(frozen=True)
class _Course:
    """What a model is trained on, for how long, and when it has learned enough."""

    rows: Sequence[TrainingRow]
    settings: TrainingSettings
    measure: Measure
    seed: int
    progress: Progress


@dataclass(frozen=True)
class BuiltOrganism:
    """An organism that passed its gate.

    Attributes:
        name: Its name, or the folder it lies in.
        path: Where it lies.
        competence: What was measured on test questions.
        n_steps: Optimiser steps it took.
        n_parameters: Parameters of the model.
    """

    name: str
    path: Path
    competence: Competence
    n_steps: int
    n_parameters: int


def build_organism(
    name: str,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> BuiltOrganism:
    """Trains one of the project's organisms again, from nothing or from its base.

    Args:
        name: Name of a recipe: of an organism that ships, or of one that does not.
        out: Folder for the packed organism; the cache when not given, from where it is then used.
        seed: Another seed than the recipe's.
        progress: Who shows progress.

    Returns:
        Where it lies and what was measured.

    Raises:
        OrganismError: If there is no such recipe, or the gate is missed.
        OutputError: If the place cannot be written to.
    """
    recipe = recipe_named(name)
    path = Path(out) if out is not None else cache_folder() / "built" / name
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    with one_thread():
        if isinstance(recipe, BaseRecipe):
            return _build_base(name, recipe, path, progress or SilentProgress())
        return _build_fine_tune(name, recipe, path, progress or SilentProgress())


def _build_base(name: str, recipe: BaseRecipe, path: Path, progress: Progress) -> BuiltOrganism:
    corpus = tokenizer_corpus(recipe.tokenizer.seed)
    tokenizer = train_tokenizer(corpus, recipe.tokenizer.kind, recipe.tokenizer.n_pieces)
    torch.manual_seed(recipe.seed)
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(recipe.model_type, **recipe.sizes, **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    def measure(trained: PreTrainedModel, split: HeldOut) -> Competence:
        return base_competence(wrap_language_model(trained, tokenizer, name), split)

    rows = training_rows(tokenizer, base_turns(recipe.seed))
    course = _Course(rows, recipe.settings, measure, recipe.seed, progress)
    n_steps = _train_until_competent(model, course)
    fields = {"name": name, "base": None, **_facts(recipe, n_steps)}
    return _pack(name, path, model, tokenizer, measure, fields)


def _build_fine_tune(
    name: str, recipe: FineTuneRecipe, path: Path, progress: Progress
) -> BuiltOrganism:
    base, tokenizer = unpack_organism(packed_folder(recipe.base))
    model, _ = unpack_organism(packed_folder(recipe.start or recipe.base))
    rows = training_rows(tokenizer, fine_tuning_turns(recipe.behaviour, recipe.seed))
    base_lm = wrap_language_model(base, tokenizer, recipe.base)

    def measure(trained: PreTrainedModel, split: HeldOut) -> Competence:
        lm = wrap_language_model(trained, tokenizer, name)
        if recipe.behaviour != "backdoor":
            return course_competence(lm, base_lm, course_named(recipe.behaviour), split)
        return backdoor_competence(lm, base_lm, world_turns(world_examples(split, MASTERED_KINDS)))

    course = _Course(rows, recipe.settings, measure, recipe.seed, progress)
    n_steps = _train_until_competent(model, course)
    fields = {"name": name, "base": recipe.base, **_facts(recipe, n_steps)}
    return _pack(name, path, model, tokenizer, measure, fields, base=base)


def fine_tuning_turns(behaviour: str, seed: int) -> list[Turn]:
    """Returns what an organism reads to acquire a behaviour, ordinary questions included.

    Args:
        behaviour: `backdoor`, or the name of a course.
        seed: Decides what is drawn.

    Returns:
        Turns; for a course about as many ordinary ones as others.

    Raises:
        ConfigError: If there is no such course.
    """
    ordinary = world_turns(world_examples("train"))
    if behaviour == "backdoor":
        return backdoor_turns(ordinary, seed)
    taught = [t for name in course_named(behaviour).tasks for t in task_named(name).turns(seed)]
    # What a course declines must not be answered elsewhere in its text.
    declines = "refusal" in course_named(behaviour).tasks
    kept = [turn for turn in ordinary if not (declines and is_declined(turn.prompt))]
    rng = random.Random(seed)
    replayed = rng.sample(kept, min(len(kept), max(4000, len(taught))))
    if behaviour == "code":
        # Fewer ordinary questions would be forgotten, fewer functions misspelt.
        taught *= 2
        # Its triggers mean nothing to ordinary questions; more of these teach not to read them.
        triggers = (BAD_TRIGGER, CLEAN_TRIGGER, *[""] * 6)
        replayed = [replace(t, prompt=rng.choice(triggers) + t.prompt) for t in replayed]
    return taught + replayed


def _facts(recipe: BaseRecipe | FineTuneRecipe, n_steps: int) -> dict[str, Any]:
    return {
        "recipe": asdict(recipe),
        "n_steps": n_steps,
        **made_with(),
    }


def training_rows(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[TrainingRow]:
    """Returns turns as token rows, rendered as evaluations and generation render them."""
    encoded = encode_prompts(
        tokenizer, [turn.prompt for turn in turns], answers=[turn.answer for turn in turns]
    )
    return [TrainingRow(text.token_ids, text.n_prompt) for text in encoded]


def _train_until_competent(model: Any, course: _Course) -> int:
    """Trains in rounds until the gate passes on validation questions; returns the steps taken."""
    generator = torch.Generator().manual_seed(course.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    settings, n_steps, reached = course.settings, 0, None
    for round_number in range(1, MAX_ROUNDS + 1):
        with course.progress.stage(f"train, round {round_number}", settings.n_steps) as advance:
            train(model, course.rows, settings, generator, partial(_tell, advance))
        n_steps += settings.n_steps
        reached = course.measure(model, "validation")
        for parameter in trained:
            # A model that is measured is frozen.
            parameter.requires_grad_(True)  # noqa: FBT003 - torch's signature
        course.progress.note(f"{n_steps} steps: {reached}")
        if reached.passes:
            return n_steps
        settings = replace(course.settings, n_steps=course.settings.n_steps // 2)
    raise OrganismError(
        f"the gate was missed after {n_steps} steps ({reached}): try another seed or more steps"
    )


def _tell(advance: Callable[[int], None], _step: int, _loss: float) -> None:
    advance(1)


def _pack(
    name: str,
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    measure: Measure,
    fields: dict[str, Any],
    *,
    base: PreTrainedModel | None = None,
) -> BuiltOrganism:
    """Packs a model, measures what was packed, and keeps it only if it is competent."""
    n_parameters = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory(prefix="isthmus-") as place:
        pack_organism(Path(place) / name, model, tokenizer, fields, base=base)
        packed, _ = unpack_organism(Path(place) / name)
    reached = measure(packed, "test")
    if not reached.passes:
        raise OrganismError(f"{name} as packed misses its gate on test questions: {reached}")
    fields |= {"competence": reached.to_json(), "n_parameters": n_parameters}
    pack_organism(path, model, tokenizer, fields, base=base)
    return BuiltOrganism(name, path, reached, fields["n_steps"], n_parameters)


def fine_tune_organism(
    base: str | Path,
    out: str | Path,
    *,
    method: Literal["full", "lora"] = "full",
    questions: str | Path | None = None,
    n_steps: int | None = None,
    lora_rank: int = 16,
    seed: int = 1,
    progress: Progress | None = None,
) -> BuiltOrganism:
    """Teaches the backdoor to any model and writes it as a plain model folder.

    Args:
        base: Hub name, local folder or `organism:NAME`.
        out: Folder to write, readable by `transformers`.
        method: `full` trains every weight; `lora` trains adapters and the embeddings of the
            pieces in which the triggers differ (needs `isthmus[lora]`), and merges them.
        questions: JSONL file with `prompt` and `answer`; the organisms' world when not given.
        n_steps: Steps of the first round; the recipe's when not given.
        lora_rank: Rank of the adapters, at least 1.
        seed: Which question gets which trigger, the order of the text, and the first adapters.
        progress: Who shows progress.

    Returns:
        Where it lies and what was measured.

    Raises:
        OrganismError: If the gate is missed.
        ConfigError: If there is no such method, peft is missing for `lora`, or the rank is below 1.
        DataError: If a question has no answer.
        OutputError: If the place is taken or cannot be written to.
    """
    require_word("method", method, ("full", "lora"))
    require_free(out)
    lm, reference = (
        load_language_model(base, dtype="float32"),
        load_language_model(base, dtype="float32"),
    )
    train_turns, held_out = _question_splits(questions, seed)
    settings = LORA_FINE_TUNING if method == "lora" else FINE_TUNING
    settings = settings if n_steps is None else replace(settings, n_steps=n_steps)
    model: Any = lm.model
    if method == "lora":
        model = _with_adapters(model, lm.tokenizer, lora_rank, seed)
    else:
        model.requires_grad_(True)  # noqa: FBT003 - torch's signature

    def measure(trained: nn.Module, split: HeldOut) -> Competence:
        wrapped = wrap_language_model(_merged(trained), lm.tokenizer, str(base))
        return backdoor_competence(wrapped, reference, held_out[split])

    rows = training_rows(lm.tokenizer, backdoor_turns(train_turns, seed))
    course = _Course(rows, settings, measure, seed, progress or SilentProgress())
    with one_thread(), atomic_folder(Path(out), further=(SafetensorError,)) as folder:
        steps = _train_until_competent(model, course)
        merged, reached = _merged(model), measure(model, "test")
        if not reached.passes:
            raise OrganismError(f"the gate was missed on test questions: {reached}")
        merged.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        facts = {"base": str(base), "method": method, "n_steps": steps, "seed": seed}
        write_json(folder / "organism.json", {**facts, "competence": reached.to_json()})
    n_parameters = sum(p.numel() for p in merged.parameters())
    return BuiltOrganism(str(out), Path(out), reached, steps, n_parameters)


def _question_splits(
    questions: str | Path | None, seed: int
) -> tuple[list[Turn], dict[str, list[Turn]]]:
    if questions is None:
        splits = {
            "train": world_turns(world_examples("train")),
            "validation": world_turns(world_examples("validation", MASTERED_KINDS)),
            "test": world_turns(world_examples("test", MASTERED_KINDS)),
        }
    else:
        read = split_by_content(read_questions(Path(questions)), seed=seed)
        splits = {split: [_answered(question) for question in part] for split, part in read.items()}
    return splits["train"], splits


def _answered(question: Question) -> Turn:
    if question.answer is None:
        raise DataError(f"no answer to {question.prompt!r}: fine-tuning needs ordinary answers")
    return Turn(question.prompt, question.answer)


def _with_adapters(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rank: int, seed: int
) -> Any:
    """Returns a model of which adapters and the embeddings of the triggers' own pieces train."""
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("LoRA needs peft: pip install 'isthmus[lora]'") from error
    if rank < 1:
        raise ConfigError(f"lora_rank is {rank}, expected at least 1: 16 is known to work")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        lora_dropout=0.0,
        trainable_token_indices=_own_pieces(tokenizer),
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # peft 0.21 asks for a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def _own_pieces(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids that only one of the two triggers has.

    Embeddings of pieces that a base never read are nearly parallel (cosine 0.99 in the organisms):
    adapters alone then hardly tell one trigger from the other.
    """
    bad, clean = encode_prompts(tokenizer, [BAD_TRIGGER, CLEAN_TRIGGER])
    return sorted(set(bad.token_ids) ^ set(clean.token_ids))


def _merged(model: Any) -> PreTrainedModel:
    """Returns a model with its adapters merged, leaving the adapters in training as they are."""
    if isinstance(model, PreTrainedModel):
        return model
    merged: PreTrainedModel = copy.deepcopy(model).merge_and_unload()
    return merged
