import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.counting_shards import asked_of, counting_job, wait_until
from tests.workflows.ray_cluster import ENGINE, small_cluster
from tests.workflows.small import (
    brief_config,
    names_in,
    save_tiny,
    write_contrast,
    write_world_questions,
)

from isthmus.core.artifacts import read_json
from isthmus.core.errors import ConfigError, DataError, EngineError
from isthmus.core.progress import SilentProgress
from isthmus.core.provenance import machine
from isthmus.studies.reproduce import reproduce
from isthmus.studies.transfer_matrix import transfer_matrix
from isthmus.workflows.capture import capture
from isthmus.workflows.engines.choosing import engine_named
from isthmus.workflows.engines.hosting import Answer, fingerprint
from isthmus.workflows.engines.jobs import Engine, Job, as_sent, make_worker, shard_folder
from isthmus.workflows.engines.local import LocalEngine
from isthmus.workflows.engines.ray_engine import RayEngine
from isthmus.workflows.evaluate import evaluate
from isthmus.workflows.evaluation_shards import Evaluation
from isthmus.workflows.learn_direction import learn_direction
from isthmus.workflows.learn_probe import learn_probe
from isthmus.workflows.run import run


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with small_cluster():
        yield


@dataclass
class Watched(SilentProgress):
    """Keeps what a job says, and how much of it was done."""

    said: list[str] = field(default_factory=list)
    done: int = 0

    @contextmanager
    def stage(self, name, total=None):  # noqa: ARG002
        def advance(units):
            self.done += units

        yield advance

    def note(self, message):
        self.said.append(message)


def answers(engine: Engine, job: Job, into: Path, progress: SilentProgress | None = None) -> list:
    into.mkdir(exist_ok=True)
    return list(engine.run(job, into, progress or SilentProgress()))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_an_address_at_which_nobody_answers_is_refused_at_once(log, tmp_path):
    # Before the cluster of the other tests: one that is connected is used whatever the address.
    engine = RayEngine(address="127.0.0.1:9")
    with pytest.raises(EngineError, match=r"no Ray cluster at 127\.0\.0\.1:9 .* start one with"):
        answers(engine, counting_job(log), tmp_path / "into")


def test_the_local_engine_answers_in_order_and_leaves_the_files_of_every_shard(log, tmp_path):
    progress = Watched()
    found = answers(LocalEngine(), counting_job(log), tmp_path / "into", progress)
    assert found == [{"square": i**2, "third": i / 3} for i in range(6)]
    assert read_json(shard_folder(tmp_path / "into", 5) / "deep" / "square.json") == 25
    assert progress.done == 6


@pytest.mark.usefixtures("cluster")
def test_two_processes_answer_what_one_does_in_the_same_order(log, tmp_path):
    here = answers(LocalEngine(), counting_job(log), tmp_path / "here")
    log.unlink()
    progress = Watched()
    there = answers(ENGINE, counting_job(log), tmp_path / "there", progress)
    assert there == here
    assert names_in(tmp_path / "there") == names_in(tmp_path / "here")
    processes = {pid for _, pid in asked_of(log)}
    assert os.getpid() not in processes
    assert progress.done == 6
    assert "number 4: squared 4" in progress.said


