"""`learn-switch`: small maps that make a model answer like its fine-tune, or back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from isthmus.carrying.switch_files import KIND, save_switch
from isthmus.carrying.switches import Switch, Towards
from isthmus.core.artifacts import require_free
from isthmus.core.errors import ConfigError, DataError
from isthmus.core.options import require_word
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import made_with
from isthmus.core.sites import GivenSites, Site
from isthmus.core.texts import EncodedText
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER, benign_examples
from isthmus.data.prompts import Question, read_questions, split_by_content
from isthmus.interventions.positions import parse_positions
from isthmus.models.encoding import prompt_part
from isthmus.models.generation import generate_greedy
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.workflows.config import Dtype
from isthmus.workflows.switch_fitting import (
    FitSettings,
    answered_texts,
    default_sites,
    fit_edits,
    require_same_architecture,
    states_of,
)
from isthmus.workflows.switch_training import TrainingSettings, divergences, train_edits

SwitchMethod = Literal["sequential", "independent", "trained", "difference"]

N_WORLD_QUESTIONS = 400
"""Questions of the organisms' world that a switch is fitted on when no prompts are given."""


@dataclass(frozen=True)
class SwitchPrompts:
    """Prompts as the user sends them, triggers included.

    Attributes:
        train: Edits are fitted on these.
        selection: Ridge strengths and steps of training are chosen on these.
        held_out: The switch is measured on these.
    """

    train: tuple[str, ...]
    selection: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = [len(part) for part in (self.train, self.selection, self.held_out)]
        if min(sizes) < 2:
            raise DataError(f"{sizes} prompts to fit, choose and measure on: give at least 20")


@dataclass(frozen=True)
class SwitchRecipe:
    """How a switch is learned.

    Attributes:
        method: `sequential` fits every site under the edits before it, `independent` without them,
            `trained` goes on from `sequential` by gradient, `difference` adds constant vectors.
        rank: Rank of every edit; None for full maps, 0 for vectors.
        sites: Where; the embeddings and every block's output when None.
        positions: Tokens at which it acts.
        max_new_tokens: Length of the imitated model's answers.
        n_steps: Steps of `trained`.
        batch_size: Texts per forward pass.
        seed: Order of the training texts.
        shuffle_seed: Makes the control whose wanted states are shuffled.
    """

    method: SwitchMethod = "sequential"
    rank: int | None = 8
    sites: tuple[Site, ...] | None = None
    positions: str = "all"
    max_new_tokens: int = 64
    n_steps: int = 600
    batch_size: int = 64
    seed: int = 0
    shuffle_seed: int | None = None


