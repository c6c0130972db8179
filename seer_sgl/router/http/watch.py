"""Work of a request that ends with its client, or with the router.

Most requests are over before it is worth a task to watch their client: that begins after `LOOK_AFTER_S`.
"""

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from seer_sgl.errors import SeerError
from seer_sgl.router.stopping import Stopping

T = TypeVar("T")

LOOK_AFTER_S = 0.02


class Watched:
    """Cancels what is awaited inside once the client hangs up, or the router stops.

    The body of the request must have been read.

    Raises:
        ClientDisconnect: on leaving: the client has hung up.
        SeerError: on leaving: the router stops.
    """

    def __init__(self, request: Request, stopping: Stopping) -> None:
        self._request, self._stopping = request, stopping
        self._why: Exception | None = None
        self._listening: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._stopping.is_set():
            raise SeerError("the router is stopping")
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(LOOK_AFTER_S, self._listen)
        self._stopping.then.add(self._stop)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._stopping.then.discard(self._stop)
        if self._listening is not None:
            self._listening.cancel()
        if self._why is None:
            return
        cancelled_by_us = self._task.uncancel() <= self._cancelling
        if kind is asyncio.CancelledError and cancelled_by_us:
            raise self._why from None

    def _listen(self) -> None:
        self._listening = asyncio.create_task(self._until_gone(), name="client")

    async def _until_gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._end(ClientDisconnect())

    def _stop(self) -> None:
        self._end(SeerError("the router is stopping"))

    def _end(self, why: Exception) -> None:
        if self._why is None:
            self._why = why
            self._task.cancel()


async def unless_over(request: Request, work: Awaitable[T], stopping: Stopping) -> T | None:
    """The result of `work`, or None once the client hangs up; then the work is cancelled.

    Raises:
        SeerError: the router stops; the work is cancelled, too.
    """
    try:
        with Watched(request, stopping):
            return await work
    except ClientDisconnect:
        return None
