"""`/generate` with `stream`: what grows, and what it ends with, whatever happens meanwhile."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.requests import parse_generate
from seer_sgl.testing.controls import END_TOKEN
from seer_sgl.testing.engine import FakeServer, continuation
from seer_sgl.testing.policies import ALWAYS_MOVE
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

Event = dict[str, Any]


async def events_of(answer: httpx.Response) -> AsyncGenerator[Any, None]:
    """Decoded events; the end as `[DONE]`."""
    async for line in answer.aiter_lines():
        if line:
            assert line.startswith("data: "), line
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


@contextlib.asynccontextmanager
async def streaming(it: Cluster, headers: dict[str, str] | None = None, **body: Any) -> Any:
    request = {"stream": True, **body}
    async with it.http.stream("POST", "/generate", json=request, headers=headers or {}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async with contextlib.aclosing(events_of(answer)) as events:
            yield events


async def all_events(it: Cluster, headers: dict[str, str] | None = None, **body: Any) -> list[Event]:
    async with streaming(it, headers, **body) as events:
        *told, done = [event async for event in events]
    assert done == "[DONE]"
    return told


def slow(name: str = "a", **known: Any) -> FakeServer:
    return server(name, token_s=0.001, **known)


def without(answer: Event, *keys: str) -> Event:
    meta = {k: v for k, v in answer["meta_info"].items() if k not in ("e2e_latency", *keys)}
    return {**answer, "meta_info": meta}


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize(("policy", "chunk"), [(DIVIDED, 8192), (DIVIDED, 13), (ALWAYS_MOVE, 13)])
def test_events_grow_into_the_answer_that_is_not_streamed(
    policy: Any, chunk: int, incremental: bool
) -> None:
    async def scenario() -> None:
        facts = {"incremental_streaming_output": incremental}
        engines = [server(name, token_s=0.001, facts=facts) for name in "ab"]
        (prompt,) = prompts(1, 60)
        body: dict[str, Any] = {"input_ids": prompt, "rid": "r", "return_logprob": True}
        async with cluster(*engines, policy=policy, chunk_tokens=chunk) as it:
            told = await all_events(it, **body)
            whole = await it.generate(prompt, rid="r", return_logprob=True)
        assert len(told) > 5
        assert "index" not in told[0]
        assert without(told[-1], "seer") == without(whole, "seer")
        assert told[-1]["output_ids"] == continuation(prompt, 128)
        for before, after in pairwise(told):
            assert before["meta_info"]["finish_reason"] is None
            assert before["meta_info"]["id"] == "r"
            tokens = len(before["output_ids"])
            assert tokens < len(after["output_ids"]) or after is told[-1]
            assert after["output_ids"][:tokens] == before["output_ids"]
            assert after["text"].startswith(before["text"])
            logprobs = before["meta_info"]["output_token_logprobs"]
            assert [row[1] for row in logprobs] == before["output_ids"]
            assert before["meta_info"]["completion_tokens"] == tokens
            assert before["meta_info"]["prompt_tokens"] == len(prompt)

    run(scenario())


@pytest.mark.parametrize("chunk", [8192, 13])
def test_deltas_add_up(chunk: int) -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, 60)
        body: dict[str, Any] = {"input_ids": prompt, "return_logprob": True}
        async with cluster(slow(), chunk_tokens=chunk) as it:
            told = await all_events(it, {"x-seer-deltas": "1"}, **body)
            whole = await it.generate(prompt, return_logprob=True)
        assert len(told) > 5
        assert [token for event in told for token in event["output_ids"]] == whole["output_ids"]
        assert "".join(event["text"] for event in told) == whole["text"]
        rows = [row for event in told for row in event["meta_info"]["output_token_logprobs"]]
        assert rows == whole["meta_info"]["output_token_logprobs"]
        assert told[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]

    run(scenario())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input_ids": [[5], [6]]}, [[5], [6]]),
        ({"input_ids": [5], "sampling_params": {"n": 2}}, [[5], [5]]),
        ({"text": ["ab"]}, [[97, 98]]),
    ],
)
def test_events_of_several_samples_carry_an_index(
    body: dict[str, Any], expected: list[list[int]]
) -> None:
    async def scenario() -> None:
        async with cluster(slow()) as it:
            told = await all_events(it, **body)
        last = {event["index"]: event for event in told}
        assert [last[i]["output_ids"] for i in range(len(expected))] == [
            continuation(prompt, 128) for prompt in expected
        ]
        ends = [event["index"] for event in told if event["meta_info"]["finish_reason"]]
        assert sorted(ends) == list(range(len(expected)))

    run(scenario())


def test_a_body_at_fault_is_an_error_as_without_a_stream() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            for body, status in (({"input_ids": []}, 400), ({"input_ids": [5] * 3000}, 400)):
                answer = await it.post({**body, "stream": True})
                assert answer.status_code == status
                assert answer.json()["error"]["param"] == "input_ids"

    run(scenario())


def test_what_turns_out_later_is_told_in_the_stream() -> None:
    async def scenario() -> None:
        async with cluster() as it, together(all_events(it, input_ids=[300])) as told:
            await asyncio.sleep(0.03)
            await it.join(server())
            (error,) = await told
        assert error["error"]["code"] == 400
        assert "[0, 255], got 300" in error["error"]["message"]
        assert error["error"]["retryable"] is False

    run(scenario())


def test_a_refusal_by_sglang_is_an_event_that_says_abort() -> None:
    async def scenario() -> None:
        async with cluster(server(refuse=lambda body: (400, "too odd"))) as it:
            (told,) = await all_events(it, input_ids=[5])
        finish = told["meta_info"]["finish_reason"]
        assert (finish["type"], finish["status_code"], finish["message"]) == ("abort", 400, "too odd")

    run(scenario())


def test_a_client_that_hangs_up_in_the_middle_of_a_stream_frees_its_engine() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.02)
        async with cluster(engine, chunk_tokens=20) as it:
            async with streaming(it, input_ids=prompt) as events:
                assert await anext(events)
            async with asyncio.timeout(1.0):
                await until(lambda: not it.service.core.statistics().in_flight)
                await until(lambda: not engine.state.running)
            assert it.service.core.statistics().delivered == 1

    run(scenario())


def test_a_client_that_hangs_up_while_its_stream_waits() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            it.service.dispatcher.pause()
            async with streaming(it, input_ids=[5]):
                await until(lambda: it.service.core.statistics().waiting)
            await until(lambda: not it.service.core.statistics().waiting)
            it.service.dispatcher.resume()

    run(scenario())


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_what_a_lost_engine_has_shown_stays(penalty: float) -> None:
    """What can go on does; what cannot ends there, as another run would bring other tokens."""

    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        first, second = server("a", token_s=0.01), server("b", token_s=0.001)
        sampling = {"presence_penalty": penalty, "max_new_tokens": 120}
        told: list[Event] = []
        async with (
            cluster(first) as it,
            streaming(it, input_ids=prompt, sampling_params=sampling) as events,
        ):
            while len(told) < 5:
                told.append(await anext(events))
            await it.join(second)
            first.kill()
            told += [event async for event in events if event != "[DONE]"]
        whole = continuation(prompt, 120)
        for before, after in pairwise(told):
            assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
            assert after["text"].startswith(before["text"])
        if penalty:
            assert told[-1]["meta_info"]["finish_reason"]["type"] == "abort"
            assert told[-1]["output_ids"] == whole[: len(told[-1]["output_ids"])] != whole
            assert not second.bodies
        else:
            assert told[-1]["output_ids"] == whole
            assert len(second.bodies[0]["input_ids"]) > len(prompt) + 3

    run(scenario())


def letters(ids: list[int]) -> str:
    """Two tokens make a character; the first of them alone is a replacement character."""
    ids = [token for token in ids if token != END_TOKEN]
    pairs = ["é" if token % 2 == 0 else "o" for token in ids[1::2]]
    return "".join(pairs) + ("\ufffd" if len(ids) % 2 else "")


def test_a_character_across_the_edge_of_two_chunks_is_never_shown_in_halves() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, 40)
        engine = slow()
        asked = []

        def detokenized(call: Any) -> dict[str, Any]:
            asked.append(call.json()["tokens"])
            full, tail = call.json()["tokens"]
            assert full[: len(tail)] == tail == prompt[-5:]
            return {"text": ["T" + letters(full[len(tail) :]), "T"]}

        engine.script["/detokenize"] = detokenized
        unpatched = engine.fake._answers

        async def answers(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            before = len(body["input_ids"]) - len(prompt)
            async for answer in unpatched(body):
                ids = continuation(prompt, 200)[: before + len(answer["output_ids"])]
                shown = letters(ids)
                if answer["meta_info"]["finish_reason"] is None:
                    shown = shown.rstrip("\ufffd")
                # SGLang's own text of a chunk begins after the characters of the context.
                yield {**answer, "text": shown[len(letters(ids[:before])) :]}

        engine.fake._answers = answers  # type: ignore[method-assign]
        body: dict[str, Any] = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 33}}
        async with cluster(engine, chunk_tokens=7, policy=DIVIDED) as it:
            told = await all_events(it, **body)
        ids = continuation(prompt, 33)
        assert told[-1]["text"] == letters(ids)
        for event in told[:-1]:
            assert letters(ids).startswith(event["text"])
            assert "\ufffd" not in event["text"]
        late = [len(event["output_ids"]) // 2 - len(event["text"]) for event in told[:-1]]
        assert max(late) <= 1, "text stays behind its tokens"
        # At every other edge, until the character is whole, and once at the end.
        assert len(asked) <= 3 * 2 + 1

    run(scenario())


def test_a_stream_that_nobody_reads_holds_no_more_than_its_answer() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, 60)
        async with cluster(slow()) as it:
            samples = it.service.dispatcher.stream(_samples(prompt))
            await until(lambda: it.service.core.statistics().delivered)
            told = [item async for item in samples]
        assert [(index, answer["output_ids"]) for index, answer in told] == [
            (0, continuation(prompt, 128))
        ]

    run(scenario())


def test_a_stream_that_is_dropped_is_cancelled() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(server(token_s=0.02)) as it:
            samples = it.service.dispatcher.stream(_samples(prompt))
            assert await anext(samples)
            del samples
            async with asyncio.timeout(1.0):
                await until(lambda: not it.service.core.statistics().in_flight)

    run(scenario())


def _samples(prompt: list[int]) -> Any:
    return parse_generate({"input_ids": prompt}, "new").samples
