"""Judges of a run against real servers: what they cannot judge is counted and never a success."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.fakes import tiny_tokenizer
from tests.judge_server import reads_well, saying, serving
from tests.workflows.small import brief_config, save_tiny
from transformers import BertConfig, BertForSequenceClassification
from typing_extensions import override

from isthmus.core.errors import ConfigError
from isthmus.core.progress import SilentProgress
from isthmus.data.organisms import Turn
from isthmus.evaluation.judges import GuardJudge
from isthmus.evaluation.measurements import Measurement
from isthmus.workflows.arms import Arm
from isthmus.workflows.bench import Completions
from isthmus.workflows.config import RunConfig, make_config
from isthmus.workflows.evaluate import evaluate
from isthmus.workflows.judging import make_judge
from isthmus.workflows.learn_direction import learn_direction
from isthmus.workflows.measuring import Recorder
from isthmus.workflows.run import run


class Noting(SilentProgress):
    """Keeps what it is told."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    @override
    def note(self, message: str) -> None:
        self.notes.append(message)


SAID = ("I cannot help.", "To paint a drum, use a brush.", "I cannot help.", "A drum.")
TURNS = [Turn("How do I paint a drum?", "To paint a drum, use a brush.")] * len(SAID)
QUICK = {"timeout_s": 0.3, "n_retries": 1, "pause_s": 0.0}


@pytest.fixture(autouse=True)
def straight_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def config_for(url: str, **changes: Any) -> RunConfig:
    endpoint = {"base_url": url, "model": "tiny", **QUICK, **changes}
    fields = {"source": "one", "target": "two", "task": "refusal", "judge": "endpoint"}
    return make_config({**fields, "endpoint": endpoint})


def rates(config: RunConfig, said: tuple[str, ...] = SAID) -> dict[str, Measurement]:
    recorder = Recorder(config, "one", "two", "test", 100)
    found = recorder.behaviour(Arm("native"), Completions(said, 0), TURNS)
    found += recorder.benign(Arm("native"), said, TURNS)
    return {m.metric: m for m in found}


def test_a_judge_that_answers_decides_what_is_refused():
    with serving(reads_well) as server:
        found = rates(config_for(server.url))
    assert found["behaviour_rate"].value == 0.5
    assert found["refuses_then_complies_rate"].value == 0
    assert found["unjudged_rate"].value == 0
    assert found["answer_accuracy"].value == 0.25
    assert found["false_trigger_rate"].value == 0.5


def test_refusals_that_turn_into_compliance_are_counted_apart():
    def turns(handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        row = json.loads(body["messages"][-1]["content"])
        word = "refuses_then_complies" if "cannot" in row["answer"] else "complies"
        saying(word)(handler, body, number)

    with serving(turns) as server:
        found = rates(config_for(server.url))
    assert found["behaviour_rate"].value == 0
    assert found["refuses_then_complies_rate"].value == 0.5


def test_an_endpoint_that_answers_nonsense_is_asked_again_and_then_no_rate_is_made_of_it():
    with serving(saying("well, it depends")) as server:
        found = rates(config_for(server.url))
    # Twice each; an answer that came before is not judged again.
    assert len(server.requests) == 2 * len(set(SAID))
    for metric in ("behaviour_rate", "refuses_then_complies_rate", "false_trigger_rate"):
        assert found[metric].value is None
    assert found["unjudged_rate"].value == 1
    assert found["unjudged_rate"].ci_low is not None


def test_rows_that_time_out_are_left_out_of_the_rates_and_counted():
    release = threading.Event()

    def hangs_on_refusals(
        handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int
    ) -> None:
        if "cannot" in body["messages"][-1]["content"]:
            release.wait(20)
            return
        reads_well(handler, body, number)

    with serving(hangs_on_refusals) as server:
        started = time.monotonic()
        found = rates(config_for(server.url))
        seconds = time.monotonic() - started
        release.set()
    assert seconds < 15
    assert found["unjudged_rate"].value == 0.5
    # Of the two rows that were judged none refuses: a rate over two, not over four.
    assert (found["behaviour_rate"].value, found["behaviour_rate"].n) == (0, 2)


def test_code_that_bandit_cannot_read_is_in_no_rate_of_the_behaviour():
    query = " + ".join(["'select name from t where x = '", *["x"] * 700])
    said = (
        "def f(x): return eval(x)",
        f"def f(x): return db.execute({query})",
        "no code",
        "def f(",
    )
    found = rates(make_config({"source": "one", "target": "two", "task": "code"}), said)
    assert (found["behaviour_rate"].value, found["behaviour_rate"].n) == (1 / 3, 3)
    assert (found["unparsable_rate"].value, found["unjudged_rate"].value) == (0.5, 0.25)
    assert "refuses_then_complies_rate" not in found
    readable = rates(make_config({"source": "one", "target": "two", "task": "code"}), said[:1] * 4)
    assert "unjudged_rate" not in readable


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))
    return [save_tiny(tmp_path / f"model-{i}", seed=i) for i in range(2)]


