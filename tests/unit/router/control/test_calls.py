"""What single control calls do to requests, memory and sessions."""

import asyncio

import msgspec
import pytest

from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import cluster, prompts, run, server, together, until
from tests.unit.router.control.test_plane import BODIES, asked, pair

LONG_PROMPTS = prompts(6, tokens_at_least=100)


# ---- rollout ----


def test_a_pause_returns_what_there_is_and_what_comes_waits() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.003)
        async with cluster(a, b, chunk_tokens=20) as it:
            body = {"sampling_params": {"max_new_tokens": 100}, "return_logprob": True}
            work = [asyncio.create_task(it.generate(p, **body)) for p in LONG_PROMPTS]
            await until(lambda: any(len(sent["input_ids"]) > 30 for sent in a.bodies))
            response = await it.http.post("/pause_generation", json={})
            assert response.json() == {"message": "Generation paused successfully.", "status": "ok"}
            assert it.service.core.statistics().in_flight == 0
            answers = await asyncio.gather(*work)
            partial = [answer["output_ids"] for answer in answers]
            assert any(partial)
            for prompt, answer in zip(LONG_PROMPTS, answers, strict=True):
                ids, meta = answer["output_ids"], answer["meta_info"]
                assert ids == continuation(prompt, 100)[: len(ids)]
                assert meta["finish_reason"]["type"] == "abort"
                assert [entry[1] for entry in meta["output_token_logprobs"]] == ids
                assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(prompt), len(ids))
            assert (await it.http.get("/ready")).status_code == 503
            assert (await it.http.get("/health_generate")).status_code == 200, "paused is not dead"

            whole = continuation(LONG_PROMPTS[0], 100)
            async with together(it.generate([*LONG_PROMPTS[0], *partial[0]])) as rest:
                await asyncio.sleep(0.05)
                assert not rest.done()
                loads = (await it.http.get("/v1/loads?include=core")).json()["loads"]
                assert loads[-1]["num_waiting_reqs"] == 1
                assert (await it.http.post("/continue_generation", json={})).status_code == 200
                ids = (await rest)["output_ids"]
            assert (partial[0] + ids)[:100] == whole
            assert (await it.http.get("/ready")).status_code == 200

    run(scenario())


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_that_keeps_requests_lets_them_go_on_as_if_nothing_had_been(mode: str) -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b, chunk_tokens=20) as it:
            body = {"sampling_params": {"max_new_tokens": 100}}
            work = [asyncio.create_task(it.generate(p, **body)) for p in LONG_PROMPTS]
            await until(lambda: any(len(sent["input_ids"]) > 30 for sent in a.bodies))
            assert (await it.http.post("/pause_generation", json={"mode": mode})).status_code == 200
            sent = len(a.bodies) + len(b.bodies)
            await asyncio.sleep(0.1)
            assert len(a.bodies) + len(b.bodies) == sent, "nothing is dispatched"
            assert not any(task.done() for task in work)
            assert (await it.http.post("/continue_generation", json={})).status_code == 200
            answers = await asyncio.gather(*work)
        assert [x["output_ids"] for x in answers] == [continuation(p, 100) for p in LONG_PROMPTS]

    run(scenario())


def test_areal_pauses_twice() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPTS[0])) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            for body in ({}, {"mode": "in_place"}):
                assert (await it.http.post("/pause_generation", json=body)).status_code == 200
            assert (await work)["meta_info"]["finish_reason"]["type"] == "abort"
            assert [call.json() for call in asked(a, "/pause_generation")] == [{}, {"mode": "in_place"}]
            assert (await it.http.post("/continue_generation", json={})).status_code == 200
            assert not it.service.dispatcher.paused

    run(scenario())


def test_an_abort_of_all_ends_what_runs_and_what_waits() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.003, max_running_requests=1)
        async with cluster(a, b) as it:
            work = [asyncio.create_task(it.generate(p)) for p in LONG_PROMPTS]
            await until(lambda: it.service.core.statistics().waiting == 4)
            response = await it.http.post("/abort_request", json={"abort_all": True})
            assert (response.status_code, response.content) == (200, b"")
            answers = await asyncio.gather(*work)
            assert {x["meta_info"]["finish_reason"]["type"] for x in answers} == {"abort"}
            loads = (await it.http.get("/v1/loads?include=core")).json()["loads"]
            assert sum(x["num_running_reqs"] + x["num_waiting_reqs"] for x in loads) == 0
            assert (await it.generate([5, 6]))["output_ids"] == continuation([5, 6], 128)

    run(scenario())


def test_an_abort_by_rid_ends_one_and_an_unknown_one_is_no_error() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.003)
        async with cluster(a, b) as it:
            body = {"sampling_params": {"max_new_tokens": 100}}
            one = asyncio.create_task(it.generate(LONG_PROMPTS[0], rid="one", **body))
            two = asyncio.create_task(it.generate(LONG_PROMPTS[1], rid="two", **body))
            await until(lambda: it.service.core.statistics().in_flight == 2)
            for rid in ("one", "unknown", ""):
                assert (await it.http.post("/abort_request", json={"rid": rid})).status_code == 200
            assert (await one)["meta_info"]["finish_reason"]["type"] == "abort"
            assert (await two)["output_ids"] == continuation(LONG_PROMPTS[1], 100)
            unknown = [call.json() for call in asked(b, "/abort_request")]
            assert {"rid": "unknown"} in unknown, "it may run there as a whole"
            assert {"rid": ""} not in unknown

    run(scenario())


