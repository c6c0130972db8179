"""Masters of the pool as processes: a head's own, another one's, several that stand in for each other.

No SGLang here: a plain client of the store does what servers would.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from seer_sgl.config import RouterConfig
from seer_sgl.engine.process import free_port
from seer_sgl.errors import ChildFailedError, StartError
from seer_sgl.head import Head, HeadConfig, running_head
from seer_sgl.kv.pool import PoolSettings

mooncake = pytest.importorskip("mooncake.store")

PATIENCE_S = 30.0


def config(directory: Path, settings: PoolSettings) -> HeadConfig:
    router = RouterConfig(http_port=free_port(), agent_port=free_port())
    return HeadConfig(router, engines=0, log_dir=directory, pool_settings=settings)


def pids(head: Head) -> dict[str, int]:
    return {kept.child.name: kept.child.pid for kept in head._kept}


@contextlib.contextmanager
def client(head: Head) -> Iterator[Any]:
    """Of the store, as the head tells engines of it; it lends memory."""
    pool = head.service._config.pool
    assert pool is not None
    store = mooncake.MooncakeDistributedStore()
    assert store.setup("127.0.0.1", pool.metadata, 32 << 20, 1 << 20, "tcp", "", pool.master) == 0
    try:
        yield store
    finally:
        store.close()


async def works_again(store: Any) -> None:
    """Return once the store takes something."""
    async with asyncio.timeout(PATIENCE_S):
        while store.put(f"key-{time.monotonic()}", b"value") != 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def assert_gone(children: dict[str, int]) -> None:
    for name, pid in children.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            raise AssertionError(f"{name} is left behind: {psutil.Process(pid)}")


def test_a_killed_master_is_started_again_and_clients_stay(tmp_path: Path) -> None:
    async def scenario() -> dict[str, int]:
        async with running_head(config(tmp_path, PoolSettings()), lambda _: None) as head:
            before = pids(head)
            assert set(before) == {"mooncake_master", "pool keeper"}
            with client(head) as store:
                assert store.put("key", b"value") == 0
                os.kill(before["mooncake_master"], signal.SIGKILL)
                while pids(head)["mooncake_master"] == before["mooncake_master"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await works_again(store)
                assert store.is_exist("key") == 0, "it forgot what there was"
            assert pids(head)["pool keeper"] == before["pool keeper"]
            return pids(head)

    assert_gone(asyncio.run(scenario()))


def test_without_release_nobody_keeps_the_pool(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = config(tmp_path, PoolSettings(release=False))
        async with running_head(settings, lambda _: None) as head:
            assert set(pids(head)) == {"mooncake_master"}
            assert head.service._config.pool_keeper == ""

    asyncio.run(scenario())


def test_a_flag_that_the_master_does_not_know_stops_the_head(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = PoolSettings(master_flags={"no_such_flag": "1"})
        with pytest.raises(ChildFailedError, match="unknown command line flag 'no_such_flag'"):
            async with running_head(config(tmp_path, settings), lambda _: None):
                pass

    asyncio.run(scenario())


def test_two_heads_share_the_pool_of_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_head(config(tmp_path / "1", PoolSettings()), lambda _: None) as first:
            pool = first.service._config.pool
            assert pool is not None
            theirs = config(tmp_path / "2", PoolSettings(pool.master))
            async with running_head(theirs, lambda _: None) as second:
                assert set(pids(second)) == {"pool keeper"}
                with client(second) as store:
                    assert store.put("key", b"value") == 0

    asyncio.run(scenario())


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.head.MASTER_START_S", 0.3)
    address = f"127.0.0.1:{free_port()}"

    async def scenario() -> None:
        with pytest.raises(StartError, match=f"mooncake_master does not listen on {address}"):
            async with running_head(config(tmp_path, PoolSettings(address)), lambda _: None):
                pass

    asyncio.run(scenario())


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """Address of an etcd of our own."""
    program = shutil.which("etcd")
    if program is None:
        pytest.skip("no etcd here: apt-get install etcd-server")
    ours, peers = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    argv = [program, "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", f"http://{ours}"]
    argv += ["--advertise-client-urls", f"http://{ours}", "--listen-peer-urls", peers]
    argv += ["--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}"]
    with (tmp_path / "etcd.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    yield ours
    process.kill()
    process.wait()


PUTS = """
import sys, time
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 1 << 25, 1 << 20, "tcp", "", sys.argv[1]) == 0
for number in range(10_000):
    print(store.put(f"key-{number}", b"value") == 0, flush=True)
    time.sleep(0.05)
"""


@contextlib.asynccontextmanager
async def putting(head: Head, log: Path) -> AsyncIterator[asyncio.StreamReader]:
    """A client that says of each of its puts whether it worked. To leave politely after a change of
    leaders takes Mooncake half a minute, so it is a process."""
    pool = head.service._config.pool
    assert pool is not None
    environment = os.environ | pool.environment("127.0.0.1", 0)
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PUTS, pool.master), stdout=-1, stderr=errors, env=environment
        )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


async def said(puts: asyncio.StreamReader, word: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (line := await puts.readline()).strip() != word:
            assert line, "it has ended"


def test_another_master_takes_over_from_one_that_is_killed(tmp_path: Path, etcd: str) -> None:
    """Two heads with masters of one cluster. Engines follow whoever leads."""
    flags = {"enable_ha": "true", "etcd_endpoints": etcd, "cluster_id": "of-a-test"}
    settings = PoolSettings(f"etcd://{etcd}", master_flags=flags)

    async def scenario() -> None:
        async with (
            running_head(config(tmp_path / "1", settings), lambda _: None) as first,
            running_head(config(tmp_path / "2", settings), lambda _: None) as second,
            putting(second, tmp_path / "puts.log") as puts,
        ):
            await said(puts, b"True")
            second_s = pids(second)["mooncake_master"]
            os.kill(pids(first)["mooncake_master"], signal.SIGKILL)
            await said(puts, b"False")
            await said(puts, b"True")
            assert pids(second)["mooncake_master"] == second_s, "it took over"

    asyncio.run(scenario())
