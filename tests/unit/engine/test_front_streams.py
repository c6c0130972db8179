"""Streams out of the router, and clients that leave."""

import asyncio
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import web

from seer_sgl.engine import front
from tests.unit.engine.fronted import (
    Asked,
    Manager,
    asked_of,
    events,
    outputs,
    router,
    sample,
    streamed,
)


@pytest.mark.parametrize(("deltas", "lengths"), [(False, [1, 2]), (True, [1, 3])])
def test_a_stream_is_what_sglang_would_yield(deltas: bool, lengths: list[int]) -> None:
    heads: list[Any] = []
    first = sample(output_token_logprobs=[[0, 5, "a"]], finish_reason=None)
    second = sample(output_token_logprobs=[[0, 5, "a"], [0, 6, "b"]])
    other = {**sample(finish_reason=None), "index": 1}
    stream = events(first, other, second) + b"data: [DONE]\n\n"
    cut = [stream[at : at + 7] for at in range(0, len(stream), 7)]

    async def scenario() -> None:
        async with router(streamed(*cut, heads=heads)) as url:
            obj = Asked(input_ids=[1], stream=True, sampling_params={"n": 2})
            obj.return_logprob = obj.return_prompt_token_ids = True
            got = await outputs(obj, asked_of(url), Manager(deltas))
        logprobs = [out["meta_info"].pop("output_token_logprobs") for out in got]
        assert [len(each) for each in logprobs] == [1, 0, 2]
        found = [out["meta_info"].pop("output_token_logprobs_length") for out in got]
        assert found == [lengths[0], 0, lengths[1]]
        assert [out.get("index") for out in got] == [None, 1, None]
        assert all(out["prompt_token_ids"] == [1] for out in got)
        assert got[2]["meta_info"]["finish_reason"] == {"type": "stop", "matched": 1}

    asyncio.run(scenario())
    assert heads[0].get("x-seer-deltas") == ("1" if deltas else None)


def test_an_error_in_a_stream() -> None:
    pytest.importorskip("fastapi")
    failed = {"type": "abort", "message": "no", "status_code": 503}
    error = {"error": {"message": "gone", "code": 503}}

    async def scenario() -> None:
        async with router(streamed(events(sample(finish_reason=failed)), b"data: [DONE]\n\n")) as url:
            (out,) = await outputs(Asked(input_ids=[1], stream=True), asked_of(url))
            # By this type SGLang's handlers know it from an abort that somebody asked for.
            assert type(out["meta_info"]["finish_reason"]["status_code"]) is HTTPStatus
        refused = {**sample(finish_reason=failed), "output_ids": []}
        async with router(streamed(events(refused), b"data: [DONE]\n\n")) as url:
            with pytest.raises(Exception, match="no") as caught:
                await outputs(Asked(input_ids=[1], stream=True), asked_of(url))
            assert caught.value.status_code == 503  # type: ignore[attr-defined]
        async with router(streamed(events(error))) as url:
            with pytest.raises(Exception, match="gone") as caught:
                await outputs(Asked(input_ids=[1], stream=True), asked_of(url))
            assert caught.value.status_code == 503  # type: ignore[attr-defined]
        for broken in (events(sample(), error), events(sample()), events(sample()) + b"data: {"):
            async with router(streamed(broken)) as url:
                answers = front.generate_request(
                    Manager.generate_request, Manager(), Asked(input_ids=[1], stream=True), asked_of(url)
                )
                assert (await anext(answers))["text"] == "x"
                # The only exception that SGLang's handlers tell of in a stream that has begun.
                with pytest.raises(ValueError, match=r"gone|ended in the middle"):
                    await anext(answers)

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_hangs_up_ends_the_routers_work(
    stream: bool, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "POLL_S", 0.02)
    ended, started = asyncio.Event(), asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = web.StreamResponse()
            if begun:
                await answer.prepare(request)
                await answer.write(events(sample(finish_reason=None)))
            started.set()
            await asyncio.sleep(60)
            return answer
        finally:
            ended.set()

    async def scenario() -> None:
        async with router(endless) as url:
            request = asked_of(url)
            work = asyncio.create_task(outputs(Asked(input_ids=[1], stream=stream), request))
            await started.wait()
            await asyncio.sleep(0.05)
            assert not ended.is_set()
            request.gone = True
            with pytest.raises(ValueError, match="disconnected"):
                await work
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(scenario())


def test_leaving_a_stream_ends_the_routers_work() -> None:
    ended = asyncio.Event()

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = web.StreamResponse()
            await answer.prepare(request)
            await answer.write(events(sample(finish_reason=None)))
            await asyncio.sleep(60)
            return answer
        finally:
            ended.set()

    async def scenario() -> None:
        async with router(endless) as url:
            obj = Asked(input_ids=[1], stream=True)
            answers = front.generate_request(Manager.generate_request, Manager(), obj, asked_of(url))
            await anext(answers)
            await answers.aclose()
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(scenario())


def test_a_cancelled_request_leaves_nothing() -> None:
    async def never(_: web.BaseRequest) -> web.StreamResponse:
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    started, ended = asyncio.Event(), asyncio.Event()

    async def scenario() -> None:
        async with router(never) as url:
            work = asyncio.create_task(outputs(Asked(input_ids=[1]), asked_of(url)))
            await started.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            await asyncio.wait_for(ended.wait(), 5)
            assert not [task for task in asyncio.all_tasks() if "post" in repr(task)]

    asyncio.run(scenario())
