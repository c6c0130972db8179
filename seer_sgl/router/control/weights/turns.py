"""Weight changes one after the other: every engine hears of one at a time, all in the same order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from seer_sgl.router.control.weights.changes import Turn, in_the_way
from seer_sgl.types import EngineId

_POLL_S = 0.005


class Turns:
    """The changes that are on, or wait for their turn."""

    def __init__(self) -> None:
        self._now: list[Turn] = []
        self._locks: dict[EngineId, asyncio.Lock] = {}

    def objection(self, turn: Turn) -> str:
        """Why this one may not even wait; empty where it may."""
        return in_the_way(turn, self._now)

    async def over(self, engines: frozenset[EngineId]) -> None:
        """Wait until no update is on at any of these. What only comes in order is not waited for: it
        leaves their weights as they are, or is for an engine that runs nothing."""
        while any(turn.engines & engines and not turn.waits for turn in self._now):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    @contextlib.asynccontextmanager
    async def take(self, turn: Turn) -> AsyncIterator[None]:
        """Wait until no other change is on at any of the engines; inside, none begins."""
        self._now.append(turn)
        try:
            async with contextlib.AsyncExitStack() as stack:
                for engine in sorted(turn.engines):
                    lock = self._locks.setdefault(EngineId(engine), asyncio.Lock())
                    await stack.enter_async_context(lock)
                yield
        finally:
            self._now.remove(turn)
