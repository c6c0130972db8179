"""What trainers send, as they send it: no trainer is changed for us.

Bodies, paths, methods and headers are those of slime 0.3.1, miles 0.1.0, AReaL 2.0, NeMo-RL, ROLL 0.3
and verl 0.10; what is asserted is what each of them reads from the answer.
"""

import asyncio
import json
import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from seer_sgl.testing.engine import FakeServer, continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

SLIME_SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 120,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}


def two_engines(token_s: float = 0.0) -> tuple[FakeServer, FakeServer]:
    facts = {"tp_size": 2, "pp_size": 1, "dp_size": 1, "enable_memory_saver": True}
    return server("a", token_s=token_s, facts=facts), server("b", token_s=token_s, facts=facts)


def url_of(it: Cluster) -> str:
    return f"http://127.0.0.1:{it.config.http_port}"


async def good(answer: Any) -> Any:
    """The decoded body of a call that has to succeed."""
    response: httpx.Response = await answer
    assert response.status_code == 200, response.text
    return response.json()


async def all_of(calls: list[Any]) -> list[httpx.Response]:
    return list(await asyncio.gather(*calls))


def is_idle(loads: dict[str, Any]) -> bool:
    """slime's `num_requests_from_load` is 0."""
    return not sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in loads["loads"])


# ---- slime ----


def test_slime_finds_one_engine_and_registers_it() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            info = await good(it.http.get("/server_info"))
            assert (info["tp_size"], info["pp_size"], info["num_gpus"]) == (2, 1, 4)
            assert int(info.get("num_gpus_per_engine") or 4) == 4
            assert info.get("disaggregation_mode") in (None, "null")
            assert not info.get("encoder_only")
            assert await good(it.http.get("/get_server_info")) == info

            body = {"url": url_of(it), "worker_type": "regular"}
            assert (await it.http.post("/workers", json=body)).is_success
            (worker,) = (await good(it.http.get("/workers")))["workers"]
            assert worker["url"] == url_of(it), "no loop: the router is one engine"
            assert (await it.http.delete(f"/workers/{worker['id']}")).is_success
            assert len((await good(it.http.get("/engines")))["engines"]) == 2, "its engines stay"
            assert (await it.http.get("/health_generate")).status_code == 200

    run(scenario())


def test_slime_generates_a_group_in_chunks() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engines = two_engines()
        async with cluster(*engines, chunk_tokens=32) as it:
            body = {"sampling_params": SLIME_SAMPLING, "return_logprob": True, "input_ids": prompt}
            answers = await asyncio.gather(
                *(
                    good(
                        it.http.post(
                            "/generate", json=body, headers={"X-SMG-Routing-Key": str(uuid.uuid4())}
                        )
                    )
                    for _ in range(4)
                )
            )
            for answer in answers:
                meta = answer["meta_info"]
                tokens = [item[1] for item in meta["output_token_logprobs"]]
                assert tokens == continuation(prompt, 120)
                assert all(isinstance(item[0], float) for item in meta["output_token_logprobs"])
                assert meta["finish_reason"]["type"] in ("stop", "length")
                assert meta["prompt_tokens"] == len(prompt)
                assert meta["completion_tokens"] == len(tokens)
                assert isinstance(answer["text"], str)
                assert len(meta["seer"]["chunks"]) > 2, (
                    "slime's parameters are no reason to run it whole"
                )

    run(scenario())


def test_slime_streams() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(*two_engines(), chunk_tokens=32) as it:
            body = {"sampling_params": SLIME_SAMPLING, "return_logprob": True, "stream": True}
            so_far: list[int] = []
            async with it.http.stream("POST", "/generate", json={**body, "input_ids": prompt}) as lines:
                assert lines.status_code == 200
                said = [line async for line in lines.aiter_lines() if line.startswith("data:")]
            assert said[-1] == "data: [DONE]"
            for line in said[:-1]:
                meta = json.loads(line[len("data:") :])["meta_info"]
                tokens = [item[1] for item in meta["output_token_logprobs"]]
                assert tokens[: len(so_far)] == so_far, "cumulative"
                so_far = tokens
            assert so_far == continuation(prompt, 120)
            assert meta["finish_reason"]["type"] in ("stop", "length")

    run(scenario())


