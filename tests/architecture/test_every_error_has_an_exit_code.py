import isthmus.core.errors
from isthmus.cli.exit_codes import EXIT_CODES
from isthmus.core.errors import IsthmusError


def family(base: type[IsthmusError]) -> set[type[IsthmusError]]:
    """The class and everything below it."""
    return {base}.union(*(family(child) for child in base.__subclasses__()))


def test_every_error_has_an_exit_code_and_nothing_else_has_one() -> None:
    assert family(IsthmusError) - {IsthmusError} <= set(EXIT_CODES) <= family(IsthmusError)


def test_exit_codes_are_what_a_shell_reads_as_failure() -> None:
    # 0 is success; 126 and above belong to the shell.
    assert all(1 <= code <= 125 for code in EXIT_CODES.values())


def test_every_error_is_defined_in_core_errors_and_drawn_in_its_tree() -> None:
    drawing = isthmus.core.errors.__doc__ or ""
    for error in family(IsthmusError):
        assert error.__module__ == "isthmus.core.errors"
        assert error.__name__ in drawing
