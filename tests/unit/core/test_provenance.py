import json
import os
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from threading import Barrier

import pytest

import isthmus.core
from isthmus.core.progress import Progress, SilentProgress
from isthmus.core.provenance import (
    StageClock,
    StageTime,
    machine,
    package_versions,
    source_commit,
)


class Listener:
    """Writes down what it is told."""

    def __init__(self):
        self.heard = []

    @contextmanager
    def stage(self, name, total=None):
        self.heard.append(("begin", name, total))
        yield lambda units: self.heard.append(("advance", name, units))
        self.heard.append(("end", name))

    def note(self, message):
        self.heard.append(("note", message))


def test_versions_are_those_of_the_installed_packages():
    versions = package_versions()
    assert versions.pop("python") == platform.python_version()
    assert {"isthmus", "torch", "transformers", "numpy"} <= versions.keys()
    assert versions == {name: metadata.version(name) for name in versions}


def test_the_machine_is_described_without_its_name_or_a_path():
    described = json.dumps(machine())
    assert machine()["n_cpus"] == os.cpu_count()
    assert platform.node() not in described
    assert str(Path.home()) not in described


def git(*arguments):
    folder = str(Path(isthmus.core.__file__).parent)
    done = subprocess.run(  # noqa: S603 - a fixed program
        ["git", "-C", folder, *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def test_the_commit_is_that_of_the_checkout():
    if git("ls-files", "--error-unmatch", "provenance.py") is None:
        pytest.skip("not a checkout")
    commit, *dirty = source_commit().split("-")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert commit == git("rev-parse", "HEAD")
    assert dirty in ([], ["dirty"])


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit() is None


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert source_commit() is None


def test_a_clock_passes_everything_on_to_who_shows_it():
    listener = Listener()
    clock = StageClock(listener)
    with clock.stage("fit", 3) as advance:
        advance(2)
    clock.note("done")
    assert listener.heard == [
        ("begin", "fit", 3),
        ("advance", "fit", 2),
        ("end", "fit"),
        ("note", "done"),
    ]


def test_stages_are_kept_in_the_order_in_which_they_end():
    clock = StageClock(SilentProgress())
    with clock.stage("outer"):
        for name in ("first", "second"):
            with clock.stage(name):
                pass
    assert [stage.name for stage in clock.stages] == ["first", "second", "outer"]
    outer = clock.stages[-1]
    assert outer.wall_s >= sum(stage.wall_s for stage in clock.stages[:-1])


def test_waiting_takes_wall_time_and_no_processor_time():
    clock = StageClock(SilentProgress())
    with clock.stage("wait"):
        time.sleep(0.05)
    assert clock.stages[0].wall_s >= 0.05
    assert clock.stages[0].cpu_s < 0.04


def test_a_stage_is_not_charged_for_what_another_thread_does_meanwhile():
    clock = StageClock(SilentProgress())
    both_open, both_done = Barrier(2), Barrier(2)

    def work():
        with clock.stage("work"):
            both_open.wait()
            end = time.thread_time() + 0.1
            while time.thread_time() < end:
                pass
            both_done.wait()

    def idle():
        with clock.stage("idle"):
            both_open.wait()
            both_done.wait()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work), threads.submit(idle)]:
            done.result()
    took = {stage.name: stage for stage in clock.stages}
    assert took["work"].cpu_s >= 0.1
    assert took["idle"].cpu_s < 0.05
    assert took["idle"].wall_s >= 0.1


def test_a_stage_that_fails_is_not_among_the_finished_ones():
    clock = StageClock(SilentProgress())
    with pytest.raises(ZeroDivisionError), clock.stage("fit"):
        _ = 1 / 0
    assert clock.stages == []


def test_times_become_json_in_milliseconds():
    clock = StageClock(SilentProgress(), [StageTime("fit", 1.23456, 0.0004)])
    assert clock.to_json() == [{"name": "fit", "wall_s": 1.235, "cpu_s": 0.0}]


def test_clocks_and_silence_are_progress():
    assert isinstance(SilentProgress(), Progress)
    assert isinstance(StageClock(SilentProgress()), Progress)
    with SilentProgress().stage("fit", 3) as advance:
        advance(1)
    SilentProgress().note("nothing")
