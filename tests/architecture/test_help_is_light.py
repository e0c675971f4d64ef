import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "scipy", "sklearn", "matplotlib", "numpy")


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    script = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run(  # noqa: S603 - our own interpreter, our own text
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in run.stdout.split()}


@pytest.mark.parametrize("module", ["isthmus", "isthmus.cli.main"])
def test_the_command_line_starts_without_the_heavy_libraries(module: str) -> None:
    assert not loaded_after(f"import {module}").intersection(HEAVY)


def test_a_heavy_import_would_be_noticed() -> None:
    assert "numpy" in loaded_after("import numpy")
