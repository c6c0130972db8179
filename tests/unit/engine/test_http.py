"""The lean HTTP client against servers that say anything, on real sockets and both event loops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from seer_sgl.engine import http as module
from seer_sgl.engine.http import Http
from seer_sgl.errors import EngineUnreachable

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    make = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def runs(work: Any) -> None:
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(asyncio.wait_for(work, 10.0))

    return runs


@contextlib.asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[tuple[Http, list[Any]]]:
    """A client of a server that talks so on each connection, and the connections it has had."""
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client, connections
    finally:
        client.close()
        server.close()
        for writer in connections:
            writer.close()
        await asyncio.sleep(0.01)


async def one_request(reader: asyncio.StreamReader) -> bytes:
    """A request whose body is as long as it says."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return head + await reader.readexactly(int(size or 0))


def answering(*answers: bytes, then: Callable[[asyncio.StreamWriter], None] | None = None) -> Talk:
    """Each request of a connection gets the next answer; then the server hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await one_request(reader)
            writer.write(answer)
            await writer.drain()
        if then is not None:
            then(writer)

    return talk


async def get(client: Http, **named: Any) -> bytes:
    async with client.request("GET", "/x", **named) as answer:
        return await answer.read()


def test_a_request_is_what_was_asked_for(run: Any) -> None:
    async def work() -> None:
        seen = asyncio.Queue[bytes]()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                seen.put_nowait(await one_request(reader))
                writer.write(OK)

        async with talking(talk) as (client, _):
            host = client.url.removeprefix("http://").encode()
            headers = {"X-A": "\xe9 b", "Host": "evil", "Content-Length": "9", "Connection": "close"}
            async with client.request("PUT", "/a?b=%20", b"\x00\xff", headers) as answer:
                assert (answer.status, await answer.read()) == (200, b"ok")
            head = b"PUT /a?b=%20 HTTP/1.1\r\nhost: " + host
            expected = b"\r\ncontent-length: 2\r\nX-A: \xe9 b\r\n\r\n\x00\xff"
            assert await seen.get() == head + expected
            assert await get(client) == b"ok"
            assert await seen.get() == b"GET /x HTTP/1.1\r\nhost: " + host + b"\r\n\r\n"
            async with client.request("POST", "/x"):
                assert b"content-length: 0\r\n" in await seen.get()

    run(work())


def test_a_connection_serves_one_request_after_the_other(run: Any) -> None:
    async def work() -> None:
        async with talking(answering(*[OK] * 200)) as (client, connections):
            for _ in range(100):
                assert await get(client) == b"ok"
            assert len(connections) == 1
            assert await asyncio.gather(*(get(client) for _ in range(20))) == [b"ok"] * 20
            assert len(connections) <= 21

    run(work())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\n\r\nall until the end", b"all until the end"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
    ],
)
def test_a_server_that_hangs_up_after_each_answer(run: Any, answer: bytes, body: bytes) -> None:
    async def work() -> None:
        async with talking(answering(answer)) as (client, connections):
            for number in range(1, 4):
                assert await get(client) == body
                assert len(connections) == number
                await asyncio.sleep(0.01)

    run(work())


def test_chunks_and_headers_however_they_are_cut(run: Any) -> None:
    answer = (
        b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\nDate: now\r\n\r\n"
        b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
    )

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await one_request(reader)
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()
                if at % 9 == 0:
                    await asyncio.sleep(0)

    async def work() -> None:
        async with talking(talk) as (client, connections):
            for _ in range(2):
                async with client.request("GET", "/x") as got:
                    assert (got.status, got.headers) == (201, {"x-a": "1, 2"})
                    assert b"".join([part async for part in got.parts()]) == b"abcdefg"
            assert len(connections) == 1

    run(work())


def test_a_head_has_no_body(run: Any) -> None:
    async def work() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
        async with (
            talking(answering(answer)) as (client, _),
            client.request("HEAD", "/x") as got,
        ):
            assert (got.status, await got.read()) == (200, b"")

    run(work())


@pytest.mark.parametrize("pause_s", [0.0, 0.01])
def test_an_interim_answer_is_not_the_answer(run: Any, pause_s: float) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await one_request(reader)
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
            await asyncio.sleep(pause_s)
            writer.write(OK)

    async def work() -> None:
        async with talking(talk) as (client, connections):
            for _ in range(2):
                async with client.request("GET", "/x") as got:
                    assert (got.status, got.headers, await got.read()) == (200, {}, b"ok")
            assert len(connections) == 1

    run(work())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_whole_answer(run: Any, answer: bytes) -> None:
    async def work() -> None:
        async with talking(answering(answer)) as (client, _):
            with pytest.raises(EngineUnreachable):
                await get(client)

    run(work())


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/x HTTP/1.1\r\nevil: 1", {}),
        ("GET", "/a b", {}),
        ("GET", "/\xe9", {}),
        ("GET /", "/x", {}),
        ("GET", "/x", {"a": "1\r\nevil: 1"}),
        ("GET", "/x", {"a: 1\r\nb": "1"}),
        ("GET", "/x", {"a:b": "1"}),
        ("GET", "/x", {"a": "\u20ac"}),
        ("GET", "", {}),
    ],
)
def test_nothing_is_smuggled(run: Any, method: str, target: str, headers: dict[str, str]) -> None:
    async def work() -> None:
        async with talking(answering(OK)) as (client, connections):
            with pytest.raises(EngineUnreachable, match="cannot be asked over HTTP"):
                async with client.request(method, target, b"", headers):
                    pass
            assert connections == []

    run(work())


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(run: Any) -> None:
    async def work() -> None:
        async with talking(answering(OK)) as (client, connections):
            assert await get(client) == b"ok"
            await asyncio.sleep(0.02)
            assert await get(client) == b"ok"
            assert len(connections) == 2

    run(work())


def test_a_connection_that_was_idle_for_long_is_not_used(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEPALIVE_S", 0.01)

    async def work() -> None:
        async with talking(answering(OK, OK)) as (client, connections):
            await get(client)
            await asyncio.sleep(0.03)
            await get(client)
            assert len(connections) == 2

    run(work())


def test_an_answer_to_nothing_closes_the_connection(run: Any) -> None:
    async def work() -> None:
        async with talking(answering(OK + OK)) as (client, connections):
            assert await get(client) == b"ok"
            await asyncio.sleep(0.02)
            assert await get(client) == b"ok"
            assert len(connections) == 2

    run(work())


def test_who_leaves_in_the_middle_hangs_up(run: Any) -> None:
    async def work() -> None:
        gone = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await one_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
            await reader.read()
            gone.set()

        async with talking(talk) as (client, _):
            async with client.request("GET", "/x") as answer:
                assert await anext(answer.parts()) == b"half"
            await gone.wait()
            gone.clear()
            task = asyncio.create_task(get(client))
            await asyncio.sleep(0.02)
            task.cancel()
            await gone.wait()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(work())


async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def say_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
    await reader.read()


@pytest.mark.parametrize("talk", [say_nothing, say_half])
def test_time_limits(run: Any, talk: Talk) -> None:
    async def work() -> None:
        async with talking(talk) as (client, _):
            with pytest.raises(EngineUnreachable, match="no answer in time"):
                await get(client, timeout_s=0.05)

    run(work())


def test_the_time_limit_of_others_is_not_ours(run: Any) -> None:
    async def work() -> None:
        async with talking(say_nothing) as (client, _):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await get(client, timeout_s=5.0)

    run(work())


def test_a_slow_reader_slows_the_server_down(run: Any) -> None:
    total = 64 * 2**20

    async def work() -> None:
        sent = 0

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await one_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
            for _ in range(64):
                writer.write(bytes(2**20))
                await writer.drain()
                sent += 2**20

        async with talking(talk) as (client, _), client.request("GET", "/x") as answer:
            await asyncio.sleep(0.1)
            assert sent < total / 2
            assert sum([len(part) async for part in answer.parts()]) == total

    run(work())


def test_closing_ends_what_is_under_way(run: Any) -> None:
    async def work() -> None:
        async with talking(say_nothing) as (client, _):
            task = asyncio.create_task(get(client))
            await asyncio.sleep(0.02)
            client.close()
            with pytest.raises(EngineUnreachable, match="closed here"):
                await task

    run(work())
