"""What HTTP traffic there is: requests, answers and how long they took, by method and path."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the durations counted together; rollouts take minutes."""
UNKNOWN = "(unknown)"
"""Stands for every path that is not served: what clients make up must not grow without end."""


@dataclass(slots=True)
class Timed:
    """Requests of one kind that have ended."""

    by_bound: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.by_bound[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class Traffic:
    """Counts what goes through an application."""

    def __init__(self) -> None:
        self.active = 0
        """Requests that have no whole answer yet."""
        self.requests: dict[tuple[str, str, bool], Timed] = {}
        """By method, path and whether the answer was a stream."""
        self.statuses: dict[int, int] = {}
        """Answers by status."""

    def counted(self, app: ASGIApp) -> ASGIApp:
        """An application that does the same, and is counted."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            began_s, seen = time.perf_counter(), [0, False]

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    seen[0] = message["status"]
                    seen[1] = (b"content-type", b"text/event-stream") in _types(message)
                await send(message)

            self.active += 1
            try:
                await app(scope, receive, noted)
            finally:
                self.active -= 1
                key = scope["method"], path_of(scope), bool(seen[1])
                timed = self.requests.get(key)
                if timed is None:
                    timed = self.requests[key] = Timed()
                timed.add(time.perf_counter() - began_s)
                self.statuses[seen[0]] = self.statuses.get(seen[0], 0) + 1

        return serve


def _types(message: Message) -> list[tuple[bytes, bytes]]:
    return [(name, value.partition(b";")[0]) for name, value in message["headers"][:4]]


def path_of(scope: Scope) -> str:
    """The path with its parameters' names instead of their values."""
    route = scope.get("route")
    return route.path_format if isinstance(route, Route) else UNKNOWN
