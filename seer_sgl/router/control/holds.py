"""Reasons why the router dispatches nothing; it goes on when the last one is gone."""

import asyncio
import contextlib
from collections.abc import Callable, Collection

from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

PAUSED = "paused"
OPENED = "a weight update is open"
RELEASED = "memory is released"
CHANGING = "a weight change is on"
_LASTING = (PAUSED, OPENED, RELEASED)
"""Reasons that last until a caller takes them back. Others end by themselves."""
EVERY: EngineId | None = None
"""The scope of a call to the router as a whole, where one to an engine's port has that engine."""
_POLL_S = 0.005


class Holds:
    """Keeps the dispatcher paused while there is a reason."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._held: set[tuple[str, EngineId | None]] = set()
        self.before_resume: Callable[[], None] = lambda: None
        """Called when the last reason is gone, before anything is dispatched."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def has(self, why: str, scope: EngineId | None = EVERY) -> bool:
        """Whether a reason holds for an engine: by itself, or because it holds for all."""
        return (why, EVERY) in self._held or (why, scope) in self._held

    def any(self, why: str) -> bool:
        """Whether a reason holds for any engine."""
        return any(reason == why for reason, _ in self._held)

    def add(self, why: str, scope: EngineId | None = EVERY) -> None:
        if not self._held:
            self._dispatcher.pause()
        self._held.add((why, scope))

    def drop(self, why: str, scope: EngineId | None = EVERY) -> None:
        """A reason is gone; where it is gone for the router as a whole, so it is for each engine."""
        had = bool(self._held)
        self._held = {
            (reason, engine)
            for reason, engine in self._held
            if reason != why or (scope is not EVERY and engine != scope)
        }
        if had and not self._held:
            self.before_resume()
            self._dispatcher.resume()

    def engine_left(self, engine: EngineId) -> None:
        """What held for an engine alone went with it."""
        for why in {reason for reason, scope in self._held if scope == engine}:
            self.drop(why, engine)

    def busy(self, engine: EngineId | None = EVERY) -> bool:
        """Whether a chunk runs: anywhere, or on one engine."""
        return bool(self._chunks(engine))

    async def idle(self, engine: EngineId | None = EVERY) -> None:
        """Wait until no chunk runs: anywhere, or on one engine."""
        while self._chunks(engine):  # noqa: ASYNC110 - the core tells nobody
            await asyncio.sleep(_POLL_S)

    async def recalled(self, patience_s: float) -> None:
        """Wait until the chunks that were recalled have come back, but not for ever: an engine that
        hangs keeps them until it is given up."""
        core = self._dispatcher.core
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while any(core.is_recalled(chunk) for chunk in core.chunks):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    def _chunks(self, engine: EngineId | None) -> int:
        core = self._dispatcher.core
        if engine is EVERY:
            return self._dispatcher.queue_load().in_flight
        return len(core.engines[engine].chunks) if engine in core.engines else 0

    async def drained(self, engines: Collection[EngineId]) -> None:
        """Wait until requests have ended, so that these engines may get other weights.

        As long as a caller has paused an engine, or has something open, requests do not end: then it is
        waited only for what runs on these engines, but for those that were paused or opened themselves.

        Without an engine in traffic they would wait for the change that is to bring one: those that have
        tokens of the weights before end with them, and the others begin after it.
        """
        dispatcher = self._dispatcher
        while dispatcher.on_their_way:
            if any(map(self.any, _LASTING)):
                if not any(map(self._is_to_end, engines)):
                    return
            elif not len(dispatcher.roster):
                dispatcher.abort_begun()
                return
            await asyncio.sleep(_POLL_S)

    def _is_to_end(self, engine: EngineId) -> bool:
        """Whether a chunk runs there that nobody has made stop where it is."""
        stopped = self.has(PAUSED, engine) or self.has(OPENED, engine)
        return not stopped and self.busy(engine)
