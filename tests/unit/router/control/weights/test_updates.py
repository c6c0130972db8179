"""Weight changes, and engines that miss one."""

import asyncio
from typing import Any

import httpx
import pytest

from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer, continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until

FACTS = {"tp_size": 2, "pp_size": 2}
DISK = {"model_path": "/new", "weight_version": "7"}
SENT = {**DISK, "flush_cache": False}
"""As it comes to SGLang: agents flush by a call of their own."""
BUCKET = {"names": ["w"], "dtypes": ["bfloat16"], "shapes": [[2, 3]], "flush_cache": False}
SESSION = ("/begin_weight_update", "/update_weights_from_distributed", "/end_weight_update")
FAILED = Reply(400, {"success": False, "message": "NCCL error"})
MISSING = Reply(400, {"success": False, "message": "Failed to get weights iterator: no such folder."})
LONG_PROMPT = prompts(1, tokens_at_least=LONG)[0]


def pair(**known: Any) -> tuple[FakeServer, FakeServer]:
    return server("a", facts=FACTS, **known), server("b", facts=FACTS, **known)


def asked(engine: FakeServer, *paths: str) -> list[Asked]:
    return [call for call in engine.calls if call.path in paths]


def session_of(engine: FakeServer) -> list[str]:
    return [call.path for call in asked(engine, *SESSION)]


async def post(it: Cluster, path: str, body: Any = None) -> httpx.Response:
    return await it.http.post(path, json=body or {})


async def quarantine(it: Cluster) -> dict[str, str | None]:
    listed = (await it.http.get("/engines")).json()["engines"]
    return {engine["id"]: engine["quarantine"] for engine in listed}


# ---- groups ----


def test_every_engine_gets_ranks_of_its_own() -> None:
    async def scenario() -> None:
        engines = [server(name, facts=FACTS) for name in ("e-10", "e-2", "e-1")]
        async with cluster(*engines) as it:
            body = {
                "master_address": "10.0.0.1",
                "master_port": "29500",
                "rank_offset": 1,
                "world_size": 13,
                "group_name": "update",
                "backend": "nccl",
            }
            info = (await it.http.get("/server_info")).json()
            assert info["num_gpus"] + 1 == body["world_size"], "what a trainer makes of it"
            assert (await post(it, "/init_weights_update_group", body)).status_code == 200
        sent = {
            str(e.state.spec.engine_id): asked(e, "/init_weights_update_group")[0].json()
            for e in engines
        }
        assert {name: got["rank_offset"] for name, got in sent.items()} == {
            "e-1": 1,
            "e-2": 5,
            "e-10": 9,
        }
        assert all(got == {**sent["e-1"], "rank_offset": got["rank_offset"]} for got in sent.values())
        assert (sent["e-1"]["master_port"], sent["e-1"]["group_name"]) == (29500, "update")

    run(scenario())


def test_a_group_that_waits_for_its_last_member_holds_nothing_up() -> None:
    async def scenario() -> None:
        a, b = pair()
        all_here = asyncio.Event()

        async def rendezvous() -> Any:
            await all_here.wait()
            yield b'{"success": true, "message": "here"}'

        for engine in (a, b):
            engine.script["/init_weights_update_group"] = lambda _: Reply(200, events=rendezvous())
        async with cluster(a, b) as it:
            body = {"master_address": "x", "master_port": 1, "rank_offset": 1, "world_size": 9}
            async with together(post(it, "/init_weights_update_group", body)) as joined:
                await until(lambda: all(asked(e, "/init_weights_update_group") for e in (a, b)))
                assert (await it.generate([5, 6]))["output_ids"] == continuation([5, 6], 128)
                all_here.set()
                assert (await joined).status_code == 200

    run(scenario())


# ---- begin and end ----


def test_an_update_is_opened_and_closed_for_callers_who_do_not() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for _ in range(2):
                answer = await post(it, "/update_weights_from_distributed", BUCKET)
                assert answer.status_code == 200, answer.text
        for engine in (a, b):
            assert session_of(engine) == [*SESSION, *SESSION]
            assert asked(engine, SESSION[1])[0].json() == BUCKET
            assert not engine.state.updating

    run(scenario())


def test_callers_who_open_it_themselves_have_it_their_way() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for path, body in (
                (SESSION[2], {}),
                (SESSION[0], {"selector": "all"}),
                (SESSION[0], {}),
                (SESSION[1], BUCKET),
                (SESSION[1], BUCKET),
                (SESSION[2], {}),
                (SESSION[2], {}),
            ):
                assert (await post(it, path, body)).json()["success"] is True
        once = [SESSION[0], SESSION[1], SESSION[1], SESSION[2]]
        assert [session_of(engine) for engine in (a, b)] == [once, once]

    run(scenario())


