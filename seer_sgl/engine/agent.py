"""The agent of one engine: keeps a server up, and carries work between it and the router.

Its life: start the server, register, work until the server ends or the agent is stopped; if the server
ended, tell the router, start another, register again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import zmq

from seer_sgl.engine.sglang import EngineInfo, SGLangClient
from seer_sgl.engine.work import Work
from seer_sgl.errors import ChildFailedError, EngineUnreachable, StartError
from seer_sgl.router.link import Pump
from seer_sgl.router.messages import (
    AgentMessage,
    Call,
    CallAnswered,
    ChunkBroke,
    Heartbeat,
    Leave,
    PostChunk,
    ProtocolError,
    Refused,
    Register,
    RouterMessage,
    StopCall,
    StopChunk,
    Welcome,
    WhoAreYou,
    decode_from_router,
    encode,
)
from seer_sgl.types import ChunkId

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MAX_QUICK_ENDS = 3
"""A server that ends this often and has never served is given up. One that has served is tried for ever,
as what it misses may come back: a pool without its master, for one."""


class Server(Protocol):
    """What an agent needs of a server."""

    client: SGLangClient

    async def start(self) -> EngineInfo: ...
    async def wait_ended(self) -> ChildFailedError: ...
    async def stop(self) -> None: ...


class Agent:
    """Connects one engine to a router.

    Args:
        make_server: gives a fresh server; called again after one has ended.
        head: `host:port` of the router's agent socket.
    """

    def __init__(self, make_server: Callable[[], Server], head: str) -> None:
        self._make_server = make_server
        self._head = head
        self._chunks: dict[ChunkId, tuple[str, asyncio.Task[None]]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heartbeat_s = 1.0
        self.ready = asyncio.Event()
        """Set while the engine is registered."""

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            StartError: the router refused this engine.
            ChildFailedError: the server does not come up.
        """
        quick_ends, served = 0, False
        while True:
            server = self._make_server()
            try:
                info = await server.start()
                ended = await self._serve(server, info)
                quick_ends, served = 0, True
            except ChildFailedError as error:
                ended, quick_ends = error, quick_ends + 1
                if quick_ends >= MAX_QUICK_ENDS and not served:
                    raise
            finally:
                await server.stop()
            log.warning("%s\nstarting it again", ended)
            await asyncio.sleep(min(RESTART_PAUSE_S * 2 ** min(quick_ends, 9), LONGEST_PAUSE_S))

    async def _serve(self, server: Server, info: EngineInfo) -> ChildFailedError:
        """Work for the router until the server ends."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 500)
            # With no high-water marks zmq takes every message at once, both ways.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.IPV6, 1)
            socket.connect(f"tcp://{self._head}")
            self._pump = Pump(socket)
            self._server, self._info = server, info
            self._work = Work(server.client, info, self._send)
            self._register()
            watch = asyncio.create_task(server.wait_ended())
            loops = [
                asyncio.create_task(self._pump.run(self._take_all)),
                asyncio.create_task(self._beat()),
            ]
            ends: list[asyncio.Future[Any]] = [watch, self._refusal, *loops]
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for loop in loops:
                    if loop.done():
                        loop.result()
                if self._refusal.done():
                    raise StartError(f"the router refused this engine: {self._refusal.result()}")
                error = watch.result()
                self._send(Leave(self._engine_id, error.what))
                return error
            except asyncio.CancelledError:
                self._send(Leave(self._engine_id, "stopped"))
                raise
            finally:
                self.ready.clear()
                self._pump.flush()
                await self._end_tasks([watch, *loops])

    async def _end_tasks(self, tasks: list[asyncio.Task[Any]]) -> None:
        work = [*(task for _, task in self._chunks.values()), *self._calls.values(), *self._aborts]
        for task in (*tasks, *work):
            task.cancel()
        await asyncio.gather(*tasks, *work, return_exceptions=True)
        self._chunks.clear()
        self._calls.clear()

    @property
    def _engine_id(self) -> Any:
        return self._info.spec.engine_id

    def _send(self, message: AgentMessage) -> None:
        if isinstance(message, CallAnswered):
            self._work.history.answered(message.call_id, message.status)
        self._pump.send(None, encode(message))

    def _register(self) -> None:
        info = self._info
        self._send(
            Register(
                info.spec,
                self._server.client.url,
                info.model,
                info.sglang_version,
                info.weight_version,
                info.facts,
                self._work.history.told(),
            )
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with contextlib.suppress(EngineUnreachable):
                load = await self._server.client.load()
                self._send(Heartbeat(self._engine_id, *load))

    def _take_all(self, frames: list[bytes]) -> None:
        for frame in frames:
            try:
                message = decode_from_router(frame)
            except ProtocolError as error:
                raise StartError(f"cannot talk to the router at {self._head}: {error}") from None
            self._take(message)

    def _take(self, message: RouterMessage) -> None:
        match message:
            case PostChunk(chunk_id=chunk_id, rid=rid):
                task = asyncio.create_task(self._work.run_chunk(message))
                self._chunks[chunk_id] = rid, task
                task.add_done_callback(partial(self._chunk_ended, chunk_id))
            case StopChunk(chunk_id=chunk_id):
                if chunk_id in self._chunks:  # else it has ended meanwhile
                    self._abort(self._chunks[chunk_id][0])
            case Call(call_id=call_id):
                self._work.history.asked(call_id, message.target, message.body)
                task = asyncio.create_task(self._work.perform(message))
                self._calls[call_id] = task
                task.add_done_callback(partial(self._call_ended, call_id))
            case StopCall(call_id=call_id):
                if call_id in self._calls:
                    self._calls[call_id].cancel()
            case Welcome():
                self._welcome(message)
            case WhoAreYou():
                self._forget_work()
                self._register()
            case Refused(reason=reason) if not self._refusal.done():
                self._refusal.set_result(reason)
            case _:
                log.warning("a message that is not for an agent: %s", message)

    def _welcome(self, message: Welcome) -> None:
        self._heartbeat_s = message.heartbeat_s
        if message.http_port:
            self._work.router_url = f"http://{self._head.rpartition(':')[0]}:{message.http_port}"
        self.ready.set()

    def _abort(self, rid: str) -> None:
        task = asyncio.create_task(self._work.abort(rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    def _chunk_ended(self, chunk_id: ChunkId, task: asyncio.Task[None]) -> None:
        if chunk_id in self._chunks and self._chunks[chunk_id][1] is task:
            del self._chunks[chunk_id]
            if bug := _bug_in(task):
                self._send(ChunkBroke(self._engine_id, chunk_id, bug))

    def _call_ended(self, call_id: int, task: asyncio.Task[None]) -> None:
        if self._calls.get(call_id) is task:
            del self._calls[call_id]
            if bug := _bug_in(task):
                self._send(CallAnswered(self._engine_id, call_id, 0, {}, bug.encode()))

    def _forget_work(self) -> None:
        """A router that does not know this engine does not wait for its work. If it was started
        afresh it uses the same numbers again, so no answer to an old one may reach it."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        for rid, task in self._chunks.values():
            task.cancel()
            self._abort(rid)
        self._chunks.clear()


def _bug_in(task: "asyncio.Task[None]") -> str:
    """Why work ended without a word to the router, who would wait for ever; empty where it did not."""
    if task.cancelled() or (error := task.exception()) is None:
        return ""
    log.error("a bug: work of the agent failed", exc_info=error)
    return f"a bug in the agent: {type(error).__name__} {error}"
