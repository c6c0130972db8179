"""The command as a process: how it starts, and that a signal leaves nothing of it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from seer_sgl.engine.process import free_port

HEAVY = ["torch", "sglang", "transformers", "zmq", "numba", "uvicorn"]


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"]])
def test_help_is_light(args: list[str]) -> None:
    code = f"""
import sys
from seer_sgl_cli.main import app
try:
    app({args})
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {HEAVY} if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, heavy = ran.stdout.splitlines()
    assert any("Usage" in line for line in text)
    assert heavy == "[]"


class Serving:
    """`seer-sgl serve` without engines, that answers."""

    def __init__(self) -> None:
        self.ports = [free_port(), free_port()]
        argv = [
            *(sys.executable, "-m", "seer_sgl_cli", "serve", "--engines", "0", "--no-pool"),
            "--no-batches",
            *("--port", str(self.ports[0]), "--agent-port", str(self.ports[1])),
        ]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_ready(self) -> None:
        assert self.process.stderr is not None
        assert any("ready: POST" in line for line in self.process.stderr), "it ended before"
        health = httpx.get(f"http://127.0.0.1:{self.ports[0]}/health", trust_env=False)
        assert health.status_code == 503

    def end(self) -> None:
        """Whatever a test left of it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def two_heads() -> Iterator[list[Serving]]:
    heads = [Serving(), Serving()]
    yield heads
    for head in heads:
        head.end()


def test_a_signal_leaves_no_process_and_no_port(two_heads: list[Serving]) -> None:
    for head, number in zip(two_heads, (signal.SIGINT, signal.SIGTERM), strict=True):
        head.wait_ready()
        head.process.send_signal(number)
    for head in two_heads:
        _, rest = head.process.communicate(timeout=10.0)
        assert head.process.returncode == 130
        assert "Traceback" not in rest
        with pytest.raises(ProcessLookupError):
            os.killpg(head.process.pid, 0)
        for port in head.ports:
            with socket.create_server(("127.0.0.1", port)):
                pass
