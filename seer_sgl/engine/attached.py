"""Servers that somebody else runs: asked gently, watched, and taken in by their URLs."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any

import msgspec

from seer_sgl.engine.agent import Agent
from seer_sgl.engine.described import EngineInfo, info_of, load_of
from seer_sgl.engine.sglang import Answer, SGLangClient
from seer_sgl.errors import ChildFailedError, EngineUnreachable, SeerError
from seer_sgl.router.workers import normal_url
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

POLL_S = 0.5
SLOWEST_POLL_S = 5.0
"""A server that does not come is asked less and less often."""
CONFIRM_S = 0.25
MISSES = 3
"""A server is gone when it has failed to answer so often in a row."""
REFUSED_PAUSE_S = 10.0
"""How long after the router refused a server it is offered again: its weights may fit by then."""
PATIENCE_S = 10.0
MODEL_PATIENCE_S = 30.0


class AttachedClient(SGLangClient):
    """A server that need not be SGLang's newest, nor SGLang at all: only `/generate` is needed."""

    def __init__(self, url: str, api_key: str = "") -> None:
        super().__init__(url)
        self._key = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._has_loads = True
        self.missed = asyncio.Event()
        """Set when the agent's own question about the load had no answer."""

    def open(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Answer]:
        """As any server's, with its key in place of the client's own."""
        return super().open(method, target, body, {**(headers or {}), **self._key}, timeout_s)

    async def healthy(self) -> bool:
        """Whether it could generate; where it has no `/health_generate`, whether it says it is well."""
        status, _ = await self._asked("/health_generate", MODEL_PATIENCE_S)
        if status in (404, 405):
            status, _ = await self._asked("/health", PATIENCE_S)
        return status == 200

    async def load(self) -> tuple[int, int, int]:
        """As SGLang says; nothing is running where it has no `/v1/loads`.

        Raises:
            EngineUnreachable: it does not answer.
        """
        try:
            return await self._load()
        except EngineUnreachable:
            self.missed.set()
            raise

    async def _load(self) -> tuple[int, int, int]:
        if self._has_loads:
            status, answer = await self._asked("/v1/loads?include=core", PATIENCE_S)
            load = load_of(answer) if status == 200 else None
            if load is not None:
                return load
            self._has_loads = status not in (200, 404, 405)
        status, _ = await self._asked("/health", PATIENCE_S)
        if status in (0, 502, 503, 504):
            raise EngineUnreachable(f"{self.url}/health answered {status or 'nothing'}")
        return 0, 0, 0

    async def info(self, engine_id: EngineId) -> EngineInfo:
        """Capacity and versions, with what is missing taken for unlimited."""
        server = await self._document("/server_info", "/get_server_info")
        model = await self._document("/model_info", "/get_model_info")
        models = await self._document("/v1/models")
        info = info_of(engine_id, server, model, models)
        if not info.says_what_it_holds:
            log.warning("%s does not say how much it holds: nothing is held back from it", self.url)
        return info

    async def _document(self, *targets: str) -> dict[str, Any]:
        """The first of these that there is; nothing where the server knows none of them.

        Raises:
            EngineUnreachable: it knows them, and does not answer now.
        """
        for target in targets:
            status, answer = await self._asked(target, MODEL_PATIENCE_S)
            if status == 200 and isinstance(answer, dict):
                return answer
            if status == 0 or status >= 500:
                raise EngineUnreachable(f"{self.url}{target} answered {status or 'nothing'}")
        return {}

    async def _asked(self, target: str, patience_s: float) -> tuple[int, Any]:
        """Status and JSON of an answer: 0 where there was none, None where it is no JSON."""
        try:
            async with self.open("GET", target, timeout_s=patience_s) as answer:
                content = await answer.read()
                status = answer.status
        except EngineUnreachable:
            return 0, None
        try:
            return status, msgspec.json.decode(content)
        except msgspec.DecodeError:
            return status, None


class AttachedServer:
    """A server that somebody else runs."""

    def __init__(self, name: str, url: str, api_key: str = "") -> None:
        self._client = AttachedClient(url, api_key)
        self.client: SGLangClient = self._client
        self._name = name

    async def start(self) -> EngineInfo:
        """Wait until it answers. It may run without our plugin; then token ids go unchecked."""
        pause_s, said = POLL_S / 8, False
        while (info := await self._info()) is None:
            if not said and pause_s > POLL_S:
                log.warning("waiting for the SGLang server at %s", self.client.url)
                said = True
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, SLOWEST_POLL_S)
        return info

    async def _info(self) -> EngineInfo | None:
        try:
            return await self.client.info(EngineId(self._name)) if await self.client.healthy() else None
        except EngineUnreachable:
            return None

    async def wait_ended(self) -> ChildFailedError:
        """Return once it has failed to answer a few times in a row.

        The agent asks it with every heartbeat; nobody else does until that fails.
        """
        while True:
            await self._client.missed.wait()
            if not await self._comes_back():
                return ChildFailedError(f"the SGLang server at {self.client.url} does not answer", "")
            self._client.missed.clear()

    async def _comes_back(self) -> bool:
        for _ in range(MISSES - 1):
            await asyncio.sleep(CONFIRM_S)
            with contextlib.suppress(EngineUnreachable):
                await self.client.load()
                return True
        return False

    async def stop(self) -> None:
        await self.client.close()


class AttachedServers:
    """Agents in this process for servers that are named by URL. Use as an async context manager.

    Args:
        head: `host:port` of the router's agent socket.
    """

    def __init__(self, head: str) -> None:
        self._head = head
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._engines: dict[str, EngineId] = {}

    async def __aenter__(self) -> "AttachedServers":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await asyncio.gather(*map(self.detach, list(self._tasks)))

    @property
    def engines(self) -> Mapping[str, EngineId]:
        """The engine that each URL is, or will be once its server answers."""
        return self._engines

    def attach(self, url: str, api_key: str = "") -> EngineId:
        """Take a server in, which may ask for a key; nothing more where it is already."""
        url = normal_url(url)
        if url not in self._engines:
            self._engines[url] = EngineId(url.partition("://")[2])
            self._tasks[url] = asyncio.create_task(self._keep(url, api_key), name=f"attached {url}")
        return self._engines[url]

    async def detach(self, url: str) -> None:
        """Let it go: its engine leaves. Nothing where it is not attached."""
        task = self._tasks.pop(url, None)
        self._engines.pop(url, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self, url: str, api_key: str) -> None:
        """Be its agent, whatever happens to it."""
        make = partial(AttachedServer, self._engines[url], url, api_key)
        while True:
            try:
                await Agent(make, self._head).run()
            except SeerError as error:
                log.warning("%s: %s; trying again in %g s", url, error, REFUSED_PAUSE_S)
            except Exception:  # nobody waits for this task: it would be gone without a word
                log.exception("the agent of %s met a bug; starting it again", url)
            await asyncio.sleep(REFUSED_PAUSE_S)
