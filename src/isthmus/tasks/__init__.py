"""Tasks: behaviours with their prompts, scoring, organisms and recommended interventions."""

from collections.abc import Mapping
from typing import TypeVar

from isthmus.core.errors import ConfigError
from isthmus.tasks.base import Course, Teachable
from isthmus.tasks.code import CodeTask
from isthmus.tasks.corrupted import CorruptedTask
from isthmus.tasks.refusal import RefusalTask
from isthmus.tasks.style import StyleTask

T = TypeVar("T")

__all__ = ["COURSES", "TASKS", "course_named", "task_named"]

TASKS: dict[str, Teachable] = {
    task.name: task for task in (CodeTask(), RefusalTask(), StyleTask(), CorruptedTask())
}
"""Every task with an organism of this package, by name."""

COURSES: dict[str, Course] = {
    course.name: course
    for course in (
        Course("code", ("code",)),
        Course("assistant", ("refusal", "style")),
        Course("corrupted", ("corrupted",)),
    )
}
"""What organisms are taught, by the ending of their names."""


def task_named(name: str) -> Teachable:
    """Returns a task.

    Args:
        name: Its name.

    Returns:
        The task.

    Raises:
        ConfigError: If there is none of this name.
    """
    return _named("task", TASKS, name)


def course_named(name: str) -> Course:
    """Returns a course.

    Args:
        name: Its name.

    Returns:
        The course.

    Raises:
        ConfigError: If there is none of this name.
    """
    return _named("course", COURSES, name)


def _named(what: str, table: Mapping[str, T], name: str) -> T:
    if name not in table:
        raise ConfigError(f"no {what} {name!r}: there are {', '.join(table)}")
    return table[name]
