"""Reasons why the router dispatches nothing; it goes on when the last one is gone."""

import asyncio
import contextlib
from collections.abc import Callable

from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

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

    async def drained(self) -> None:
        """Wait until requests have ended, or a reason comes up for which they will not.

        Without an engine in traffic they would wait for the change that is to bring one: those that have
        tokens of the weights before end with them, and the others begin after it.
        """
        dispatcher = self._dispatcher
        while dispatcher.on_their_way and not self._held:
            if not len(dispatcher.roster):
                dispatcher.abort_begun()
                return
            await asyncio.sleep(_POLL_S)
