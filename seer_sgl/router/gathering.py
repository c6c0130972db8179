"""Requests that arrive together are submitted together, so that all their probes go first."""

import asyncio
from collections.abc import Callable

from seer_sgl.router.core.events import Submitted
from seer_sgl.types import RequestId

GATHER_S = 0.002
"""Requests that arrive within this are submitted as one. Where all of them fit anyway, nothing is gained
by that, and they go at once."""


class Gathering:
    """Requests for a moment before the core knows of them.

    Args:
        submit: takes those that came together.
        at_ease: whether so many tokens would fit at once.
    """

    def __init__(
        self, submit: Callable[[list[Submitted]], None], at_ease: Callable[[int], bool]
    ) -> None:
        self._submit, self._at_ease = submit, at_ease
        self._pending: dict[RequestId, Submitted] = {}
        self._tokens = 0
        self._soon = False

    def add(self, events: list[Submitted]) -> None:
        """Let requests wait for others that come with them."""
        first = not self._pending
        for event in events:
            self._pending[event.request_id] = event
            self._tokens += event.prompt_tokens + event.max_new_tokens
        if self._at_ease(self._tokens):
            if not self._soon:
                self._soon = True
                asyncio.get_running_loop().call_soon(self.flush)
        elif first:
            asyncio.get_running_loop().call_later(GATHER_S, self.flush)

    def take(self, request_id: RequestId) -> bool:
        """Take a request out again, if it is here."""
        return self._pending.pop(request_id, None) is not None

    def flush(self) -> None:
        """Submit what is here."""
        self._soon, self._tokens = False, 0
        if self._pending:
            pending, self._pending = self._pending, {}
            self._submit(list(pending.values()))
