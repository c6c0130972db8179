"""Good requests through a whole router: one answer each, and the one that a single engine would give."""

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from seer_sgl.router.core import Policy
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.testing.controls import END_TOKEN
from seer_sgl.testing.engine import continuation
from seer_sgl.testing.policies import ALWAYS_MOVE
from tests.unit.router.conftest import Cluster, cluster, prompts, run, server

PROMPTS = [*prompts(3, tokens_at_least=80), *prompts(5)]
SAMPLING = {"max_new_tokens": 200}


def pieces(ids: list[int]) -> str:
    return "".join(f"<{token}>" for token in ids if token != END_TOKEN)


def test_ids_in_ids_out() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            answer = await it.generate([5, 6, 7], sampling_params={"max_new_tokens": 9}, rid="mine")
        expected = continuation([5, 6, 7], 9)
        assert answer["output_ids"] == expected
        assert answer["text"] == pieces(expected)
        meta = answer["meta_info"]
        assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"]) == ("mine", 3, 9)
        assert meta["finish_reason"] == {"type": "length", "length": 9}

    run(scenario())


def test_text_is_tokenized_by_an_engine() -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            answer = (await it.post({"text": "hello", "sampling_params": SAMPLING})).json()
        assert answer["output_ids"] == continuation(list(b"hello"), 200)
        assert answer["meta_info"]["prompt_tokens"] == 5
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"

    run(scenario())


