"""The sockets between router and agents: nothing is lost, nothing stalls, order is kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
import zmq

from seer_sgl.engine.process import free_port
from seer_sgl.router import messages as m
from seer_sgl.router.link import AgentLink, Pump
from seer_sgl.types import ChunkId, EngineId

E = EngineId("e")
Heard = Callable[[bytes, m.AgentMessage], None]


def on_both_loops(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    for make_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(asyncio.wait_for(work(), 20.0))


@contextlib.asynccontextmanager
async def connected(
    on_router: Heard, on_agent: Callable[[m.RouterMessage], None]
) -> AsyncIterator[tuple[AgentLink, Pump]]:
    """Both ends of a connection, each with something that takes what it hears."""
    port = free_port()
    link = AgentLink("127.0.0.1", port)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        pump = Pump(dealer)

        def take(frames: list[bytes]) -> None:
            for frame in frames:
                on_agent(m.decode_from_router(frame))

        tasks = [
            asyncio.create_task(link.receive_forever(on_router)),
            asyncio.create_task(pump.run(take)),
        ]
        try:
            yield link, pump
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            link.close()


def part(number: int, size: int = 10) -> m.CallPart:
    return m.CallPart(E, number, bytes(size))


def test_a_flood_arrives_whole_and_in_order_both_ways() -> None:
    """Each message is answered from where it is heard, so that both sides send while they read."""
    count = 20_000

    async def work() -> None:
        there: list[int] = []
        back: list[int] = []
        done = asyncio.Event()

        def on_router(peer: bytes, message: m.AgentMessage) -> None:
            assert isinstance(message, m.CallPart)
            there.append(message.call_id)
            link.send(peer, m.StopCall(message.call_id))

        def on_agent(message: m.RouterMessage) -> None:
            assert isinstance(message, m.StopCall)
            back.append(message.call_id)
            if len(back) == count:
                done.set()

        async with connected(on_router, on_agent) as (link, pump):
            for number in range(count):
                pump.send(None, m.encode(part(number)))
                if number % 1000 == 999:
                    await asyncio.sleep(0)
            await done.wait()
        assert there == back == list(range(count))

    on_both_loops(work)


def test_one_message_at_a_time_never_stalls() -> None:
    """A socket's descriptor tells of news once: what comes while a side sends must not be missed."""

    async def work() -> None:
        left = 2000
        done = asyncio.Event()

        def on_router(peer: bytes, message: m.AgentMessage) -> None:
            assert isinstance(message, m.CallPart)
            link.send(peer, m.StopChunk(ChunkId(message.call_id)))

        def on_agent(_: m.RouterMessage) -> None:
            nonlocal left
            left -= 1
            if left:
                pump.send(None, m.encode(part(left)))
            else:
                done.set()

        async with connected(on_router, on_agent) as (link, pump):
            pump.send(None, m.encode(part(0)))
            await done.wait()

    on_both_loops(work)


def test_messages_of_one_turn_leave_as_one_delivery() -> None:
    async def work() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
            one.bind("inproc://x")
            other.connect("inproc://x")
            pump, deliveries = Pump(one), list[list[bytes]]()
            for frame in (b"1", b"2"):
                pump.send(None, frame)
            await asyncio.sleep(0)
            pump.send(None, b"3")
            pump.flush()
            while other.poll(0):
                deliveries.append(other.recv_multipart())
        assert deliveries == [[b"1", b"2"], [b"3"]]

    on_both_loops(work)


def test_large_messages_pass() -> None:
    async def work() -> None:
        sizes: list[int] = []
        done = asyncio.Event()

        def on_router(_: bytes, message: m.AgentMessage) -> None:
            assert isinstance(message, m.CallPart)
            sizes.append(len(message.data))
            if len(sizes) == 3:
                done.set()

        async with connected(on_router, lambda _: None) as (_, pump):
            for size in (20_000_000, 1, 5_000_000):
                pump.send(None, m.encode(part(0, size)))
            await done.wait()
        assert sizes == [20_000_000, 1, 5_000_000]

    on_both_loops(work)


def test_what_fails_in_the_receiver_ends_it() -> None:
    async def work() -> None:
        def on_router(_: bytes, __: m.AgentMessage) -> None:
            raise LookupError("a bug")

        port = free_port()
        link = AgentLink("127.0.0.1", port)
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send(m.encode(part(1)))
            try:
                with pytest.raises(LookupError, match="a bug"):
                    await link.receive_forever(on_router)
            finally:
                link.close()

    on_both_loops(work)


def test_a_peer_that_is_gone_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        link = AgentLink("127.0.0.1", free_port())
        try:
            link.send(b"nobody", m.WhoAreYou())
            await asyncio.sleep(0)
            assert "did not leave" in caplog.text
        finally:
            link.close()

    on_both_loops(work)
