"""Chunks that move between real servers: same tokens, and their prefix comes from the pool."""

import asyncio
from functools import partial
from typing import Any

import httpx
import pytest

from seer_sgl.router.core import POLICIES, Policy, policy_named
from seer_sgl.router.core.moves import Moves
from seer_sgl.testing.cluster import attached_router
from seer_sgl.testing.policies import ALWAYS_MOVE
from tests.integration.conftest import CHUNK_TOKENS, GREEDY, PAGE_TOKENS, Cluster
from tests.integration.rows import CARRIED, ROWS

KV_WRITE_S = 30.0
KEEPER_S = 10.0


@pytest.fixture(scope="module")
def moved_answers(cluster: Cluster) -> list[dict[str, Any]]:
    """`GREEDY`, with every chunk on another engine than the one before."""
    return asyncio.run(_ask(cluster, ALWAYS_MOVE))


async def _ask(cluster: Cluster, policy: Policy) -> list[dict[str, Any]]:
    body = {**GREEDY, "cache_salt": policy.name}
    async with attached_router(
        cluster.server_urls(), policy, CHUNK_TOKENS, pool_keeper=cluster.pool_keeper()
    ) as (url, service):
        _wait_for_all_kv(service.core.moves)
        async with asyncio.timeout(KEEPER_S):
            while not service.pool.usage.up:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with httpx.AsyncClient(timeout=None) as client:
            response = await client.post(f"{url}/generate", json=body)
        service.core.check()
        assert service.core.statistics().in_flight == 0
    answers: list[dict[str, Any]] = response.raise_for_status().json()
    return answers


def _wait_for_all_kv(moves: Moves) -> None:
    """Every move is to ask for its KV and wait for it, though so little would be computed sooner."""
    moves.costs.took = lambda timing: None  # type: ignore[method-assign]
    moves._write_s = lambda tokens: (0.0, KV_WRITE_S)  # type: ignore[method-assign]


def chunks_of(answers: list[dict[str, Any]], number: int | None = None) -> list[dict[str, Any]]:
    """Chunks that moved: all, or the one of that number of each answer."""
    all_of = [answer["meta_info"]["seer"]["chunks"] for answer in answers]
    if number is not None:
        return [chunks[number] for chunks in all_of]
    return [chunk for chunks in all_of for chunk in chunks if chunk["came_from"]]


def share(chunks: list[dict[str, Any]], key: str) -> float:
    """Of the whole pages that could be found."""
    findable = sum((chunk["input_tokens"] - 1) // PAGE_TOKENS * PAGE_TOKENS for chunk in chunks)
    return float(sum(chunk[key] for chunk in chunks) / findable)


def assert_same(answers: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    assert len(answers) == len(reference) == 64
    for answer, expected in zip(answers, reference, strict=True):
        assert answer["output_ids"] == expected["output_ids"]
        assert answer["text"] == expected["text"]
        meta, plain = answer["meta_info"], expected["meta_info"]
        pairs = zip(meta["output_token_logprobs"], plain["output_token_logprobs"], strict=True)
        assert max(abs(ours[0] - theirs[0]) for ours, theirs in pairs) < 1e-3
        for key in ("finish_reason", "prompt_tokens", "completion_tokens", "weight_versions"):
            assert meta[key] == plain[key], key


def test_moved_chunks_equal_one_plain_server(
    moved_answers: list[dict[str, Any]], plain_answers: list[dict[str, Any]]
) -> None:
    assert all(len(chunks_of([answer])) == 4 for answer in moved_answers), "300 tokens by 64"
    assert_same(moved_answers, plain_answers)


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_equals_one_plain_server(
    cluster: Cluster, plain_answers: list[dict[str, Any]], name: str
) -> None:
    assert_same(asyncio.run(_ask(cluster, policy_named(name))), plain_answers)


def test_the_prefix_of_a_moved_chunk_is_found(moved_answers: list[dict[str, Any]]) -> None:
    assert share(chunks_of(moved_answers), "cached_tokens") >= 0.95
    assert sum(answer["meta_info"]["num_retractions"] for answer in moved_answers) == 0


def test_what_an_engine_never_saw_comes_from_the_pool(moved_answers: list[dict[str, Any]]) -> None:
    """A request's second chunk is its first on that engine: its prefix has to travel, but for a page
    that begins other prompts as well, and came with theirs."""
    seconds = chunks_of(moved_answers, 1)
    came = share(seconds, "pool_tokens")
    was_there = share(seconds, "cached_tokens") - came
    assert came >= 0.95 * (1 - was_there)
    assert was_there <= 0.25


def test_what_meets_an_edge_equals_one_plain_server(
    cluster: Cluster, plain_server: dict[str, list[dict[str, Any]]]
) -> None:
    """Stop strings, penalties, grammars and all that is carried over, at 64 tokens a chunk."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=cluster.url, timeout=None) as client:
            return list(
                await asyncio.gather(*(client.post("/generate", json=body) for body in ROWS.values()))
            )

    chunks = dict.fromkeys(ROWS, 0)
    for name, response in zip(ROWS, asyncio.run(ask()), strict=True):
        assert response.status_code == 200, (name, response.text)
        for ours, plain in zip(response.json(), plain_server[name], strict=True):
            assert ours["output_ids"] == plain["output_ids"], name
            assert ours["text"] == plain["text"], name
            chunks[name] = max(chunks[name], len(ours["meta_info"]["seer"]["chunks"]))
            same = (
                "finish_reason",
                "prompt_tokens",
                "completion_tokens",
                "output_token_logprobs_length",
            )
            for key in same:
                assert ours["meta_info"].get(key) == plain["meta_info"].get(key), (name, key)
            for key in ("output_top_logprobs", "output_token_ids_logprobs", "input_token_logprobs"):
                lengths = [len(meta.get(key) or []) for meta in (ours["meta_info"], plain["meta_info"])]
                assert lengths[0] == lengths[1], (name, key)
    assert {name: chunks[name] > 1 for name in ROWS} == {name: name in CARRIED for name in ROWS}


def test_text_prompts_and_n(cluster: Cluster) -> None:
    post = partial(httpx.post, f"{cluster.url}/generate", timeout=120)
    body = {"text": GREEDY["text"][0], "sampling_params": {"n": 3, "max_new_tokens": 150}}
    answers = post(json=body).raise_for_status().json()
    assert len(answers) == 3
    assert len({answer["meta_info"]["id"] for answer in answers}) == 3
    for answer in answers:
        meta = answer["meta_info"]
        assert meta["completion_tokens"] == len(answer["output_ids"]) <= 150
        assert meta["finish_reason"]["type"] in ("stop", "length")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input_ids": [10**6]}, "token ids must lie in"),
        ({"input_ids": []}, "at least one token"),
        ({"text": ""}, "must not be empty"),
        ({"input_ids": [5], "sampling_params": {"max_new_tokens": 10**6}}, "must lie in [0, "),
        ({"input_ids": [5] * 9000}, "the largest engine takes at most"),
        ({"input_ids": [5], "sampling_params": {"warmth": 1}}, "unknown parameter"),
    ],
)
def test_bad_input_is_refused_and_nothing_breaks(
    cluster: Cluster, body: dict[str, Any], says: str
) -> None:
    response = httpx.post(f"{cluster.url}/generate", json=body, timeout=30)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert httpx.get(f"{cluster.url}/health").status_code == 200
