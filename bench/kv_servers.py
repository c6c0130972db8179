"""Two SGLang servers of the small model that share a KV pool, and what is asked of them directly."""

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.kv_store import running_master
from seer_sgl.config import EngineConfig
from seer_sgl.engine.process import Child, free_port
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.kv.pool import PoolAddress
from seer_sgl.smallmodel import WEIGHTS

PAGE_TOKENS = 16
FIRST_ID, LAST_ID = 10, 400
"""Token ids of prompts that nobody has asked before."""
SEGMENT_BYTES = 768 << 20
"""Of each server: more than a rollout writes, so that nothing is evicted unless somebody releases it."""


class Servers(msgspec.Struct, frozen=True):
    """What runs."""

    clients: list[SGLangClient]
    metrics_url: str = ""
    """Of the pool's master; empty where there is no pool."""
    keeper: str = ""
    """Address of the pool's keeper."""

    @property
    def urls(self) -> list[str]:
        return [client.url for client in self.clients]

    async def post(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Ask all of them.

        Raises:
            RuntimeError: one refused.
        """
        for client in self.clients:
            async with client.open("POST", path, msgspec.json.encode(body or {})) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{client.url}{path}: {answer.status} {await answer.read()!r}")


class Said(msgspec.Struct, frozen=True):
    """An answer to one prompt."""

    ids: list[int]
    """New tokens."""
    seconds: float
    cached_tokens: int
    pool_tokens: int
    pool_wait_s: float


@contextlib.asynccontextmanager
async def running_servers(scratch: Path, kv_tokens: int, max_running: int) -> AsyncIterator[Servers]:
    """Two servers, a master and a keeper of their pool, started here and stopped at the end."""
    with running_master(scratch) as (master, metrics_url):
        pool = PoolAddress(master)
        async with (
            _keeper(pool, metrics_url, scratch) as keeper,
            _launched(scratch, pool, kv_tokens, max_running) as clients,
        ):
            yield Servers(clients, metrics_url, keeper)


@contextlib.asynccontextmanager
async def running_servers_apart(
    scratch: Path, kv_tokens: int, max_running: int
) -> AsyncIterator[Servers]:
    """Two servers that share nothing: neither a pool nor a cache beyond their own KV."""
    async with _launched(scratch, None, kv_tokens, max_running) as clients:
        yield Servers(clients)


@contextlib.asynccontextmanager
async def _launched(
    scratch: Path, pool: PoolAddress | None, kv_tokens: int, max_running: int
) -> AsyncIterator[list[SGLangClient]]:
    servers = [
        LaunchedServer(_config(name, pool, kv_tokens, max_running), True, scratch) for name in ("a", "b")
    ]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield [server.client for server in servers]
    finally:
        for server in servers:
            await server.stop()


def _config(name: str, pool: PoolAddress | None, kv_tokens: int, max_running: int) -> EngineConfig:
    return EngineConfig(
        name=name,
        model=str(WEIGHTS),
        pool=pool,
        segment_bytes=SEGMENT_BYTES,
        page_tokens=PAGE_TOKENS,
        kv_tokens=kv_tokens,
        max_running_requests=max_running,
        threads=1,
        extra_args=("--enable-metrics", "--schedule-conservativeness", "0.05"),
    )


@contextlib.asynccontextmanager
async def _keeper(pool: PoolAddress, metrics_url: str, scratch: Path) -> AsyncIterator[str]:
    address = f"tcp://127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "seer_sgl.kv.keeper", "--listen", address, "--master", pool.master]
    argv += ["--metadata", pool.metadata, "--protocol", pool.protocol]
    argv += ["--local-host", "127.0.0.1", "--metrics", metrics_url.removeprefix("http://")]
    keeper = Child("pool keeper", argv, scratch / "keeper.log")
    await keeper.start()
    try:
        yield address
    finally:
        await keeper.stop()


async def ask(
    client: SGLangClient, ids: list[int], new_tokens: int, salt: str | None = None, **fields: Any
) -> Said:
    """One prompt's answer, without a router.

    Raises:
        RuntimeError: the server refused.
    """
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": sampling, "cache_salt": salt, **fields}
    begun_s = time.perf_counter()
    status, answer = await client.post("/generate", body)
    seconds = time.perf_counter() - begun_s
    if status != 200:
        raise RuntimeError(f"{client.url} answered {status}: {answer}")
    meta = answer["meta_info"]
    details = meta.get("cached_tokens_details") or {}
    return Said(
        answer["output_ids"],
        seconds,
        meta["cached_tokens"],
        details.get("storage", 0),
        meta.get("storage_prefetch_wait", 0.0),
    )


def fresh_ids(tokens: int, rng: random.Random) -> list[int]:
    """A prompt that no cache has."""
    return rng.choices(range(FIRST_ID, LAST_ID), k=tokens)


def findable(tokens: int) -> int:
    """Of a prompt's tokens, those in whole pages; the last token is always computed."""
    return (tokens - 1) // PAGE_TOKENS * PAGE_TOKENS


@contextlib.asynccontextmanager
async def load_on(clients: Sequence[SGLangClient], requests: int) -> AsyncIterator[None]:
    """So many requests run on each server inside the block, one after the other ending."""
    rng = random.Random(1)

    async def one(client: SGLangClient) -> None:
        while True:
            await ask(client, fresh_ids(64, rng), 256)

    tasks = [asyncio.create_task(one(client)) for client in clients for _ in range(requests)]
    try:
        await asyncio.sleep(1.0)
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.post("/abort_request", {"abort_all": True}) for client in clients))
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure
