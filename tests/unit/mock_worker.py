"""A server that knows little of SGLang's interface, as the stock router's own tests have them."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class MockWorker:
    """Listens in a thread while in its block; may be ended and started again on the same port.

    Args:
        name: what it calls itself in answers.
        status: what it answers to whatever generates.
        key: what it asks for, if anything.
        hangs: it generates nothing before it ends.
    """

    def __init__(self, name: str, status: int = 200, key: str = "", hangs: bool = False) -> None:
        self.name = name
        self.status = status
        self.key = key
        self.bodies: list[dict[str, Any]] = []
        """What it was asked to generate."""
        self._ended = threading.Event()
        self._hangs = hangs
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        class Mine(_Handler):
            worker = self

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Mine)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        self._ended.set()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> "MockWorker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def get(self, path: str) -> tuple[int, Any]:
        """It says neither what it holds nor how busy it is."""
        known: dict[str, Any] = {
            "/health": "ok",
            "/health_generate": "ok",
            "/get_server_info": {"worker_id": self.name, "dp_size": 1},
            "/get_model_info": {"model": "mock", "vocab_size": 32000},
            "/v1/models": {"data": [{"id": "mock", "object": "model"}]},
        }
        return (200, known[path]) if path in known else (404, {"detail": "Not Found"})

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path not in ("/generate", "/v1/completions"):
            return 404, {"detail": "Not Found"}
        self.bodies.append(body)
        if self._hangs:
            self._ended.wait()
        if self.status != 200:
            return self.status, {"error": f"mock failure {self.status}"}
        if path == "/v1/completions":
            choice = {"text": "ok", "index": 0, "finish_reason": "stop"}
            return 200, {"id": "c", "choices": [choice], "worker_id": self.name, "echo": body}
        meta = {"id": body.get("rid"), "finish_reason": {"type": "stop", "matched": 7}}
        meta |= {"prompt_tokens": len(body["input_ids"]), "completion_tokens": 2}
        return 200, {"text": self.name, "output_ids": [5, 7], "meta_info": meta}


class _Handler(BaseHTTPRequestHandler):
    worker: MockWorker

    def do_GET(self) -> None:
        self._answer(*self.worker.get(self.path.partition("?")[0]))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"] or 0))
        key = self.worker.key
        if key and self.headers["authorization"] != f"Bearer {key}":
            self._answer(401, {"detail": "Unauthorized"})
            return
        self._answer(*self.worker.post(self.path, json.loads(content or b"{}")))

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _answer(self, status: int, answer: Any) -> None:
        content = json.dumps(answer).encode()
        with suppress(BrokenPipeError):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.send_header("X-Worker-Id", self.worker.name)
            self.end_headers()
            self.wfile.write(content)
