from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "isthmus"


def test_only_the_hooks_module_registers_hooks() -> None:
    owners = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "register_forward_" in path.read_text(encoding="utf-8")
        or "register_full_backward_" in path.read_text(encoding="utf-8")
        or "register_module_" in path.read_text(encoding="utf-8")
    }
    assert owners == {"models/hooks.py"}


def test_only_the_resuming_module_replaces_a_forward() -> None:
    owners = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if ".forward = " in path.read_text(encoding="utf-8")
    }
    assert owners == {"models/resuming.py"}
