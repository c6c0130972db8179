"""Streams and partial rollouts on real servers: chunks that move say what one server would have said."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx
import pytest

from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.testing.cluster import attached_router
from seer_sgl.testing.policies import ALWAYS_MOVE
from tests.integration.conftest import CHUNK_TOKENS, GREEDY, Cluster

FEW = 4
BODY = {**GREEDY, "text": GREEDY["text"][:FEW]}


async def events(client: httpx.AsyncClient, url: str, body: dict[str, Any], **headers: str) -> Any:
    """Events of a stream, less the one that ends it."""
    told = []
    async with client.stream("POST", url, json={**body, "stream": True}, headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                told.append(json.loads(line.removeprefix("data: ")))
    assert line == "data: [DONE]" or not line
    return told


@pytest.fixture(scope="module")
def streamed(cluster: Cluster) -> tuple[Any, Any]:
    """Cumulative events of a list, and the first prompt's as what is new."""

    async def ask() -> tuple[Any, Any]:
        urls = cluster.server_urls()
        salted = {**BODY, "cache_salt": "streams"}
        first = {**salted, "text": BODY["text"][0]}
        async with (
            attached_router(urls, ALWAYS_MOVE, CHUNK_TOKENS) as (url, _),
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
        ):
            whole = await events(client, f"{url}/generate", salted)
            return whole, await events(client, f"{url}/generate", first, **{"x-seer-deltas": "1"})

    return asyncio.run(ask())


def test_events_grow_into_what_one_server_says(
    streamed: tuple[Any, Any], plain_answers: list[dict[str, Any]]
) -> None:
    for index in range(FEW):
        told = [event for event in streamed[0] if event["index"] == index]
        assert len(told) > 20
        assert told[-1]["output_ids"] == plain_answers[index]["output_ids"]
        assert told[-1]["text"] == plain_answers[index]["text"]
        for before, after in pairwise(told):
            assert after["text"].startswith(before["text"])
            assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
            rows = before["meta_info"]["output_token_logprobs"]
            assert [row[1] for row in rows] == before["output_ids"]


def test_what_is_new_adds_up(streamed: tuple[Any, Any], plain_answers: list[dict[str, Any]]) -> None:
    told = streamed[1]
    assert "".join(event["text"] for event in told) == plain_answers[0]["text"]
    ids = [token for event in told for token in event["output_ids"]]
    assert ids == plain_answers[0]["output_ids"]


async def _begun(dispatcher: Dispatcher, chunks: int) -> None:
    async with asyncio.timeout(60):
        while dispatcher.core.statistics().chunks < chunks:  # noqa: ASYNC110 - told to nobody
            await asyncio.sleep(0.01)


def test_a_partial_output_that_comes_back_finds_its_kv(
    cluster: Cluster, plain_answers: list[dict[str, Any]]
) -> None:
    async def ask() -> tuple[Any, Any]:
        urls = cluster.server_urls()
        body = {**BODY, "text": BODY["text"][0], "rid": "partial", "cache_salt": "resumed"}
        async with (
            attached_router(urls, DIVIDED, CHUNK_TOKENS) as (url, service),
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
        ):
            call = asyncio.create_task(client.post(f"{url}/generate", json=body))
            await _begun(service.dispatcher, 3)
            assert service.dispatcher.abort("partial") == 1
            partial = (await call).raise_for_status().json()
            tokens = {"prompt": [BODY["text"][0]]}
            (prompt,) = (await client.post(f"{urls[0]}/tokenize", json=tokens)).json()["tokens"]
            ids, left = partial["output_ids"], 300 - len(partial["output_ids"])
            again = {k: v for k, v in body.items() if k != "text"} | {"input_ids": prompt + ids}
            again["sampling_params"] = {**BODY["sampling_params"], "max_new_tokens": left}
            rest = (await client.post(f"{url}/generate", json=again)).raise_for_status().json()
        return partial, rest

    partial, rest = asyncio.run(ask())
    meta = partial["meta_info"]
    assert meta["finish_reason"]["type"] == "abort"
    assert 2 * CHUNK_TOKENS <= len(partial["output_ids"]) < 300
    assert len(meta["output_token_logprobs"]) == len(partial["output_ids"])
    assert partial["output_ids"] + rest["output_ids"] == plain_answers[0]["output_ids"]
    last, first = meta["seer"]["chunks"][-1], rest["meta_info"]["seer"]["chunks"][0]
    assert first["engine"] == last["engine"]
    assert first["cached_tokens"] >= last["input_tokens"] - 16
