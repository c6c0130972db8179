"""Rollouts of the KV benchmark through a real router, over mock servers that find nothing."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import kv_rollouts
from bench.kv_rollouts import APART, Rollouts, Size, row_of
from bench.kv_servers import Servers, ask
from seer_sgl.engine.process import Child, free_port
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.rollout.client import Prompt
from tests.unit.router.conftest import PATIENCE_S, hurried

PROMPTS = [Prompt(f"group {number}", input_ids=[100_000 + 1000 * number] * 40) for number in range(4)]


@contextlib.asynccontextmanager
async def mock_servers(folder: Path) -> AsyncIterator[Servers]:
    ports = [free_port(), free_port()]
    argv = [sys.executable, "-m", "bench.mock_engine", "--slots", "64", "--ports", *map(str, ports)]
    mock = Child("mock engine", argv, folder / "mock.log")
    clients = [SGLangClient(f"http://127.0.0.1:{port}") for port in ports]
    await mock.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            for client in clients:
                while not await client.healthy():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.02)
        yield Servers(clients)
    finally:
        for client in clients:
            await client.close()
        await mock.stop()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    async def prompts(_: Rollouts) -> list[Prompt]:
        return PROMPTS

    monkeypatch.setattr(Rollouts, "_prompts", prompts)
    monkeypatch.setattr(kv_rollouts, "MAX_NEW_TOKENS", 300)
    monkeypatch.setattr(kv_rollouts, "SETTLED_S", 0.0)


@pytest.mark.usefixtures("short")
def test_a_rollout_without_a_pool(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_servers(tmp_path) as servers:
            run = await Rollouts(servers, Size(groups=4, group_size=2, stale_prompts=1)).run(APART)
        assert (run.report.samples, run.report.failed) == (2 * 2, 0)  # one in two groups
        assert run.report.tokens == 4 * 300
        assert run.report.chunks == 4 * 3
        assert run.report.moved_chunks == 4 * 2
        assert run.report.prefix_found_share == 0.0
        assert row_of(run)["pool_mean_mb"] is None

    with hurried():
        asyncio.run(scenario())


@pytest.mark.usefixtures("short")
def test_prompts_grow_by_what_was_said_and_weights_change_in_between(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_servers(tmp_path) as servers:
            rollouts = Rollouts(servers, Size(groups=1, group_size=1, stale_prompts=3))
            assert await rollouts.stale([Path("/other"), Path("/first")], salted=True) == 0

    with hurried():
        asyncio.run(scenario())


def test_a_server_is_asked_without_a_router(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mock_servers(tmp_path) as servers:
            said = await ask(servers.clients[0], [100_000] * 5, 7)
        assert said.ids == list(range(100_005, 100_012))
        assert (said.cached_tokens, said.pool_tokens, said.pool_wait_s) == (0, 0, 0.0)

    asyncio.run(scenario())