def test_text_without_a_token_is_refused() -> None:
    async def scenario() -> None:
        engine = server()
        engine.script["/tokenize"] = {"tokens": [[]]}
        async with cluster(engine) as it:
            answer = await it.post({"text": "?"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text")

    run(scenario())


async def all_of(it: Cluster) -> list[dict[str, Any]]:
    """The answers to PROMPTS, less what may differ between two runs."""
    body = {"input_ids": PROMPTS, "return_logprob": True, "sampling_params": SAMPLING, "rid": "r"}
    answers: list[dict[str, Any]] = (await it.post(body)).json()
    for answer in answers:
        del answer["meta_info"]["e2e_latency"]
    return answers


@pytest.mark.parametrize("policy", [DIVIDED, ALWAYS_MOVE], ids=["divided", "always_move"])
def test_chunks_make_the_same_answers(policy: Policy) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            whole = await all_of(it)
        async with cluster(server("a"), server("b"), policy=policy, chunk_tokens=7) as it:
            cut = await all_of(it)
            assert it.service.core.statistics().in_flight == 0

        chunks = [answer["meta_info"].pop("seer")["chunks"] for answer in cut]
        assert [len(answer["meta_info"].pop("seer")["chunks"]) for answer in whole] == [1] * 8
        assert cut == whole
        for answer, prompt, parts in zip(cut, PROMPTS, chunks, strict=True):
            expected = continuation(prompt, 200)
            assert answer["output_ids"] == expected
            assert [row[1] for row in answer["meta_info"]["output_token_logprobs"]] == expected
            assert answer["meta_info"]["completion_tokens"] == len(expected)
            assert len(parts) == -(-len(expected) // 7)
            assert [part["new_tokens"] for part in parts[:-1]] == [7] * (len(parts) - 1)
            if policy is ALWAYS_MOVE:
                engines = [part["engine"] for part in parts]
                assert [part["came_from"] for part in parts] == [None, *engines[:-1]]
                assert all(here != there for here, there in pairwise(engines))

    run(scenario())


def test_each_chunk_starts_from_all_tokens_so_far() -> None:
    async def scenario() -> None:
        engine, prompt = server(), PROMPTS[0]
        async with cluster(engine, policy=DIVIDED, chunk_tokens=30) as it:
            await it.generate(prompt, sampling_params={"max_new_tokens": 70, "top_p": 0.5})
        output = continuation(prompt, 70)
        assert [body["input_ids"] for body in engine.bodies] == [
            prompt,
            prompt + output[:30],
            prompt + output[:60],
        ]
        sampling = [body["sampling_params"] for body in engine.bodies]
        assert [{**params, "custom_params": None} for params in sampling] == [
            {"top_p": 0.5, "max_new_tokens": budget, "custom_params": None} for budget in (30, 30, 10)
        ]

    run(scenario())


def test_what_only_the_engine_understands_reaches_it() -> None:
    async def scenario() -> None:
        engine = server()
        future = {"a": [1, {"b": None}]}
        async with cluster(engine, chunk_tokens=10) as it:
            await it.generate(
                PROMPTS[0], rid="mine", group_id="g", priority=3, a_field_of_tomorrow=future
            )
        (body,) = engine.bodies
        assert body["rid"].startswith("mine")
        assert (body["priority"], body["a_field_of_tomorrow"]) == (3, future)
        assert body.keys().isdisjoint({"group_id", "text", "stream"})

    run(scenario())


def test_a_prompt_may_be_scored_without_a_token() -> None:
    async def scenario() -> None:
        engine = server()

        def scored(call: Any) -> dict[str, Any]:
            sent.append(call.json())
            meta = {"finish_reason": {"type": "length", "length": 0}, "input_token_logprobs": [[-1, 5]]}
            return {"text": "", "output_ids": [], "meta_info": meta}

        sent: list[dict[str, Any]] = []
        engine.script["/generate"] = scored
        async with cluster(engine) as it:
            scoring = {"return_logprob": True, "logprob_start_len": 0}
            answer = await it.generate([5, 6], sampling_params={"max_new_tokens": 0}, **scoring)
        assert [body["sampling_params"]["max_new_tokens"] for body in sent] == [0]
        assert (sent[0]["input_ids"], sent[0]["logprob_start_len"]) == ([5, 6], 0)
        meta = answer["meta_info"]
        assert (answer["output_ids"], meta["input_token_logprobs"]) == ([], [[-1, 5]])
        assert meta["finish_reason"] == {"type": "length", "length": 0}

    run(scenario())


def test_a_text_that_stands_beside_images_stays_one() -> None:
    async def scenario() -> None:
        engine = server()
        bodies: list[dict[str, Any]] = []
        meta = {"finish_reason": {"type": "stop"}}
        whole = {"text": "x", "output_ids": [9], "meta_info": meta}

        def noted(call: Any) -> dict[str, Any]:
            bodies.append(call.json())
            return whole

        engine.script["/generate"] = noted
        async with cluster(engine) as it:
            await it.post({"text": "<image>hi", "image_data": ["data:,x"]})
            await it.post({"text": "hi"})
        assert (bodies[0]["text"], bodies[0]["image_data"]) == ("<image>hi", ["data:,x"])
        assert "input_ids" not in bodies[0]
        assert (bodies[1]["input_ids"], "text" in bodies[1]) == ([104, 105], False)

    run(scenario())


def test_the_least_length_holds_over_chunks() -> None:
    async def scenario() -> None:
        engine = server()
        async with cluster(engine, policy=DIVIDED, chunk_tokens=30) as it:
            await it.generate(PROMPTS[0], sampling_params={"max_new_tokens": 70, "min_new_tokens": 50})
        sent = [body["sampling_params"]["min_new_tokens"] for body in engine.bodies]
        assert sent == [30, 20, 0]

    run(scenario())


def test_n_is_expanded_and_answers_come_in_order() -> None:
    async def scenario() -> None:
        engine = server()
        async with cluster(engine, chunk_tokens=20) as it:
            body = {"input_ids": PROMPTS[:2], "rid": ["x", "y"], "sampling_params": {"n": 3}}
            answers = (await it.post(body)).json()
            one = (await it.post({"input_ids": [5], "sampling_params": {"n": 1}})).json()
            list_of_one = (await it.post({"input_ids": [[5]]})).json()
        assert [answer["meta_info"]["id"] for answer in answers] == "x_0 x_1 x_2 y_0 y_1 y_2".split()
        assert [answer["output_ids"] for answer in answers] == [
            continuation(prompt, 128) for prompt in PROMPTS[:2] for _ in range(3)
        ]
        assert isinstance(one, dict)
        assert [answer["output_ids"] for answer in list_of_one] == [one["output_ids"]]
        assert all("n" not in body["sampling_params"] for body in engine.bodies)

    run(scenario())


def test_samples_of_one_prompt_are_one_group_unless_a_header_says_otherwise() -> None:
    async def scenario() -> None:
        groups: list[set[str]] = []

        def look(_body: dict[str, Any]) -> None:
            groups.append(set(it.service.core.buffer.groups))

        async with cluster(server(refuse=look)) as it:
            named = it.http.post("/generate", json={"input_ids": [5]}, headers={"x-seer-group": "other"})
            await asyncio.gather(it.post({"input_ids": [[5], [5]]}), it.generate([5]), named)
        assert len(groups[0]) == 2
        assert "other" in groups[0]

    run(scenario())


def test_answers_on_one_connection_do_not_wait_for_nagle() -> None:
    async def scenario() -> None:
        took_s = []
        async with cluster(server()) as it:
            for _ in range(8):
                began_s = time.perf_counter()
                await it.http.get("/v1/models")
                took_s.append(time.perf_counter() - began_s)
        assert min(took_s[1:]) < 0.03

    run(scenario())


def test_models_engines_and_metrics() -> None:
    async def scenario() -> None:
        async with cluster(server("a"), server("b")) as it:
            await it.generate([5])
            health = await it.http.get("/health")
            models = (await it.http.get("/v1/models")).json()
            engines = (await it.http.get("/engines")).json()
            metrics = (await it.http.get("/metrics")).text
        assert (health.status_code, health.json()) == (200, {"status": "ok", "engines": 2})
        assert [(m["id"], m["max_model_len"]) for m in models["data"]] == [("fake-model", 2048)]
        assert (engines["total"], [e["id"] for e in engines["engines"]]) == (2, ["a", "b"])
        assert engines["engines"][0]["kv_capacity_tokens"] == 4096
        for line in ("seer_engines 2.0", "seer_delivered_total 1.0", "seer_waiting 0.0"):
            assert line in metrics.splitlines()

    run(scenario())


def test_requests_of_a_session_go_to_its_engine() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b) as it:
            for name in ("one", "two"):
                for engine in (a, b):
                    engine.script["/open_session"] = name
                opened = await it.http.post("/open_session", json={"capacity_of_str_len": 9})
                assert opened.is_success
            for name in ("one", "two", "one", "two", "one"):
                body: dict[str, Any] = {
                    "session_params": {"id": name},
                    "rid": "r",
                    "sampling_params": SAMPLING,
                }
                answer = await it.generate([5, 6], **body)
                assert answer["output_ids"] == continuation([5, 6], 200)
                streamed = await it.post({**body, "input_ids": [5, 6], "stream": True})
                assert streamed.text.endswith("data: [DONE]\n\n")
                assert streamed.text.count("[DONE]") == 1
            statistics = it.service.core.statistics()
        asked = [[body["session_params"]["id"] for body in engine.bodies] for engine in (a, b)]
        assert sorted(asked) == [["one"] * 6, ["two"] * 4]
        assert statistics.delivered == 0

    run(scenario())


def test_routed_experts_of_chunks_are_joined() -> None:
    """Each row names its token; a server tells all rows from where it is asked to, but the last."""

    def rows(ids: list[int], start: int) -> str:
        return b64encode(b"".join(bytes([token % 256] * 8) for token in ids[start:-1])).decode()

    async def scenario() -> None:
        engine, prompt = server(), PROMPTS[0]
        plain = engine.fake._answers

        async def answers(body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            async for answer in plain(body):
                ids = body["input_ids"] + answer["output_ids"]
                told = rows(ids, body["routed_experts_start_len"])
                yield {**answer, "meta_info": {**answer["meta_info"], "routed_experts": told}}

        engine.fake._answers = answers  # type: ignore[method-assign]
        async with cluster(engine, policy=DIVIDED, chunk_tokens=30) as it:
            for start in (None, 2):
                asked = {"return_routed_experts": True, "routed_experts_start_len": start}
                answer = await it.generate(prompt, sampling_params={"max_new_tokens": 70}, **asked)
                expected = rows(prompt + continuation(prompt, 70), start or 0)
                assert answer["meta_info"]["routed_experts"] == expected
        starts = [body["routed_experts_start_len"] for body in engine.bodies]
        assert starts == [0, 34, 64, 2, 34, 64]

    run(scenario())
