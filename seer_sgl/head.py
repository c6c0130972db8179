"""The head of a cluster: router, pool master and local engines, started in order, stopped in reverse."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from seer_sgl.config import RouterConfig
from seer_sgl.engine.libraries import missing_for_pool
from seer_sgl.engine.node import address_towards
from seer_sgl.engine.process import Child, free_port
from seer_sgl.engine.server import check_model, check_sglang_installed
from seer_sgl.errors import StartError
from seer_sgl.kv.pool import PoolAddress, master_args
from seer_sgl.router.service import RouterService

T = TypeVar("T")

MASTER_START_S = 20.0
NODE_STOP_S = 20.0
"""A node stops its servers in turn before it ends itself."""


class HeadConfig(msgspec.Struct, frozen=True):
    """What `seer-sgl serve` starts."""

    router: RouterConfig
    engines: int
    log_dir: Path
    pool: bool = True
    """Start a Mooncake master for the engines of all nodes."""
    node_args: tuple[str, ...] = ()
    """Passed on to the `join` that runs the local engines."""


class Head:
    """A head that runs."""

    def __init__(self, service: RouterService, log_dir: Path) -> None:
        self.service = service
        self._log_dir = log_dir
        self._children: list[Child] = []

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

    async def _child_ended(self, child: Child) -> None:
        status = await child.wait()
        raise child.failure(f"ended with status {status}")


@contextlib.asynccontextmanager
async def running_head(config: HeadConfig, say: Callable[[str], None]) -> AsyncIterator[Head]:
    """A head that serves inside the block, with all its local engines registered.

    Args:
        say: told each step in a line.

    Raises:
        StartError: a port is taken, or something that the head needs is missing.
        ChildFailedError: a child did not come up. Whatever was started is stopped.
    """
    _check(config)
    pool = _pool_address(config.router.host) if config.pool else None
    router = msgspec.structs.replace(config.router, pool=pool)
    async with RouterService(router) as service:
        head = Head(service, config.log_dir)
        try:
            say(f"router on http://{router.host}:{router.http_port}, policy {router.policy}")
            if pool is not None:
                argv, port = _master_argv(pool)
                await head.start_child("mooncake_master", argv, _port_open(pool, port))
                say(f"KV pool: Mooncake master on {pool.master}")
            if config.engines:
                say(f"starting {config.engines} engines, logs in {config.log_dir}")
                here = _engines_here(service, config.engines)
                await head.start_child("local node", _node_argv(config), here)
            yield head
        finally:
            await head.stop()


def _check(config: HeadConfig) -> None:
    if config.engines:
        check_sglang_installed()
        check_model(config.router.model)
    if config.pool and (missing := missing_for_pool()):
        raise StartError(missing)


def _reachable(host: str) -> str:
    """The address under which other nodes reach a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return address_towards("192.0.2.1")  # reserved for documentation: names the default route
    return host


def _pool_address(host: str) -> PoolAddress:
    near = _reachable(host)
    return PoolAddress(f"{near}:{free_port()}", f"http://{near}:{free_port()}/metadata")


def _master_argv(pool: PoolAddress) -> tuple[list[str], int]:
    host, _, rpc_port = pool.master.rpartition(":")
    metadata_port = int(pool.metadata_url.removesuffix("/metadata").rpartition(":")[2])
    name, *args = master_args(host, int(rpc_port), metadata_port, free_port())
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        raise StartError("Mooncake is not installed: pip install 'seer-sgl[cpu]' or [cuda]")
    return [str(program), *args], int(rpc_port)


def _node_argv(config: HeadConfig) -> list[str]:
    head = f"{_reachable(config.router.host)}:{config.router.agent_port}"
    return [
        *(sys.executable, "-m", "seer_sgl_cli", "join", head, "--name", "head"),
        *("--engines", str(config.engines), "--log-dir", str(config.log_dir)),
        *config.node_args,
    ]


async def _port_open(pool: PoolAddress, port: int) -> None:
    host = pool.master.rpartition(":")[0]
    try:
        async with asyncio.timeout(MASTER_START_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise StartError(f"mooncake_master does not listen on {pool.master}") from None


async def _engines_here(service: RouterService, engines: int) -> None:
    while len(service.roster) < engines:  # noqa: ASYNC110 - once, at the start
        await asyncio.sleep(0.1)
