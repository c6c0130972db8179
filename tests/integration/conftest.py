"""Real SGLang servers and a real Mooncake pool, started once and shared.

At most two servers run at a time. The plain one, whose answers are the reference, is over before the
cluster starts.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from seer_sgl.config import EngineConfig
from seer_sgl.engine.process import free_port
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.kv.pool import hicache_args
from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.smallmodel.problems import prompts
from tests.integration.rows import ROWS

MODEL = str(WEIGHTS)
CHUNK_TOKENS = 64
START_TIMEOUT_S = 240.0
PAGE_TOKENS = 16
LOAD_TIMEOUT_S = 60.0

GREEDY: dict[str, Any] = {
    "text": prompts(64, seed=3),
    "sampling_params": {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True},
    "return_logprob": True,
}
"""64 prompts x 300 tokens whose answer has no randomness."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the shared cluster go last: it lives to the end, and others start servers, too."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What one plain SGLang server, without chunks and without a pool, says to `GREEDY` and `ROWS`."""
    return asyncio.run(_ask_plain(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="session")
def plain_answers(plain_server: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """To `GREEDY`."""
    return plain_server[""]


async def _ask_plain(log_dir: Path) -> dict[str, list[dict[str, Any]]]:
    server = LaunchedServer(EngineConfig(name="plain", model=MODEL), True, log_dir)
    said: dict[str, list[dict[str, Any]]] = {}
    try:
        await server.start()
        for name, body in {"": GREEDY, **ROWS}.items():
            status, said[name] = await server.client.post("/generate", body)
            assert status == 200, (name, said[name])
    finally:
        await server.stop()
    return said


@dataclass
class Cluster:
    """A `seer-sgl serve` in a process of its own."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def engines(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = httpx.get(f"{self.url}/engines").json()["engines"]
        return listed

    def server_urls(self) -> list[str]:
        return [worker["url"] for worker in self.engines()]

    def wait_for_engines(self, count: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once so many engines are registered."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if len(self.engines()) == count:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not {count} engines after {timeout_s} s:\n{self.log.read_text()}")

    def pool_keeper(self) -> str:
        """Address of its pool's keeper."""
        for process in self.family():
            argv = process.cmdline()
            if "seer_sgl.kv.keeper" in argv:
                return argv[argv.index("--listen") + 1]
        raise AssertionError(f"there is no keeper:\n{self.log.read_text()}")

    def family(self) -> list[psutil.Process]:
        """Every process that it has started, and itself."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]


def start_cluster(directory: Path, *options: str, prefix: tuple[str, ...] = ()) -> Cluster:
    """Start `seer-sgl serve` with these options; it is not ready yet."""
    port = free_port()
    argv = [*prefix, sys.executable, "-m", "seer_sgl_cli", "serve", "--port", str(port)]
    argv += ["--agent-port", str(free_port()), "--log-dir", str(directory)]
    argv += ["--data-dir", str(directory / "data"), *options]
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    return Cluster(process, f"http://127.0.0.1:{port}", log)


def stop_cluster(cluster: Cluster, number: signal.Signals = signal.SIGINT) -> None:
    """Send a signal as a terminal would; nothing may be left, neither process nor port."""
    family = cluster.family()
    ports = {
        connection.laddr.port
        for process in family
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    os.kill(cluster.process.pid, number)
    assert cluster.process.wait(60) == 130, cluster.log.read_text()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"left behind: {alive}"
    assert len(ports) >= 2
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is still open"


def _patient_loads() -> list[str]:
    """SGLang's flags, with which KV may take as long to be loaded as a busy machine needs: after the
    usual 2 s it is computed, which is right and fast, and shows nothing of moves."""
    *_, name, extra = hicache_args(PAGE_TOKENS)
    return [name, json.dumps({**json.loads(extra), "prefetch_timeout_base": LOAD_TIMEOUT_S})]


@pytest.fixture(scope="session")
def cluster(
    plain_answers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two engines behind the `seer` policy with short chunks. Its end is a test, too."""
    del plain_answers  # only so that the plain server is over
    options = ["--chunk-tokens", str(CHUNK_TOKENS), "--engines", "2", "--", *_patient_loads()]
    started = start_cluster(tmp_path_factory.mktemp("cluster"), *options)
    try:
        started.wait_for_engines(2)
        yield started
        stop_cluster(started)
    finally:
        started.process.kill()
        started.process.wait()
