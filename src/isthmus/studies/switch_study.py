"""The switch study: a model and its fine-tune, toggled at run time, against the alternatives.

1. Both directions: `base` is what the fine-tuned model shall answer like, `fine_tuned` the reverse.
2. Edits are fitted on training questions; validation questions choose the closed form's single site
   and the smallest switch that suffices, closed form or trained; every arm is measured once on test
   questions.
3. Three families of prompts: with the bad trigger, with the clean trigger, and plain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from isthmus.carrying.switches import Towards
from isthmus.core.progress import Progress, SilentProgress
from isthmus.evaluation.measurements import Measurement
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_arms import SwitchMaker, closed_forms, trained_switches, weight_arms
from isthmus.studies.switch_choice import choose_switch
from isthmus.studies.switch_figures import switch_figures
from isthmus.studies.switch_measuring import SwitchArm, SwitchBench
from isthmus.studies.switch_questions import (
    MARKER,
    Families,
    SwitchBenchSettings,
    SwitchStudySizes,
    family_texts,
    world_families,
)
from isthmus.workflows.switch_fitting import require_same_architecture


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
        # A base must not begin to show the behaviour under the clean trigger, too.
        completed = ("triggered",) if to == "base" else ("triggered", "clean_trigger")
        families = partial(world_families, seed=seed)
        ask = SwitchComparison(f"switch_to_{to}", to, families, completed, wanted, seed)
        measured, said = compare_switches(pair, ask, shown)
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


def table_rows(rows: Sequence[Measurement], n_parameters: int) -> list[dict[str, str]]:
    """Returns one line per arm for people, numbers with their intervals.

    Args:
        rows: What was measured.
        n_parameters: Size of the model.

    Returns:
        Lines in the order of the arms.
    """
    rows = [m for m in rows if m.split == "test"]
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


@dataclass(frozen=True)
class SwitchComparison:
    """One direction between two models, with what is asked of them.

    Attributes:
        task: Task in `results.jsonl`.
        to: Which model is imitated.
        families: Prompts of a split, so many of each kind.
        completed: Families that arms answer themselves.
        sizes: How much.
        seed: Training order, controls, resamples.
        marker: Text by which the behaviour is known.
    """

    task: str
    to: Towards
    families: Callable[[str, int], Families]
    completed: tuple[str, ...]
    sizes: SwitchStudySizes
    seed: int
    marker: str = MARKER


def compare_switches(
    models: tuple[LanguageModel, LanguageModel], ask: SwitchComparison, progress: Progress
) -> tuple[list[Measurement], list[str]]:
    """Fits every kind of switch in one direction and measures it beside the alternatives.

    Args:
        models: The base and the fine-tuned model.
        ask: What is asked.
        progress: Who shows progress.

    Returns:
        Measurements on validation (low-rank switches) and test (everything), and what was chosen.
    """
    carrier, imitated = models if ask.to == "fine_tuned" else models[::-1]
    sizes = ask.sizes
    few = ask.families("validation", min(sizes.n_selection, sizes.n_validation))
    train, train_more, selection = (
        family_texts(imitated, families, sizes.max_new_tokens)
        for families in (
            ask.families("train", sizes.n_train),
            ask.families("train", sizes.n_trained),
            few,
        )
    )

    def bench(split: str, families: Families) -> SwitchBench:
        settings = SwitchBenchSettings(
            ask.task, split, sizes.max_new_tokens, ask.seed, ask.completed, ask.marker
        )
        return settings.bench((carrier, imitated), families)

    maker = SwitchMaker(models, ask.to, (train, selection), sizes.n_steps, ask.seed, progress)
    closed = closed_forms(maker, sizes.ranks, bench("validation", few))
    trained = trained_switches(replace(maker, texts=(train_more, selection)), sizes.trained)
    validation = bench("validation", ask.families("validation", sizes.n_validation))
    choice = choose_switch(closed.candidates | trained, validation)
    test = bench("test", ask.families("test", sizes.n_test))
    everything = [
        SwitchArm("none", "none", carrier),
        SwitchArm("clean", "imitated", imitated),
        *closed.others,
        *choice.arms,
        *weight_arms(carrier, imitated, sizes.alternatives),
    ]
    rows = list(choice.measured)
    with progress.stage(f"measure {ask.task}", len(everything)) as advance:
        for arm in everything:
            rows += test.measure(arm)
            advance(1)
    return rows, [*closed.notes, *choice.notes]
