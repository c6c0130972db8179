"""Aborts, pauses and retries: what exists is answered, and nothing runs twice."""

import asyncio
from typing import Any

import httpx
import pytest

from seer_sgl.router.requests import parse_generate
from seer_sgl.testing.engine import FakeServer, continuation
from seer_sgl.types import EngineId
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

WITH_LOGPROBS: dict[str, Any] = {"return_logprob": True, "sampling_params": {"max_new_tokens": LONG}}


def whole_meta(meta: dict[str, Any]) -> None:
    """What every aborted answer has."""
    for key in ("prompt_tokens", "completion_tokens", "cached_tokens", "output_token_logprobs"):
        assert key in meta, key
    assert meta["weight_version"] == "default"
    assert isinstance(meta["weight_versions"], list)
    assert meta["finish_reason"]["type"] == "abort"
    assert meta["finish_reason"]["message"]


async def running(engine: FakeServer) -> None:
    """Until an engine has made some tokens of a chunk."""
    await until(lambda: engine.bodies)
    await asyncio.sleep(0.03)


def waiting_for(it: Cluster, rid: str) -> int:
    """Calls that wait for a sample."""
    live = it.service.dispatcher._intake.registry.by_rid.get(rid)
    return len(live.calls) if live is not None else 0


async def known(it: Cluster, rid: str) -> None:
    await until(lambda: waiting_for(it, rid))


def test_an_aborted_request_answers_with_what_exists() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.01)
        async with (
            cluster(engine, chunk_tokens=20) as it,
            together(it.generate(prompt, rid="mine", **WITH_LOGPROBS)) as call,
        ):
            await until(lambda: len(engine.bodies) == 3)
            await asyncio.sleep(0.06)
            assert it.service.dispatcher.abort("other") == 0
            assert it.service.dispatcher.abort("min") == 0
            assert it.service.dispatcher.abort("mine") == 1
            assert it.service.dispatcher.abort("mine") == 0
            answer = await call
        tokens = len(answer["output_ids"])
        # Two short chunks, and some tokens of the third.
        assert sum(c["new_tokens"] for c in answer["meta_info"]["seer"]["chunks"]) == tokens
        assert answer["meta_info"]["seer"]["chunks"][-1]["new_tokens"] > 0
        assert answer["output_ids"] == continuation(prompt, LONG)[:tokens]
        assert answer["text"] == "".join(f"<{token}>" for token in answer["output_ids"])
        meta = answer["meta_info"]
        whole_meta(meta)
        assert meta["finish_reason"]["status_code"] is None
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(prompt), tokens)
        assert [row[1] for row in meta["output_token_logprobs"]] == answer["output_ids"]

    run(scenario())


