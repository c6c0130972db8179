"""The router's line to the pool's keeper, against a socket that plays the keeper."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.kv.keys import packed
from seer_sgl.kv.messages import (
    Beat,
    Closed,
    EpochChanged,
    Found,
    FromRouter,
    Grew,
    GroupOver,
    Layout,
    LookUp,
    Message,
    Opened,
    Unknown,
    Usage,
    decode_from_router,
    encode,
)
from seer_sgl.router.pool import NoPool, PoolKeeper, Reopened
from seer_sgl.types import RequestId

A, B = RequestId("a"), RequestId("b")
UP = Usage(1, 2, 3, 4, 5, 6, True)


class Keeper:
    """The far end, and what the router's end was told."""

    def __init__(self, pool: PoolKeeper, socket: zmq.asyncio.Socket) -> None:
        self.pool, self.socket = pool, socket
        self.heard: list[FromRouter] = []
        self.found: list[tuple[str, int | None]] = []
        self.states: list[bool | None] = []
        self.reopened: dict[RequestId, Reopened] = {}
        self.router = b""

    async def hear(self) -> None:
        while True:
            self.router, *frames = await self.socket.recv_multipart()
            self.heard += [decode_from_router(frame) for frame in frames]

    async def say(self, *messages: Message) -> None:
        await self.until(lambda: self.router)
        await self.socket.send_multipart([self.router, *map(encode, messages)])

    async def until(self, holds: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline_s, "it did not come true"
            await asyncio.sleep(0.005)

    @property
    def told(self) -> list[FromRouter]:
        """Without what is said once a second."""
        return [message for message in self.heard if not isinstance(message, Beat | Layout)]


@asynccontextmanager
async def keeper() -> AsyncIterator[Keeper]:
    address = f"tcp://127.0.0.1:{free_port()}"
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(address)
        pool = PoolKeeper(address)
        made = Keeper(pool, socket)
        running = [
            asyncio.create_task(made.hear()),
            asyncio.create_task(
                pool.run(lambda *found: made.found.append(found), made.states.append, made.reopened.get)
            ),
        ]
        try:
            yield made
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            pool.close()


def test_what_becomes_of_requests_is_told() -> None:
    async def scenario() -> None:
        async with keeper() as far:
            await far.until(lambda: far.heard)
            assert far.heard[0] == Beat()
            far.pool.layout("model", ("_k",), 4)
            far.pool.layout("model", ("_k",), 4)
            far.pool.opened(A, "g", "extra", "salt", [1, 2, 3])
            far.pool.grew(A, [4, 5])
            far.pool.grew(A, [])
            far.pool.grew(B, [7])
            far.pool.closed(A, [6], finished=True)
            far.pool.closed(A, [6], finished=True)
            far.pool.closed(B, [], finished=False)
            far.pool.group_over("g")
            far.pool.epoch_changed()
            await far.until(lambda: EpochChanged() in far.heard)
            assert far.told == [
                Opened("a", "g", "extra", "salt", packed([1, 2, 3])),
                Grew("a", 3, packed([4, 5])),
                Closed("a", 5, packed([6]), True),
                GroupOver("g"),
                EpochChanged(),
            ]
            assert [m for m in far.heard if isinstance(m, Layout)] == [Layout("model", ["_k"], 4)]
            await far.until(lambda: sum(isinstance(m, Layout) for m in far.heard) > 1)

    asyncio.run(scenario())


def test_look_ups_are_answered_once_each() -> None:
    async def scenario() -> None:
        async with keeper() as far:
            far.pool.opened(A, "g", None, None, [1] * 9)
            far.pool.look_up(A, 8, 60.0)  # nobody says that the pool is up
            await far.say(UP)
            await far.until(lambda: far.pool.usage == UP)
            assert far.states == [False], "no engine has named its pages"
            far.pool.layout("model", ("_k",), 4)
            assert far.states == [False, True]
            far.pool.look_up(A, 7, 60.0)
            far.pool.look_up(A, 8, 60.0)  # instead of the first
            await far.until(lambda: LookUp("a", 8, 60.0) in far.heard)
            assert LookUp("a", 7, 60.0) in far.heard
            await far.say(Found("a", 7, 0), Found("a", 8, 4), Found("a", 8, 4), Found("b", 8, 4))
            await far.until(lambda: far.found)
            await asyncio.sleep(0.05)
            assert far.found == [(A, 4)]
            far.pool.look_up(A, 8, 60.0)
            await far.say(Found("a", 8, None))
            await far.until(lambda: len(far.found) > 1)
            far.pool.look_up(A, 8, 60.0)
            far.pool.closed(A, (), finished=True)
            await far.say(Found("a", 8, 8))
            far.pool.look_up(B, 8, 60.0)  # the keeper was never told of it
            await far.until(lambda: len(far.found) > 2)
            assert far.found[1:] == [(A, None), (B, None)]

    asyncio.run(scenario())


def test_a_keeper_that_lost_a_request_is_told_all_of_it() -> None:
    async def scenario() -> None:
        async with keeper() as far:
            far.pool.opened(A, "g", None, None, [1])
            far.reopened[A] = Reopened("g", None, "s", [1, 2])
            far.reopened[B] = Reopened("g", None, "s", [9])
            await far.say(Unknown("b"), Unknown("a"))
            await far.until(lambda: Opened("a", "g", None, "s", packed([1, 2])) in far.heard)
            far.pool.grew(A, [3])
            await far.until(lambda: Grew("a", 2, packed([3])) in far.heard)
            assert not any(isinstance(m, Opened) and m.request == "b" for m in far.heard)

    asyncio.run(scenario())


def test_a_keeper_that_falls_silent_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.pool.BEAT_S", 0.02)
    monkeypatch.setattr("seer_sgl.router.pool.FRESH_S", 0.2)

    async def scenario() -> None:
        async with keeper() as far:
            far.pool.layout("model", ("_k",), 4)
            await far.say(UP)
            await far.until(lambda: far.states[-2:] == [True, None])
            counts = Usage(released_pages=3, late_pages=5, errors=6)
            assert far.pool.usage == counts, "counts never go back"
            await far.say(Usage(up=False), UP)
            await far.until(lambda: far.states[-2:] == [False, True])

    asyncio.run(scenario())


def test_nothing_is_queued_for_a_keeper_that_is_not_there() -> None:
    async def scenario() -> None:
        pool = PoolKeeper(f"tcp://127.0.0.1:{free_port()}")
        try:
            for number in range(50):
                pool.opened(RequestId(str(number)), "g", None, None, [1] * 1000)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert pool.dropped == 50
        finally:
            pool.close()

    asyncio.run(scenario())


def test_nonsense_changes_nothing() -> None:
    async def scenario() -> None:
        async with keeper() as far:
            await far.until(lambda: far.router)
            await far.socket.send_multipart([far.router, b"\xc1nonsense", b"", encode(UP)])
            await far.until(lambda: far.pool.usage == UP)

    asyncio.run(scenario())


def test_a_pool_that_nobody_keeps_is_there_once_engines_name_its_pages() -> None:
    async def scenario() -> None:
        pool, states = NoPool(), list[bool | None]()
        running = asyncio.create_task(pool.run(lambda *_: None, states.append))
        await asyncio.sleep(0)
        assert states == [False]
        pool.opened(A, "g", None, None, [1])
        pool.look_up(A, 8, 5.0)
        pool.layout("model", ("_k",), 4)
        pool.layout("model", ("_k",), 4)
        assert states == [False, None]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(StartError, match="tcp://HOST:PORT"):
        PoolKeeper("nowhere")
