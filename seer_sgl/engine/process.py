"""A child process that is never left behind, and whose last words are shown."""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from pathlib import Path

from seer_sgl.errors import ChildFailedError

_PR_SET_PDEATHSIG = 1


class Child:
    """A child in a session of its own, with its output in a log file.

    Its whole process group is ended by `stop`; if this process is killed instead, the kernel ends the
    child. A Ctrl-C at the terminal reaches this process alone, which then stops its children in order.
    """

    def __init__(self, name: str, argv: list[str], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._argv = argv
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    async def start(self, environment: dict[str, str] | None = None) -> None:
        """Start it; `environment` is added to this process's own."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None, f"{self.name} was not started"
        return await self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    def log_tail(self, lines: int = 12) -> str:
        """Its last lines."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 64_000))
            text = log.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-lines:])

    def failure(self, what: str) -> ChildFailedError:
        """An error that names this child, where its log is, and how it ended."""
        return ChildFailedError(f"{self.name} {what}; its log: {self.log_path}", self.log_tail())

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it and all that it started: ask first if there is time for an answer, then kill."""
        if self._process is None:
            return
        if grace_s:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        self._signal_group(signal.SIGKILL)
        await self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
