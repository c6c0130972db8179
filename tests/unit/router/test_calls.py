"""HTTP calls to engines, from the router through agents to servers and back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from seer_sgl.errors import EngineUnreachable
from seer_sgl.router.calls import CallError, EngineAnswer, EngineCalls
from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer
from seer_sgl.types import EngineId
from tests.unit.router.conftest import Cluster, cluster, run, server, together, until

A, B = EngineId("a"), EngineId("b")


@contextlib.asynccontextmanager
async def calls_to(*servers: FakeServer) -> AsyncIterator[tuple[EngineCalls, Cluster]]:
    async with cluster(*servers) as it:
        yield it.service._calls, it
        assert not it.service._calls._asked, "a call was not forgotten"


async def never() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"
    await asyncio.Event().wait()


class Hanging:
    """A server whose answers to a path do not come, and that notes who hung up."""

    def __init__(self, name: str, path: str) -> None:
        self.server = server(name)
        self.asked = 0
        self.hung_up = 0
        open_ = self.server.fake.open

        @contextlib.asynccontextmanager
        async def hang(method: str, target: str, *sent: Any, **named: Any) -> AsyncIterator[Any]:
            if target == path:
                self.asked += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hung_up += 1
            async with open_(method, target, *sent, **named) as answer:
                yield answer

        self.server.client.open = hang  # type: ignore[method-assign]


def test_a_call_arrives_as_it_was_made_and_so_does_its_answer() -> None:
    async def scenario() -> None:
        a = server("a")
        a.script["/x"] = Reply(418, b"\xff\x00", headers={"content-type": "image/x", "x-worker-id": "7"})
        async with calls_to(a, server("b")) as (calls, it):
            answer = await calls.ask(A, "PUT", "/x?y=%20", b"\xfe", {"x-mine": "1"})
            assert (answer.status, answer.body) == (418, b"\xff\x00")
            assert answer.headers == {"content-type": "image/x", "x-worker-id": "7"}
            router = f"http://127.0.0.1:{it.config.http_port}"
            headers = {"x-mine": "1", "x-seer-router": router}
            assert a.calls == [Asked("PUT", "/x?y=%20", headers, b"\xfe")]

    run(scenario())


async def both(
    calls: EngineCalls, method: str, bodies: dict[EngineId, bytes]
) -> dict[EngineId, EngineAnswer]:
    """What both engines answer, asked at once."""
    asking = (calls.ask(engine, method, "/x", bodies.get(engine, b"")) for engine in (A, B))
    return dict(zip((A, B), await asyncio.gather(*asking), strict=True))


def test_several_are_asked_at_once_each_with_a_body_of_its_own() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        for each in (a, b):
            each.script["/x"] = lambda asked: {"got": asked.body.decode()}
        async with calls_to(a, b) as (calls, _):
            answers = await both(calls, "POST", {A: b"only a", B: b"only b"})
            assert {e: answer.json() for e, answer in answers.items()} == {
                A: {"got": "only a"},
                B: {"got": "only b"},
            }

    run(scenario())


def test_any_takes_turns_and_is_asked_elsewhere_when_one_goes() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with calls_to(a, b) as (calls, _):
            for _ in range(4):
                await calls.ask_any("GET", "/x")
            assert (len(a.calls), len(b.calls)) == (2, 2)
        hanging = Hanging("a", "/x")
        async with calls_to(hanging.server) as (calls, it), together(calls.ask_any("GET", "/x")) as ask:
            await until(lambda: hanging.asked)
            await it.join(b)
            hanging.server.kill()
            assert (await ask).json() == {"success": True, "message": ""}

    run(scenario())


def test_a_call_waits_for_the_first_engine() -> None:
    async def scenario() -> None:
        async with calls_to() as (calls, it), together(calls.ask_any("GET", "/x")) as asked:
            await asyncio.sleep(0.02)
            assert not asked.done()
            await it.join(server("a"))
            assert (await asked).status == 200

    run(scenario())


def test_an_engine_that_is_not_here_or_goes_answers_503() -> None:
    async def scenario() -> None:
        hanging = Hanging("a", "/x")
        async with calls_to(hanging.server, server("b")) as (calls, _):
            assert (await calls.ask(EngineId("c"), "GET", "/x")).status == 503
            async with together(both(calls, "GET", {})) as asking:
                await until(lambda: hanging.asked)
                hanging.server.kill()
                answers = await asking
            assert {e: answer.status for e, answer in answers.items()} == {A: 503, B: 200}
            assert "no answer from engine a" in answers[A].json()["error"]["message"]

    run(scenario())


def test_a_server_that_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.engine.work.BROKEN_PAUSE_S", 0.01)

    async def scenario() -> None:
        a, b = server("a"), server("b")
        a.script["/x"] = EngineUnreachable("refused")
        async with calls_to(a, b) as (calls, _):
            answer = await calls.ask(A, "GET", "/x")
            assert (answer.status, "refused" in answer.body.decode()) == (503, True)
            for _ in range(2):
                assert (await calls.ask_any("GET", "/x")).status == 200

    run(scenario())


def test_call_answers_json_or_raises() -> None:
    async def scenario() -> None:
        a = server("a")
        broken = iter([500, 500, 200])
        a.script["/busy"] = lambda _: Reply(next(broken), {"ok": 1})
        a.script["/wrong"] = Reply(400, {"error": {"message": "no such thing"}})
        async with calls_to(a) as (calls, _):
            assert await calls.call("/tokenize", {"prompt": ["ab"]}) == {"tokens": [[97, 98]]}
            assert await calls.call("/busy", {}) == {"ok": 1}
            with pytest.raises(CallError, match=r"/wrong failed: 400: .*no such thing"):
                await calls.call("/wrong", {})
            a.script["/busy"] = Reply(500, b"out of memory")
            with pytest.raises(CallError, match="out of memory"):
                await calls.call("/busy", {})

    run(scenario())


def test_who_stops_waiting_stops_the_call() -> None:
    async def scenario() -> None:
        hanging = [Hanging(name, "/x") for name in ("a", "b")]
        async with calls_to(*(each.server for each in hanging)) as (calls, _):
            async with together(both(calls, "GET", {})):
                await until(lambda: all(each.asked for each in hanging))
            await until(lambda: all(each.hung_up for each in hanging))

    run(scenario())


def test_events_come_as_they_are_sent() -> None:
    async def scenario() -> None:
        a, turn = server("a"), asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await turn.wait()
            yield b"data: 2\n\n"

        a.script["/x"] = lambda _: Reply(200, events=events())
        async with calls_to(a) as (calls, _):
            async with calls.stream(A, "POST", "/x") as stream:
                assert (stream.status, stream.headers["content-type"]) == (
                    200,
                    "text/event-stream; charset=utf-8",
                )
                assert await anext(stream) == b"data: 1\n\n"
                turn.set()
                assert [part async for part in stream] == [b"data: 2\n\n"]
            assert (await calls.ask(A, "POST", "/x")).body == b"data: 1\n\ndata: 2\n\n"

    run(scenario())


def test_an_answer_that_is_no_stream_comes_as_one_part() -> None:
    async def scenario() -> None:
        a = server("a")
        a.script["/x"] = Reply(400, {"error": 1})
        async with calls_to(a) as (calls, _):
            for engine, status in ((A, 400), (EngineId("c"), 503)):
                async with calls.stream(engine, "POST", "/x") as stream:
                    assert stream.status == status
                    assert len([part async for part in stream]) == 1

    run(scenario())


@pytest.mark.parametrize("how", ["leave", "cancel"])
def test_leaving_a_stream_hangs_up(how: str) -> None:
    async def scenario() -> None:
        a, gone = server("a"), asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            try:
                async for part in never():
                    yield part
            finally:
                gone.set()

        a.script["/x"] = lambda _: Reply(200, events=events())

        async def listen(calls: EngineCalls) -> None:
            async with calls.stream(A, "POST", "/x") as stream:
                async for _ in stream:
                    if how == "leave":
                        return
                    heard.set()

        heard = asyncio.Event()
        async with calls_to(a) as (calls, _):
            async with together(listen(calls)) as listening:
                if how == "leave":
                    await listening
                else:
                    await heard.wait()
            await asyncio.wait_for(gone.wait(), 2.0)

    run(scenario())


@pytest.mark.parametrize("who", ["server", "agent"])
def test_a_stream_that_breaks_off_says_so(who: str) -> None:
    async def scenario() -> None:
        a, turn = server("a"), asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await turn.wait()
            raise EngineUnreachable("reset")

        a.script["/x"] = lambda _: Reply(200, events=events())
        async with calls_to(a) as (calls, _), calls.stream(A, "POST", "/x") as stream:
            assert await anext(stream) == b"data: 1\n\n"
            turn.set() if who == "server" else a.kill()
            with pytest.raises(CallError, match="broke off" if who == "server" else "a left"):
                await anext(stream)

    run(scenario())


def test_an_answer_is_what_it_is() -> None:
    assert EngineAnswer(200, {}, b'{"a":1}').json() == {"a": 1}


def test_a_control_call_that_would_end_the_server_never_reaches_it() -> None:
    async def scenario() -> None:
        a = server("a")
        async with calls_to(a) as (calls, _):
            answer = await calls.ask(A, "POST", "/release_memory_occupation", b"{}")
            assert answer.status == 400
            assert "--enable-memory-saver" in answer.json()["error"]["message"]
            assert a.calls == []

    run(scenario())
