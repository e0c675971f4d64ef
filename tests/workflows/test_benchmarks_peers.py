"""The comparison with other libraries: what is asked, how processes answer, what is reported."""

import sys

import pytest
import torch
from benchmarks.peers import run_isthmus, run_plain
from benchmarks.peers.environments import ISTHMUS, PEERS, TORCH, Environment, build
from benchmarks.peers.material import Material, mixed_lengths, write_material
from benchmarks.peers.report import section_of
from benchmarks.peers.service import Service, padded, tokens_of
from benchmarks.peers.workers import Worker, WorkerError, start_worker
from benchmarks.peers.workloads import LIMITS, PLAIN, measure_workloads, workloads
from benchmarks.results import conditions, failed_checks
from rich.console import Console
from safetensors.torch import load_file

SMALL = Material("small", 3, 32, 60, 6, (2, 20), 3, 2, 5, 4, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("material")
    write_material(made, SMALL, 0)
    return made


class InProcess(Worker):
    """A worker whose library runs here."""

    def __init__(self, name, library, folder, **options) -> None:
        self.name = name
        self.service = Service(library, **options)
        self.about = self.service.prepare(str(folder), torch.get_num_threads())

    def ask(self, verb, **arguments):
        if verb == "capture" and self.name == "nnsight":
            raise WorkerError("does not capture")
        return getattr(self.service, verb)(**arguments)


@pytest.fixture(scope="module")
def workers(folder):
    plain, other = (run_plain.Plain(is_bare=False) for _ in range(2))
    return [
        InProcess(PLAIN, plain, folder),
        InProcess("isthmus", run_isthmus.Isthmus(), folder, no_gradients=False),
        InProcess("nnsight", other, folder),
    ]


def test_isthmus_and_a_plain_hook_come_to_the_same_values(workers, folder) -> None:
    console = Console(quiet=True)
    asked = list(measure_workloads(workers, SMALL, folder, (2, "processor"), console))
    found = [one for one, _ in asked]
    unable = [one for _, several in asked for one in several]
    assert [f"{one.group}: {one.name}" for one in workloads(SMALL)] == [one.case for one in found]
    assert sum(len(one.checks) for one in found) == 6
    assert not failed_checks(found)
    assert [one.reason for one in unable] == ["does not capture"] * 4
    fastest = found[2].comparisons[-1].pair
    assert (fastest.measured, fastest.against) == ("isthmus", "nnsight")


def test_steering_changes_what_is_generated(workers, folder, tmp_path) -> None:
    steered, bare = tmp_path / "steered.safetensors", tmp_path / "bare.safetensors"
    workers[0].ask("steer", keep=str(steered))
    untouched = InProcess("bare", run_plain.Plain(is_bare=True), folder)
    untouched.ask("steer", keep=str(bare))
    one, other = (load_file(path)["tokens"] for path in (steered, bare))
    assert one.shape == other.shape == (SMALL.n_steered, SMALL.n_new)
    assert not torch.equal(one, other)


def test_only_captures_of_mixed_lengths_have_limits() -> None:
    limits = {one.name: one.limit for one in workloads(SMALL) if one.limit}
    assert limits == {f"{where} layer, as given": limit for where, limit in LIMITS.items()}
    assert pytest.approx(1 / 2.2) == LIMITS["middle"]


def test_lengths_reach_from_shortest_to_longest_and_most_are_short() -> None:
    many = Material("many", 1, 32, 60, 2000, (8, 256), 3, 2, 5, 4, 2)
    lengths = sorted(mixed_lengths(many, torch.Generator().manual_seed(0)))
    assert lengths[0] >= 8
    assert lengths[-1] == 256
    assert lengths[1000] == pytest.approx((8 * 256) ** 0.5, rel=0.2)


def test_padding_is_left_out_in_the_order_of_the_prompts() -> None:
    prompts = [[3], [4, 5, 6], [7, 8]]
    batches = padded(prompts, 2)
    assert [one["input_ids"].tolist() for one in batches] == [[[3, 0, 0], [4, 5, 6]], [[7, 8]]]
    hidden = [one["input_ids"][..., None].float() for one in batches]
    assert tokens_of(hidden, prompts, 2).flatten().tolist() == [3, 4, 5, 6, 7, 8]


SCRIPT = """
import json, sys
print("a library says hello")
for line in sys.stdin:
    verb = json.loads(line)["verb"]
    if verb == "end":
        break
    answers = {"steer": {"ok": True, "wall": 2.0}}
    print(json.dumps(answers.get(verb, {"ok": False, "reason": "cannot"})), flush=True)
"""


def test_a_process_answers_refuses_and_may_end(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    worker = start_worker("some", sys.executable, [str(script)], tmp_path / "log", threads=1)
    assert worker.ask("steer", keep=None) == {"wall": 2.0}
    with pytest.raises(WorkerError, match="cannot"):
        worker.ask("capture")
    with pytest.raises(WorkerError, match="ended"):
        worker.ask("end")
    with pytest.raises(WorkerError, match="ended"):
        worker.ask("steer")
    worker.end()


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_its_pins_and_a_runner(peer) -> None:
    pins = peer.constraints.read_text(encoding="utf-8").splitlines()
    names = {line.partition("==")[0].lower() for line in pins}
    assert TORCH in pins
    assert peer.name in names
    assert "transformers" in names
    runner = peer.constraints.parent / f"run_{peer.name.replace('-', '_')}.py"
    assert runner.exists()


def test_an_environment_that_cannot_be_made_says_why(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.peers.environments.HOME", tmp_path)
    pins = tmp_path / "pins.txt"
    pins.write_text("# none\n", encoding="utf-8")
    (tmp_path / "here" / "bin").mkdir(parents=True)
    (tmp_path / "here" / "bin" / "python").symlink_to(sys.executable)
    failed = build(Environment("here", ("--no-such-option",), "import this", pins))
    assert failed
    assert not (tmp_path / "here" / "installed.txt").exists()


def test_the_section_names_versions_sizes_and_what_was_not_done(workers, folder) -> None:
    console = Console(quiet=True)
    asked = measure_workloads(workers, SMALL, folder, (1, "processor"), console)
    found = [one for one, _ in asked]
    where = conditions({"threads": 1, "clock": "processor"}) | {
        "libraries": {worker.name: worker.about for worker in workers},
        "environments": {"isthmus": {"n_packages": 3, "size_mb": 9, "size_without_torch_mb": 2}},
        "unable": [{"library": "repeng", "workload": "Capture: x", "reason": "a | b"}],
    }
    text = section_of(found, where)
    assert "| isthmus | 3 | 9 | 2 |" in text
    assert "| repeng | Capture: x | a / b |" in text
    assert "`capture_activations`" in text
    assert ISTHMUS.name in text
