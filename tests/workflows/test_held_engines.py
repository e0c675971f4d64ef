"""Workers that stay from round to round, and the sweep that is scored by them."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.workflows.counting_shards import WORKER, asked_of, counting_job, wait_until
from tests.workflows.ray_cluster import ENGINE, small_cluster
from tests.workflows.small import brief_config, save_tiny, write_contrast, write_world_questions

import isthmus
from isthmus.core.artifacts import read_json
from isthmus.core.errors import EngineError
from isthmus.core.progress import SilentProgress
from isthmus.workflows.engines.jobs import Crew, Engine, shard_folder
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.sweep import SweepResult


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with small_cluster():
        yield


def squares(crew: Crew, log: Path, n: int, into: Path) -> list[int]:
    into.mkdir()
    return [one["square"] for one in crew.ask("squares", counting_job(log, n).shards, into)]


def processes(log: Path) -> set[int]:
    found = {pid for _, pid in asked_of(log)}
    log.unlink()
    return found


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("engine", [LocalEngine(), ENGINE], ids=["local", "ray"])
def test_workers_stay_from_round_to_round(engine: Engine, tmp_path: Path):
    log = tmp_path / "log"
    # Together: neither of two workers can do the first round before the other has started.
    settings = {"log": str(log), "together": [0, 1] if engine is ENGINE else []}
    with engine.hold(WORKER, settings, SilentProgress()) as crew:
        assert squares(crew, log, 5, tmp_path / "first") == [0, 1, 4, 9, 16]
        first = processes(log)
        assert squares(crew, log, 3, tmp_path / "second") == [0, 1, 4]
        assert processes(log) <= first


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_lost_between_rounds_is_replaced(tmp_path: Path):
    log = tmp_path / "log"
    with ENGINE.hold(WORKER, {"log": str(log)}, SilentProgress()) as crew:
        squares(crew, log, 4, tmp_path / "first")
        lost = processes(log)
        for process in lost:
            os.kill(process, signal.SIGKILL)
        assert squares(crew, log, 4, tmp_path / "second") == [0, 1, 4, 9]
        assert not processes(log) & lost


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_waits_takes_over_the_shard_of_one_that_is_lost(tmp_path: Path):
    log, into = tmp_path / "log", tmp_path / "into"
    # Together: neither worker can do both before the other has started.
    settings = {"log": str(log), "together": [0, 1], "waits": 1}
    with ENGINE.hold(WORKER, settings, SilentProgress()) as crew:

        def kill() -> None:
            wait_until((shard_folder(into, 0) / "deep").exists)
            os.kill(dict(asked_of(log))[1], signal.SIGKILL)
            (tmp_path / "go").touch()

        killer = threading.Thread(target=kill)
        killer.start()
        assert squares(crew, log, 2, into) == [0, 1]
        killer.join()
        (first, one), (second, other), again = asked_of(log)
        assert {first, second} == {0, 1}
        assert one != other
        assert again == (1, {first: one, second: other}[0])


@pytest.mark.usefixtures("cluster")
def test_a_round_ends_before_the_next_begins(tmp_path: Path):
    log = tmp_path / "log"
    with ENGINE.hold(WORKER, {"log": str(log), "waits": 1}, SilentProgress()) as crew:
        (tmp_path / "a").mkdir()
        running = crew.ask("squares", counting_job(log, 2).shards, tmp_path / "a")
        assert next(running)["square"] == 0
        wait_until(lambda: 1 in dict(asked_of(log)))
        with pytest.raises(EngineError, match="not over"):
            squares(crew, log, 1, tmp_path / "b")
        (tmp_path / "go").touch()


@pytest.mark.usefixtures("cluster")
def test_a_sweep_finds_the_same_whoever_scores_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    model = save_tiny(tmp_path / "model", n_layers=3)
    pairs = write_contrast(tmp_path / "pairs.jsonl")
    direction = isthmus.learn_direction(model, pairs, sites="all", positions="last:3")
    questions = write_world_questions(tmp_path / "questions.jsonl", 120)
    config = brief_config(model, model, questions=questions, strengths=[0.5, 1.0, 2.0, 3.0])

    def swept(engine: Engine) -> SweepResult:
        sizes = {"n_validation": 12, "n_test": 4, "n_completions": 2, "max_new_tokens": 2}
        return isthmus.sweep(
            model,
            direction,
            config=config,
            edits="add,set_coordinate",
            is_cached=engine is ENGINE,
            engine=engine,
            out=None if engine is not ENGINE else tmp_path / "ray",
            **sizes,
        )

    here, there = swept(LocalEngine()), swept(ENGINE)
    assert len(here.cells) > 16
    assert [(c.fate, c.n, c.stage) for c in there.cells] == [
        (c.fate, c.n, c.stage) for c in here.cells
    ]
    assert [c.effect for c in there.cells] == pytest.approx(
        [c.effect for c in here.cells], abs=1e-6, nan_ok=True
    )
    assert there.best.arm.site == here.best.arm.site
    assert there.best.arm.strength == here.best.arm.strength
    assert there.n_tokens >= here.n_tokens
    # All scores are kept by now, with what workers and this process have read for them.
    assert swept(ENGINE).n_tokens == there.n_tokens
    names = [one["name"] for one in read_json(tmp_path / "ray" / "provenance.json")["stages"]]
    assert names.count("score cells") == 1
