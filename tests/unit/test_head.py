"""A head without engines: its draft servers come up, come back, and go with it."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import httpx
import msgspec
import pytest

from seer_sgl.config import RouterConfig
from seer_sgl.engine import kept
from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.head import Head, HeadConfig, running_head
from seer_sgl.router import drafts
from seer_sgl.spec.settings import DraftSettings
from tests.unit.engine.test_process import wait_gone
from tests.unit.mock_worker import MockWorker

PATIENCE_S = 40.0


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
    monkeypatch.setattr(kept, "RESTART_PAUSE_S", 2.0)  # long enough to be seen
    monkeypatch.setattr(drafts, "ASK_S", 0.8)  # and for an answer on a busy machine
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


def listens_on(host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_server((host, 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_servers_are_attached_whatever_the_head_listens_on(tmp_path: Path, host: str) -> None:
    if ":" in host and not listens_on(host):
        pytest.skip("no IPv6 here")
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)

    async def scenario(url: str) -> None:
        head = config(tmp_path, 0, None)
        head = msgspec.structs.replace(
            head, attach=(url,), router=msgspec.structs.replace(head.router, host=host)
        )
        async with running_head(head, lambda _: None) as running, asyncio.timeout(PATIENCE_S):
            while not len(running.service.roster):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            base = f"http://{here}:{head.router.http_port}"
            async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
                assert (await http.get("/list_workers")).json() == {"urls": [url]}
                await http.post("/workers", json={"url": base})
                assert (await http.get("/list_workers")).json() == {"urls": [base, url]}
                assert len(running.service.roster) == 1

    with MockWorker("w") as worker:
        asyncio.run(scenario(worker.url))


def test_a_url_that_is_none_stops_the_head_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        head = msgspec.structs.replace(config(tmp_path, 0, None), attach=("nonsense",))
        with pytest.raises(StartError, match="'nonsense' is not the URL"):
            async with running_head(head, lambda _: None):
                pass

    asyncio.run(scenario())
