"""The judge against real servers on this machine, good and bad."""

import json
import math
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from tests.judge_server import reads_well, saying, send, serving

from isthmus.core.errors import ConfigError, ShapeError
from isthmus.evaluation.judges import EndpointJudge, Judge, refusal_rate
from isthmus.evaluation.judges.endpoint import API_KEY_VARIABLE


@pytest.fixture(autouse=True)
def straight_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_every_row_gets_its_own_verdict_in_order() -> None:
    completions = ["I cannot." if i % 3 else f"Answer {i}." for i in range(20)]
    with serving(reads_well) as server:
        verdicts = server.judge(n_parallel=4).judge(["Why?"] * 20, completions)
    expected = ["refuses" if "cannot" in one else "complies" for one in completions]
    assert [verdict.label for verdict in verdicts] == expected
    assert len(server.requests) == 20


def test_a_request_holds_the_row_the_model_and_the_settings() -> None:
    with serving(reads_well) as server:
        server.judge(settings={"max_tokens": 9}).judge(["Why “so”?\n"], ["Because 東京."])
    (body,) = server.requests
    row = {"question": "Why “so”?\n", "answer": "Because 東京."}
    assert json.loads(body["messages"][-1]["content"]) == row
    assert (body["model"], body["max_tokens"]) == ("tiny", 9)
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_end_in_v1_or_not(ending: str) -> None:
    with serving(reads_well) as server:
        EndpointJudge(server.url + ending, "tiny").judge(["a"], ["b"])
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("refuses", "refuses"),
        (" Complies.\n", "complies"),
        ('"refuses_then_complies"', "refuses_then_complies"),
        ('{"verdict": "refuses"}', "refuses"),
        ('```json\n{"verdict": "complies"}\n```', "complies"),
        ('<think>\n\n</think>\n\n{"verdict": "refuses"}', "refuses"),
        ("<think>It complies. No: complies?</think>refuses", "refuses"),
    ],
)
def test_one_word_or_json_is_a_verdict(reply: str, label: str) -> None:
    with serving(saying(reply)) as server:
        assert server.judge().judge(["a"], ["b"])[0].label == label


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "banana",
        "unjudged",
        "The answer complies.",
        "It neither refuses nor complies",
        '{"verdict": "unjudged"}',
        '{"verdict": ["refuses"]}',
        '{"label": "refuses"}',
        '{"verdict": "refuses"',
        '{"verdict":' * 3000,
        "<think>complies</think>",
        "<think>It is cut off: complies",
        "```" + " " * 100_000 + "x",
        None,
        7,
    ],
    ids=lambda reply: str(reply)[:24],
)
def test_nonsense_is_asked_again_and_then_unjudged(reply: Any) -> None:
    with serving(saying(reply)) as server:
        (verdict,) = server.judge(n_retries=2).judge(["a"], ["b"])
    assert verdict.label == "unjudged"
    assert "tries: 3" in verdict.reason
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not json", b"[]", b"{}", b'{"choices": []}', b"\xff\xfe\x00", b"null"),
        b"[" * 200_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_chat_completion_is_unjudged(body: bytes) -> None:
    with serving(lambda handler, _, __: send(handler, body)) as server:
        (verdict,) = server.judge(n_retries=1).judge(["a"], ["b"])
    assert verdict.label == "unjudged"
    assert "not a chat completion" in verdict.reason
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers_is_waited_for(status: int) -> None:
    def recovers(handler: BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        if number <= 2:
            send(handler, b"busy", status)
        else:
            reads_well(handler, body, number)

    with serving(recovers) as server:
        assert server.judge(n_retries=2).judge(["a"], ["I cannot."])[0].label == "refuses"
    assert len(server.requests) == 3


def test_a_server_that_does_not_recover_leaves_the_row_unjudged() -> None:
    with serving(lambda handler, _, __: send(handler, b"", 500)) as server:
        (verdict,) = server.judge(n_retries=2).judge(["a"], ["b"])
    assert (verdict.label, len(server.requests)) == ("unjudged", 3)
    assert "HTTP 500" in verdict.reason


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_request_that_can_never_work_is_sent_once(status: int) -> None:
    with serving(lambda handler, _, __: send(handler, b"", status)) as server:
        (verdict,) = server.judge().judge(["a"], ["b"])
    assert (verdict.label, len(server.requests)) == ("unjudged", 1)
    assert f"HTTP {status}" in verdict.reason


def test_a_silent_server_times_out_and_the_row_is_unjudged() -> None:
    release = threading.Event()
    with serving(lambda *_: (release.wait(20), None)[1]) as server:
        started = time.monotonic()
        (verdict,) = server.judge(timeout_s=0.2, n_retries=1).judge(["a"], ["b"])
        seconds = time.monotonic() - started
        release.set()
    assert verdict.label == "unjudged"
    assert "no reply within 0.2 s" in verdict.reason
    assert seconds < 10


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_byte_by_byte_times_out_as_a_whole(part: str) -> None:
    def drips(handler: BaseHTTPRequestHandler, _: dict[str, Any], __: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        handler.wfile.write(b"X-Slow: " if part == "headers" else b"\r\n")
        try:
            for _i in range(400):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            return

    with serving(drips) as server:
        started = time.monotonic()
        (verdict,) = server.judge(timeout_s=0.3, n_retries=0).judge(["a"], ["b"])
        assert time.monotonic() - started < 10
    assert "no reply within" in verdict.reason


def test_a_server_that_reads_slowly_times_out_as_a_whole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # It accepts what fits into its buffers and reads nothing.
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        judge = EndpointJudge(url, "tiny", timeout_s=0.3, n_retries=0)
        started = time.monotonic()
        (verdict,) = judge.judge(["a"], ["b" * 20_000_000])
        assert time.monotonic() - started < 10
    assert "no reply within" in verdict.reason


def test_a_redirect_is_not_followed_so_that_the_key_stays_here() -> None:
    with serving(reads_well) as other:

        def redirects(handler: BaseHTTPRequestHandler, _: dict[str, Any], __: int) -> None:
            handler.send_response(302)
            handler.send_header("Location", f"{other.url}/v1/chat/completions")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with serving(redirects) as server:
            (verdict,) = server.judge(api_key="secret").judge(["a"], ["b"])
    assert verdict.label == "unjudged"
    assert not other.requests


def test_no_server_at_all_leaves_every_row_unjudged() -> None:
    with serving(reads_well) as server:
        gone = server.judge(n_retries=1)
    verdicts = gone.judge(["a"] * 3, ["b"] * 3)
    rates = refusal_rate(verdicts)
    assert rates.n_unjudged == 3
    assert not rates.refuses.is_defined
    assert "no connection" in verdicts[0].reason


def test_the_key_is_passed_or_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    with serving(reads_well) as server:
        server.judge().judge(["a"], ["b"])
        monkeypatch.setenv(API_KEY_VARIABLE, "from-outside")
        server.judge().judge(["a"], ["b"])
        server.judge(api_key="given").judge(["a"], ["b"])
    keys = [headers.get("Authorization") for headers in server.headers]
    assert keys == [None, "Bearer from-outside", "Bearer given"]


def test_the_key_shows_in_no_message() -> None:
    with serving(lambda handler, _, __: send(handler, b"", 500)) as server:
        judge = server.judge(api_key="secret", n_retries=0)
        assert "secret" not in repr(judge)
        assert "secret" not in judge.judge(["a"], ["b"])[0].reason


def test_what_the_server_objects_to_is_told_without_the_key() -> None:
    said = b'{"error": {"message": "no such field: temperature (key secret)"}}'
    with serving(lambda handler, _, __: send(handler, said, 400)) as server:
        (verdict,) = server.judge(api_key="secret").judge(["a"], ["b"])
    assert "no such field: temperature" in verdict.reason
    assert "secret" not in verdict.reason
    with serving(lambda handler, _, __: send(handler, said, 401)) as server:
        (verdict,) = server.judge(api_key="secret-2").judge(["a"], ["b"])
    assert verdict.reason == "HTTP 401: Unauthorized (tries: 1)"


def test_an_objection_that_never_ends_is_not_waited_for() -> None:
    release = threading.Event()

    def hangs(handler: BaseHTTPRequestHandler, _: dict[str, Any], __: int) -> None:
        handler.send_response(400)
        handler.send_header("Content-Length", "9")
        handler.end_headers()
        release.wait(20)

    with serving(hangs) as server:
        (verdict,) = server.judge(timeout_s=0.5).judge(["a"], ["b"])
        release.set()
    assert verdict.reason == "HTTP 400: Bad Request (tries: 1)"


@pytest.mark.parametrize("key", ["sec\nret", "secrét"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError, match="no header can carry") as caught:
        EndpointJudge("http://127.0.0.1:1", "tiny", api_key=key).judge(["a"], ["b"])
    assert key not in str(caught.value)


def test_blank_completions_are_unjudged_without_a_request() -> None:
    with serving(reads_well) as server:
        labels = [v.label for v in server.judge().judge(["a", "a"], [" \n", "I cannot."])]
    assert labels == ["unjudged", "refuses"]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "file:///etc/hosts"},
        {"base_url": "localhost:8000"},
        {"base_url": "http://127.0.0.1:99999"},
        {"base_url": "http://"},
        {"base_url": "http://127.0.0.1:1\n"},
        {"base_url": "http://two words"},
        {"base_url": f"http://{'a' * 70}.org"},
        {"base_url": "http://127.0.0.1:1/v1?version=2"},
        {"timeout_s": 0.0},
        {"timeout_s": math.inf},
        {"timeout_s": math.nan},
        {"timeout_s": 1e12},
        {"n_retries": -1},
        {"n_parallel": 0},
        {"pause_s": -1.0},
        {"pause_s": math.nan},
        {"settings": {"stop": {"a", "b"}}},
        {"settings": {"temperature": math.nan}},
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EndpointJudge(**{"base_url": "http://127.0.0.1:1", "model": "tiny", **changes})


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="pass the key as api_key") as error:
        EndpointJudge("http://me:secret@127.0.0.1:1", "tiny")
    assert "secret" not in str(error.value)


def test_no_number_of_tries_makes_a_pause_too_large_for_a_number() -> None:
    assert EndpointJudge("http://127.0.0.1:1", "tiny").pause_before(5000) == 60
    assert EndpointJudge("http://127.0.0.1:1", "tiny", pause_s=0.0).pause_before(5000) == 0


def test_it_is_a_judge_of_pairs() -> None:
    judge = EndpointJudge("http://127.0.0.1:1", "tiny")
    assert isinstance(judge, Judge)
    assert judge.name == "endpoint:tiny"
    with pytest.raises(ShapeError):
        judge.judge(["a"], [])
