"""The head of a cluster: router, pool master and local engines, started in order, stopped in reverse."""

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from seer_sgl.config import RouterConfig
from seer_sgl.engine.attached import AttachedServers
from seer_sgl.engine.kept import KeptChild
from seer_sgl.engine.libraries import missing_for_pool
from seer_sgl.engine.node import address_towards
from seer_sgl.engine.process import Child, free_port
from seer_sgl.engine.server import check_model, check_sglang_installed
from seer_sgl.errors import RequestError, StartError
from seer_sgl.kv.pool import PoolAddress, PoolSettings, client_bounds, master_settings
from seer_sgl.router.core import Policy
from seer_sgl.router.service import RouterService
from seer_sgl.router.workers import normal_url
from seer_sgl.spec.settings import DraftSettings

T = TypeVar("T")

MASTER_START_S = 20.0
SHARD_START_S = 60.0
"""The first one on a machine compiles its kernels."""
ELECTION_S = 30.0
"""Mooncake lets a lease of 5 s run out, and then warms up for 5 s."""
KEEPER_START_S = 30.0
KEPT_STOP_S = 2.0
NODE_STOP_S = 20.0
"""A node stops its servers in turn before it ends itself."""


class HeadConfig(msgspec.Struct, frozen=True):
    """What `seer-sgl serve` starts."""

    router: RouterConfig
    engines: int
    log_dir: Path
    pool: bool = True
    """Let the engines of all nodes share KV."""
    pool_settings: PoolSettings = PoolSettings()
    draft_shards: int = 1
    """Draft servers, where `router.draft` says that engines draft at all."""
    draft_budget_bytes: int = 1 << 30
    """Memory of each: about 9 bytes for a token of a group that still runs, or did until lately."""
    node_args: tuple[str, ...] = ()
    """Passed on to the `join` that runs the local engines."""
    attach: tuple[str, ...] = ()
    """URLs of servers that run already; they become engines when they answer."""
    attach_api_key: str = ""
    """What these servers ask for, if anything."""