def test_slime_aborts_until_idle_and_goes_on_with_what_it_got() -> None:
    async def scenario() -> None:
        long = prompts(12, LONG)
        async with cluster(*two_engines(token_s=0.005), chunk_tokens=32) as it:
            body = {"sampling_params": SLIME_SAMPLING, "return_logprob": True}
            posts = [it.http.post("/generate", json={**body, "input_ids": ids}) for ids in long]
            async with together(all_of(posts)) as running:
                await until(lambda: it.service.core.statistics().in_flight == 8)
                assert not is_idle(await good(it.http.get("/v1/loads?include=core")))
                for _ in range(20):
                    for worker in (await good(it.http.get("/workers")))["workers"]:
                        aborted = await it.http.post(
                            f"{worker['url']}/abort_request", json={"abort_all": True}
                        )
                        assert aborted.status_code == 200
                    if is_idle(await good(it.http.get("/v1/loads?include=core"))):
                        break
                    await asyncio.sleep(0.05)
                else:
                    raise AssertionError("never idle")
                answers = await asyncio.wait_for(running, 2.0)
            partial, again = 0, []
            for ids, response in zip(long, answers, strict=True):
                assert response.status_code == 200
                meta = response.json()["meta_info"]
                assert meta["finish_reason"]["type"] == "abort"
                tokens = [item[1] for item in meta["output_token_logprobs"]]
                assert tokens == continuation(ids, len(tokens)) if tokens else True
                assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(ids), len(tokens))
                partial += bool(tokens)
                left = {**SLIME_SAMPLING, "max_new_tokens": 120 - len(tokens)}
                more = {"sampling_params": left, "return_logprob": True, "input_ids": ids + tokens}
                again.append(it.http.post("/generate", json=more))
            for ids, rest in zip(long, await all_of(again), strict=True):
                told = len(ids) + 120 - rest.json()["meta_info"]["prompt_tokens"]
                assert rest.json()["output_ids"] == continuation(ids, 120)[120 - told :]
            assert partial, "what ran comes back with its tokens"

    run(scenario())


def test_slime_updates_weights() -> None:
    async def scenario() -> None:
        engines = two_engines()
        async with cluster(*engines) as it:

            async def make_request(endpoint: str, payload: dict[str, Any] | None = None) -> Any:
                return await good(it.http.post(f"/{endpoint}", json=payload or {}))

            await make_request("pause_generation")
            assert (await it.http.get("/flush_cache")).status_code == 200
            group = {"master_address": "127.0.0.1", "master_port": 29500, "rank_offset": 1}
            group |= {"world_size": 5, "group_name": "slime-pp_0", "backend": "nccl"}
            assert (await make_request("init_weights_update_group", group))["success"] is True
            offsets = [
                json.loads(call.body)["rank_offset"]
                for engine in engines
                for call in engine.calls
                if call.path == "/init_weights_update_group"
            ]
            assert sorted(offsets) == [1, 3], "each engine has ranks of its own"
            weights = {"names": ["w"], "dtypes": ["bfloat16"], "shapes": [[2, 2]]}
            weights |= {"group_name": "slime-pp_0", "flush_cache": False, "weight_version": "7"}
            assert (await make_request("update_weights_from_distributed", weights))["success"] is True
            await make_request("continue_generation")
            for engine in engines:
                paths = [call.path for call in engine.calls]
                update = paths.index("/update_weights_from_distributed")
                assert "/begin_weight_update" in paths[:update], "0.5.23 refuses it otherwise"
                assert "/end_weight_update" in paths[update:]
            await make_request("destroy_weights_update_group", {"group_name": "slime-pp_0"})
            assert (await good(it.http.get("/get_weight_version")))["weight_version"] == "7"
            disk = {"model_path": "/models/8", "weight_version": "8"}
            assert (await make_request("update_weights_from_disk", disk))["success"] is True
            assert (await good(it.http.get("/get_weight_version")))["weight_version"] == "8"
            assert (await it.generate([5, 6, 7]))["output_ids"] == continuation([5, 6, 7], 128)

    run(scenario())


