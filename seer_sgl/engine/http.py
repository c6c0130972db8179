"""A lean HTTP/1.1 client: connections to one server, kept open, with one write per request.

Each request of every client passes here once per chunk, which is why it is no general library: what they
cost in time is several times as much (see the benchmark of the router).
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools

from seer_sgl.errors import EngineUnreachable

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""SGLang's server closes a connection that was idle for 5 s; one on which it does so while we send the
next request breaks that request."""
_MOST_UNREAD_BYTES = 2**20
"""Above, the server is made to wait until some is read."""
_OF_ONE_CONNECTION = frozenset(
    [
        *"connection keep-alive transfer-encoding content-length date server host expect".split(),
        "accept-encoding",  # an answer that is packed would be unpacked for nothing
    ]
)
_WORD = re.compile(r"[!-~]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Http:
    """Connections to one server.

    Args:
        url: `http://host:port`, or `https`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._host = urlsplit(url).netloc
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in list(self._open):
            connection.hang_up("closed here")
        self._idle.clear()

    def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> "Exchange":
        """A request, made on entering the block that it is used in."""
        return Exchange(self, method, target, body, headers or {}, timeout_s)

    async def _connection(self) -> "_Connection":
        deadline_s = time.monotonic() - KEEPALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s > deadline_s and not connection.lost:
                return connection
            connection.hang_up("idle for too long")
        try:
            parts = urlsplit(self.url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise EngineUnreachable(f"{self.url!r} is no URL of a server")
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._idle, self._open),
                    parts.hostname,
                    port,
                    ssl=True if parts.scheme == "https" else None,
                )
        except (OSError, ValueError) as error:  # ValueError: a port that is none
            raise EngineUnreachable(
                f"cannot reach {self.url}: {error or type(error).__name__}"
            ) from error
        return connection

    def head(self, method: str, target: str, size: int, headers: Mapping[str, str]) -> bytes:
        """A request up to its body."""
        lines = [f"{method} {target} HTTP/1.1", f"host: {self._host}"]
        lines += [f"content-length: {size}"] if size or method in ("POST", "PUT", "PATCH") else []
        valid = bool(_WORD.fullmatch(method) and _WORD.fullmatch(target))
        for name, value in headers.items():
            if ":" in name or not _WORD.fullmatch(name) or not _VALUE.fullmatch(value):
                valid = False
            if name.lower() not in _OF_ONE_CONNECTION:
                lines.append(f"{name}: {value}")
        if not valid:
            raise EngineUnreachable(f"this cannot be asked over HTTP: {method} {target}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Exchange:
    """One request and its answer. Leaving the block before the answer's end hangs up.

    Raises:
        EngineUnreachable: on entering, and when reading: there is no answer, or it breaks off.
    """

    __slots__ = ("_arguments", "_connection", "_http", "_timeout", "headers", "status")

    def __init__(
        self,
        http: Http,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> None:
        self._http = http
        self._arguments = method, target, body, headers
        self._timeout = asyncio.timeout(timeout_s) if timeout_s is not None else None
        self._connection: _Connection | None = None

    async def __aenter__(self) -> "Exchange":
        if self._timeout is not None:
            await self._timeout.__aenter__()
        try:
            method, target, body, headers = self._arguments
            head = self._http.head(method, target, len(body), headers)
            self._connection = connection = await self._http._connection()
            connection.send(head, body, bodiless=method == "HEAD")
            while not connection.has_head:
                await connection.news()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self.status = connection.status
        self.headers = connection.headers
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._connection is not None:
            self._connection.release()
            self._connection = None
        if self._timeout is not None:
            timeout, self._timeout = self._timeout, None
            try:
                await timeout.__aexit__(*exc)  # type: ignore[arg-type]
            except TimeoutError as error:
                raise EngineUnreachable("no answer in time") from error

    async def read(self) -> bytes:
        """The whole body."""
        connection = self._connection
        assert connection is not None, "read inside the block"
        parts = []
        while True:
            parts += connection.take()
            if connection.complete:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            await connection.news()

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        connection = self._connection
        assert connection is not None, "read inside the block"
        while True:
            if parts := connection.take():
                yield parts[0] if len(parts) == 1 else b"".join(parts)
            elif connection.complete:
                return
            else:
                await connection.news()


class _Connection(asyncio.Protocol):
    """One connection, and what has come of the answer on it. It parses; it decides nothing."""

    def __init__(self, idle: "list[_Connection]", known: "set[_Connection]") -> None:
        self._idle = idle
        self._known = known
        self._waiter: asyncio.Future[None] | None = None
        self.idle_since_s = 0.0
        self.lost = ""
        """Why nothing more comes; empty while something may."""
        self._begin(bodiless=False)
        self._in_use = True

    def _begin(self, bodiless: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._bodiless = bodiless
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._paused = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self._told: set[str] = set()
        """Names of all headers, those of the connection, too."""
        self.has_head = False
        self.complete = False
        self._stays = False
        self._in_use = True

    # ---- for an exchange ----

    def send(self, head: bytes, body: bytes, bodiless: bool) -> None:
        """Begin an exchange. `bodiless`: the answer has no body whatever its head says."""
        self._begin(bodiless)
        if len(body) < _MOST_UNREAD_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines([head, body])

    def take(self) -> list[bytes]:
        """What came of the body since the last time."""
        parts, self._parts = self._parts, []
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return parts

    async def news(self) -> None:
        """Wait for something to come.

        Raises:
            EngineUnreachable: nothing will.
        """
        if self.lost:
            raise EngineUnreachable(self.lost)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def release(self) -> None:
        """The exchange is over; the connection serves another one if its answer was read to its end."""
        self._in_use = False
        self.take()
        if self._stays and not self.lost:
            self.idle_since_s = time.monotonic()
            self._idle.append(self)
        else:
            self.hang_up("left before the end")

    def hang_up(self, why: str) -> None:
        self.lost = self.lost or why
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's only looks like one
        self._known.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._in_use:
            self.hang_up("an answer to nothing")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.hang_up(f"an answer that is no HTTP: {error}")
            return
        if self._unread_bytes > _MOST_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self._known.discard(self)
        with contextlib.suppress(ValueError):
            self._idle.remove(self)
        length_told = "content-length" in self._told or "transfer-encoding" in self._told
        if self.has_head and not length_told and error is None and not self.lost:
            self.complete = True  # such an answer ends with its connection
        self.lost = self.lost or f"the server hung up{f': {error}' if error else ''}"
        self._wake()

    # ---- httptools ----

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("two answers to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self._told.add(key)
        if key not in _OF_ONE_CONNECTION:
            text = value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.has_head = True
        self.complete = self._bodiless

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._unread_bytes += len(data)

    def on_message_complete(self) -> None:
        if 100 <= self.status < 200:  # not the answer yet
            self.headers, self.has_head = {}, False
            return
        self.complete = True
        self._stays = self._parser.should_keep_alive() and not self._bodiless
