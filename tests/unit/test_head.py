"""A head without engines: its draft servers come up, come back, and go with it."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from seer_sgl.config import RouterConfig
from seer_sgl.engine import kept
from seer_sgl.engine.process import free_port
from seer_sgl.head import Head, HeadConfig, running_head
from seer_sgl.router import drafts
from seer_sgl.spec.settings import DraftSettings
from tests.unit.engine.test_process import wait_gone

PATIENCE_S = 20.0


def config(log_dir: Path, shards: int, draft: DraftSettings | None) -> HeadConfig:
    router = RouterConfig(http_port=free_port(), agent_port=free_port(), draft=draft)
    return HeadConfig(router, engines=0, log_dir=log_dir, pool=False, draft_shards=shards)


def pids(head: Head) -> list[int]:
    return [child.child.pid for child in head._kept]


async def servers_up(head: Head, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(head.service.drafts.counters) != count:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def test_draft_servers_come_back_and_the_head_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "RESTART_PAUSE_S", 0.01)
    monkeypatch.setattr(drafts, "ASK_S", 0.1)
    said: list[str] = []

    async def scenario() -> list[int]:
        async with running_head(config(tmp_path, 2, DraftSettings(max_nodes=5)), said.append) as head:
            told = head.service._config.draft
            assert told is not None
            assert len(set(told.servers)) == 2
            assert told.max_nodes == 5
            await servers_up(head, 2)
            first, second = pids(head)
            os.kill(first, signal.SIGKILL)
            await servers_up(head, 1)
            await servers_up(head, 2)
            assert pids(head)[0] != first
            assert pids(head)[1] == second
            async with httpx.AsyncClient(trust_env=False) as http:
                metrics = await http.get(f"http://127.0.0.1:{head.service._config.http_port}/metrics")
            assert metrics.text.count("seer_draft_server_up{") == 2
            return pids(head)

    for pid in asyncio.run(scenario()):
        wait_gone(pid)
    assert any("drafts: draft servers on tcp://127.0.0.1:" in line for line in said)


@pytest.mark.parametrize(("shards", "draft"), [(0, DraftSettings()), (2, None)])
def test_heads_without_draft_servers(tmp_path: Path, shards: int, draft: DraftSettings | None) -> None:
    async def scenario() -> None:
        async with running_head(config(tmp_path, shards, draft), lambda _: None) as head:
            assert pids(head) == []
            assert head.service._config.draft == draft

    asyncio.run(scenario())