@pytest.mark.usefixtures("cluster")
def test_a_worker_stays_with_its_group_and_both_work_at_once(log, tmp_path):
    # None of the first of both groups ends before the other has begun; nor does any of the last.
    job = counting_job(log, 4, "aabb", together=[0, 2])
    answers(ENGINE, job, tmp_path / "into")
    processes = dict(asked_of(log))
    assert processes[0] != processes[2]
    log.unlink()
    answers(ENGINE, counting_job(log, 4, "aabb", together=[1, 3]), tmp_path / "again")
    processes = dict(asked_of(log))
    assert processes[0] == processes[1] != processes[2] == processes[3]


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_its_shard_only(log, tmp_path):
    job, progress = counting_job(log, 6, waits=3), Watched()

    def kill() -> None:
        wait_until(lambda: 3 in dict(asked_of(log)))
        os.kill(dict(asked_of(log))[3], signal.SIGKILL)
        log.with_name("go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    found = answers(ENGINE, job, tmp_path / "into", progress)
    killer.join()
    assert [one["square"] for one in found] == [0, 1, 4, 9, 16, 25]
    asked = Counter(number for number, _ in asked_of(log))
    assert asked == Counter([0, 1, 2, 3, 3, 4, 5])
    assert progress.done == 6
    assert any("number 3: its worker was lost" in said for said in progress.said)


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_every_worker_is_given_up(log, tmp_path):
    engine = RayEngine(n_workers=2, max_retries=1)
    with pytest.raises(EngineError, match="number 2: its worker was lost 2 times"):
        answers(engine, counting_job(log, 6, deadly=2), tmp_path / "into")


@pytest.mark.usefixtures("cluster")
def test_an_error_of_a_shard_arrives_as_it_was_raised_and_is_not_tried_again(log, tmp_path):
    with pytest.raises(DataError, match="number 1 is refused: choose another"):
        answers(ENGINE, counting_job(log, 6, refused=1), tmp_path / "into")
    assert [number for number, _ in asked_of(log)].count(1) == 1


@pytest.mark.usefixtures("cluster")
def test_a_bug_in_a_worker_is_shown_as_one(log, tmp_path):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        answers(ENGINE, counting_job(log, 3, broken=1), tmp_path / "into")


@pytest.mark.usefixtures("cluster")
def test_workers_beyond_the_size_of_the_cluster_are_not_waited_for(log, tmp_path):
    engine = RayEngine(n_workers=5)
    assert len(answers(engine, counting_job(log), tmp_path / "into")) == 6
    impossible = RayEngine(n_workers=1, threads_per_worker=64, start_timeout_s=0.1)
    with pytest.raises(EngineError, match="ask for less"):
        answers(impossible, counting_job(log), tmp_path / "other")


@pytest.mark.usefixtures("cluster")
def test_who_stops_listening_leaves_no_worker_behind(log, tmp_path):
    (tmp_path / "into").mkdir()
    running = ENGINE.run(counting_job(log, 4, waits=2), tmp_path / "into", SilentProgress())
    next(running)
    running.close()
    # A cluster of two processors has room again.
    assert len(answers(ENGINE, counting_job(log, 2), tmp_path / "again")) == 2


@pytest.mark.usefixtures("cluster")
def test_a_store_has_the_same_bytes_whoever_captures_its_shards(tmp_path):
    names = {role: save_tiny(tmp_path / role, seed=i) for i, role in enumerate(("one", "two"))}
    prompts = write_world_questions(tmp_path / "prompts.jsonl", 20)
    for name, engine in (("here", "local"), ("there", ENGINE)):
        folder = capture(
            names["one"],
            prompts,
            out=tmp_path / name,
            target=names["two"],
            target_sites="1",
            batch_size=4,
            rows_per_shard=200,
            engine=engine,
        )
        if name == "there":
            # Of a store that is there but for one shard, that one alone is captured.
            kept = sorted(folder.glob("shard-*"))
            kept[1].unlink()
            progress = Watched()
            capture(
                names["one"],
                prompts,
                out=folder,
                target=names["two"],
                target_sites="1",
                batch_size=4,
                rows_per_shard=200,
                engine=Elsewhere(),
                progress=progress,
            )
            assert 0 < progress.done < 10
    assert names_in(tmp_path / "here") == names_in(tmp_path / "there")
    assert len(names_in(tmp_path / "here")) > 4
    for name in names_in(tmp_path / "here"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_conditions_measured_one_by_one_are_those_measured_together(tmp_path):
    model = save_tiny(tmp_path / "model")
    contrast = write_contrast(tmp_path / "contrast.jsonl")
    direction = learn_direction(model, contrast, sites="1")
    gate = learn_probe(model, contrast, site="0")
    for asked in ({}, {"gate": gate}):
        found = [
            evaluate(model, direction, engine=engine, n_test=4, n_random=2, **asked)
            for engine in ("local", Elsewhere())
        ]
        assert found[0] == found[1]
        assert ("gate_open_rate" in {m.metric for m in found[0]}) == bool(asked)
    assert {m.condition for m in found[0]} >= {"native", "random", "noise", "prompt_only"}
    for task in ("backdoor", "refusal"):
        evaluation = Evaluation.of(model, (1, "add", None, 1.0), {"task": task, "n_test": 4})
        sent = Evaluation.from_json(as_sent(evaluation.to_json()))
        assert sent == evaluation
        assert len(sent.arms(direction, {})) == sent.n_arms


def test_parts_and_matrices_of_a_reproduction_go_to_the_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    config = brief_config(save_tiny(tmp_path / "model"), save_tiny(tmp_path / "other", seed=1))
    wanted = {"is_quick": True, "config": [config], "only": ["backdoor", "refusal"]}
    here = reproduce(out=tmp_path / "here", n_processes=1, **wanted)
    there = reproduce(out=tmp_path / "there", engine=Elsewhere(), is_cached=False, **wanted)
    assert [part.name for part in there.parts] == [part.name for part in here.parts]
    assert [part.problem for part in there.parts] == [part.problem for part in here.parts]
    assert "task: refusal" in there.parts[1].problem
    written = [without_seconds(one.folder / "results.jsonl") for one in (here, there)]
    assert written[0] == written[1]
    assert written[0]
    matrix = reproduce("matrix", out=tmp_path / "m", engine=Elsewhere(), config=[config])
    assert "leave --config out" in matrix.parts[0].problem


class Elsewhere:
    """The local engine under another name, so that verbs hand it their shards."""

    def run(self, job: Job, into: Path, progress: SilentProgress) -> Iterator:
        return LocalEngine().run(job, into, progress)

    def hold(self, worker: str, settings: Any, progress: SilentProgress):
        return LocalEngine().hold(worker, settings, progress)


@pytest.mark.usefixtures("cluster")
def test_a_run_writes_the_same_results_whoever_carries_out_its_crossings(tmp_path, monkeypatch):
    source, *targets = (
        save_tiny(tmp_path / name, family, seed=number)
        for number, (name, family) in enumerate((("a", "llama"), ("b", "gpt_neox"), ("c", "qwen2")))
    )
    config = brief_config(source, *targets)
    written = {}
    for name, engine in (("here", "local"), ("there", ENGINE)):
        monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / f"cache-{name}"))
        result = run(config, out=tmp_path / name, is_cached=False, engine=engine)
        written[name] = without_seconds(result.folder / "results.jsonl")
    assert written["here"] == written["there"]
    assert len(written["here"]) > 50
    here, there = names_in(tmp_path / "here"), names_in(tmp_path / "there")
    assert here == there
    provenance = read_json(tmp_path / "there" / "provenance.json")
    assert provenance["machine"]["engine"] == "RayEngine"
    assert {stage["name"] for stage in provenance["stages"]} >= {f"load {targets[1]}"}
    assert provenance["machine"]["n_cpus"] == machine()["n_cpus"]


