"""SGLang's HTTP interface as the agent uses it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from seer_sgl.engine.described import EngineInfo, info_of
from seer_sgl.engine.http import Http
from seer_sgl.errors import EngineUnreachable
from seer_sgl.types import UNKNOWN_MODEL, EngineId

__all__ = ["Answer", "EngineInfo", "SGLangClient", "decoded", "error_message"]

_JSON = {"content-type": "application/json"}


class Answer(Protocol):
    """A server's answer whose head is here. Reading raises EngineUnreachable where it breaks off."""

    status: int
    headers: dict[str, str]
    """Names in lower case; without those that belong to one connection."""

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
        self._http = Http(self.url)

    async def close(self) -> None:
        """Hang up. The client may be used again after."""
        self._http.close()

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
        return self._http.request(method, target, body, headers, timeout_s)

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
