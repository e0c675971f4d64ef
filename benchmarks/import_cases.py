"""What starting costs: a new interpreter that imports isthmus or shows its help."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.timing import Case, Check, Pair

from isthmus.core.errors import ConfigError

HEAVY = ("torch", "transformers", "scipy", "sklearn", "matplotlib", "numpy")

_EMPTY, _AGAIN, _TORCH = "python -c pass", "python -c pass again", "import torch"
_IMPORT, _HELP = "import isthmus", "isthmus --help"
_HELP_CODE = "import sys; from isthmus.cli.main import main; sys.argv[1:] = ['--help']; main()"


def import_cases() -> Iterator[Case]:
    """Yields one case: new interpreters that do nothing, import isthmus, show help, import torch.

    Yields:
        Case: Five commands.
    """
    commands = {
        _EMPTY: "pass",
        _AGAIN: "pass",
        _IMPORT: "import isthmus",
        _HELP: _HELP_CODE,
        _TORCH: "import torch",
    }
    yield Case(
        "Start",
        "new interpreter",
        {name: partial(run_python, code) for name, code in commands.items()},
        (
            Pair(_IMPORT, _EMPTY),
            Pair(_HELP, _EMPTY),
            Pair(_IMPORT, _TORCH),
            Pair(_HELP, _TORCH),
            Pair(_AGAIN, _EMPTY),
        ),
        (
            Check(f"{_IMPORT} loads no heavy library", partial(_n_heavy, "import isthmus")),
            Check(
                f"{_HELP} loads no heavy library",
                partial(_n_heavy, "import isthmus.cli.main"),
            ),
        ),
    )


def run_python(code: str) -> str:
    """Runs code in a new interpreter and returns what it writes.

    Args:
        code: Python statements.

    Returns:
        Its standard output.

    Raises:
        ConfigError: If it ends with an error.
    """
    command: Sequence[str] = (sys.executable, "-c", code)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ConfigError(f"`{code}` failed and said: {said}. Install the project: make setup")
    return done.stdout


def _n_heavy(code: str) -> float:
    loaded = run_python(f"{code}; import sys; print(*sys.modules)").split()
    return float(len({name.partition(".")[0] for name in loaded} & set(HEAVY)))
