"""SGLang's HTTP interface as the agent uses it."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import aiohttp
import msgspec
from yarl import URL

from seer_sgl.engine.described import EngineInfo, info_of
from seer_sgl.errors import EngineUnreachable
from seer_sgl.types import UNKNOWN_MODEL, EngineId

__all__ = ["Answer", "EngineInfo", "SGLangClient", "decoded", "error_message"]

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""SGLang's server closes a connection that was idle for 5 s; one on which it does so while we send the
next request breaks that request."""
_JSON = {"content-type": "application/json"}
_PIECE_BYTES = 2**20
_HOP_BY_HOP = frozenset("connection keep-alive transfer-encoding content-length date server".split())


class Answer(Protocol):
    """A server's answer whose head is here. Reading raises EngineUnreachable where it breaks off."""

    status: int

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; without those that belong to one connection."""
        ...

    async def read(self) -> bytes:
        """The whole body."""
        ...

    def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        ...


class SGLangClient:
    """One SGLang server, on this machine or elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Hang up. The client may be used again after."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def open(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Answer]:
        """A request's answer, to be read inside the block; leaving it before the end hangs up.

        Args:
            target: path with query, as it goes on the wire.
            timeout_s: for the whole of it. None: a chunk takes as long as it takes, and a server's end
                is noticed otherwise.

        Raises:
            EngineUnreachable: on entering, where there is no answer.
        """
        return _Exchange(self._http(), method, self.url + target, body, headers or {}, timeout_s)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and decoded answer.

        Raises:
            EngineUnreachable: there was no answer.
        """
        async with self.open("POST", path, msgspec.json.encode(body), _JSON) as answer:
            return answer.status, decoded(await answer.read())

    async def healthy(self) -> bool:
        """True once the server has generated a token on request (takes a second or more)."""
        try:
            async with self.open("GET", "/health_generate", timeout_s=30.0) as answer:
                return answer.status == 200
        except EngineUnreachable:
            return False

    async def load(self) -> tuple[int, int, int]:
        """Running requests, waiting requests, used KV tokens; summed over data-parallel ranks.

        Raises:
            EngineUnreachable: the server does not answer.
        """
        loads = (await self._get("/v1/loads?include=core", 10.0))["loads"]
        running = sum(load["num_running_reqs"] for load in loads)
        waiting = sum(load["num_waiting_reqs"] for load in loads)
        return running, waiting, sum(load["num_used_tokens"] for load in loads)

    async def info(self, engine_id: EngineId) -> EngineInfo:
        """Capacity, versions, and whether our plugin is active.

        Raises:
            EngineUnreachable: the server does not answer.
            LookupError: it is none of SGLang's.
        """
        server = await self._get("/server_info", 30.0)
        model = await self._get("/model_info", 30.0)
        models = await self._get("/v1/models", 30.0)
        info = info_of(engine_id, server, model, models)
        if not info.says_what_it_holds or info.model == UNKNOWN_MODEL:
            raise KeyError("max_total_num_tokens or served_model_name is missing")
        return info

    async def _get(self, target: str, timeout_s: float) -> Any:
        async with self.open("GET", target, timeout_s=timeout_s) as answer:
            content = await answer.read()
        if answer.status != 200:
            raise EngineUnreachable(f"{target} answered {answer.status}: {content[:200]!r}")
        try:
            return msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            raise EngineUnreachable(f"{target} answered no JSON: {error}") from None

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Made here, as it takes the running loop.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                timeout=_timeout(None),
                # Else it asks for compressed answers, and unpacks them for nothing.
                headers={"accept-encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


class _Exchange:
    """One request, made on entering; the answer to it."""

    __slots__ = ("_arguments", "_response", "_session", "status")

    def __init__(self, session: aiohttp.ClientSession, *arguments: Any) -> None:
        self._session = session
        self._arguments = arguments

    async def __aenter__(self) -> "_Exchange":
        method, url, body, headers, timeout_s = self._arguments
        # In one piece a large body would keep the loop from everything else.
        data = io.BytesIO(body) if len(body) > _PIECE_BYTES else body or None
        try:
            self._response = await self._session.request(
                method,
                URL(url, encoded=True),
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=_NO_LIMIT if timeout_s is None else _timeout(timeout_s),
            )
        except _NO_ANSWER as error:
            raise _unreachable(error) from error
        self.status = self._response.status
        return self

    @property
    def headers(self) -> dict[str, str]:
        """See `Answer`; made when asked for, which the answer to a chunk is not."""
        told = ((name.lower(), value) for name, value in self._response.headers.items())
        return {name: value for name, value in told if name not in _HOP_BY_HOP}

    async def __aexit__(self, *_: object) -> None:
        self._response.release()  # a connection with an unread rest is closed

    async def read(self) -> bytes:
        try:
            return await self._response.read()
        except _NO_ANSWER as error:
            raise _unreachable(error) from error

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._response.content.iter_any():
                yield data
        except _NO_ANSWER as error:
            raise _unreachable(error) from error


_NO_ANSWER = (aiohttp.ClientError, OSError, ValueError)
"""ValueError: a URL that is none."""


def _unreachable(error: Exception) -> EngineUnreachable:
    return EngineUnreachable(f"{type(error).__name__} {error}".strip())


def _timeout(total_s: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)


_NO_LIMIT = _timeout(None)


def decoded(content: bytes) -> Any:
    """What a body says: JSON, or else its text."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content.decode("utf-8", "replace")


def error_message(body: Any) -> str:
    """The message in any of SGLang's error shapes."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
