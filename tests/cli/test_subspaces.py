import json
from pathlib import Path

import pytest
from tests.workflows.small import save_tiny, write_contrast, write_world_questions

import isthmus
from isthmus.cli.main import main
from isthmus.core.artifacts import TENSORS_NAME, sha256_of_file


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert end.value.code == 0, shown.err
    return shown.out


def test_a_subspace_is_learned_carried_used_and_shown_as_in_python(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    one = save_tiny(tmp_path / "one")
    two = save_tiny(tmp_path / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    contrast = write_contrast(tmp_path / "contrast.jsonl")
    texts = write_world_questions(tmp_path / "texts.jsonl")
    words = [one, contrast, "--rank", 2, "--positions", "last:2", "--out", tmp_path / "s"]
    assert "shares of the contrast" in typed(capsys, "learn-subspace", *words)
    learned = isthmus.learn_subspace(
        one, contrast, rank=2, positions="last:2", out=tmp_path / "python"
    )
    hashes = {sha256_of_file(tmp_path / name / TENSORS_NAME) for name in ("s", "python")}
    assert len(hashes) == 1
    fitted = isthmus.learn_map(one, two, texts, target_site=1, out=tmp_path / "map")
    shown = typed(capsys, "transfer", tmp_path / "s", tmp_path / "map", "--out", tmp_path / "c")
    assert shown.startswith("subspace: ")
    assert f"at resid_post[1] of {fitted.target}" in shown
    shown = json.loads(typed(capsys, "inspect", tmp_path / "c"))
    assert shown["kind"] == "subspace"
    assert shown["tensors"]["resid_post[1].basis"] == [2, 24]
    assert len(shown["provenance"]["shares"]["resid_post[1]"]) == 2
    settings = ["--edit", "set_coordinate", "--max-new-tokens", 4]
    said = typed(capsys, "generate", two, "Who?", "--direction", tmp_path / "c", *settings)
    carried = isthmus.transfer(learned, fitted)
    done = isthmus.generate(two, "Who?", direction=carried, edit="set_coordinate", max_new_tokens=4)
    assert said.rstrip("\n") == done.completions[0].rstrip("\n")