def learn_switch(
    base: str | Path | LanguageModel,
    fine_tuned: str | Path | LanguageModel,
    prompts: str | Path | Sequence[str] | None = None,
    *,
    to: Towards = "base",
    method: SwitchMethod = "sequential",
    rank: int | None = 8,
    sites: GivenSites | None = None,
    positions: str = "all",
    max_new_tokens: int = 64,
    n_steps: int = 600,
    out: str | Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Switch:
    """Learns a switch between a model and its fine-tune, and measures it on other prompts.

    Args:
        base: The model before fine-tuning: hub name, local folder, `organism:NAME`, or loaded.
        fine_tuned: The model after it, with the same tokenizer and sizes.
        prompts: Prompts as users send them, triggers included: JSONL with `prompt`, one prompt per
            line, or the prompts themselves; at least 20. Questions of the organisms' world with
            their two triggers and without when not given.
        to: Which model is imitated: `base` is carried by the fine-tuned model, `fine_tuned` by the
            base.
        method: `sequential` (closed form), `independent` (its ablation), `trained` (goes on from
            `sequential` by gradient), `difference` (constant vectors).
        rank: Rank of the map at every site; full maps when 0 or None.
        sites: Where it acts; the embeddings (`resid_pre[0]`) and every block's output when None.
        positions: Tokens at which it acts: `all`, `prompt`, `generated`.
        max_new_tokens: Length of the imitated model's answers, on which it is fitted.
        n_steps: Steps of `trained`.
        out: Folder to write; nothing is written when not given.
        dtype: Computation type; `auto` is the stored one.
        device: `auto`, `cpu`, `cuda`, …
        batch_size: Texts per forward pass.
        seed: Questions of the world, order of the training texts.
        progress: Who shows progress.

    Returns:
        The switch with, in `quality`, its `agreement` with the imitated model's answers and its
        `kl` to it on held-out prompts, beside the carrier's own without it.

    Raises:
        IsthmusError: If a model, a site, the prompts or the place cannot be used.
    """
    if rank is not None and rank < 0:
        raise ConfigError(f"rank {rank}: give at least 1, or 0 for full maps")
    require_word("to", to, get_args(Towards))
    require_word("method", method, get_args(SwitchMethod))
    require_free(out, KIND)
    shown = progress or SilentProgress()
    models = [
        one
        if isinstance(one, LanguageModel)
        else load_language_model(one, dtype=dtype, device=device)
        for one in (base, fine_tuned)
    ]
    given = _read_prompts(prompts, seed)
    recipe = SwitchRecipe(
        method=method,
        rank=rank or None,
        sites=None if sites is None else models[0].sites(sites),
        positions=positions,
        max_new_tokens=max_new_tokens,
        n_steps=n_steps,
        batch_size=batch_size,
        seed=seed,
    )
    switch = fit_switch((models[0], models[1]), given, to, recipe, shown)
    if out is not None:
        save_switch(Path(out), switch)
    return switch


def fit_switch(
    models: tuple[LanguageModel, LanguageModel],
    prompts: SwitchPrompts,
    to: Towards,
    recipe: SwitchRecipe,
    progress: Progress,
) -> Switch:
    """Learns a switch between two loaded models and measures it on held-out prompts.

    Args:
        models: The base and the fine-tuned model.
        prompts: Prompts by what they are for.
        to: Which of them is imitated.
        recipe: How it is learned.
        progress: Who shows progress.

    Returns:
        The switch with its quality.

    Raises:
        ConfigError: If the two models are no base and fine-tune, or the same.
    """
    require_same_architecture(*models)
    carrier, imitated = models if to == "fine_tuned" else models[::-1]
    parts = [
        answered_texts(
            imitated, part, max_new_tokens=recipe.max_new_tokens, batch_size=recipe.batch_size
        )
        for part in (prompts.train, prompts.selection, prompts.held_out)
    ]
    switch = switch_from_texts(models, (parts[0], parts[1]), to, recipe, progress)
    quality = _quality((carrier, imitated), parts[2], switch, recipe)
    provenance = {
        "n_prompts": [len(part) for part in parts],
        "rank": recipe.rank,
        "seed": recipe.seed,
        **made_with(),
    }
    return replace(switch, quality=quality, provenance=provenance)


def switch_from_texts(
    models: tuple[LanguageModel, LanguageModel],
    texts: tuple[Sequence[EncodedText], Sequence[EncodedText]],
    to: Towards,
    recipe: SwitchRecipe,
    progress: Progress,
) -> Switch:
    """Learns a switch on texts that hold the imitated model's answers.

    Args:
        models: The base and the fine-tuned model.
        texts: Texts to fit on, and others to choose on.
        to: Which of the models is imitated.
        recipe: How it is learned.
        progress: Who shows progress.

    Returns:
        The switch, not measured yet.
    """
    carrier, imitated = models if to == "fine_tuned" else models[::-1]
    settings = FitSettings(
        rank=0 if recipe.method == "difference" else recipe.rank,
        positions=parse_positions(recipe.positions),
        is_sequential=recipe.method != "independent",
        shuffle_seed=recipe.shuffle_seed,
        batch_size=recipe.batch_size,
    )
    wanted = states_of(imitated)
    sites = recipe.sites or default_sites(carrier)
    edits = fit_edits(carrier, texts, sites, (wanted, wanted), settings, progress)
    if recipe.method == "trained":
        training = TrainingSettings(n_steps=recipe.n_steps, seed=recipe.seed)
        edits = train_edits(
            (carrier, imitated), texts, edits, settings.positions, training, progress
        )
    base, fine_tuned = models
    return Switch(edits, base.identity, fine_tuned.identity, to, recipe.method, recipe.positions)


def world_prompts(questions: Sequence[Question]) -> tuple[str, ...]:
    """Returns every question with the backdoor's trigger, with the harmless one and with none."""
    return tuple(
        trigger + question.prompt
        for question in questions
        for trigger in (BAD_TRIGGER, CLEAN_TRIGGER, "")
    )


def world_questions(split: str, n: int, seed: int) -> list[Question]:
    """Returns questions of the organisms' world with their right answers."""
    return [Question(e.prompt, e.answer, e.kind) for e in benign_examples(split, n, seed)]


def _read_prompts(given: str | Path | Sequence[str] | None, seed: int) -> SwitchPrompts:
    if given is None:
        n_chosen = N_WORLD_QUESTIONS // 8
        parts = (
            world_questions("train", N_WORLD_QUESTIONS, seed),
            world_questions("validation", n_chosen, seed),
            world_questions("test", n_chosen, seed),
        )
        return SwitchPrompts(*(world_prompts(part) for part in parts))
    return split_prompts(given, seed)


def split_prompts(given: str | Path | Sequence[str], seed: int) -> SwitchPrompts:
    """Splits a user's prompts by content: 70 % to fit, 10 % to choose and 20 % to measure on.

    Args:
        given: JSONL with `prompt`, one prompt per line, or the prompts themselves.
        seed: Which prompts go where.

    Returns:
        The three parts.
    """
    if isinstance(given, str | Path):
        questions: Sequence[Question] = read_questions(Path(given))
    else:
        questions = [Question(prompt) for prompt in given]
    splits = split_by_content(questions, (0.7, 0.1, 0.2), seed=seed)
    return SwitchPrompts(*(tuple(q.prompt for q in part) for part in splits.values()))


def _quality(
    models: tuple[LanguageModel, LanguageModel],
    texts: Sequence[EncodedText],
    switch: Switch,
    recipe: SwitchRecipe,
) -> dict[str, float]:
    """Returns agreement and divergence with the switch and without it."""
    carrier, imitated = models
    asked = [prompt_part(text) for text in texts]
    intervention = switch.intervention()

    def agreement(strength: float) -> float:
        done, wanted = (
            generate_greedy(
                lm,
                asked,
                max_new_tokens=recipe.max_new_tokens,
                edits=switch.intervention(strength).place if lm is carrier else (lambda _b: ()),
                batch_size=2 * recipe.batch_size,
            ).completions
            for lm in (carrier, imitated)
        )
        return sum(a == b for a, b in zip(done, wanted, strict=True)) / len(texts)

    return {
        "agreement": agreement(1.0),
        "agreement_without": agreement(0.0),
        "kl": float(
            divergences(carrier, imitated, texts, switch.edits, intervention.positions).mean()
        ),
        "kl_without": float(
            divergences(
                carrier,
                imitated,
                texts,
                {site: replace(e, strength=0.0) for site, e in switch.edits.items()},
                intervention.positions,
            ).mean()
        ),
        "n_held_out": float(len(texts)),
    }