def test_an_update_that_somebody_else_has_open_is_used() -> None:
    async def scenario() -> None:
        a, b = pair()
        already = {"success": False, "message": "a weight-update session is already open; call end"}
        async with cluster(a, b) as it:
            a.script[SESSION[0]] = Reply(400, already)
            a.state.updating = True
            assert (await post(it, SESSION[1], BUCKET)).status_code == 200

    run(scenario())


@pytest.mark.parametrize("path", [SESSION[0], SESSION[2]])
def test_an_update_that_cannot_be_opened_or_closed_fails(path: str) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            a.script[path] = b.script[path] = FAILED
            answer = await post(it, SESSION[1], BUCKET)
            assert answer.status_code == 400
            assert "NCCL error" in answer.json()["message"]
            assert all("NCCL error" in str(why) for why in (await quarantine(it)).values())
            assert not it.service.dispatcher.paused
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


def test_all_engines_of_one_update_are_asked_at_once_and_updates_one_after_the_other() -> None:
    async def scenario() -> None:
        a, b = pair()
        running: list[int] = []

        async def receiving(engine: FakeServer, number: int) -> Any:
            running.append(number)
            async with asyncio.timeout(2):
                while running.count(number) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert set(running[: 2 * number]) == set(range(1, number + 1)), "never two updates at once"
            yield b'{"success": true, "message": ""}'

        for engine in (a, b):
            engine.script[SESSION[1]] = lambda call, engine=engine: Reply(
                200, events=receiving(engine, call.json()["number"])
            )
        async with cluster(a, b) as it:
            sent = [post(it, SESSION[1], {**BUCKET, "number": number}) for number in (1, 2, 3)]
            assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}

    run(scenario())


# ---- requests meanwhile ----


def test_no_request_goes_on_with_other_weights_than_it_began_with() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b, chunk_tokens=20) as it:
            body = {"sampling_params": {"max_new_tokens": 80}}
            async with together(it.generate(LONG_PROMPT, **body)) as work:
                await until(lambda: it.service.core.statistics().in_flight)
                assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
                assert work.done(), "it ended first, as with SGLang"
                assert (await work)["output_ids"] == continuation(LONG_PROMPT, 80)
            assert not it.service.dispatcher.paused

    run(scenario())


def test_requests_that_come_during_an_update_wait_for_its_end() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        sent: list[asyncio.Task[dict[str, Any]]] = []

        def changing(_: Asked) -> Reply:
            assert not a.state.running
            assert not b.state.running
            a.state.weight_version = "7"
            return Reply(200, {"success": True, "message": ""})

        a.script["/update_weights_from_disk"] = changing
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPT)) as first:
            await until(lambda: it.service.core.statistics().in_flight)
            async with together(post(it, "/update_weights_from_disk", DISK)) as update:
                for number in range(40):  # without a hold there would always be one that runs
                    sent.append(asyncio.create_task(it.generate([5, 6, number + 2])))
                    await asyncio.sleep(0.01)
                assert (await update).status_code == 200
            assert first.done()
            answers = await asyncio.gather(*sent)
        assert [x["output_ids"] for x in answers] == [
            continuation([5, 6, n + 2], 128) for n in range(40)
        ]

    run(scenario())


def test_requests_are_ended_where_the_caller_asks_for_it() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.01)
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPT)) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            body = {**DISK, "abort_all_requests": True}
            assert (await post(it, "/update_weights_from_disk", body)).status_code == 200
            assert (await work)["meta_info"]["finish_reason"]["type"] == "abort"

    run(scenario())


def test_paused_requests_are_not_waited_for() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPT)) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            assert (await post(it, "/pause_generation", {"mode": "retract"})).status_code == 200
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            assert not work.done()
            assert it.service.dispatcher.paused
            assert (await post(it, "/continue_generation")).status_code == 200
            assert (await work)["output_ids"] == continuation(LONG_PROMPT, 128)

    run(scenario())


def test_a_new_name_aborts_what_runs_by_default() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.01)
        async with cluster(a, b) as it, together(it.generate(LONG_PROMPT)) as work:
            await until(lambda: it.service.core.statistics().in_flight)
            answer = await post(it, "/update_weight_version", {"new_version": "12"})
            assert answer.json()["new_version"] == "12"
            assert (await work)["meta_info"]["finish_reason"]["type"] == "abort"
            assert (await it.http.get("/get_weight_version")).json() == {"weight_version": "12"}

    run(scenario())
