"""uvicorn's HTTP/1.1 connection, with bounds that it has not: a request's head, in seconds and bytes.

Without them a client could send headers for ever, or none at all, and hold its socket and our memory.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seer_sgl.router.http.errors import error_response

HEAD_PATIENCE_S = 30.0
"""How long a client may take for a request's head, and to end a body that was answered before."""
HEAD_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Answers 408 to a head that does not come, 431 to one without end, 400 to what is no HTTP."""

    def __init__(self, *args: Any, **known: Any) -> None:
        super().__init__(*args, **known)
        self._in_head = True
        self._loose_bytes = 0
        """What came since the last thing that was understood."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._loose_bytes > HEAD_BYTES:
            self._refuse(431, f"the head of a request may have {HEAD_BYTES} bytes")
        elif self._timer is None and (self._in_head or self._loose_bytes):
            self._start_timer()

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._loose_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        if not self.cycle.response_complete:
            self._stop_timer()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body:
            self._start_timer()  # a body that nobody reads any more
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Not worth a line in the log: the request is served as if it asked for none."""

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_PATIENCE_S, self._timed_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        if self._in_head and self._loose_bytes:
            self._refuse(408, f"the head of the request did not come within {HEAD_PATIENCE_S:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer and hang up; where an earlier request waits for its own answer, only hang up."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        ours = (
            cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started)
        )
        if ours and not self.pipeline:
            answer = error_response(status, message)
            head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "connection: close"]
            head += [f"{name.decode()}: {value.decode()}" for name, value in answer.raw_headers]
            self.transport.write("\r\n".join([*head, "", ""]).encode() + bytes(answer.body))
        self.transport.close()
