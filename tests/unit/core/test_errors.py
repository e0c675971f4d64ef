import inspect

import pytest

from isthmus.core import errors
from isthmus.core.errors import IsthmusError

ERRORS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__
]


def drawn_parents():
    """Reads the tree in the docstring: every error with the one it hangs from."""
    path = []
    for line in errors.__doc__.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if name.endswith("Error"):
            depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
            path[depth:] = [name]
            yield name, path[depth - 1] if depth else "Exception"


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    assert dict(drawn_parents()) == {error.__name__: error.__base__.__name__ for error in ERRORS}


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_caught_by_the_base_and_says_what_it_was_given(error):
    with pytest.raises(IsthmusError, match="given, expected, do"):
        raise error("given, expected, do")


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_says_in_a_sentence_what_it_means(error):
    assert error.__doc__.endswith(".")
