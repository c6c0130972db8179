"""Chunks and calls against servers on real sockets: what the router is told of them."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from seer_sgl.engine import work
from seer_sgl.engine.described import EngineInfo
from seer_sgl.engine.flushing import FLUSH
from seer_sgl.engine.history import told_of
from seer_sgl.engine.sglang import SGLangClient
from seer_sgl.engine.work import Work
from seer_sgl.router import messages as m
from seer_sgl.testing.engine import FAKE_SPEC
from seer_sgl.types import ChunkId, EngineId
from tests.unit.engine.conftest import Handler, http_server

E = EngineId("fake-0")
FINISH = {"type": "length", "length": 3}
BODY = b'{"rid":"r","input_ids":[5]}'


def whole(text: str, ids: list[int], finish: Any = None) -> dict[str, Any]:
    meta = {"finish_reason": finish, "prompt_tokens": 1, "completion_tokens": len(ids)}
    return {"text": text, "output_ids": ids, "meta_info": meta}


CUMULATIVE = [whole("a", [1]), whole("ab", [1, 2]), whole("abc", [1, 2, 3], FINISH)]


def told(
    handler: Handler,
    *asked: m.PostChunk | m.Call,
    facts: dict[str, Any] | None = None,
    launched: bool = False,
) -> list[Any]:
    """What the router hears when it asks this of an agent with such a server."""
    said: list[Any] = []

    async def scenario() -> None:
        async with http_server(handler) as url:
            client = SGLangClient(url)
            info = EngineInfo(FAKE_SPEC, "m", "0.5.23", "default", None, facts or {}, launched)
            ours = Work(client, info, said.append)
            ours.router_url = "http://router:1"
            try:
                for each in asked:
                    await (ours.run_chunk(each) if isinstance(each, m.PostChunk) else ours.perform(each))
            finally:
                await client.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "BROKEN_PAUSE_S", 0.0)
        asyncio.run(asyncio.wait_for(scenario(), 10.0))
    return said


def post(streams: bool = False) -> m.PostChunk:
    return m.PostChunk(ChunkId(1), "r", BODY, streams)


def streaming(*parts: Any, pause_s: float = 0.02, status: int = 200, cut: bool = False) -> Handler:
    """A server whose answer is these events, or bytes, with a pause after each."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert await request.read() in (BODY, b"")
        response = web.StreamResponse(status=status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            data = part if isinstance(part, bytes) else b"data: " + msgspec.json.encode(part) + b"\n\n"
            await response.write(data)
            await asyncio.sleep(pause_s)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


DONE = b"data: [DONE]\n\n"


def test_a_chunk_is_answered_with_the_bytes_of_sglang() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path, await request.read()) == ("POST", "/generate", BODY)
        return web.Response(body=b'{"text": "a"}')

    assert told(answer, post()) == [m.ChunkReplied(E, ChunkId(1), b'{"text": "a"}')]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [(400, b'{"error":{"message":"too long"}}', "too long"), (500, b"oops", "oops")],
)
def test_a_refusal_is_told_with_its_status(
    streams: bool, status: int, content: bytes, reason: str
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=content)

    assert told(answer, post(streams)) == [m.ChunkBroke(E, ChunkId(1), reason, status)]


INCREMENTAL = [whole("a", [1]), whole("b", [2]), whole("c", [3], FINISH)]


@pytest.mark.parametrize(("incremental", "events"), [(False, CUMULATIVE), (True, INCREMENTAL)])
def test_a_chunk_tells_its_progress(incremental: bool, events: list[dict[str, Any]]) -> None:
    facts = {"incremental_streaming_output": incremental}
    *progress, answered = told(streaming(*events, DONE), post(True), facts=facts)
    assert [(p.keep_chars, p.text, p.new_ids) for p in progress] == [
        (0, "a", [1]),
        (1, "b", [2]),
        (2, "c", [3]),
    ]
    assert {type(p) for p in progress} == {m.ChunkProgress}
    assert answered.answer["text"] == "abc"
    assert answered.answer["output_ids"] == [1, 2, 3]
    assert answered.answer["meta_info"]["finish_reason"] == FINISH