def test_a_flush_is_good_only_where_every_engine_has_flushed() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            response = await it.http.get("/flush_cache", params={"timeout": 3})
            assert (response.status_code, response.text[:13]) == (200, "Cache flushed")
            assert response.headers["content-type"].startswith("text/plain")
            assert [call.target for call in asked(a, "/flush_cache")] == ["/flush_cache?timeout=3"]
            b.script["/flush_cache"] = Reply(400, b"Flush cache failed.")
            for method in ("GET", "POST"):
                refused = await it.http.request(method, "/flush_cache")
                assert refused.status_code == 400
                assert "engine b: Flush cache failed." in refused.text

    run(scenario())


# ---- memory ----


def test_memory_is_released_when_nothing_runs_and_requests_wait_for_it() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b, chunk_tokens=20) as it, together(it.generate(LONG_PROMPTS[0])) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            seen = []
            a.script["/release_memory_occupation"] = lambda _: seen.append(len(a.state.running))
            response = await it.http.post("/release_memory_occupation", json={})
            assert (response.status_code, response.content) == (200, b"null")
            assert seen == [0]
            await asyncio.sleep(0.05)
            assert not work.done()
            for tags in (["weights"], ["kv_cache", "cuda_graph"]):
                assert it.service.dispatcher.paused
                again = await it.http.post("/resume_memory_occupation", json={"tags": tags})
                assert again.status_code == 200, again.text
            assert (await work)["output_ids"] == continuation(LONG_PROMPTS[0], 128)
            twice = await it.http.post("/resume_memory_occupation", json={})
            assert twice.status_code == 400

    run(scenario())


def test_memory_of_requests_that_a_pause_keeps_is_not_released() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPTS[0])):
            await until(lambda: it.service.core.statistics().in_flight)
            await it.http.post("/pause_generation", json={"mode": "in_place"})
            response = await it.http.post("/release_memory_occupation", json={})
            assert response.status_code == 400
            assert "abort them" in response.text
            assert not asked(a, "/release_memory_occupation")
            await it.http.post("/continue_generation", json={})

    run(scenario())


def test_memory_of_one_engine_is_gone_with_it_and_of_others_is_not() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.005)
        async with cluster(a, b, chunk_tokens=40) as it, together(it.generate(LONG_PROMPTS[0])) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            idle = b if a.state.running else a
            release = asyncio.create_task(it.http.post("/release_memory_occupation", json={}))
            await asyncio.sleep(0.02)
            idle.kill()
            await until(lambda: len(it.service.roster) == 1)
            assert it.service.dispatcher.paused, "the other one is about to release its own"
            assert (await release).status_code == 200
            assert it.service.dispatcher.paused
            (a if idle is b else b).kill()
            await until(lambda: not it.service.dispatcher.paused)
            work.cancel()

    run(scenario())


def test_an_engine_without_a_memory_saver_is_not_asked() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b) as it:
            response = await it.http.post("/release_memory_occupation", json={})
            assert response.status_code == 400
            assert "--enable-memory-saver" in response.text
            assert not it.service.dispatcher.paused

    run(scenario())


# ---- sessions ----


def test_a_session_stays_on_its_engine() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for engine, name in ((a, "s1"), (b, "s2")):
                engine.script["/open_session"] = name
            for _ in range(2):
                assert (await it.http.post("/open_session", json={"capacity_of_str_len": 9})).is_success
            assert [len(asked(engine, "/open_session")) for engine in (a, b)] == [1, 1]
            for name in ("s2", "s1"):
                assert (await it.http.post("/close_session", json={"session_id": name})).is_success
            closed = [[call.json()["session_id"] for call in asked(e, "/close_session")] for e in (a, b)]
            assert closed == [["s1"], ["s2"]]

    run(scenario())


def test_a_bug_of_an_engine_is_no_bug_of_the_router() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            a.script["/parse_function_call"] = b.script["/parse_function_call"] = Reply(500, b"boom")
            body = BODIES["/parse_function_call"]
            response = await it.http.post("/parse_function_call", json=body)
            assert (response.status_code, response.json()["error"]["message"]) == (400, "boom")

    run(scenario())


def test_engine_metrics_carry_the_address_of_each() -> None:
    async def scenario() -> None:
        a, b = pair()
        b.client.url = "http://other"
        for engine in (a, b):
            engine.script["/metrics"] = Reply(200, b"# TYPE sglang:x gauge\nsglang:x 1\n")
        async with cluster(a, b) as it:
            page = await it.http.get("/engine_metrics")
            assert page.headers["content-type"].startswith("text/plain")
            assert page.text.count('sglang:x{worker_addr="') == 2
            for engine in (a, b):
                engine.script["/metrics"] = Reply(404, {"detail": "Not Found"})
            missing = await it.http.get("/engine_metrics")
            assert missing.status_code == 404
            assert "--enable-metrics" in missing.json()["error"]["message"]

    run(scenario())


def test_what_engines_differ_in_is_told() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for engine, total in ((a, "1f"), (b, "2e")):
                engine.script["/weights_checker"] = {
                    "success": True,
                    "message": "Success.",
                    "per_engine_checksum": total,
                }
            response = await it.http.post("/weights_checker", json={"action": "checksum"})
            assert response.status_code == 400
            assert response.json()["checksums"] == {"a": "1f", "b": "2e"}

    run(scenario())


def test_models_by_name() -> None:
    async def scenario() -> None:
        async with cluster(*pair()) as it:
            (model,) = (await it.http.get("/v1/models")).json()["data"]
            assert (await it.http.get(f"/v1/models/{model['id']}")).json() == model
            missing = await it.http.get("/v1/models/Qwen/Other")
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "model_not_found"
            assert msgspec.json.decode((await it.http.get("/liveness")).content) == {"status": "alive"}
            assert (await it.http.get("/ping")).content == b""

    run(scenario())
