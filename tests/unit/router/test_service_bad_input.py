"""Requests at fault: a 4xx at once that names the field, while everything else goes on."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from seer_sgl.router.chunking import chunk_body
from seer_sgl.router.live import Live
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

BAD: list[tuple[Any, str, str]] = [
    (b"not json", "", "not JSON"),
    (b"", "", "not JSON"),
    (b"\xff{}", "", "not JSON"),
    (b"[" * 100_000, "", "not JSON"),
    ([1], "", "JSON object, got list"),
    ({}, "input_ids", "a prompt is missing"),
    ({"text": "a", "input_ids": [1]}, "input_ids", "not both"),
    ({"text": ""}, "text", "must not be empty"),
    ({"text": ["a", ""]}, "text", "must not be empty"),
    ({"input_ids": []}, "input_ids", "at least one"),
    ({"input_ids": [5, 256]}, "input_ids", "[0, 255], got 256"),
    ({"input_ids": [5, -1]}, "input_ids", "from 0, got -1"),
    ({"input_ids": [2**70]}, "input_ids", "from 0, got"),
    ({"input_ids": [5] * 2047}, "input_ids", "at most 2045"),
    ({"text": "a" * 5000}, "text", "5000 tokens"),
    (
        {"input_ids": [5], "sampling_params": {"max_new_tokens": 0.5}},
        "sampling_params.max_new_tokens",
        "an integer",
    ),
    (
        {"input_ids": [5], "sampling_params": {"max_new_tokens": -1}},
        "sampling_params.max_new_tokens",
        "at least 0",
    ),
    (
        {"input_ids": [5], "sampling_params": {"max_new_tokens": 2048}},
        "sampling_params.max_new_tokens",
        "[0, 2047]",
    ),
    ({"input_ids": [5], "sampling_params": {"n": 0}}, "sampling_params.n", "at least 1"),
    ({"input_ids": [5], "sampling_params": {"heat": 1}}, "sampling_params.heat", "temperature"),
    ({"input_ids": [5], "sampling_params": {"top_p": 2}}, "sampling_params.top_p", "(0, 1]"),
    ({"input_ids": [5], "sampling_params": {"sampling_seed": 2**70}}, "sampling_params", "passed on"),
    ({"input_ids": [5], "tomorrow": -(2**70)}, "tomorrow", "passed on"),
    ({"text": ["a", "b"], "token_ids_logprob": [[1]]}, "token_ids_logprob", "1 entries for 2"),
    ({"input_ids": [5], "rid": 7}, "rid", "must be a string"),
    *(
        ({"input_ids": [5], key: value}, key, "must be a string")
        for key in ("cache_salt", "extra_key")
        for value in (5, True, {"a": 1}, ["a"])
    ),
    ({"input_ids": [5], "routed_experts_start_len": "1"}, "routed_experts_start_len", "a whole number"),
]


async def post(it: Cluster, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body)
    return await it.http.post("/generate", content=content)


def test_bad_input_is_told_at_once_and_disturbs_nobody() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(server(token_s=0.002)) as it, together(it.generate(prompt)) as good:
            await until(lambda: it.service.core.statistics().in_flight)
            for body, field, says in BAD:
                answer = await asyncio.wait_for(post(it, body), 1.0)
                error = answer.json()["error"]
                assert answer.status_code == 400, (body, answer.text)
                assert error["code"] == "bad_request"
                assert error["param"] == (field or None), error
                assert error["message"].startswith(field), error
                assert says in error["message"], error
            assert (await good)["output_ids"] == continuation(prompt, 128)

    run(scenario())


@pytest.mark.parametrize("value", [True, 5, {"a": 1}, "x"])
def test_a_batch_field_of_a_strange_type_is_the_engines_to_judge(value: Any) -> None:
    async def scenario() -> None:
        def judge(body: dict[str, Any]) -> tuple[int, str] | None:
            return None if body["token_ids_logprob"] == value else (500, "changed on its way")

        async with cluster(server(refuse=judge)) as it:
            answer = await post(it, {"text": ["a", "b"], "token_ids_logprob": value})
        assert answer.status_code == 200

    run(scenario())


def test_a_chunk_that_cannot_be_made_harms_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(live: Live, *args: Any) -> dict[str, Any]:
        if live.transcript.prompt_ids == [5]:
            raise ValueError("a mistake of ours")
        return chunk_body(live, *args)

    monkeypatch.setattr("seer_sgl.router.dispatcher.chunk_body", failing)

    async def scenario() -> None:
        async with cluster(server()) as it:
            (answer, *others) = await asyncio.gather(*(it.post({"input_ids": [n]}) for n in (5, 6, 7)))
            ends = [each.json()["meta_info"]["finish_reason"] for each in (answer, *others)]
            assert [end["type"] for end in ends] == ["abort", "stop", "stop"]
            assert "a mistake of ours" in ends[0]["message"]
            assert it.service.core.statistics().in_flight == 0

    run(scenario())
    assert "no body for chunk" in caplog.text
    caplog.clear()


async def _in_parts(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 64):
        yield body[start : start + 64]


def test_body_over_the_limit() -> None:
    async def scenario() -> None:
        fits = json.dumps({"input_ids": [5], "note": "x" * 100}).encode()
        large = json.dumps({"input_ids": [5], "note": "x" * 1000}).encode()
        async with cluster(server(), max_body_bytes=200) as it:
            for content in (large, _in_parts(large)):
                answer = await it.http.post("/generate", content=content)
                assert answer.status_code == 413
                assert "200 bytes" in answer.json()["error"]["message"]
            for content in (fits, _in_parts(fits)):
                assert (await it.http.post("/generate", content=content)).status_code == 200

    run(scenario())


def test_a_body_that_says_it_is_too_large_is_not_waited_for() -> None:
    async def scenario() -> None:
        async with cluster(max_body_bytes=200) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 201\r\n\r\n")
            assert b"413" in await asyncio.wait_for(reader.readline(), 1.0)
            writer.close()

    run(scenario())


def test_an_id_that_is_on_its_way_is_taken() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with (
            cluster(server(token_s=0.001)) as it,
            together(it.generate(prompt, rid="mine")) as first,
        ):
            await until(lambda: it.service.core.statistics().in_flight)
            second = await it.post({"input_ids": [5], "rid": "mine"})
            assert (second.status_code, second.json()["error"]["param"]) == (409, "rid")
            assert (await first)["output_ids"] == continuation(prompt, 128)
            assert (await it.generate([5], rid="mine"))["meta_info"]["id"] == "mine"

    run(scenario())


def test_a_client_that_hangs_up_frees_its_engine() -> None:
    async def scenario() -> None:
        running, waiting = prompts(2, LONG)
        async with cluster(server(token_s=0.02, max_running_requests=1)) as it:
            statistics = it.service.core.statistics
            async with together(it.generate(running)):
                await until(lambda: statistics().in_flight)
                async with together(it.generate(waiting)):
                    await until(lambda: statistics().waiting)
                await until(lambda: not statistics().waiting)
                assert statistics().in_flight == 1
            # The whole sample would take two seconds.
            async with asyncio.timeout(1.0):
                await until(lambda: not statistics().in_flight)
            it.service.core.check()
            assert statistics().delivered == 2
            assert (await it.generate([5], sampling_params={"max_new_tokens": 1}))["output_ids"]

    run(scenario())


def test_a_client_that_hangs_up_while_no_engine_is_there() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            async with together(it.generate([5])):
                await asyncio.sleep(0.05)
            engine = server()
            await it.join(engine)
            assert (await it.generate([6]))["output_ids"] == continuation([6], 128)
        assert [body["input_ids"] for body in engine.bodies] == [[6]]

    run(scenario())


def test_a_client_that_hangs_up_in_the_middle_of_its_body() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await asyncio.sleep(0.05)
            assert (await it.generate([5]))["output_ids"]

    run(scenario())
