"""The accelerator script on a CPU: its values, its limits, and what it does where a case fails."""

import json
import time

import pytest
import torch
from benchmarks import gpu
from benchmarks.gpu_cases import GpuCase, Load, model_cases
from benchmarks.gpu_networks import PAIRS, PUBLISHED, TINY, TINY_PAIRS, build_model, move_to

CPU = torch.device("cpu")
LOAD = Load(n_texts=2, n_tokens=9, n_steered=3, n_new=3, n_rows=400, n_steps=2)


@pytest.mark.parametrize("name", ["tiny-gemma", "tiny-llama"])
def test_bf16_capture_edits_and_generation_are_those_of_a_plain_hook(name) -> None:
    lm = build_model(name, TINY[name], CPU, 0)
    move_to(lm, torch.bfloat16)
    found = {what: check() for case in model_cases(lm, LOAD, 0) for what, check in case.checks}
    assert set(found.values()) == {0.0}
    assert set(found) == {
        "capture = plain hook",
        "no edit = same bits",
        "edits = plain hook",
        "generation = plain hook",
    }


def test_edits_per_row_change_the_rows_that_have_one() -> None:
    lm = build_model("tiny-llama", TINY["tiny-llama"], CPU, 0)
    cases = {case.name: case for case in model_cases(lm, LOAD, 0)}
    steered = cases["generation, an edit per row"].work()
    assert len(set(steered)) == len(steered)
    edited = cases["pass, an edit per row"].work()
    bare = build_model("tiny-llama", TINY["tiny-llama"], CPU, 1)
    other = {case.name: case for case in model_cases(bare, LOAD, 0)}
    assert not torch.equal(edited, other["pass, an edit per row"].work())


def test_a_case_that_fails_or_takes_too_long_is_a_row_and_the_next_one_runs(tmp_path) -> None:
    def out_of_memory() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    run = gpu.Run(tmp_path, CPU, limit_s=0.2, budget_s=60)
    for work in (out_of_memory, lambda: time.sleep(5), lambda: None):
        run.measure("model", "bf16", GpuCase("work", work, 1.0, "texts"))
    assert [row.error for row in run.rows] == [
        "CUDA out of memory.",
        "longer than 0.2 seconds",
        None,
    ]
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert len(written["rows"]) == 3
    assert "failed: CUDA out of memory." in (tmp_path / "gpu.md").read_text(encoding="utf-8")


def test_nothing_begins_when_the_time_is_over_and_wrong_values_are_not_right(tmp_path) -> None:
    run = gpu.Run(tmp_path, CPU, limit_s=5, budget_s=0)
    run.measure("model", "bf16", GpuCase("work", lambda: None, 1.0, "texts"))
    assert run.rows[0].error == "no time left"
    run = gpu.Run(tmp_path, CPU, limit_s=5, budget_s=5)
    wrong = (("one = two", lambda: 1.0),)
    run.measure("model", "bf16", GpuCase("work", lambda: None, 1.0, "texts", wrong))
    assert not run.rows[0].is_right
    assert "one = two differs by 1" in run.table()


def test_maps_are_fitted_in_every_precision(tmp_path) -> None:
    run = gpu.Run(tmp_path, CPU, limit_s=30, budget_s=60)
    gpu.measure_maps(run, TINY, TINY_PAIRS, LOAD)
    assert {row.precision for row in run.rows} == {"float32", "tf32", "bf16"}
    assert all(row.is_right and row.error is None for row in run.rows)


def test_pairs_are_of_models_that_are_described() -> None:
    assert {name for pair in PAIRS for name in pair} <= set(PUBLISHED)
    for size in PUBLISHED.values():
        n_heads, n_key_value, d_head = size.heads
        assert n_heads % n_key_value == 0
        assert size.kind == "gemma2" or n_heads * d_head == size.d_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_machine_without_an_accelerator_is_told_what_to_do(tmp_path, capsys) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "--device cpu --tiny" in capsys.readouterr().err
