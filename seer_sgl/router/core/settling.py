"""Requests that are about to move and wait for a moment, until their KV is in the pool.

They are looked at again when it is, or when their last engine ends a chunk: they need no move to go on
there. Without this every decision would look at all of them.
"""

from heapq import heappop, heappush

from seer_sgl.router.core.actions import Action, Wake
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.state import Engine, Request
from seer_sgl.types import RequestId


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

    def set_aside(self, request: Request, now_s: float, settle_s: float) -> bool:
        """Park a request that is nowhere if its KV is not in the pool yet, and may come to be there:
        what is lost with an engine never does."""
        home, until_s = request.last_engine, request.ready_since_s + settle_s
        if home is None or home.status == "gone" or now_s >= until_s:
            return False
        self._buffer.park(request)
        self._homes.setdefault(home, {})[request.request_id] = request
        heappush(self._times, (until_s, request.seq, request))
        return True

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
            self._end(heappop(self._times)[2])

    def end_at(self, home: Engine) -> None:
        """Let those wait in the queue whose last engine is this one."""
        for request in list(self._homes.get(home, {}).values()):
            self._end(request)

    def end_all(self) -> None:
        """Let all parked requests wait in the queue: an engine has come or gone."""
        self._homes.clear()
        self._times.clear()
        self._buffer.unpark()

    def woken(self) -> None:
        """Take notice that the last `Wake` has come."""
        self._wake_s = 0.0

    def wake(self, now_s: float) -> list[Action]:
        """One wake-up at a time is enough: it sets the next one."""
        until_s = self._next_s()
        if until_s is None or now_s < self._wake_s:
            return []
        self._wake_s = until_s
        return [Wake(until_s)]

    def _end(self, request: Request) -> None:
        self.discard(request)
        self._buffer.take(request)
        self._buffer.wait(request, request.ready_since_s)

    def _next_s(self) -> float | None:
        while self._times:
            until_s, _, request = self._times[0]
            home = request.last_engine
            if home in self._homes and request.request_id in self._homes[home]:
                return until_s
            heappop(self._times)
        return None
