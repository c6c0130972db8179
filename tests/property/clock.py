"""A clock that jumps: nothing waits, and everything happens in its order."""

import asyncio
import contextlib
import selectors
from collections.abc import Coroutine
from typing import Any
from unittest import mock


class JumpingLoop(asyncio.SelectorEventLoop):
    """Nothing in it ever waits: when all are idle, its clock goes to what comes next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now_s


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everyone waits, and nothing will ever happen"
        self._loop.now_s += max(0.0, timeout)
        return []


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on such a clock; all of the router goes by it."""
    loop = JumpingLoop()
    with mock.patch("time.monotonic", loop.time):
        try:
            loop.run_until_complete(work)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


async def finished(work: "asyncio.Task[Any]", patience_s: float) -> Any:
    """The result of a task that has to end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            return await asyncio.shield(work)
    raise AssertionError(f"{work.get_name()} never ended")