def test_what_arrives_together_is_one_step() -> None:
    together = b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in CUMULATIVE)
    first, rest, answered = told(streaming(together[:-9], together[-9:] + DONE), post(True))
    assert (first.new_ids, rest.new_ids) == ([1, 2], [3])
    assert answered.answer == CUMULATIVE[-1]


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        (({"error": {"message": "too long", "code": 400}}, DONE), 400, "too long"),
        ((CUMULATIVE[0], {"error": {"message": "bad", "code": 500}}), 500, "bad"),
        ((whole("", [], {"type": "abort", "message": "full", "status_code": 503}), DONE), 503, "full"),
        ((CUMULATIVE[0], DONE), None, "ended the stream before"),
        ((b"data: {\n\n",), None, "no JSON"),
    ],
)
def test_errors_in_a_stream_break_the_chunk(
    events: tuple[Any, ...], status: int | None, reason: str
) -> None:
    *_, broke = told(streaming(*events), post(True))
    assert isinstance(broke, m.ChunkBroke)
    assert (broke.status, reason in broke.reason) == (status, True), broke


def test_a_stream_that_is_cut_breaks_the_chunk() -> None:
    *_, broke = told(streaming(CUMULATIVE[0], cut=True), post(True))
    assert isinstance(broke, m.ChunkBroke)
    assert (broke.status, broke.reason.startswith("no answer from SGLang")) == (None, True)


def test_an_aborted_chunk_comes_back_with_what_it_has() -> None:
    aborted = whole("ab", [1, 2], {"type": "abort", "message": "Abort in waiting queue"})
    *_, answered = told(streaming(CUMULATIVE[0], aborted, DONE), post(True))
    assert isinstance(answered, m.ChunkAnswered)
    assert answered.answer["output_ids"] == [1, 2]


def call(target: str = "/x", body: bytes = b"") -> m.Call:
    headers = {"x-mine": "1", "X-Seer-Router": "http://evil"}
    return m.Call(7, "POST", target, headers, body)


def test_a_call_tells_sglang_where_the_router_is() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        said = [request.method, request.raw_path, request.headers["x-mine"]]
        return web.json_response([*said, *request.headers.getall("x-seer-router")], status=201)

    (answered,) = told(echo, call("/x?y=%2F"))
    assert isinstance(answered, m.CallAnswered)
    assert (answered.call_id, answered.status) == (7, 201)
    assert answered.headers["content-type"] == "application/json; charset=utf-8"
    assert msgspec.json.decode(answered.body) == ["POST", "/x?y=%2F", "1", "http://router:1"]


def test_events_of_a_call_are_passed_on_as_they_come() -> None:
    began, *parts, ended = told(streaming(b"data: 1\n\n", b"data: 2\n\n"), call())
    assert (began.status, began.headers["content-type"]) == (200, "text/event-stream")
    assert parts == [m.CallPart(E, 7, b"data: 1\n\n"), m.CallPart(E, 7, b"data: 2\n\n")]
    assert ended == m.CallEnded(E, 7, "")


def test_events_that_break_off_are_told_as_such() -> None:
    *_, ended = told(streaming(b"data: 1\n\n", cut=True), call())
    assert isinstance(ended, m.CallEnded)
    assert "broke off" in ended.error


def test_a_call_without_an_answer() -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    (answered,) = told(hang_up, call())
    assert (answered.status, answered.body.startswith(b"no answer from SGLang")) == (0, True)


def test_memory_is_released_only_where_nothing_runs() -> None:
    running = iter([1, 0])
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/v1/loads":
            load = {"num_running_reqs": next(running), "num_waiting_reqs": 0, "num_used_tokens": 0}
            return web.json_response({"loads": [load]})
        return web.json_response(None)

    release, resume = "/release_memory_occupation", "/resume_memory_occupation"
    twice = [call(release), call(release), call(resume), call(resume)]
    answers = told(answer, *twice, facts={"enable_memory_saver": True})
    assert [each.status for each in answers] == [400, 200, 200, 400]
    assert asked == ["/v1/loads", "/v1/loads", release, resume]