def test_slime_offloads_and_takes_back() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await it.http.get("/flush_cache")).status_code == 200
            released = await it.http.post("/release_memory_occupation", json={})
            assert (released.status_code, released.json()) == (200, None)
            for tags in (["weights"], ["kv_cache", "cuda_graph"]):
                resumed = await it.http.post("/resume_memory_occupation", json={"tags": tags})
                assert (resumed.status_code, resumed.json()) == (200, None)
            assert (await it.generate([5, 6, 7]))["output_ids"] == continuation([5, 6, 7], 128)

    run(scenario())


# ---- miles ----


def test_miles_registers_by_query() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await it.http.post(f"/add_worker?url={url_of(it)}")).is_success
            assert (await good(it.http.get("/list_workers")))["urls"] == [url_of(it)]
            assert (await it.http.post(f"/remove_worker?url={url_of(it)}")).is_success
            assert (await it.http.get("/retrieve_from_text")).status_code == 404

    run(scenario())


def test_miles_brackets_updates_itself() -> None:
    async def scenario() -> None:
        engines = two_engines()
        async with cluster(*engines) as it:
            await good(it.http.post("/pause_generation", json={"mode": "retract"}))
            await good(it.http.post("/begin_weight_update", json={"selector": "all"}))
            tensors = {"names": ["w"], "dtypes": ["bfloat16"], "shapes": [[2]], "group_name": "g"}
            await good(it.http.post("/update_weights_from_distributed", json=tensors))
            await good(it.http.post("/end_weight_update", json={}))
            version = {"new_version": "3", "abort_all_requests": False}
            await good(it.http.post("/update_weight_version", json=version))
            await good(it.http.post("/continue_generation", json={}))
            for engine in engines:
                paths = [call.path for call in engine.calls]
                assert paths.count("/begin_weight_update") == paths.count("/end_weight_update") == 1
            assert (await good(it.http.get("/model_info")))["weight_version"] == "3"

    run(scenario())


# ---- AReaL ----


def test_areal_interrupts_updates_and_resumes() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(*two_engines(token_s=0.005), chunk_tokens=32) as it:
            sampling: dict[str, Any] = {
                "top_p": 1.0,
                "top_k": 1000,
                "max_new_tokens": 120,
                "temperature": 1.0,
            }
            sampling |= {"stop_token_ids": [], "ignore_eos": False, "skip_special_tokens": True}
            sampling |= {"frequency_penalty": 0.0}
            body: dict[str, Any] = {"input_ids": prompt, "image_data": None, "sampling_params": sampling}
            body |= {"return_logprob": True, "stream": False}
            assert (await it.http.get("/health")).status_code == 200
            async with together(good(it.http.post("/generate", json=body))) as running:
                await until(lambda: it.service.core.statistics().in_flight)
                await asyncio.sleep(0.05)
                assert (await good(it.http.post("/pause_generation", json={})))["status"] == "ok"
                await good(it.http.post("/pause_generation", json={"mode": "in_place"}))
                answer = await asyncio.wait_for(running, 2.0)
            meta = answer["meta_info"]
            assert meta["finish_reason"]["type"] == "abort"
            tokens = [item[1] for item in meta["output_token_logprobs"]]
            # AReaL indexes this at once, and asks again while it is paused.
            again = {**body, "input_ids": prompt + tokens}
            again["sampling_params"] = {**sampling, "max_new_tokens": 120 - len(tokens)}
            async with together(good(it.http.post("/generate", json=again))) as waiting:
                disk = {"model_path": "/models/v1", "abort_all_requests": True}
                assert (await good(it.http.post("/update_weights_from_disk", json=disk)))["success"]
                assert not waiting.done(), "requests wait while it is paused"
                await good(it.http.post("/continue_generation", json={}))
                rest = (await asyncio.wait_for(waiting, 5.0))["output_ids"]
            assert tokens + rest == continuation(prompt, 120)

    run(scenario())