@pytest.mark.parametrize("body", [{"input_ids": [5, 6]}, {"text": "ab"}])
@pytest.mark.parametrize("waits_for", ["engine", "pause", "slot"])
def test_a_request_that_only_waited(waits_for: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        (long,) = prompts(1, LONG)
        engines = [server(token_s=0.01, max_running_requests=1)] * (waits_for != "engine")
        async with cluster(*engines) as it, together(it.generate(long)) as other:
            if waits_for == "slot":
                await until(lambda: it.service.core.statistics().in_flight)
            if waits_for == "pause":
                it.service.dispatcher.pause()
            async with together(it.post({**body, "rid": "r"})) as call:
                dispatcher, expected = it.service.dispatcher, 1 if waits_for == "slot" else 2
                await until(lambda: dispatcher.queue_load().waiting == expected)
                await until(lambda: waiting_for(it, "r"))
                assert dispatcher.abort("r") == 1
                assert dispatcher.queue_load().waiting == expected - 1
                answer = await call
            assert not other.done()
        assert answer.status_code == 200
        assert (answer.json()["output_ids"], answer.json()["text"]) == ([], "")
        whole_meta(answer.json()["meta_info"])

    run(scenario())


@pytest.mark.parametrize(
    ("rid", "body", "count"),
    [
        ("r", {"input_ids": [5], "sampling_params": {"n": 3}}, 3),
        ("r_1", {"input_ids": [5], "sampling_params": {"n": 3}}, 1),
        ("r", {"input_ids": [[5], [6]]}, 2),
        ("a", {"input_ids": [[5], [6]], "rid": ["a", "b"]}, 1),
        ("b", {"input_ids": [[5], [6]], "rid": ["a", "b"], "sampling_params": {"n": 2}}, 2),
        ("r", {"input_ids": [[5], [6]], "sampling_params": {"n": 2}}, 4),
        ("r_0", {"input_ids": [[5], [6]], "sampling_params": {"n": 2}}, 2),
    ],
)
def test_all_that_was_made_of_a_request_is_aborted(rid: str, body: dict[str, Any], count: int) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            it.service.dispatcher.pause()
            async with together(it.post({"rid": "r", **body})) as call:
                await until(lambda: it.service.core.statistics().waiting)
                assert it.service.dispatcher.abort(rid) == count
                it.service.dispatcher.resume()
                answers = (await call).json()
        aborted = [a["meta_info"]["finish_reason"]["type"] == "abort" for a in answers]
        assert sum(aborted) == count
        assert [bool(answer["output_ids"]) for answer in answers] == [not a for a in aborted]

    run(scenario())


def test_abort_all_ends_what_runs_and_what_waits() -> None:
    async def scenario() -> None:
        long = prompts(3, LONG)
        engine = server(token_s=0.01, max_running_requests=2)
        async with cluster(engine) as it:
            calls = [asyncio.create_task(it.generate(prompt, **WITH_LOGPROBS)) for prompt in long]
            await until(lambda: it.service.core.statistics().in_flight == 2)
            assert it.service.dispatcher.abort_all() == 3
            for answer in await asyncio.gather(*calls):
                whole_meta(answer["meta_info"])
            load = it.service.dispatcher.queue_load()
            assert (load.waiting, load.in_flight, load.waiting_tokens) == (0, 0, 0)

    run(scenario())


def test_abort_on_one_engine_spares_what_runs_elsewhere() -> None:
    async def scenario() -> None:
        first, second, third = prompts(3, LONG)
        slots = {"token_s": 0.01, "max_running_requests": 1}
        async with cluster(server("a", **slots), server("b", **slots)) as it:
            calls = []
            for number, prompt in enumerate((first, second, third)):
                calls.append(asyncio.create_task(it.generate(prompt, rid=f"{number}", **WITH_LOGPROBS)))
                await known(it, f"{number}")
            await until(lambda: it.service.core.statistics().in_flight == 2)
            assert it.service.dispatcher.abort_on(EngineId("a")) == 2
            answers = await asyncio.gather(*calls)
        kinds = [answer["meta_info"]["finish_reason"]["type"] for answer in answers]
        assert sorted(kinds) == ["abort", "abort", "length"]

    run(scenario())


def test_while_paused_requests_wait_and_chunks_end() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, 60)
        engine = server(token_s=0.001)
        async with cluster(engine, chunk_tokens=40) as it:
            dispatcher = it.service.dispatcher
            async with together(it.generate(prompt)) as first:
                await until(lambda: engine.bodies)
                dispatcher.pause()
                assert dispatcher.paused
                async with together(it.generate([5, 6])) as second:
                    await until(lambda: dispatcher.queue_load().in_flight == 0)
                    await asyncio.sleep(0.02)
                    load = dispatcher.queue_load()
                    assert (load.waiting, load.waiting_tokens) == (2, len(prompt) + 10 + 2)
                    assert not first.done()
                    assert len(engine.bodies) == 1
                    dispatcher.resume()
                    assert (await second)["output_ids"] == continuation([5, 6], 128)
                assert (await first)["output_ids"] == continuation(prompt, 128)

    run(scenario())


async def abort_at(engine: FakeServer) -> None:
    """As a trainer does that knows the server's own address."""
    for rid in list(engine.state.running):
        await engine.client.post("/abort_request", {"rid": rid})


@pytest.mark.parametrize(("paused", "penalty"), [(False, 0.0), (False, 0.5), (True, 0.0)])
def test_an_engine_that_aborts_by_itself(paused: bool, penalty: float) -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        sampling = {"max_new_tokens": LONG, "presence_penalty": penalty}
        async with (
            cluster(engine) as it,
            together(it.generate(prompt, sampling_params=sampling)) as call,
        ):
            await running(engine)
            if paused:
                it.service.dispatcher.pause()
            await abort_at(engine)
            answer = await call
        if paused:
            whole_meta(answer["meta_info"])
            assert answer["meta_info"]["finish_reason"]["message"] == "aborted"
            assert 0 < len(answer["output_ids"]) < LONG
            return
        assert answer["output_ids"] == continuation(prompt, LONG)
        assert answer["meta_info"]["finish_reason"]["type"] == "length"
        # What can be divided goes on from where it was; what cannot begins again.
        assert (len(engine.bodies[1]["input_ids"]) > len(prompt)) == (not penalty)

    run(scenario())


