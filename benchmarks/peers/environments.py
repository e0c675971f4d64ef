"""Environments of the libraries that are compared: which, how they are made, how large they are."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = ROOT / "benchmarks" / ".peers"
"""Where environments are kept; git does not see them."""

TORCH = "torch==2.13.0"
"""What everybody runs on."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of one library.

    Attributes:
        name: Of the library, its folder and its constraints.
        requirements: What pip is asked for.
        import_code: What a program that captures with it imports.
        constraints: File of pinned versions.
    """

    name: str
    requirements: tuple[str, ...]
    import_code: str
    constraints: Path

    @property
    def folder(self) -> Path:
        """Where it is."""
        return HOME / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def _peer(name: str, import_code: str, *requirements: str) -> Environment:
    return Environment(name, (TORCH, *requirements), import_code, HERE / f"{name}.txt")


ISTHMUS = Environment(
    "isthmus",
    (TORCH, "--editable", str(ROOT)),
    "import isthmus.models.capture, isthmus.models.generation",
    ROOT / "constraints.txt",
)
"""isthmus with what it needs to run, as its peers are installed."""

PEERS = (
    _peer("nnsight", "import nnsight", "nnsight"),
    _peer("transformer-lens", "import transformer_lens", "transformer-lens"),
    _peer("pyvene", "import pyvene", "pyvene", "transformers<5"),
    _peer("steering-vectors", "import steering_vectors", "steering-vectors", "transformers<5"),
    _peer("repeng", "import repeng", "repeng", "transformers<5", "numpy<2"),
)
"""The libraries that isthmus is compared with."""


def build(environment: Environment) -> str | None:
    """Makes an environment unless it is there as its constraints say.

    Args:
        environment: What to make.

    Returns:
        Why it could not be made, the last line of pip's error; None if it is there.
    """
    stamp = environment.folder / "installed.txt"
    wanted = environment.constraints.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return None
    HOME.mkdir(parents=True, exist_ok=True)
    if not environment.python.exists():
        failed = _run([sys.executable, "-m", "venv", str(environment.folder)])
        if failed is not None:
            return failed
    pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "install"]
    failed = _run([*pip, "--quiet", "-c", str(environment.constraints), *environment.requirements])
    if failed is None:
        stamp.write_text(wanted, encoding="utf-8")
    return failed


def _run(command: list[str]) -> str | None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]


def installed_size(environment: Environment) -> dict[str, float]:
    """Returns how many packages an environment has and how many megabytes they are.

    Args:
        environment: One that is built.

    Returns:
        `n_packages`, `size_mb`, and `size_without_torch_mb`; pip is left out.
    """
    (packages,) = environment.folder.glob("lib/python*/site-packages")
    own = [one for one in packages.iterdir() if not one.name.startswith(("pip", "__pycache__"))]
    return {
        "n_packages": sum(one.name.endswith(".dist-info") for one in own),
        "size_mb": round(_n_bytes(own) / 1e6),
        "size_without_torch_mb": round(
            _n_bytes(one for one in own if not one.name.startswith("torch")) / 1e6
        ),
    }


def _n_bytes(paths: Iterable[Path]) -> int:
    files = (
        file
        for path in paths
        for file in (path.rglob("*") if path.is_dir() else (path,))
        if file.suffix != ".pyc"
    )
    return sum(file.stat().st_size for file in files if file.is_file())
