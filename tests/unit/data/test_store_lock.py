"""One process at a time writes a store."""

import os
import signal
import subprocess
import sys

import pytest
from tests.unit.data.stores import PAIRS, fill, shard_of, texts_of

from isthmus.core.errors import OutputError
from isthmus.data.store_writer import plan_shards, writing_store

LENGTHS = (3, 4, 1)

_HOLDS = """
import sys, time
from pathlib import Path
from isthmus.data.store_lock import written_alone
with written_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def write(folder):
    with writing_store(folder, PAIRS) as writer:
        for planned in plan_shards(texts_of(LENGTHS), writer.manifest.shards, 7):
            if not planned.is_written:
                writer.register(shard_of(folder, PAIRS, planned))


def test_a_store_that_is_being_written_is_left_alone_by_whoever_comes_second(tmp_path):
    with writing_store(tmp_path / "s", PAIRS) as writer:
        unfinished = tmp_path / "s" / ".shard-000000000.safetensors.x"
        unfinished.touch()
        with pytest.raises(OutputError, match="another process is writing"):
            write(tmp_path / "s")
        assert unfinished.exists()
        [planned, _] = plan_shards(texts_of(LENGTHS), (), 7)
        writer.register(shard_of(tmp_path / "s", PAIRS, planned))
    write(tmp_path / "s")


def test_a_writer_that_is_killed_lets_go_of_the_store(tmp_path):
    words = [sys.executable, "-c", _HOLDS, str(tmp_path / "s")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as child:  # noqa: S603
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another process is writing"):
            write(tmp_path / "s")
        os.kill(child.pid, signal.SIGKILL)
    write(tmp_path / "s")


def test_what_a_killed_process_left_is_removed_folders_too(tmp_path):
    fill(tmp_path / "s", LENGTHS)
    left = tmp_path / "s" / ".shard-abc" / "0"
    left.mkdir(parents=True)
    (left / "shard-000000000.safetensors").touch()
    write(tmp_path / "s")
    assert not left.parent.exists()
