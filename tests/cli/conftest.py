from collections.abc import Callable
from pathlib import Path

import pytest
from tests.workflows.small import names_in, save_tiny, write_contrast, write_world_questions

import isthmus
from isthmus.cli.main import main

Refused = Callable[..., None]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, prompts and artifacts that are in order; only to be read."""
    shelf = tmp_path_factory.mktemp("shelf")
    one, two = save_tiny(shelf / "one"), save_tiny(shelf / "two", hidden_size=24, seed=1)
    contrast = write_contrast(shelf / "contrast.jsonl")
    texts = write_world_questions(shelf / "texts.jsonl")
    direction = isthmus.learn_direction(one, contrast, out=shelf / "direction")
    fitted = isthmus.learn_map(one, two, texts, target_site=1, out=shelf / "map")
    isthmus.transfer(direction, fitted, out=shelf / "carried")
    return shelf


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Types a command that must fail with an exit code, say certain things and leave nothing."""
    monkeypatch.chdir(tmp_path)

    def run(code: int, says: list[str], *words: object) -> None:
        if words[0] == "run" and "--out" not in words:
            words = (*words, "--out", tmp_path / "results")
        before = names_in(tmp_path)
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        message = next(line for line in shown.err.splitlines() if line.startswith("error: "))
        for part in says:
            assert part in message
        assert end.value.code == code
        assert shown.out == ""
        assert "Traceback" not in shown.err
        assert names_in(tmp_path) == before

    return run