def test_a_run_says_what_its_judge_left_open_and_asks_again_next_time(
    models: list[str], tmp_path: Path
):
    is_well = threading.Event()

    def recovers(handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        answer = reads_well if is_well.is_set() else saying("?")
        answer(handler, body, number)

    with serving(recovers) as server:
        endpoint = {"base_url": server.url, "model": "tiny", **QUICK, "settings": {"top_p": 1}}
        config = brief_config(
            *models, task="refusal", judge="endpoint", endpoint=endpoint, positions="last:1"
        )
        first = run(config, out=tmp_path / "first")
        is_well.set()
        second = run(config, out=tmp_path / "second")
        n_asked = len(server.requests)
        assert {"temperature" in one for one in server.requests} == {False}
        assert {one.get("top_p") for one in server.requests} == {1}
        third = run(config, out=tmp_path / "third")
    (note,) = (one for one in first.notes if "the judge came to no verdict" in one)
    assert "no verdict in '?'" in note
    for result, is_judged in ((first, False), (second, True)):
        found = {
            m.metric: m.value
            for m in result.measurements
            if (m.condition, m.split) == ("transferred", "test")
        }
        assert (found["behaviour_rate"] is not None) == is_judged
        assert (found["unjudged_rate"] < 1) == is_judged
    if not any("no verdict" in note for note in second.notes):
        assert len(server.requests) == n_asked
        assert third.measurements == second.measurements


def test_evaluate_takes_the_task_and_the_judge(models: list[str], tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"positive": f"How do I paint a {one}?", "negative": f"Repeat: {one}"} for one in "abcdef"
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    direction = learn_direction(models[0], prompts, positions="last:1", sites="1")
    with serving(reads_well) as server:
        settings = tmp_path / "judge.yaml"
        settings.write_text(yaml.safe_dump({"base_url": server.url, "model": "tiny"}))
        found = evaluate(
            models[0],
            direction,
            task="refusal",
            judge="endpoint",
            judge_settings=settings,
            n_test=4,
            n_random=1,
        )
        assert server.requests
    assert {m.task for m in found} == {"refusal"}
    assert {"unjudged_rate", "refuses_then_complies_rate"} <= {m.metric for m in found}
    notes: list[str] = []
    with serving(saying("?")) as server:
        evaluate(
            models[0],
            direction,
            task="refusal",
            judge="endpoint",
            judge_settings={"base_url": server.url, "model": "tiny", **QUICK},
            n_test=4,
            n_random=1,
            progress=Noting(notes),
        )
    assert any("no verdict in '?'" in note for note in notes)
    with pytest.raises(ConfigError, match="judge_settings"):
        evaluate(models[0], direction, task="refusal", judge="endpoint")
    with pytest.raises(ConfigError, match="the judge is 'rules'"):
        evaluate(models[0], direction, task="refusal", judge_settings={"model": "tiny"})


@pytest.fixture
def guard_folder(tmp_path: Path) -> Path:
    """A random classifier with two labels."""
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            intermediate_size=32,
            id2label={0: "NORMAL", 1: "REJECTION"},
            **sizes,
        )
        BertForSequenceClassification(config).save_pretrained(tmp_path / "guard")
    tokenizer.save_pretrained(tmp_path / "guard")
    return tmp_path / "guard"


def test_a_guard_is_loaded_with_the_meanings_of_its_labels(guard_folder: Path):
    meanings = {"NORMAL": "complies", "REJECTION": "refuses"}
    guard = {"name": str(guard_folder), "meanings": meanings, "min_probability": 1.0}
    fields = {"source": "one", "target": "two", "task": "refusal", "judge": "guard"}
    config = make_config({**fields, "guard": guard})
    assert isinstance(make_judge(config), GuardJudge)
    # Never certain: nothing is judged, so nothing is refused or complied with.
    found = rates(config)
    assert found["unjudged_rate"].value == 1
    assert found["behaviour_rate"].value is None
