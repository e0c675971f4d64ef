import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def too_long_functions(source: str) -> list[str]:
    """Names of the functions with too many lines, docstrings left out."""
    return [
        f"{node.name} ({length} lines)"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := n_lines(node) - docstring_lines(node)) > MAX_FUNCTION_LINES
    ]


def n_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return n_lines(node.body[0]) if ast.get_docstring(node) is not None else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert not too_long_functions(source)


def test_a_function_of_sixty_one_lines_is_noticed() -> None:
    body = "    pass\n"
    assert not too_long_functions("def short():\n" + body * 59)
    assert too_long_functions("def long():\n" + body * 60) == ["long (61 lines)"]
