"""Requests that are about to move and wait for a moment, until their KV is in the pool.

They are looked at again when it is, or when their last engine ends a chunk: they need no move to go on
there. Without this every decision would look at all of them.
"""

from heapq import heappop, heappush

from seer_sgl.router.core.actions import Action, Wake
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.state import Engine, Request
from seer_sgl.types import RequestId

EARLY_S = 0.001
"""A timer may go off so much too soon."""


class Settling:
    """Parked requests by their time and by their last engine."""

    def __init__(self, buffer: RequestBuffer) -> None:
        self._buffer = buffer
        self._homes: dict[Engine, dict[RequestId, Request]] = {}
        self._times: list[tuple[float, int, Request]] = []
        """Heap; an entry whose request has gone is void."""
        self._wake_s = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._homes.values()))

    def set_aside(self, request: Request) -> None:
        """Park a request that is nowhere, and has run before, until its time comes."""
        assert request.last_engine is not None, f"{request.request_id}: waits for KV of no engine"
        self._buffer.park(request)
        self._homes.setdefault(request.last_engine, {})[request.request_id] = request
        heappush(self._times, (request.until_s, request.seq, request))

    def discard(self, request: Request) -> None:
        """Forget a request, if it is here."""
        home = request.last_engine
        if home is not None and home in self._homes:
            self._homes[home].pop(request.request_id, None)
            if not self._homes[home]:
                del self._homes[home]

    def end_due(self, now_s: float) -> None:
        """Let those wait in the queue whose time has come."""
        while (until_s := self._next_s()) is not None and until_s <= now_s:
            self.end(heappop(self._times)[2])

    def end_at(self, home: Engine) -> None:
        """Let those wait in the queue whose last engine is this one."""
        for request in list(self._homes.get(home, {}).values()):
            self.end(request)

    def end_all(self) -> None:
        """Let all parked requests wait in the queue: an engine has come or gone."""
        self._homes.clear()
        self._times.clear()
        self._buffer.unpark()

    def end(self, request: Request) -> None:
        """Let a request wait in the queue, if it is here."""
        home = request.last_engine
        if home is None or request.request_id not in self._homes.get(home, {}):
            return
        self.discard(request)
        self._buffer.take(request)
        self._buffer.wait(request, request.ready_since_s)

    def woken(self, now_s: float) -> None:
        """Take notice that a `Wake` has come; one that was for an earlier time does not count."""
        if now_s >= self._wake_s - EARLY_S:
            self._wake_s = 0.0

    def wake(self, now_s: float) -> list[Action]:
        """The next wake-up, where none is under way that comes as soon."""
        until_s = self._next_s()
        if until_s is None or now_s < self._wake_s <= until_s:
            return []
        self._wake_s = until_s
        return [Wake(until_s)]

    def _next_s(self) -> float | None:
        while self._times:
            until_s, _, request = self._times[0]
            home = request.last_engine
            here = home is not None and request.request_id in self._homes.get(home, {})
            if here and until_s == request.until_s:
                return until_s
            heappop(self._times)
        return None
