"""Routers with engines that make tokens up, all in one event loop and on real sockets."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from seer_sgl.config import RouterConfig
from seer_sgl.engine.agent import Agent
from seer_sgl.engine.attached import AttachedServers
from seer_sgl.engine.process import free_port
from seer_sgl.router.core import Policy
from seer_sgl.router.service import RouterService
from seer_sgl.testing.engine import FAKE_SPEC, FakeServer, continuation
from seer_sgl.types import EngineId

PATIENCE_S = 10.0
LONG = 100
"""Tokens of a sample that is still on its way when a test interferes."""


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Spare dozens of routers and agents what takes them longest.

    uvicorn looks every 0.1 s whether it should end, and every HTTP client reads all certificates.
    """
    quick_asyncio = SimpleNamespace(**vars(asyncio))
    quick_asyncio.sleep = lambda seconds: asyncio.sleep(min(seconds, 0.005))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.server.asyncio", quick_asyncio)
        patch.setattr("ssl.create_default_context", lambda **_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        patch.setattr("seer_sgl.engine.agent.RESTART_PAUSE_S", 0.02)
        yield


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine in a hurry; tasks that it leaves behind are a fault."""

    async def checked() -> None:
        await asyncio.wait_for(work, PATIENCE_S)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"

    with hurried():
        asyncio.run(checked())


async def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE_S / 2):
        while not holds():  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def together(work: Coroutine[Any, Any, Any]) -> AsyncIterator["asyncio.Task[Any]"]:
    """A task beside the block; cancelled after it."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def server(name: str = "a", **known: Any) -> FakeServer:
    """A fake server; `FakeServer`'s arguments and `EngineSpec`'s fields by name."""
    ours = {key: known.pop(key) for key in ("token_s", "refuse", "facts") if key in known}
    return FakeServer(msgspec.structs.replace(FAKE_SPEC, engine_id=EngineId(name), **known), **ours)


def prompts(count: int, tokens_at_least: int = 1) -> list[list[int]]:
    """Different prompts whose samples are at least so long."""
    found: list[list[int]] = []
    for seed in range(2, 100_000):
        prompt = [2 + seed % 250, 2 + seed // 250, 7, 9, 11]
        if len(continuation(prompt, tokens_at_least)) == tokens_at_least:
            found.append(prompt)
        if len(found) == count:
            return found
    raise AssertionError("the fake model makes no such samples")


class Cluster:
    """A router that serves, and a client of it."""

    def __init__(self, service: RouterService, config: RouterConfig, http: httpx.AsyncClient) -> None:
        self.service = service
        self.config = config
        self.http = http
        self.head = f"127.0.0.1:{config.agent_port}"
        self.stop_router: Callable[[], Awaitable[None]]
        self._agents: list[asyncio.Task[None]] = []

    async def join(self, *lives: FakeServer) -> "asyncio.Task[None]":
        """Add an engine: its server, and those that take its place after it has ended."""
        servers = iter(lives)
        agent = Agent(lambda: next(servers), self.head)
        task = asyncio.create_task(agent.run())
        self._agents.append(task)
        ready = asyncio.create_task(agent.ready.wait())
        try:
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            ready.cancel()
        return task

    async def generate(self, ids: list[int], **body: Any) -> dict[str, Any]:
        """One good answer."""
        answer = await self.post({"input_ids": ids, **body})
        assert answer.status_code == 200, answer.text
        decoded: dict[str, Any] = answer.json()
        return decoded

    async def post(self, body: dict[str, Any]) -> httpx.Response:
        return await self.http.post("/generate", json=body)

    async def stop_agents(self) -> None:
        for task in self._agents:
            task.cancel()
        await asyncio.gather(*self._agents, return_exceptions=True)


def new_client(**settings: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, **settings)


@contextlib.asynccontextmanager
async def cluster(
    *servers: FakeServer, policy: Policy | None = None, **settings: Any
) -> AsyncIterator[Cluster]:
    """A router with an engine per server; `settings` are `RouterConfig`'s."""
    quick = {"heartbeat_s": 0.05, "settle_s": 0.0}
    config = RouterConfig(**{"http_port": free_port(), "agent_port": free_port(), **quick, **settings})
    attached = AttachedServers(f"127.0.0.1:{config.agent_port}")
    service = RouterService(config, policy, attached)
    async with (
        contextlib.AsyncExitStack() as stack,
        new_client(base_url=f"http://127.0.0.1:{config.http_port}") as http,
    ):
        await stack.enter_async_context(service)
        await stack.enter_async_context(attached)
        it = Cluster(service, config, http)
        it.stop_router = stack.aclose
        stack.push_async_callback(it.stop_agents)
        for each in servers:
            await it.join(each)
        yield it
        service.core.check()


@pytest.fixture(autouse=True)
def _nothing_crashes(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """What a server logs as an error and survives would pass unseen otherwise."""
    yield
    crashes = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    uvicorn_says = capsys.readouterr().err  # its loggers do not propagate
    assert (crashes, uvicorn_says) == ([], "")
