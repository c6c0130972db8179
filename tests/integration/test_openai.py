"""The unmodified OpenAI client over the cluster gets what one plain server would answer."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from seer_sgl.smallmodel.problems import prompts
from tests.integration.conftest import CHUNK_TOKENS, MODEL, Cluster

PROMPTS = prompts(8, seed=17)
TOKENS = 3 * CHUNK_TOKENS + 8
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}

Call = Callable[[openai.OpenAI], Any]


@contextlib.contextmanager
def client_of(url: str) -> Iterator[openai.OpenAI]:
    """The client without retries: they would hide an error."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture(scope="module")
def ours(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with client_of(cluster.url) as client:
        yield client


@pytest.fixture(scope="module")
def plain(cluster: Cluster) -> Iterator[openai.OpenAI]:
    """One of the servers itself, which then generates alone."""
    with client_of(cluster.server_urls()[0]) as client:
        yield client


def chat(text: str, **more: Any) -> Call:
    body = {**GREEDY, "messages": [{"role": "user", "content": text}], **more}
    return lambda client: client.chat.completions.create(**body)


def completion(prompt: Any, **more: Any) -> Call:
    return lambda client: client.completions.create(**{**GREEDY, "prompt": prompt, **more})


def counts(cluster: Cluster) -> dict[str, float]:
    lines = httpx.get(f"{cluster.url}/metrics", timeout=30).text.splitlines()
    pairs = [line.split() for line in lines if line.startswith("seer_") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def chunks_of(cluster: Cluster, work: Callable[[], Any]) -> tuple[Any, int]:
    """What the work gives, and how many chunks it took."""
    before = counts(cluster)["seer_chunks_total"]
    result = work()
    return result, int(counts(cluster)["seer_chunks_total"] - before)


def assert_close(one: Any, other: Any, place: str = "") -> None:
    """Equal, but for ids, times, what was cached, and logprobs up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - {"id", "created", "prompt_tokens_details", "cached_tokens", "metadata"}:
            assert_close(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{place}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-3), place
    else:
        assert one == other, place


SAME: dict[str, Call] = {
    "chat": chat(PROMPTS[0]),
    "chat of several turns": lambda client: client.chat.completions.create(
        **GREEDY,
        messages=[
            {"role": "system", "content": PROMPTS[1]},
            {"role": "assistant", "content": "Here we go.\n"},
            {"role": "user", "content": [{"type": "text", "text": "1"}]},
        ],
    ),
    "choices with logprobs": chat(PROMPTS[0], n=3, logprobs=True, top_logprobs=3),
    "seed": chat(PROMPTS[0], temperature=1, seed=11),
    "stop": chat(PROMPTS[0], stop=["answer is"]),
    "most tokens of this name": chat(PROMPTS[0], max_completion_tokens=CHUNK_TOKENS + 1),
    "schema": chat(
        PROMPTS[0],
        max_tokens=20,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    ),
    "penalty": chat(PROMPTS[0], max_tokens=CHUNK_TOKENS + 9, frequency_penalty=0.5),
    "tools": chat(PROMPTS[0], tools=[TOOL]),
    "a tool that must be called": chat(PROMPTS[0], tools=[TOOL], tool_choice="required", max_tokens=40),
    "completion": completion(PROMPTS[0]),
    "completions of several prompts": completion(PROMPTS[:2], n=2, logprobs=2),
    "token ids": completion([5, 6, 7], logprobs=0),
    "several lists of token ids": completion([[5, 6, 7], [8, 9]], n=2),
    "echo": completion(PROMPTS[0], echo=True, max_tokens=9),
    "logprobs of the prompt": completion(PROMPTS[0], echo=True, logprobs=2, max_tokens=9),
    "ids in the answer": completion(PROMPTS[0], n=2, extra_body={"return_token_ids": True}),
    "no limit of its own": chat(PROMPTS[0], max_tokens=None, stop=["\n"]),
}


@pytest.mark.parametrize("name", SAME)
def test_answers_are_those_of_a_plain_server(
    name: str, ours: openai.OpenAI, plain: openai.OpenAI
) -> None:
    call = SAME[name]
    divided, whole = call(ours).model_dump(), call(plain).model_dump()
    assert_close(divided, whole)
    for choice in divided["choices"]:
        assert choice["finish_reason"] in ("stop", "length", "tool_calls")


def test_they_were_divided_and_shared(cluster: Cluster, ours: openai.OpenAI) -> None:
    answer, chunks = chunks_of(cluster, lambda: chat(PROMPTS[2], n=4, max_tokens=TOKENS)(ours))
    tokens = answer.usage.completion_tokens
    assert tokens > 4 * CHUNK_TOKENS
    assert chunks >= tokens / CHUNK_TOKENS
    # Logprobs of the prompt are what one engine computes while it reads all of it.
    whole = completion(PROMPTS[2], echo=True, logprobs=1)
    answer, chunks = chunks_of(cluster, lambda: whole(ours))
    assert answer.usage.completion_tokens > CHUNK_TOKENS
    assert chunks == 1


STREAMS: dict[str, Call] = {
    "chat": chat(PROMPTS[3], n=2, logprobs=True, top_logprobs=2),
    "completion": completion(PROMPTS[3], n=2, logprobs=2),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_puts_together_the_same_answer(
    kind: str, cluster: Cluster, ours: openai.OpenAI
) -> None:
    body = {"stream": True, "stream_options": {"include_usage": True}}
    make = chat if kind == "chat" else completion
    logprobs = {"logprobs": True, "top_logprobs": 2} if kind == "chat" else {"logprobs": 2}
    whole = STREAMS[kind](ours).model_dump()
    streamed = make(PROMPTS[3], n=2, **logprobs, **body)
    events, chunks = chunks_of(cluster, lambda: [event.model_dump() for event in streamed(ours)])
    assert chunks >= 2 * TOKENS / CHUNK_TOKENS - 1
    assert_close(events[-1]["usage"], whole["usage"])
    assert events[-1]["choices"] == []
    for choice in whole["choices"]:
        parts = [
            each for event in events for each in event["choices"] if each["index"] == choice["index"]
        ]
        # At least one for each chunk: it is a stream.
        assert len(parts) > TOKENS / CHUNK_TOKENS
        if kind == "chat":
            text = "".join(part["delta"]["content"] or "" for part in parts)
            assert text == choice["message"]["content"]
            rows = [row for part in parts if part["logprobs"] for row in part["logprobs"]["content"]]
            expected = choice["logprobs"]["content"]
            # SGLang sends none for an end token that comes in an event of its own: it has no text.
            alone = choice["finish_reason"] == "stop" and len(rows) < len(expected)
            assert_close(rows, expected[:-1] if alone else expected)
        else:
            assert "".join(part["text"] for part in parts) == choice["text"]
            for key, values in choice["logprobs"].items():
                joined = [v for part in parts if part["logprobs"] for v in part["logprobs"][key]]
                assert_close(joined, values, key)
        reasons = [part["finish_reason"] for part in parts if part["finish_reason"]]
        assert reasons == [choice["finish_reason"]]


@pytest.mark.parametrize("streams", [False, True])
def test_errors_are_the_clients_exceptions(
    streams: bool, ours: openai.OpenAI, plain: openai.OpenAI
) -> None:
    for call, kind in (
        (chat(PROMPTS[0], temperature=-1, stream=streams), openai.BadRequestError),
        (chat(PROMPTS[0], max_tokens=10**6, stream=streams), openai.BadRequestError),
        (completion("", stream=streams), openai.BadRequestError),
        (chat(PROMPTS[0], n="many", stream=streams), openai.BadRequestError),
    ):
        for client in (ours, plain):
            with pytest.raises(kind) as caught:
                call(client)
            assert caught.value.status_code == 400
            assert client is plain or caught.value.code == "bad_request"
    with pytest.raises(openai.NotFoundError) as unknown:
        chat(PROMPTS[0], model="gpt-4o", stream=streams)(ours)
    assert unknown.value.code == "model_not_found"


def test_several_chats_at_once(cluster: Cluster, ours: openai.OpenAI) -> None:
    def ask(prompt: str) -> list[str]:
        answer = chat(prompt, n=8, max_tokens=2 * CHUNK_TOKENS)(ours)
        assert [choice.index for choice in answer.choices] == list(range(8))
        return [choice.message.content for choice in answer.choices]

    def all_at_once() -> list[list[str]]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(ask, PROMPTS[4:]))

    answers, chunks = chunks_of(cluster, all_at_once)
    assert [len(set(texts)) for texts in answers] == [1] * 4
    assert len({texts[0] for texts in answers}) == 4
    assert chunks > 4 * 8


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_in_the_middle_leaves_nothing(streams: bool, cluster: Cluster) -> None:
    body = {**GREEDY, "max_tokens": 6000, "n": 4, "ignore_eos": True, "stream": streams}
    body["prompt"] = PROMPTS[7]
    url = f"{cluster.url}/v1/completions"
    if streams:
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            lines = answer.iter_lines()  # httpx hangs up when this goes out of use
            first = next(lines)
            assert '"choices"' in first
            found = counts(cluster)
            assert found["seer_in_flight"] + found["seer_waiting"] == 4, first
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=3)
    deadline_s = time.monotonic() + 15
    while left := _at_work(cluster):
        assert time.monotonic() < deadline_s, left
        time.sleep(0.2)


def _at_work(cluster: Cluster) -> dict[str, int]:
    """What runs or waits, by where."""
    found = {name: int(counts(cluster)[f"seer_{name}"]) for name in ("waiting", "in_flight")}
    for url in cluster.server_urls():
        loads = httpx.get(f"{url}/v1/loads?include=core", timeout=30).json()["loads"]
        found[url] = sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)
    return {place: count for place, count in found.items() if count}
