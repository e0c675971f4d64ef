"""The parts of `reproduce matrix`: one transfer matrix per behaviour."""

from functools import partial

from isthmus.core.errors import ConfigError
from isthmus.core.options import TaskName
from isthmus.core.progress import Progress
from isthmus.studies.paper_models import COURSE_OF, Scope
from isthmus.studies.part_kinds import Part
from isthmus.studies.result import StudyResult
from isthmus.studies.transfer_matrix import transfer_matrix
from isthmus.workflows.organism_recipes import BUILDABLE_BASES

BASES_OF_MATRIX = ("llama", "llama-large", "qwen2", "gemma2-bytes", "gemma2", "qwen2-metaspace")
"""Four that read bytes, two that read metaspace pieces; three architectures, four sizes."""

TASKS_OF_MATRIX: tuple[TaskName, ...] = ("backdoor", "refusal")


def matrix_bases(*, is_quick: bool) -> tuple[str, ...]:
    """Returns the bases of the matrix's models.

    Args:
        is_quick: Only those that come with the package.

    Returns:
        Names of organisms, of which each task's fine-tunes are read.
    """
    return tuple(b for b in BASES_OF_MATRIX if not (is_quick and b in BUILDABLE_BASES))


def matrix_parts(*, is_quick: bool) -> dict[str, Part]:
    """Returns the parts of a matrix by name.

    Args:
        is_quick: Only the organisms that come with the package.

    Returns:
        One part per behaviour.
    """
    return {
        f"matrix_{task}": Part(
            f"{task.capitalize()}: every ordered pair of {len(matrix_bases(is_quick=is_quick))} "
            "models, native on the diagonal",
            task,
            partial(_matrix, task),
            organisms_of_matrix(task, is_quick=is_quick),
            has_shards=True,
        )
        for task in TASKS_OF_MATRIX
    }


def organisms_of_matrix(task: TaskName, *, is_quick: bool) -> tuple[str, ...]:
    """Returns the organisms that the matrix of one behaviour reads.

    Args:
        task: The behaviour.
        is_quick: Only those that come with the package.

    Returns:
        Names of organisms, without `organism:`.
    """
    return tuple(f"{base}-{COURSE_OF[task]}" for base in matrix_bases(is_quick=is_quick))


def _matrix(task: TaskName, scope: Scope, progress: Progress) -> StudyResult:
    if scope.given:
        raise ConfigError(
            "the matrix is of the organisms: leave --config out, or call "
            "isthmus.studies.transfer_matrix.transfer_matrix with other models"
        )
    sizes = {
        "n_train": scope.pick(60, 80),
        "n_validation": scope.pick(16, 24),
        "n_test": scope.pick(48, 64),
    }
    names = organisms_of_matrix(task, is_quick=scope.is_quick)
    return transfer_matrix(
        [f"organism:{name}" for name in names],
        task,
        settings=sizes,
        seed=scope.seed,
        engine=scope.engine,
        progress=progress,
    )