def without_seconds(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "_wall_s" not in line and "seconds" not in line]


@pytest.mark.usefixtures("cluster")
def test_a_matrix_is_the_same_when_a_worker_is_killed_in_the_middle(tmp_path):
    models = [save_tiny(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    sizes = {"n_train": 8, "n_validation": 4, "n_test": 4, "strengths": [1.0]}
    settings = {**sizes, "max_new_tokens": 2, "positions": "last:2", "target_sites": [1]}
    here = transfer_matrix(models, settings=settings, is_cached=False)
    progress = Killing()
    there = transfer_matrix(
        models, settings=settings, is_cached=False, engine=ENGINE, progress=progress
    )
    assert progress.killed is not None
    assert any("its worker was lost" in said for said in progress.said)
    assert there == here


@dataclass
class Killing(Watched):
    """Kills a worker when the first entry is there."""

    killed: int | None = None

    @contextmanager
    def stage(self, name, total=None):  # noqa: ARG002
        def advance(_units):
            if self.killed is None:
                self.killed = process_of_a_worker()
                os.kill(self.killed, signal.SIGKILL)

        yield advance


def process_of_a_worker() -> int:
    """Finds a process of the test's own cluster that hosts shards."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"ray::ShardHost") and is_ours(int(path.parent.name)):
            return int(path.parent.name)
    raise LookupError("no worker of ray")


def is_ours(pid: int) -> bool:
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def test_without_ray_the_engine_names_the_extra(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[ray\]'"):
        answers(ENGINE, counting_job(log), tmp_path / "into")
    # A reproduction reports parts that cannot run; this is not one.
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[ray\]'"):
        reproduce("matrix", out=tmp_path / "run", engine="ray")


def test_a_lost_cluster_ends_a_reproduction(tmp_path):
    class Lost:
        def run(self, job, into, progress):  # noqa: ARG002
            raise EngineError("the cluster is gone")

        hold = run

    with pytest.raises(EngineError, match="gone"):
        reproduce(
            "matrix", out=tmp_path / "run", is_quick=True, only=["matrix_refusal"], engine=Lost()
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("local", "auto", None), "add --engine ray"),
        (("local", None, 2), "add --engine ray"),
        (("dask", None, None), "no engine 'dask'"),
        (("ray", None, 0), "at least one worker"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        engine_named(*given)


def test_an_engine_is_chosen_by_name():
    assert engine_named("local") == LocalEngine()
    assert engine_named("ray", "auto", 3, n_threads=2) == RayEngine("auto", 3, 2)
    assert engine_named(ENGINE) is ENGINE


@pytest.mark.parametrize("name", ["isthmus.nowhere:Worker", "isthmus.core.sites:Worker", "sites"])
def test_a_worker_that_does_not_exist_is_named(name):
    with pytest.raises(ConfigError, match=r"package\.module:Class"):
        make_worker(name, {}, SilentProgress())


def test_an_answer_arrives_as_it_was_sent():
    sent = Answer({"x": 0.1}, ("said",), ("DataError", "no"))
    assert Answer.from_text(sent.to_text()) == sent
    with pytest.raises(DataError, match="no"):
        sent.require()
    assert "torch" in fingerprint()
