"""Options that are one of a few words: a misspelt one is an error, never another meaning."""

from collections.abc import Collection
from typing import Literal

from isthmus.core.errors import ConfigError

TaskName = Literal["backdoor", "code", "refusal", "style", "corrupted"]
"""What can be measured; here, where the command line reads it without loading a task."""


def require_word(name: str, given: object, known: Collection[str]) -> None:
    """Refuses anything but one of the words that an option knows.

    >>> require_word("edit", "add", ("add", "ablate"))

    Args:
        name: What the option is called.
        given: What the caller says.
        known: The words, in the order in which they are named.

    Raises:
        ConfigError: If it is not one of them.
    """
    if not isinstance(given, str) or given not in known:
        raise ConfigError(f"no {name} {given!r}: use one of {', '.join(known)}")
