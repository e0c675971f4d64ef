from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "isthmus"
NAMES_THAT_SAY_NOTHING = {"common", "helper", "helpers", "misc", "tool", "tools", "util", "utils"}


def test_every_module_is_named_after_its_subject() -> None:
    modules = [path for path in SOURCE.rglob("*") if path.suffix == ".py" or path.is_dir()]
    nameless = [
        path.relative_to(SOURCE).as_posix()
        for path in modules
        if NAMES_THAT_SAY_NOTHING & set(path.stem.split("_"))
    ]
    assert not nameless