class Head:
    """A head that runs."""

    def __init__(self, service: RouterService, log_dir: Path) -> None:
        self.service = service
        self._log_dir = log_dir
        self._children: list[Child] = []
        self._kept: list[KeptChild] = []

    async def wait_failed(self) -> None:
        """Return only by raising what ended the router or a child."""
        waits = [asyncio.create_task(self._child_ended(child)) for child in self._children]
        waits.append(asyncio.create_task(self.service.wait_failed()))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waits:
                task.cancel()

    async def start_child(self, name: str, argv: list[str], ready: Coroutine[Any, Any, None]) -> None:
        """Start a child and wait until it is ready.

        Raises:
            ChildFailedError: it, or an earlier child, ended before.
        """
        child = Child(name, argv, self._log_dir / f"{name.replace(' ', '_')}.log")
        self._children.append(child)
        await child.start()
        await self.unless_failed(ready)

    async def keep_child(
        self,
        name: str,
        argv: list[str],
        ready: Coroutine[Any, Any, None],
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start a child, wait until it is ready, and start it again whenever it ends.

        Raises:
            StartError: it did not come up.
            ChildFailedError: it ended at once.
        """
        child = KeptChild(name, argv, self._log_dir / f"{name.replace(' ', '_')}.log", environment)
        self._kept.append(child)
        try:
            await self.unless_failed(child.start(ready))
        except StartError as error:
            raise StartError(f"{error}; its log: {child.child.log_path}") from None

    async def unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; it is cancelled if the router or a child ends before.

        Raises:
            ChildFailedError: a child ended.
        """
        working = asyncio.create_task(work)
        failed = asyncio.create_task(self.wait_failed())
        try:
            await asyncio.wait((working, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            return await working
        finally:
            working.cancel()
            failed.cancel()

    async def stop(self) -> None:
        """End the children, last one first."""
        for child in reversed(self._children):
            await child.stop(NODE_STOP_S)
        for kept in reversed(self._kept):
            await kept.stop(KEPT_STOP_S)

    async def _child_ended(self, child: Child) -> None:
        status = await child.wait()
        raise child.failure(f"ended with status {status}")


@contextlib.asynccontextmanager
async def running_head(
    config: HeadConfig, say: Callable[[str], None], policy: Policy | None = None
) -> AsyncIterator[Head]:
    """A head that serves inside the block, with all its local engines registered.

    Args:
        say: told each step in a line.
        policy: instead of the one that the router's settings name (tests bring their own).

    Raises:
        StartError: a port is taken, or something that the head needs is missing.
        ChildFailedError: a child did not come up. Whatever was started is stopped.
    """
    _check(config)
    near, own, keeper, pool = _reachable(config.router.host), "", "", None
    if config.pool:
        own = config.pool_settings.own_master(near, free_port())
        pool = config.pool_settings.address(own)
        keeper = f"tcp://127.0.0.1:{free_port()}" if config.pool_settings.release else ""
    router = msgspec.structs.replace(
        config.router,
        pool=pool,
        pool_keeper=keeper,
        draft=_draft_settings(config),
    )
    attached = AttachedServers(f"{_from_here(router.host)}:{router.agent_port}")
    async with RouterService(router, policy, attached) as service, attached:
        head = Head(service, config.log_dir)
        try:
            say(f"router on http://{_bracketed(router.host)}:{router.http_port}, policy {router.policy}")
            if pool is not None:
                metrics = await _start_pool(head, config.pool_settings, pool, own)
                say(f"KV pool: Mooncake master {pool.master}")
                if router.pool_keeper:
                    await _start_keeper(head, router, near, metrics)
            if router.draft is not None:
                for shard, address in enumerate(router.draft.servers):
                    await _start_shard(head, config, shard, address)
                say(f"drafts: draft servers on {', '.join(router.draft.servers) or 'no address'}")
            if config.engines:
                say(f"starting {config.engines} engines, logs in {config.log_dir}")
                here = _engines_here(service, config.engines)
                await head.start_child("local node", _node_argv(config), here)
            for url in config.attach:
                say(f"attached: {url}, engine {attached.attach(url, config.attach_api_key)}")
            yield head
        finally:
            await head.stop()


def _check(config: HeadConfig) -> None:
    if config.engines:
        check_sglang_installed()
        check_model(config.router.model)
    if config.pool:
        config.pool_settings.check()
        if missing := missing_for_pool():
            raise StartError(missing)
        if importlib.util.find_spec("mooncake") is None:
            raise StartError("Mooncake is not installed: pip install 'seer-sgl[cpu]' or [cuda]")
    for url in config.attach:
        try:
            normal_url(url)
        except RequestError as error:
            raise StartError(f"cannot attach: {error}") from None


def _reachable(host: str) -> str:
    """The address under which other nodes reach a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return address_towards("192.0.2.1")  # reserved for documentation: names the default route
    return host


def _from_here(host: str) -> str:
    """The address under which this process reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, _bracketed(host))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _start_pool(head: Head, settings: PoolSettings, pool: PoolAddress, own: str) -> str:
    """Start the head's own master, which listens on `own`, or look whether the other one is there.

    Returns:
        `host:port` of the own master's metrics, or nothing.
    """
    name = "mooncake_master"
    if settings.starts_master:
        program = Path(sys.executable).with_name(name)
        if not program.exists():
            raise StartError("Mooncake is not installed: pip install 'seer-sgl[cpu]' or [cuda]")
        host, _, port = own.rpartition(":")
        flags = master_settings(settings, host, int(port), free_port())
        argv = [str(program), *(f"--{flag}={value}" for flag, value in flags.items())]
        metrics = f"{flags['metrics_host']}:{flags['metrics_port']}"
        if settings.highly_available:
            up = _somebody_leads(f"http://{metrics}/leader")
        else:
            up = _listens(name, own, MASTER_START_S)
        await head.keep_child(name, argv, up)
        return metrics
    if "://" not in pool.master:
        await head.unless_failed(_listens(name, pool.master, MASTER_START_S))
    return ""


async def _somebody_leads(url: str) -> None:
    """Wait until a master leads, this one or another, and serves. Asked of this one's admin server."""
    leader = ""
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            async with asyncio.timeout(ELECTION_S):
                while not leader:
                    with contextlib.suppress(httpx.TransportError):
                        leader = (await http.get(url)).json().get("leader_address", "")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StartError(f"no Mooncake master leads after {ELECTION_S:g} s") from None
    await _listens("the Mooncake master that leads", leader, ELECTION_S)


async def _start_keeper(head: Head, router: RouterConfig, near: str, metrics: str) -> None:
    pool, listen = router.pool, router.pool_keeper
    assert pool is not None
    argv = [
        *(sys.executable, "-m", "seer_sgl.kv.keeper", "--listen", listen, "--master", pool.master),
        *("--metadata", pool.metadata, "--protocol", pool.protocol, "--device", pool.device),
        *("--local-host", near, "--metrics", metrics),
    ]
    listens = _listens("pool keeper", listen.removeprefix("tcp://"), KEEPER_START_S)
    environment = client_bounds(os.environ)
    if pool.cluster:
        environment["MC_STORE_CLUSTER_ID"] = pool.cluster
    await head.keep_child("pool keeper", argv, listens, environment)


def _node_argv(config: HeadConfig) -> list[str]:
    head = f"{_reachable(config.router.host)}:{config.router.agent_port}"
    return [
        *(sys.executable, "-m", "seer_sgl_cli", "join", head, "--name", "head"),
        *("--engines", str(config.engines), "--log-dir", str(config.log_dir)),
        *config.node_args,
    ]


def _draft_settings(config: HeadConfig) -> DraftSettings | None:
    """What engines are told, with addresses for the draft servers to come."""
    if config.router.draft is None:
        return None
    near = _bracketed(_reachable(config.router.host))
    servers = tuple(f"tcp://{near}:{free_port()}" for _ in range(config.draft_shards))
    return msgspec.structs.replace(config.router.draft, servers=servers)


async def _start_shard(head: Head, config: HeadConfig, shard: int, address: str) -> None:
    port = address.rpartition(":")[2]
    argv = [
        *(sys.executable, "-m", "seer_sgl.spec.server", "--host", config.router.host, "--port", port),
        *("--budget-bytes", str(config.draft_budget_bytes)),
    ]
    name = f"draft server {shard}"
    listens = _listens(name, address.removeprefix("tcp://"), SHARD_START_S)
    await head.keep_child(name, argv, listens)


async def _listens(name: str, address: str, patience_s: float) -> None:
    """Wait until somebody listens on `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(patience_s):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                    writer.close()
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise StartError(f"{name} does not listen on {address} after {patience_s:g} s") from None


async def _engines_here(service: RouterService, engines: int) -> None:
    while len(service.roster) < engines:  # noqa: ASYNC110 - once, at the start
        await asyncio.sleep(0.1)
