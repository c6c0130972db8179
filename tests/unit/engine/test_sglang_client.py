"""What the agent reads out of SGLang's answers, whose shapes are 0.5.23's, over real sockets."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from seer_sgl.engine.plugin import PROOF_KEY
from seer_sgl.engine.process import free_port
from seer_sgl.engine.sglang import EngineInfo, SGLangClient, error_message
from seer_sgl.errors import EngineUnreachable
from seer_sgl.types import EngineId, EngineSpec
from tests.unit.engine.conftest import Handler, http_server

PROOF = {"version": "1", "platform": "SeerCpuPlatform", "vocab_size": 512, "context_tokens": 4096}
STATE = {"effective_max_running_requests_per_dp": 16, "last_gen_throughput": 0.0}
ANSWERS: dict[str, Any] = {
    "/server_info": {
        "max_total_num_tokens": 65536,
        "page_size": 16,
        "version": "0.5.23",
        "tp_size": 2,
        "api_key": "secret",
        "lora_paths": [],
        "quantization": None,
        "internal_states": [{**STATE, PROOF_KEY: PROOF}],
    },
    "/model_info": {"served_model_name": "small", "weight_version": "default", "model_path": "/m"},
    "/v1/models": {"object": "list", "data": [{"id": "small", "max_model_len": 4096}]},
    "/v1/loads": {
        "loads": [
            {"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 1, "num_used_tokens": 100},
            {"dp_rank": 1, "num_running_reqs": 2, "num_waiting_reqs": 0, "num_used_tokens": 50},
        ]
    },
}
FACTS = {
    "max_total_num_tokens": 65536,
    "page_size": 16,
    "version": "0.5.23",
    "tp_size": 2,
    "quantization": None,
    "front": False,
}


async def sglang(request: web.Request) -> web.StreamResponse:
    return web.json_response(ANSWERS[request.path])


def ask(question: Callable[[SGLangClient], Any], handler: Handler = sglang) -> Any:
    """What a client of such a server finds."""

    async def scenario() -> Any:
        async with http_server(handler) as url:
            client = SGLangClient(url + "/")
            try:
                return await question(client)
            finally:
                await client.close()

    return asyncio.run(scenario())


def test_info_says_what_the_engine_holds_and_no_secret() -> None:
    info = ask(lambda client: client.info(EngineId("e")))
    assert info == EngineInfo(
        spec=EngineSpec(EngineId("e"), 65536, 16, 16, 4096, vocab_size=512),
        model="small",
        sglang_version="0.5.23",
        weight_version="default",
        plugin=PROOF,
        facts=FACTS,
    )


LAYOUT = {"prefix": "small", "suffixes": ["_0_k", "_0_v"]}


@pytest.mark.parametrize(
    ("proof", "front"),
    [
        (None, False),
        ({**PROOF, "front": True}, True),
        ({**PROOF, "pool_layout": None}, False),
        ({**PROOF, "pool_layout": LAYOUT}, False),
    ],
)
def test_what_our_plugin_adds(proof: dict[str, Any] | None, front: bool) -> None:
    async def plain(request: web.Request) -> web.StreamResponse:
        if request.path != "/server_info":
            return await sglang(request)
        state = {**STATE, **({PROOF_KEY: proof} if proof else {})}
        return web.json_response({**ANSWERS["/server_info"], "internal_states": [state]})

    info = ask(lambda client: client.info(EngineId("e")), plain)
    assert (info.plugin, info.spec.vocab_size) == (proof, 512 if proof else None)
    assert info.facts["front"] is front
    layout = (proof or {}).get("pool_layout")
    assert info.facts.get("pool_layout") == layout
    assert ("pool_layout" in info.facts) is (layout is not None)


def test_load_is_summed_over_ranks() -> None:
    assert ask(lambda client: client.load()) == (5, 1, 150)


@pytest.mark.parametrize("question", [SGLangClient.load, lambda c: c.info(EngineId("e"))])
@pytest.mark.parametrize(("status", "text"), [(503, "starting"), (200, "<html>")])
def test_an_error_is_no_answer(question: Callable[[SGLangClient], Any], status: int, text: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    with pytest.raises(EngineUnreachable):
        ask(question, answer)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health(status: int | None, healthy: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.path == "/health_generate", "only this one generates a token"
        if status is None:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200)

    assert ask(lambda client: client.healthy(), answer) is healthy


@pytest.mark.parametrize(
    ("content", "decoded"), [(b'{"a": [1, null]}', {"a": [1, None]}), (b"<html>", "<html>"), (b"", "")]
)
def test_post(content: bytes, decoded: Any) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        assert request.headers["content-type"] == "application/json"
        assert (request.path, await request.read()) == ("/generate", b'{"rid":"r"}')
        return web.Response(status=418, body=content)

    assert ask(lambda client: client.post("/generate", {"rid": "r"}), echo) == (418, decoded)


def test_a_call_goes_on_the_wire_as_it_is() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        said = f"{request.method} {request.raw_path} {request.headers['x-a']}".encode()
        return web.Response(body=said + await request.read(), headers={"X-B": "c"})

    async def question(client: SGLangClient) -> Any:
        async with client.open("PUT", "/a%2Fb?q=%20+x", b"\xff\x00", {"x-a": "1"}) as answer:
            return answer.status, answer.headers, await answer.read()

    status, headers, content = ask(question, echo)
    assert (status, content) == (200, b"PUT /a%2Fb?q=%20+x 1\xff\x00")
    assert headers == {"content-type": "application/octet-stream", "x-b": "c"}


def test_large_bodies_pass_both_ways() -> None:
    sent = bytes(range(256)) * 20_000

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        assert request.headers["content-length"] == str(len(sent))
        body = bytearray()
        async for data in request.content.iter_any():
            body += data
        return web.Response(body=io.BytesIO(body))

    async def question(client: SGLangClient) -> Any:
        async with client.open("POST", "/x", sent) as answer:
            return await answer.read()

    assert ask(question, echo) == sent


def test_an_answer_in_parts_is_read_as_it_comes_and_left_in_the_middle() -> None:
    gone = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        try:
            for number in range(1000):
                await answer.write(b"%d " % number)
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()
        return answer

    async def question(client: SGLangClient) -> Any:
        seen = b""
        async with client.open("GET", "/x") as answer:
            async for data in answer.parts():
                seen += data
                if len(seen) > 4:
                    break
        await asyncio.wait_for(gone.wait(), 5.0)
        return seen

    assert ask(question, drip).startswith(b"0 1 2")


def test_an_answer_that_breaks_off_is_none() -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-length": "100"})
        await answer.prepare(request)
        await answer.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return answer

    async def whole(client: SGLangClient) -> Any:
        async with client.open("GET", "/x") as answer:
            await answer.read()

    async def parts(client: SGLangClient) -> Any:
        async with client.open("GET", "/x") as answer:
            async for _ in answer.parts():
                pass

    for question in (whole, parts):
        with pytest.raises(EngineUnreachable):
            ask(question, breaks)


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:{free_port()}", "http://127.0.0.1:port", "nonsense", "http://"]
)
def test_nobody_there(url: str) -> None:
    async def scenario() -> None:
        client = SGLangClient(url)
        try:
            with pytest.raises(EngineUnreachable):
                await client.post("/generate", {})
        finally:
            await client.close()

    asyncio.run(scenario())


def test_what_fails_inside_the_block_is_told_as_it_is() -> None:
    async def question(client: SGLangClient) -> Any:
        async with client.open("GET", "/v1/models"):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        ask(question)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"error": "too long"}, "too long"),
        ({"message": "too long", "object": "error"}, "too long"),
        ({"detail": 1}, "{'detail': 1}"),
        ("Internal Server Error", "Internal Server Error"),
        (None, "None"),
    ],
)
def test_error_message_of_every_shape(body: Any, message: str) -> None:
    assert error_message(body) == message