# ---- retries ----


async def together_at(it: Cluster, *bodies: dict[str, Any]) -> list[httpx.Response]:
    return list(await asyncio.gather(*map(it.post, bodies)))


@pytest.mark.parametrize(
    "body",
    [
        {"input_ids": [5, 6, 7]},
        {"text": "abc"},
        {"input_ids": [5, 6, 7], "sampling_params": {"n": 2}},
        {"text": ["abc", "abd"]},
    ],
)
def test_a_retry_is_attached_to_what_runs(body: dict[str, Any]) -> None:
    async def scenario() -> None:
        engine = server(token_s=0.002)
        async with cluster(engine) as it:
            first, second = await together_at(it, {**body, "rid": "r"}, {**body, "rid": "r"})
            samples = len(first.json()) if isinstance(first.json(), list) else 1
            assert first.json() == second.json()
            assert len(engine.bodies) == samples
            assert it.service.core.statistics().delivered == samples
            again = await it.post({**body, "rid": "r"})
            assert len(engine.bodies) == 2 * samples
        assert again.status_code == 200

    run(scenario())


def test_a_retry_with_another_body_is_refused() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            it.service.dispatcher.pause()
            async with together(it.generate([5, 6], rid="r")) as first:
                await until(lambda: it.service.core.statistics().waiting)
                for other in ({"input_ids": [5, 7]}, {"input_ids": [5, 6], "extra_key": "x"}):
                    answer = await it.post({"rid": "r", **other})
                    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "rid")
                it.service.dispatcher.resume()
                assert (await first)["output_ids"] == continuation([5, 6], 128)

    run(scenario())


@pytest.mark.parametrize("text", [False, True])
def test_what_another_client_waits_for_is_not_cancelled(text: bool) -> None:
    async def scenario() -> None:
        engine = server(token_s=0.005)
        body: dict[str, Any] = {"text": "ab"} if text else {"input_ids": [97, 98]}
        body |= {"rid": "r"}
        async with cluster(*([] if text else [engine])) as it:
            async with together(it.post(body)):
                await until(lambda: waiting_for(it, "r") == 1)
                second = asyncio.create_task(it.post(body))
                await until(lambda: waiting_for(it, "r") == 2)
            await until(lambda: waiting_for(it, "r") == 1)
            if text:
                await it.join(engine)
            assert (await second).json()["output_ids"] == continuation([97, 98], 128)
            assert len(engine.bodies) == 1

    run(scenario())


def test_a_retry_after_the_client_hung_up_runs_anew() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.005)
        async with cluster(engine) as it:
            async with together(it.generate(prompt, rid="r", **WITH_LOGPROBS)):
                await running(engine)
            await until(lambda: "r" not in it.service.dispatcher._intake.registry.by_rid)
            answer = await it.generate(prompt, rid="r", **WITH_LOGPROBS)
        assert answer["output_ids"] == continuation(prompt, LONG)
        assert answer["meta_info"]["finish_reason"]["type"] == "length"

    run(scenario())


def test_what_was_aborted_may_be_sent_again_at_once() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        again = parse_generate({"input_ids": [*prompt, 9], "rid": "r"}, "new").samples
        engine = server(token_s=0.005)
        async with (
            cluster(engine) as it,
            together(it.generate(prompt, rid="r", **WITH_LOGPROBS)) as first,
        ):
            await running(engine)
            assert it.service.dispatcher.abort("r") == 1
            samples = it.service.dispatcher.stream(again)  # the first one has not ended yet
            whole_meta((await first)["meta_info"])
            told = [answer async for _, answer in samples]
        assert told[-1]["output_ids"] == continuation([*prompt, 9], 128)

    run(scenario())


def test_a_stream_may_join_what_runs_without_one() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        body = {"input_ids": prompt, "rid": "r", **WITH_LOGPROBS}
        engine = server(token_s=0.003)
        async with (
            cluster(engine, chunk_tokens=30) as it,
            together(it.post(body)) as whole,
        ):
            await running(engine)
            stream = await it.post({**body, "stream": True})
            events = [line for line in stream.text.split("\n\n") if line]
            assert (await whole).json()["output_ids"] == continuation(prompt, LONG)
        # What the first chunk does is seen at its end; the others stream.
        assert len(events) > 5
        assert events[-1] == "data: [DONE]"

    run(scenario())
