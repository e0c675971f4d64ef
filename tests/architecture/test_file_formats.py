import io
import re
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "isthmus"
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN = re.compile(
    r"\b(cloud)?pickle\b|\btorch\.load\b|\btorch\.save\b|\bmarshal\b|\bshelve\b|\bjoblib\.load\b"
)
SAFETENSORS = re.compile(r"^\s*(import safetensors|from safetensors)", re.MULTILINE)


def without_strings(source: str) -> str:
    """The code alone: one task holds, as text, the vulnerable code that an organism writes."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [one.string for one in tokens if one.type not in {tokenize.STRING, tokenize.COMMENT}]
    return re.sub(r" ?\. ?", ".", " ".join(kept))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_module_uses_a_format_that_can_carry_code(path: Path) -> None:
    assert not FORBIDDEN.search(without_strings(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source", ["import pickle", "x = torch . load(y)", "from marshal import loads\n"]
)
def test_such_a_format_would_be_noticed(source: str) -> None:
    assert FORBIDDEN.search(without_strings(source))


def test_only_core_artifacts_reads_and_writes_tensors() -> None:
    owners = {
        path.relative_to(SOURCE).as_posix()
        for path in MODULES
        if SAFETENSORS.search(path.read_text(encoding="utf-8"))
    }
    assert owners == {"core/artifacts.py"}


def test_shipped_files_are_of_known_kinds() -> None:
    kinds = {path.suffix for path in SOURCE.rglob("*") if path.is_file()} - {".pyc"}
    assert kinds <= {".py", ".typed", ".json", ".safetensors", ".jinja"}
