"""The engines of one node: asks the head what to serve, then runs an agent per engine."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from seer_sgl.config import CPU_SEGMENT_BYTES, LENT_SHARE, EngineConfig
from seer_sgl.engine.agent import Agent, Server
from seer_sgl.engine.attached import AttachedServer
from seer_sgl.engine.libraries import missing_for_pool
from seer_sgl.engine.server import LaunchedServer, check_model, check_sglang_installed
from seer_sgl.errors import StartError
from seer_sgl.router.messages import AskHead, Head, ProtocolError, decode_from_router, encode
from seer_sgl.spec.settings import DraftSettings

log = logging.getLogger(__name__)

CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""A number of bytes, or `max`."""


class NodeConfig(msgspec.Struct, frozen=True):
    """What one node adds to a head."""

    head: str
    """`host:port` of the router's agent socket: the one address a node needs."""
    name: str
    """Prefix of its engines' names, unique among the nodes."""
    engines: int
    log_dir: Path
    attach: tuple[str, ...] = ()
    """URLs of servers that run already; then none is started."""
    model: str = ""
    """Empty: what the head serves."""
    kv_tokens: int | None = None
    max_running_requests: int | None = None
    page_tokens: int = 16
    segment_bytes: int | None = None
    """Memory that each engine lends to the pool; None: what the head says."""
    speculate: bool = True
    """Draft, where the head says how."""
    engine_args: tuple[str, ...] = ()
    ask_timeout_s: float = 15.0


async def run_node(config: NodeConfig) -> None:
    """Run the node's engines until cancelled.

    Raises:
        StartError: no head answers, or something that the engines need is missing.
        ChildFailedError: a server does not come up.
    """
    if not config.engines and not config.attach:
        raise StartError("this node brings no engine: give --engines at least 1, or --attach URL")
    head = await _ask_head(config.head, config.ask_timeout_s)
    makers: list[Callable[[], Server]] = [
        partial(AttachedServer, f"{config.name}-{index}", url) for index, url in enumerate(config.attach)
    ]
    if not makers:
        makers = [
            partial(LaunchedServer, engine, runs_on_cpu(), config.log_dir)
            for engine in _engine_configs(config, head)
        ]
    async with asyncio.TaskGroup() as group:
        for make in makers:
            group.create_task(Agent(make, config.head).run())


async def _ask_head(address: str, timeout_s: float) -> Head:
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)
        try:
            dealer.connect(f"tcp://{address}")
            await dealer.send(encode(AskHead()))
            async with asyncio.timeout(timeout_s):
                answer = decode_from_router(await dealer.recv())
        except ProtocolError as error:
            raise StartError(f"cannot talk to the head at {address}: {error}") from None
        except zmq.ZMQError as error:
            raise StartError(f"{address!r} is no address: {error}; write HOST:PORT") from None
        except TimeoutError:
            raise StartError(
                f"no head answers at {address} within {timeout_s:g} s. Is `seer-sgl serve` running "
                "there, with --host set to an address that this node reaches?"
            ) from None
    if not isinstance(answer, Head):
        raise StartError(f"the head at {address} refused this node: {answer}")
    return answer


def _engine_configs(config: NodeConfig, head: Head) -> list[EngineConfig]:
    check_sglang_installed()
    model = config.model or head.model
    check_model(model)
    if head.pool is not None and (missing := missing_for_pool()):
        raise StartError(missing)
    threads = max(1, (os.cpu_count() or 1) // config.engines) if runs_on_cpu() else None
    told = config.segment_bytes or (head.pool and head.pool.segment_bytes)
    return [
        EngineConfig(
            name=f"{config.name}-{index}",
            model=model,
            pool=head.pool,
            local_host=address_towards(config.head.rpartition(":")[0]),
            segment_bytes=told or lent_bytes(config.engines, runs_on_cpu()),
            page_tokens=config.page_tokens,
            kv_tokens=config.kv_tokens,
            max_running_requests=config.max_running_requests,
            threads=threads,
            draft=_draft_settings(config, head, f"{config.name}-{index}"),
            extra_args=(*head.engine_args, *config.engine_args),
        )
        for index in range(config.engines)
    ]


def _draft_settings(config: NodeConfig, head: Head, engine: str) -> DraftSettings | None:
    """What the head says, by the name of this engine."""
    if head.draft is None or not config.speculate:
        return None
    return msgspec.structs.replace(head.draft, engine=engine)


def lent_bytes(engines: int, on_cpu: bool) -> int:
    """Memory that each of so many engines lends to the pool, if nobody says how much."""
    if on_cpu:
        return CPU_SEGMENT_BYTES
    return memory_bytes() // LENT_SHARE // engines


def memory_bytes() -> int:
    """Memory of this machine, or of its container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER_MEMORY.read_text().strip() if CONTAINER_MEMORY.exists() else ""
    return min(machine, int(limit)) if limit.isdecimal() else machine


def runs_on_cpu() -> bool:
    """Whether this machine has no NVIDIA or AMD device. Looks at device files: torch takes seconds."""
    return not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def address_towards(host: str) -> str:
    """This machine's address on the way to `host`. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise StartError(f"no way to {host}: {error.strerror}") from None
        address: str = probe.getsockname()[0]
        return address
