"""The processes that the router benchmark measures: mock engines, our router, our agents, the stock one.

Each is started as a user would start it, waited for, watched by CPU time and memory, and stopped.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bench.report import ROOT
from seer_sgl.engine.process import free_port

ENGINES = 2
START_S = 60.0
STOP_S = 10.0


@dataclass
class Process:
    """One program and what it started."""

    name: str
    argv: list[str]
    popen: "subprocess.Popen[bytes]"
    log: Path

    def argument(self, flag: str) -> str:
        """What it was given after this flag."""
        return self.argv[self.argv.index(flag) + 1]

    def cpu_s(self) -> float:
        """CPU time of the whole family so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self._family())

    def memory_mib(self) -> tuple[float, float]:
        """Resident and proportional set size of the family, in MiB."""
        infos = [each.memory_full_info() for each in self._family()]
        return sum(info.rss for info in infos) / 2**20, sum(info.pss for info in infos) / 2**20

    def check(self) -> None:
        """Raises RuntimeError, with its last words, where it has ended."""
        if self.popen.poll() is not None:
            words = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with status {self.popen.returncode}:\n{words}")

    def stop(self) -> None:
        """Ask, then kill the family."""
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def _family(self) -> list[psutil.Process]:
        root = psutil.Process(self.popen.pid)
        return [root, *root.children(recursive=True)]


@dataclass
class Fleet:
    """What is measured, by name; `ports` are where requests go."""

    ports: dict[str, int] = field(default_factory=dict)
    parts: dict[str, tuple[Process, ...]] = field(default_factory=dict)
    """Processes of each way, from its port to the mock engines."""
    mock: Process | None = None

    def cpu_s(self, way: str) -> dict[str, float]:
        """CPU time so far of each process on a way, the mock engines' too."""
        assert self.mock is not None
        return {part.name: part.cpu_s() for part in (*self.parts[way], self.mock)}


def start(name: str, argv: list[str], log_dir: Path) -> Process:
    """Start a program from the root of the checkout, in a session of its own, its output in a file."""
    log = log_dir / f"{name.replace(' ', '_')}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Process(name, argv, popen, log)


@contextlib.contextmanager
def running(name: str, argv: list[str], log_dir: Path) -> Iterator[Process]:
    """A program that runs inside the block."""
    process = start(name, argv, log_dir)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def fleet(stock_python: str, event_s: float, log_dir: Path) -> Iterator[Fleet]:
    """Mock engines, our router over them, and the stock one where `stock_python` can start it."""
    ports = [free_port() for _ in range(ENGINES)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    mock_argv = [
        *(sys.executable, "-m", "bench.mock_engine", "--event-s", str(event_s)),
        *("--ports", *map(str, ports)),
    ]
    with contextlib.ExitStack() as stack:
        mock = stack.enter_context(running("mock engines", mock_argv, log_dir))
        wait_for(mock, f"{urls[0]}/health", lambda _: True)
        found = Fleet(ports={"direct": ports[0]}, parts={"direct": ()}, mock=mock)
        port, parts = _start_ours(stack, urls, log_dir)
        found.ports["seer-sgl"], found.parts["seer-sgl"] = port, parts
        if stock_python:
            port, stock = _start_stock(stack, stock_python, urls, log_dir)
            found.ports["sglang-router"], found.parts["sglang-router"] = port, (stock,)
        yield found


def _start_ours(
    stack: contextlib.ExitStack, urls: list[str], log_dir: Path
) -> tuple[int, tuple[Process, ...]]:
    port, router = start_router(stack, log_dir)
    attach = [word for url in urls for word in ("--attach", url)]
    head = f"127.0.0.1:{router.argument('--agent-port')}"
    argv = [*seer_sgl(), "join", head, "--name", "mock", *attach]
    agents = stack.enter_context(running("agents", argv, log_dir))
    wait_for(router, f"http://127.0.0.1:{port}/health", lambda seen: seen["engines"] == len(urls))
    return port, (router, agents)


def start_router(stack: contextlib.ExitStack, log_dir: Path, *more: str) -> tuple[int, Process]:
    """Our router without engines; its HTTP port. `more`: further arguments."""
    port = free_port()
    argv = [
        *(*seer_sgl(), "serve", "--engines", "0", "--no-pool", "--no-speculate"),
        *("--port", str(port), "--agent-port", str(free_port()), "--log-dir", str(log_dir)),
        *(more or ("--no-batches",)),
    ]
    router = stack.enter_context(running("router", argv, log_dir))
    wait_for(router, f"http://127.0.0.1:{port}/v1/models", lambda _: True)
    return port, router


def _start_stock(
    stack: contextlib.ExitStack, python: str, urls: list[str], log_dir: Path
) -> tuple[int, Process]:
    port = free_port()
    # Its default policy walks a tree of prompts; round robin is the cheapest that it has.
    argv = [
        *(python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(free_port()), "--policy", "round_robin", "--log-level", "warn"),
        *("--worker-urls", *urls),
    ]
    stock = stack.enter_context(running("stock router", argv, log_dir))
    wait_for(stock, f"http://127.0.0.1:{port}/workers", lambda seen: seen["total"] == len(urls))
    return port, stock


def seer_sgl() -> list[str]:
    """Our command line, run by this interpreter."""
    return [sys.executable, "-m", "seer_sgl_cli"]


def default_stock_python() -> str:
    """This interpreter where the stock router is installed in it; empty where it is not."""
    # By its distribution: our own package for its command line can be imported under the same name.
    return sys.executable if list(metadata.distributions(name="sglang-router")) else ""


def stock_version(python: str) -> str:
    """Version of the stock router that this interpreter has; raises where it has none."""
    code = "from importlib.metadata import version; print(version('sglang-router'))"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def wait_for(process: Process, url: str, is_ready: Any) -> None:
    """Wait until a GET answers with JSON that `is_ready` takes.

    Raises:
        RuntimeError: the process ended, or that took too long.
    """
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        process.check()
        with contextlib.suppress(OSError, urllib.error.URLError, KeyError):
            if is_ready(get_json(url)):
                return
        time.sleep(0.1)
    raise RuntimeError(f"{process.name} was not ready after {START_S:g} s; its log: {process.log}")


def get_json(url: str) -> Any:
    """The JSON that a GET answers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What was added to each count."""
    return {name: after[name] - before[name] for name in after}
