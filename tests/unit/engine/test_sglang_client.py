"""What the agent reads out of SGLang's answers, whose shapes are 0.5.23's."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from seer_sgl.engine.plugin import PROOF_KEY
from seer_sgl.engine.server import AttachedServer
from seer_sgl.engine.sglang import EngineInfo, SGLangClient, error_message
from seer_sgl.types import EngineId, EngineSpec

PROOF = {"version": "1", "platform": "SeerCpuPlatform", "vocab_size": 512, "context_tokens": 4096}
STATE = {"effective_max_running_requests_per_dp": 16, "last_gen_throughput": 0.0}
ANSWERS: dict[str, Any] = {
    "/server_info": {
        "max_total_num_tokens": 65536,
        "page_size": 16,
        "version": "0.5.23",
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

Handler = Callable[[httpx.Request], httpx.Response]


def sglang(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=ANSWERS[request.url.path])


def ask(question: Callable[[SGLangClient], Any], handler: Handler = sglang) -> Any:
    """The answer of a client whose server is a function."""

    async def scenario() -> Any:
        client = SGLangClient("http://engine:1/")
        await client.close()
        client._http = httpx.AsyncClient(
            base_url=client.url, transport=httpx.MockTransport(handler), verify=False
        )
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(scenario())


def test_info_says_what_the_engine_holds() -> None:
    info = ask(lambda client: client.info(EngineId("e")))
    assert info == EngineInfo(
        spec=EngineSpec(EngineId("e"), 65536, 16, 16, 4096, vocab_size=512),
        model="small",
        sglang_version="0.5.23",
        weight_version="default",
        plugin=PROOF,
    )


def test_a_server_without_our_plugin_is_known_by_its_silence() -> None:
    def plain(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/server_info":
            return sglang(request)
        return httpx.Response(200, json={**ANSWERS["/server_info"], "internal_states": [STATE]})

    info = ask(lambda client: client.info(EngineId("e")), plain)
    assert (info.plugin, info.spec.vocab_size) == (None, None)


def test_load_is_summed_over_ranks() -> None:
    assert ask(lambda client: client.load()) == (5, 1, 150)


@pytest.mark.parametrize("question", [SGLangClient.load, lambda c: c.info(EngineId("e"))])
def test_an_error_is_no_answer(question: Callable[[SGLangClient], Any]) -> None:
    with pytest.raises(httpx.HTTPError):
        ask(question, lambda _: httpx.Response(503, text="starting"))


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health(status: int | None, healthy: bool) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/health_generate", "only this one generates a token"
        if status is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    assert ask(lambda client: client.healthy(), answer) is healthy


@pytest.mark.parametrize(
    ("content", "decoded"), [(b'{"a": [1, null]}', {"a": [1, None]}), (b"<html>", "<html>"), (b"", "")]
)
def test_post(content: bytes, decoded: Any) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        assert request.headers["content-type"] == "application/json"
        assert (request.url.path, request.content) == ("/generate", b'{"rid":"r"}')
        return httpx.Response(418, content=content)

    assert ask(lambda client: client.post("/generate", {"rid": "r"}), echo) == (418, decoded)


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


def test_an_attached_server_is_waited_for_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.engine.server._POLL_S", 0.0)
    monkeypatch.setattr("seer_sgl.engine.server.ATTACHED_POLL_S", 0.0)
    loads = iter([200, 503, 503, 200, 503, 503, 503])
    healths = iter([503, 503, 200])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health_generate":
            return httpx.Response(next(healths))
        if request.url.path == "/v1/loads":
            return httpx.Response(next(loads), json=ANSWERS["/v1/loads"])
        return sglang(request)

    async def scenario() -> None:
        server = AttachedServer("e", "http://engine:1")
        await server.stop()
        server.client._http = httpx.AsyncClient(
            base_url="http://engine:1", transport=httpx.MockTransport(answer), verify=False
        )
        info = await server.start()
        assert info.spec.engine_id == "e"
        error = await server.wait_ended()
        assert "http://engine:1 does not answer" in error.what
        assert [*loads, *healths] == []
        await server.stop()

    asyncio.run(scenario())
