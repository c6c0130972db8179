"""The agent of one engine: keeps a server up, and carries work between it and the router.

Its life: start the server, register, work until the server ends or the agent is stopped; if the server
ended, tell the router, start another, register again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import httpx
import zmq
import zmq.asyncio

from seer_sgl.engine.sglang import EngineInfo, SGLangClient, error_message
from seer_sgl.errors import ChildFailedError, StartError
from seer_sgl.router.messages import (
    AgentMessage,
    Call,
    CallAnswered,
    ChunkAnswered,
    ChunkBroke,
    Heartbeat,
    Leave,
    ProtocolError,
    Refused,
    Register,
    RouterMessage,
    RunChunk,
    StopChunk,
    Welcome,
    WhoAreYou,
    decode_from_router,
    encode,
)
from seer_sgl.types import ChunkId

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
BROKEN_PAUSE_S = 2.0
"""How long the news of broken work is held back. A server that goes down breaks it within milliseconds:
told at once, the router would send it here again and again, and give it up before it hears that the
engine left."""
MAX_QUICK_ENDS = 3
"""A server that ends this often without having served is given up."""
CALLS = ("/tokenize", "/detokenize")
"""Paths besides `/generate` that a router may ask for."""


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
        self._calls: set[asyncio.Task[None]] = set()
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
        quick_ends = 0
        while True:
            server = self._make_server()
            try:
                info = await server.start()
                ended = await self._serve(server, info)
                quick_ends = 0
            except ChildFailedError as error:
                ended, quick_ends = error, quick_ends + 1
                if quick_ends >= MAX_QUICK_ENDS:
                    raise
            finally:
                await server.stop()
            log.warning("%s\nstarting it again", ended)
            await asyncio.sleep(RESTART_PAUSE_S)

    async def _serve(self, server: Server, info: EngineInfo) -> ChildFailedError:
        """Work for the router until the server ends."""
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as self._socket:
            self._socket.setsockopt(zmq.LINGER, 500)
            self._socket.setsockopt(zmq.SNDHWM, 0)
            self._socket.connect(f"tcp://{self._head}")
            self._server, self._info = server, info
            self._register()
            watch = asyncio.create_task(server.wait_ended())
            loops = [asyncio.create_task(self._receive()), asyncio.create_task(self._beat())]
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
                await self._end_tasks([watch, *loops])

    async def _end_tasks(self, tasks: list[asyncio.Task[Any]]) -> None:
        everything = [*tasks, *(task for _, task in self._chunks.values()), *self._calls]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        self._chunks.clear()

    @property
    def _engine_id(self) -> Any:
        return self._info.spec.engine_id

    def _send(self, message: AgentMessage) -> None:
        # With no high-water mark zmq takes every message at once; the future needs no waiting.
        self._socket.send(encode(message))

    def _register(self) -> None:
        info = self._info
        self._send(
            Register(
                info.spec,
                self._server.client.url,
                info.model,
                info.sglang_version,
                info.weight_version,
            )
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with contextlib.suppress(httpx.HTTPError):
                load = await self._server.client.load()
                self._send(Heartbeat(self._engine_id, *load))

    async def _receive(self) -> None:
        while True:
            frame = await self._socket.recv()
            try:
                message = decode_from_router(frame)
            except ProtocolError as error:
                raise StartError(f"cannot talk to the router at {self._head}: {error}") from None
            self._take(message)

    def _take(self, message: RouterMessage) -> None:
        match message:
            case RunChunk(chunk_id=chunk_id):
                task = asyncio.create_task(self._run_chunk(message))
                self._chunks[chunk_id] = message.body["rid"], task
                task.add_done_callback(partial(self._chunk_ended, chunk_id))
            case StopChunk(chunk_id=chunk_id) if chunk_id in self._chunks:
                self._start_call(self._abort(self._chunks[chunk_id][0]))
            case StopChunk():
                pass  # it has ended meanwhile
            case Call():
                self._start_call(self._answer_call(message))
            case Welcome(heartbeat_s=heartbeat_s):
                self._heartbeat_s = heartbeat_s
                self.ready.set()
            case WhoAreYou():
                self._forget_work()
                self._register()
            case Refused(reason=reason) if not self._refusal.done():
                self._refusal.set_result(reason)
            case _:
                log.warning("a message that is not for an agent: %s", message)

    def _start_call(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _chunk_ended(self, chunk_id: ChunkId, task: asyncio.Task[None]) -> None:
        if chunk_id in self._chunks and self._chunks[chunk_id][1] is task:
            del self._chunks[chunk_id]

    def _forget_work(self) -> None:
        """A router that does not know this engine does not wait for its work. If it was started
        afresh it uses the same numbers again, so no answer to an old one may reach it."""
        for call in self._calls:
            call.cancel()
        for rid, task in self._chunks.values():
            task.cancel()
            self._start_call(self._abort(rid))
        self._chunks.clear()

    async def _run_chunk(self, message: RunChunk) -> None:
        status: int | None = None
        try:
            status, body = await self._server.client.post("/generate", message.body)
        except httpx.HTTPError as error:
            body = f"no answer from SGLang: {type(error).__name__} {error}"
        if status == 200:
            self._send(ChunkAnswered(self._engine_id, message.chunk_id, body))
            return
        if status is None or status >= 500:
            await asyncio.sleep(BROKEN_PAUSE_S)
        self._send(ChunkBroke(self._engine_id, message.chunk_id, error_message(body), status))

    async def _abort(self, rid: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            await self._server.client.post("/abort_request", {"rid": rid})

    async def _answer_call(self, call: Call) -> None:
        status, body = 404, f"{call.path} is not a path that a router may ask for"
        if call.path in CALLS:
            try:
                status, body = await self._server.client.post(call.path, call.body)
            except httpx.HTTPError as error:
                status, body = 503, f"no answer from SGLang: {error}"
                await asyncio.sleep(BROKEN_PAUSE_S)
        self._send(CallAnswered(self._engine_id, call.call_id, status, body))
