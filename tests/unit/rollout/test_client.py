"""The rollout client against a real router, and against things that are none."""

import asyncio

import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.errors import SeerError
from seer_sgl.rollout.client import Prompt, Rollout, SampleResult, page_tokens_of, run_rollout
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, until

SAMPLING = {"max_new_tokens": 20}


async def everything(rollout: Rollout) -> list[SampleResult]:
    return [result async for result in run_rollout(rollout)]


def url_of(it: Cluster) -> str:
    return f"http://127.0.0.1:{it.config.http_port}"


def test_every_sample_of_every_group() -> None:
    async def scenario() -> None:
        engine = server()
        async with cluster(engine, chunk_tokens=8) as it:
            groups = [Prompt("g", input_ids=[5, 6]), Prompt("h", text="hi")]
            extra = {"return_logprob": True}
            results = await everything(Rollout(url_of(it), groups, 3, SAMPLING, extra))
            assert await page_tokens_of(url_of(it)) == 16
        assert sorted((r.group_id, r.sample) for r in results) == [
            (g, s) for g in "gh" for s in range(3)
        ]
        expected = {"g": continuation([5, 6], 20), "h": continuation(list(b"hi"), 20)}
        for result in results:
            assert (result.status, result.error) == (200, "")
            assert result.output_ids == expected[result.group_id]
            assert len(result.meta_info["output_token_logprobs"]) == len(result.output_ids)
            assert result.finished_s > 0
        assert all(body["return_logprob"] is True for body in engine.bodies)

    run(scenario())


def test_a_refused_sample_is_told_and_the_others_go_on() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            groups = [Prompt("good", input_ids=[5]), Prompt("bad", input_ids=[999]), Prompt("none")]
            results = await everything(Rollout(url_of(it), groups, 1, SAMPLING))
        by_group = {result.group_id: result for result in results}
        assert by_group["good"].output_ids == continuation([5], 20)
        assert (by_group["bad"].status, by_group["none"].status) == (400, 400)
        assert "got 999" in by_group["bad"].error
        assert "a prompt is missing" in by_group["none"].error

    run(scenario())


def test_a_router_that_goes_away_is_one_error() -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        dropped = asyncio.Event()

        async def drop(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await dropped.wait()
            writer.close()

        port = free_port()
        async with await asyncio.start_server(drop, "127.0.0.1", port):
            rollout = Rollout(f"http://127.0.0.1:{port}", [Prompt("g", input_ids=long)], 4, SAMPLING)
            asyncio.get_running_loop().call_later(0.05, dropped.set)
            with pytest.raises(SeerError, match="lost the router at"):
                await everything(rollout)

    run(scenario())


def test_an_answer_that_is_no_json_is_told() -> None:
    async def scenario() -> None:
        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>")
            await writer.drain()
            writer.close()

        port = free_port()
        async with await asyncio.start_server(proxy, "127.0.0.1", port):
            rollout = Rollout(f"http://127.0.0.1:{port}", [Prompt("g", text="a")], 1, SAMPLING)
            (result,) = await everything(rollout)
            assert (result.status, result.error) == (502, "<html>")
            with pytest.raises(SeerError, match="no router answers at"):
                await page_tokens_of(rollout.url)

    run(scenario())


def test_a_caller_that_stops_early_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        async with cluster(server(token_s=0.02)) as it:
            groups = [Prompt("refused", input_ids=[999]), Prompt("long", input_ids=long)]
            results = run_rollout(Rollout(url_of(it), groups, 1, {"max_new_tokens": LONG}))
            assert (await anext(results)).status == 400
            async with asyncio.timeout(1.0):  # the long one would take two seconds
                await results.aclose()  # type: ignore[attr-defined]
                await until(lambda: not it.service.core.statistics().in_flight)

    run(scenario())


def test_there_is_no_router_or_no_engine() -> None:
    async def scenario() -> None:
        with pytest.raises(SeerError, match="no router answers at http://127"):
            await page_tokens_of(f"http://127.0.0.1:{free_port()}")
        async with cluster() as it:
            with pytest.raises(SeerError, match="has no engine yet"):
                await page_tokens_of(url_of(it))

    run(scenario())
