"""Chat and completions, passed on to an engine's own server."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from seer_sgl.engine import work
from seer_sgl.errors import EngineUnreachable
from seer_sgl.router.http import openai
from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer
from seer_sgl.types import EngineId
from tests.unit.router.conftest import Cluster, cluster, run, server, together, until

CHAT = "/v1/chat/completions"
HELLO = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"id": "c", \n "choices" : []}'


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "BROKEN_PAUSE_S", 0.0)


def speaking(name: str, answer: Any = None, front: bool = True) -> FakeServer:
    """A server that answers chats: with this, an exception, or what a function of the call gives."""
    made = server(name, facts={"front": front})
    made.script[CHAT] = made.script["/v1/completions"] = Reply(200, ANSWER) if answer is None else answer
    return made


def test_the_request_reaches_the_server_as_it_is_and_so_does_the_answer() -> None:
    async def scenario() -> None:
        engine = speaking("a")
        body = b'{ "model":"fake-model","unknown":[1e3], "messages":[]}'
        headers = {
            "x-seer-group": "g",
            "x-seer-router": "http://elsewhere",
            "authorization": "Bearer k",
            "x-smg-routing-key": "s",
        }
        async with cluster(engine) as it:
            for path in (CHAT, "/v1/completions"):
                answer = await it.http.post(path, content=body, headers=headers)
                assert (answer.status_code, answer.content) == (200, ANSWER)
                assert answer.headers["content-type"] == "application/json"
                asked = engine.calls[-1]
                assert (asked.method, asked.target, asked.body) == ("POST", path, body)
                assert asked.headers["x-seer-group"] == "g"
                assert asked.headers["authorization"] == "Bearer k"
                assert asked.headers["x-smg-routing-key"] == "s"
                assert asked.headers["x-seer-router"] == f"http://127.0.0.1:{it.config.http_port}"
                assert "host" not in asked.headers
        ids = {asked.headers["x-seer-rid"] for asked in engine.calls}
        assert len(ids) == 2

    run(scenario())


def test_engines_that_divide_take_turns() -> None:
    async def scenario() -> None:
        dividing, whole = [speaking("a"), speaking("b")], speaking("c", front=False)
        async with cluster(*dividing, whole) as it:
            for _ in range(6):
                await it.http.post(CHAT, json=HELLO)
            assert [len(each.calls) for each in (*dividing, whole)] == [3, 3, 0]
            it.service.roster.members[EngineId("a")].quarantine = "its weights are old"
            for _ in range(6):
                await it.http.post(CHAT, json=HELLO)
            assert [len(each.calls) for each in (*dividing, whole)] == [3, 9, 0]
        async with cluster(alone := speaking("c", front=False)) as it:
            assert (await it.http.post(CHAT, json=HELLO)).status_code == 200
        assert len(alone.calls) == 1

    run(scenario())


def test_a_stream_goes_through_byte_for_byte() -> None:
    parts = [b"data: {", b'"a": 1}\n', b"\ndata: [DO", b"NE]\n\n"]

    async def scenario() -> None:
        def streamed(_: Asked) -> Reply:
            return Reply(200, events=_each(parts))

        async with cluster(speaking("a", streamed)) as it:
            answer = await it.http.post(CHAT, json={**HELLO, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content == b"".join(parts)

    run(scenario())


async def _each(parts: list[Any], then: BaseException | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await asyncio.sleep(0)
    if then is not None:
        raise then


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("status", "body", "message", "param", "code"),
    [
        (
            400,
            {"object": "error", "message": "too long", "type": "Bad", "param": "n", "code": 400},
            "too long",
            "n",
            "bad_request",
        ),
        (422, {"error": {"message": "no", "code": "a_word"}}, "no", None, "a_word"),
        (503, {"error": {"message": "full", "code": "503"}}, "full", None, "service_unavailable"),
        (400, {"error": "plain"}, "plain", None, "bad_request"),
        (404, {"detail": "Not Found"}, "Not Found", None, "not_found"),
        (500, b"Internal Server Error", "Internal Server Error", None, "internal_server_error"),
        (500, b"", "SGLang answered 500", None, "internal_server_error"),
    ],
)
def test_errors_have_one_shape(
    streams: bool, status: int, body: Any, message: str, param: str | None, code: str
) -> None:
    async def scenario() -> None:
        engine = speaking("a", Reply(status, body))
        async with cluster(engine) as it:
            answer = await it.http.post(CHAT, json={**HELLO, "stream": streams})
        assert answer.status_code == status
        error = answer.json()["error"]
        assert (error["message"], error["param"], error["code"]) == (message, param, code)
        assert len(engine.calls) == 1, "a server's own error is no reason to ask another one"

    run(scenario())


def test_what_cannot_be_passed_on_is_refused_here() -> None:
    async def scenario() -> None:
        engine = speaking("a")
        async with cluster(engine, max_body_bytes=300) as it:
            for content, status in ((b"{", 400), (b"[1]", 400), (b"1", 400), (b"{}" + b" " * 300, 413)):
                answer = await it.http.post(CHAT, content=content)
                assert answer.status_code == status
                assert answer.json()["error"]["type"] == "invalid_request_error"
        assert engine.calls == []

    run(scenario())


@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("fake-model", True),
        ("fake-model:adapter", True),
        ("default", True),
        ("", True),
        (None, True),
        (7, True),  # SGLang says what is wrong with it
        ("gpt-4o", False),
        ("fake-mode", False),
        ("fake-model-2", False),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_only_a_model_that_is_served(model: Any, served: bool, streams: bool) -> None:
    async def scenario() -> None:
        async with cluster(speaking("a")) as it:
            answer = await it.http.post(CHAT, json={**HELLO, "model": model, "stream": streams})
        if served:
            assert (answer.status_code, answer.content) == (200, ANSWER)
            return
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "fake-model" in error["message"]

    run(scenario())


@pytest.mark.parametrize("streams", [False, True])
def test_another_engine_is_asked_where_one_goes_away(streams: bool) -> None:
    async def scenario() -> None:
        fallen, standing = speaking("a", EngineUnreachable("reset")), speaking("b")
        async with cluster(fallen, standing) as it:
            for _ in range(4):
                answer = await it.http.post(CHAT, json={**HELLO, "stream": streams})
                assert (answer.status_code, answer.content) == (200, ANSWER)
        assert fallen.calls
        async with cluster(speaking("a", EngineUnreachable("reset"))) as it:
            answer = await it.http.post(CHAT, json={**HELLO, "stream": streams})
            (engine,) = it.service.roster.members
        assert answer.status_code == 503
        assert engine in answer.json()["error"]["message"]

    run(scenario())


def test_a_stream_that_breaks_before_its_first_byte_begins_elsewhere() -> None:
    async def scenario() -> None:
        def broken(_: Asked) -> Reply:
            return Reply(200, events=_each([], EngineUnreachable("reset")))

        def good(_: Asked) -> Reply:
            return Reply(200, events=_each([b"data: [DONE]\n\n"]))

        fallen = speaking("a", broken)
        async with cluster(fallen, speaking("b", good)) as it:
            for _ in range(4):
                answer = await it.http.post(CHAT, json={**HELLO, "stream": True})
                assert (answer.status_code, answer.content) == (200, b"data: [DONE]\n\n")
        assert fallen.calls

    run(scenario())


def test_a_stream_that_breaks_in_the_middle_says_so() -> None:
    async def scenario() -> None:
        def broken(_: Asked) -> Reply:
            return Reply(200, events=_each([b"data: {}\n\n"], EngineUnreachable("reset")))

        async with cluster(speaking("a", broken)) as it:
            answer = await it.http.post(CHAT, json={**HELLO, "stream": True})
        first, error, done, _ = answer.content.split(b"\n\n")
        assert (first, done) == (b"data: {}", b"data: [DONE]")
        assert "reset" in msgspec.json.decode(error.removeprefix(b"data: "))["error"]["message"]

    run(scenario())


def test_requests_wait_for_an_engine() -> None:
    async def scenario() -> None:
        async with cluster() as it, together(it.http.post(CHAT, json=HELLO)) as waiting:
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await it.join(speaking("a"))
            assert (await waiting).status_code == 200

    run(scenario())


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_hangs_up_ends_the_work(streams: bool, begun: bool) -> None:
    ended = asyncio.Event()
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            if begun:
                yield b"data: {}\n\n"
            started.set()
            await asyncio.sleep(60)
            yield b""
        finally:
            ended.set()

    async def scenario() -> None:
        async with cluster(speaking("a", lambda _: Reply(200, events=endless()))) as it:
            await _hang_up(it, streams, started)
            await until(ended.is_set)

    run(scenario())


async def _hang_up(it: Cluster, streams: bool, started: asyncio.Event) -> None:
    body = msgspec.json.encode({**HELLO, "stream": streams})
    _, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    writer.write(body)
    await started.wait()
    writer.close()
    await writer.wait_closed()


def test_one_line_of_a_batch() -> None:
    async def scenario() -> None:
        async with cluster(speaking("a")) as it:
            front: Any = SimpleNamespace(roster=it.service.roster, calls=it.service._calls)
            body = msgspec.json.encode(HELLO)
            assert await openai.complete(front, CHAT, body, {}) == (200, ANSWER)
            for changed, status in (({"model": "other"}, 404), ({"stream": True}, 400)):
                body = msgspec.json.encode({**HELLO, **changed})
                answered, content = await openai.complete(front, CHAT, body, {})
                assert answered == status
                assert msgspec.json.decode(content)["error"]["param"] in changed

    run(scenario())


def test_a_chat_that_a_server_generates_by_itself_runs_under_the_weights_of_its_salt() -> None:
    async def scenario() -> None:
        engine = speaking("a", front=False)
        async with cluster(engine) as it:
            dispatcher = it.service.dispatcher
            await it.http.post(CHAT, json=HELLO)
            dispatcher.pause()
            async with together(it.http.post(CHAT, json=HELLO)) as call:
                await asyncio.sleep(0.05)
                assert len(engine.calls) == 1, "it waits in the router, or its salt would be of the past"
                dispatcher.new_epoch()
                dispatcher.resume()
                assert (await call).status_code == 200
        before, after = (asked.json() for asked in engine.calls)
        assert before.pop("cache_salt") != after.pop("cache_salt")
        assert before == after == HELLO

    run(scenario())


@pytest.mark.parametrize("streams", [False, True])
def test_a_chat_that_a_server_generates_by_itself_counts_as_on_its_way(streams: bool) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"data: {}\n\n"
            await go_on.wait()

        engine = speaking("a", lambda _: Reply(200, events=events()), front=False)
        async with (
            cluster(engine) as it,
            together(it.http.post(CHAT, json={**HELLO, "stream": streams})) as call,
        ):
            dispatcher = it.service.dispatcher
            await until(lambda: engine.calls)
            assert dispatcher.on_their_way == 1
            go_on.set()
            assert (await call).status_code == 200
            await until(lambda: not dispatcher.on_their_way)

    run(scenario())