def test_areal_sends_the_port_of_its_group_as_text() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            group = {"master_address": "127.0.0.1", "master_port": "29501", "rank_offset": 1}
            group |= {"world_size": 5, "backend": "nccl", "group_name": "update_weight_group_0"}
            answer = await good(it.http.post("/init_weights_update_group", json=group))
            assert answer["success"] is True

    run(scenario())


# ---- ROLL ----


def test_roll_registers_asks_for_n_and_looks_at_loads() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await it.http.post("/workers", json={"url": url_of(it)})).is_success
            body = {"input_ids": [5, 6, 7], "rid": "7_0", "return_logprob": True}
            body["sampling_params"] = {"n": 3, "max_new_tokens": 50, "temperature": 0.9, "top_k": 50}
            answers = await good(it.http.post("/generate", json=body))
            assert [each["output_ids"] for each in answers] == [continuation([5, 6, 7], 50)] * 3
            loads = await good(it.http.get("/get_load"))
            assert sum(each["num_reqs"] + each["num_waiting_reqs"] for each in loads) == 0
            removed = await it.http.delete(f"/workers/{quote(url_of(it), safe='')}")
            assert removed.is_success, "by URL, which the stock router refuses"

    run(scenario())


@pytest.mark.parametrize("count", [1, 3])
def test_roll_aborts_by_id_on_every_worker(count: int) -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(*two_engines(token_s=0.01)) as it:
            sampling = {"max_new_tokens": 120, "n": count}
            body = {"input_ids": prompt, "rid": "r1", "sampling_params": sampling}
            async with together(good(it.http.post("/generate", json=body))) as running:
                await until(lambda: it.service.core.statistics().in_flight == count)
                for _ in range(2):
                    aborted = await it.http.post("/abort_request", json={"rid": "r1"})
                    assert aborted.status_code == 200
                answer = await asyncio.wait_for(running, 1.0)
            answers = answer if count > 1 else [answer]
            kinds = {each["meta_info"]["finish_reason"]["type"] for each in answers}
            assert kinds == {"abort"}
            assert (await it.http.post("/abort_request", json={"rid": "gone"})).status_code == 200

    run(scenario())


# ---- NeMo-RL, verl ----


def test_nemo_waits_until_its_url_is_listed() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await it.http.post("/workers", json={"url": url_of(it)})).is_success
            workers = (await good(it.http.get("/workers")))["workers"]
            (mine,) = [each for each in workers if each["url"] == url_of(it)]
            assert (await it.http.get("/health_generate")).status_code == 200
            assert (await it.http.get("/flush_cache")).status_code == 200
            assert (await it.http.post("/release_memory_occupation", json={})).is_success
            assert (await it.http.post("/resume_memory_occupation", json={})).is_success
            assert (await it.http.delete(f"/workers/{mine['id']}")).is_success

    run(scenario())


def test_verl_registers_and_leaves() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await it.http.get("/health_generate")).status_code == 200
            assert (await it.http.post(f"/add_worker?url={url_of(it)}")).is_success
            assert (await it.http.get("/flush_cache")).status_code == 200
            assert (await it.http.post(f"/remove_worker?url={url_of(it)}")).is_success

    run(scenario())


# ---- sglang.bench_serving ----


def test_bench_serving_prepares() -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            assert (await good(it.http.get("/v1/models")))["data"][0]["id"] == "fake-model"
            info = await good(it.http.get("/server_info"))
            assert isinstance(info["internal_states"][0], dict)
            assert (await it.http.post("/flush_cache?timeout=5")).status_code == 200

    run(scenario())