@pytest.mark.parametrize(("launched", "status"), [(True, 400), (False, 200)])
def test_a_profile_goes_where_it_can_be_written(launched: bool, status: int, tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response()

    file = tmp_path / "file"
    file.write_text("")
    folders = [str(file / "below"), str(tmp_path / "new" / "folder")]
    bodies = [msgspec.json.encode({"output_dir": folder}) for folder in folders]
    calls = [call("/start_profile", body) for body in bodies]
    answers = told(answer, *calls, launched=launched)
    assert [each.status for each in answers] == [status, 200]
    assert (tmp_path / "new" / "folder").exists() is launched


def test_what_would_end_the_server_is_refused_by_the_agent() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        raise AssertionError("it was asked")

    (refused,) = told(answer, call("/release_memory_occupation"))
    assert (refused.status, b"--enable-memory-saver" in refused.body) == (400, True)


@pytest.mark.parametrize(("launched", "status"), [(True, 400), (False, 200)])
def test_a_folder_of_weights_is_looked_at_where_the_server_is_ours(launched: bool, status: int) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"success": True, "message": "", "loads": []})

    update = call("/update_weights_from_disk", b'{"model_path":"/none"}')
    (answered,) = told(answer, update, launched=launched)
    assert answered.status == status
    said = msgspec.json.decode(answered.body)
    if launched:
        message = said["error"]["message"]
        assert message.startswith("/update_weights_from_disk: the folder /none does not exist")


def test_a_path_that_cannot_be_looked_at_leaves_the_server_as_it_was() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        raise AssertionError("it was asked")

    body = msgspec.json.encode({"model_path": "/" + "x" * 300})
    (refused,) = told(answer, call("/update_weights_from_disk", body), launched=True)
    assert (refused.status, b"cannot be read: File name too long" in refused.body) == (400, True)


@pytest.mark.parametrize(
    ("running", "flush", "note"),
    [(0, 200, ""), (0, 400, " The cache was not flushed: Timed out."), (3, 0, " The cache was not fl")],
)
def test_an_update_is_flushed_by_a_call_of_its_own(running: int, flush: int, note: str) -> None:
    """SGLang does not wait for pages that it still writes, and fails the update then."""
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((request.path_qs, msgspec.json.decode(await request.read() or b"null")))
        if request.path == "/v1/loads":
            load = {"num_running_reqs": running, "num_waiting_reqs": 0, "num_used_tokens": 0}
            return web.json_response({"loads": [load]})
        if request.path == "/flush_cache":
            return web.Response(text="Timed out" if flush == 400 else "Cache flushed.", status=flush)
        return web.json_response({"success": True, "message": "Done."})

    path = "/update_weights_from_disk"
    (answered,) = told(answer, call(path, b'{"model_path":"/new"}'))
    assert answered.status == 200
    said = msgspec.json.decode(answered.body)
    assert said["success"]
    assert said["message"].startswith(f"Done.{note}")
    assert asked[0] == (path, {"flush_cache": False, "model_path": "/new"})
    assert asked[1] == ("/v1/loads?include=core", None)
    assert asked[2:] == ([] if running else [(FLUSH, {})])


def test_an_update_that_fails_is_not_flushed() -> None:
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"success": False, "message": "no"}, status=400)

    (answered,) = told(answer, call("/update_weights_from_disk", b'{"model_path":"/new"}'))
    assert answered.status == 400
    assert asked == ["/update_weights_from_disk"]


@pytest.mark.parametrize(("folder", "unsure"), [("/none", False), ("", True)])
def test_only_what_went_to_the_server_counts_in_its_history(folder: str, unsure: bool) -> None:
    """It refuses whatever it is asked: the check before that keeps one call from it."""

    async def refuses(_: web.Request) -> web.StreamResponse:
        return web.Response(status=400)

    async def scenario() -> None:
        async with http_server(refuses) as url:
            client = SGLangClient(url)
            info = EngineInfo(FAKE_SPEC, "m", "0.5.23", "default", None, {}, launched=True)
            ours = Work(client, info, lambda message: answered(ours, message))
            body = msgspec.json.encode({"model_path": folder} if folder else {})
            asked = call("/update_weights_from_disk", body)
            ours.history.asked(asked.call_id, asked.target, asked.body)
            await ours.perform(asked)
            await client.close()
            assert told_of(ours.history.told()).unsure is unsure

    def answered(ours: Work, message: Any) -> None:
        ours.history.answered(message.call_id, message.status)

    asyncio.run(asyncio.wait_for(scenario(), 10.0))
