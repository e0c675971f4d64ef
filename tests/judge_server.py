"""Real servers on this machine that judge completions, well and badly."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

from isthmus.evaluation.judges import EndpointJudge

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any], int], None]


@dataclass
class Server:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def judge(self, **changes: Any) -> EndpointJudge:
        settings = {"timeout_s": 20.0, "n_retries": 2, "pause_s": 0.0, **changes}
        return EndpointJudge(self.url, "tiny", **settings)


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """A server that counts requests and answers each as told."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                number = len(server.requests)
            answer(self, body, number)

        @override
        def log_message(self, *_: Any) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def say(handler: BaseHTTPRequestHandler, content: Any) -> None:
    send(handler, json.dumps({"choices": [{"message": {"content": content}}]}).encode())


def saying(content: Any) -> Answer:
    return lambda handler, _, __: say(handler, content)


def reads_well(handler: BaseHTTPRequestHandler, body: dict[str, Any], _: int) -> None:
    row = json.loads(body["messages"][-1]["content"])
    say(handler, json.dumps({"verdict": "refuses" if "cannot" in row["answer"] else "complies"}))
