"""A change of weights from its beginning to its end: who waits, who is refused, what follows."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import FakeServer, continuation
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until
from tests.unit.router.control.weights.test_updates import BUCKET, DISK, SESSION, asked, post, quarantine
from tests.unit.router.test_ports import urls as engine_urls

DISK_PATH, NAME = "/update_weights_from_disk", "/update_weight_version"
PROMPTS = prompts(4, tokens_at_least=LONG)
BROKE = Reply(400, {"success": False, "message": "Failed to update weights: x.\nRolling back"})
GOOD = b'{"success": true, "message": ""}'


def pair(**known: Any) -> tuple[FakeServer, FakeServer]:
    return server("a", **known), server("b", **known)


async def update(it: Cluster, version: str | None = None, **more: Any) -> httpx.Response:
    named = {} if version is None else {"weight_version": version}
    return await post(it, DISK_PATH, {"model_path": f"/{version}", **named, **more})


async def good(answer: Any) -> Any:
    response = await answer
    assert response.status_code == 200, response.text
    return response.json()


def slowly(engine: FakeServer, path: str, until_set: asyncio.Event, version: str = "") -> None:
    """Let calls of a path end when an event is set."""

    async def parts() -> AsyncIterator[bytes]:
        await until_set.wait()
        engine.state.weight_version = version or engine.state.weight_version
        yield GOOD

    engine.script[path] = lambda _: Reply(200, events=parts())


def flushes(engine: FakeServer) -> int:
    """Those of the router; agents make theirs with a time to wait."""
    return sum(call.target == "/flush_cache" for call in engine.calls)


def salts(engine: FakeServer) -> list[str]:
    return [body["cache_salt"] for body in engine.bodies]


# ---- order ----


def test_every_change_that_engines_have_taken_begins_an_epoch_and_no_other_does() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            roster = it.service.roster
            seen = [roster.epoch]
            adapter = {"lora_name": "l", "lora_path": "/l"}
            for path, body in (
                (DISK_PATH, {"model_path": "/7"}),
                (SESSION[1], BUCKET),
                (NAME, {"new_version": "3"}),
                ("/load_lora_adapter", adapter),
                ("/unload_lora_adapter", adapter),
                (SESSION[0], {}),
                (SESSION[2], {}),
                ("/pause_generation", {}),
                ("/continue_generation", {}),
                ("/weights_checker", {"action": "checksum"}),
                ("/flush_cache", {}),
            ):
                assert (await post(it, path, body)).is_success
                seen.append(roster.epoch)
            assert seen == [0, 1, 2, 3, 4, 5, 5, 6, 6, 6, 6, 6]
            a.script[DISK_PATH] = b.script[DISK_PATH] = Reply(404, {"detail": "Not Found"})
            assert (await update(it)).status_code == 404
            assert roster.epoch == 6

    run(scenario())


def test_nothing_is_dispatched_in_a_change_even_if_another_caller_says_go_on() -> None:
    async def scenario() -> None:
        a, b = pair()
        loaded = asyncio.Event()
        async with cluster(a, b) as it:
            slowly(a, DISK_PATH, loaded, "7")
            await good(post(it, "/pause_generation"))
            async with together(it.generate([5, 6])) as waiting, together(update(it, "7")) as change:
                await until(lambda: asked(a, DISK_PATH))
                await good(post(it, "/continue_generation"))
                await asyncio.sleep(0.05)
                assert not a.bodies
                assert not b.bodies
                loaded.set()
                assert (await change).status_code == 200
                assert (await waiting)["output_ids"] == continuation([5, 6], 128)

    run(scenario())


def test_from_begin_to_end_nothing_is_dispatched() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(post(it, SESSION[0]))
            async with together(it.generate([5, 6])) as waiting:
                await good(post(it, SESSION[1], BUCKET))
                await asyncio.sleep(0.05)
                assert not [*a.bodies, *b.bodies], "its weights are half old, half new"
                await good(post(it, SESSION[2]))
                assert (await waiting)["output_ids"] == continuation([5, 6], 128)

    run(scenario())


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_decides_under_which_salt_a_request_goes_on(mode: str) -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.02)
        async with cluster(a, b, chunk_tokens=60) as it:
            body = {"sampling_params": {"max_new_tokens": LONG}}
            work = [asyncio.create_task(it.generate(prompt, **body)) for prompt in PROMPTS]
            await until(lambda: len(a.bodies) + len(b.bodies) == len(PROMPTS))
            await asyncio.sleep(0.05)
            (old,) = {*salts(a), *salts(b)}
            await good(post(it, "/pause_generation", {"mode": mode}))
            in_flight = it.service.core.statistics().in_flight
            assert in_flight == (0 if mode == "retract" else len(PROMPTS))
            await good(update(it, "7", flush_cache=False))
            await good(post(it, "/continue_generation"))
            for prompt, answer in zip(PROMPTS, await asyncio.gather(*work), strict=True):
                assert answer["output_ids"] == continuation(prompt, LONG), "nothing is lost"
            later = [salt for engine in (a, b) for salt in salts(engine) if salt != old]
            assert len(later) >= len(PROMPTS)
            assert len(set(later)) == 1

    run(scenario())


def test_old_kv_is_given_up_where_the_caller_does_not_see_to_that() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(update(it, "7", flush_cache=False))
            assert [flushes(engine) for engine in (a, b)] == [1, 1]
            await good(update(it, "8"))
            assert flushes(a) == 1, "SGLang has done it"
            await good(post(it, "/pause_generation"))
            await good(post(it, SESSION[1], BUCKET))
            await good(post(it, SESSION[1], BUCKET))
            assert flushes(a) == 1, "there may be more to come"
            await good(post(it, "/continue_generation"))
            assert flushes(a) == 2
            await good(post(it, "/pause_generation"))
            await good(post(it, SESSION[1], BUCKET))
            assert (await it.http.get("/flush_cache")).is_success
            await good(post(it, "/continue_generation"))
            assert flushes(a) == 3, "the caller has done it"

    run(scenario())


# ---- refused ----


def test_of_two_updates_at_once_the_second_is_refused() -> None:
    async def scenario() -> None:
        a, b = pair()
        loaded = asyncio.Event()
        async with cluster(a, b) as it:
            slowly(a, DISK_PATH, loaded, "7")
            async with together(update(it, "7")) as first:
                await until(lambda: asked(a, DISK_PATH))
                for path, body in (DISK_PATH, DISK), (SESSION[1], BUCKET), (SESSION[0], {}):
                    answer = await post(it, path, body)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
                    detail = answer.json()["engines"]
                    assert set(detail) == {"a", "b"}
                    assert detail["a"]["success"] is False
                    assert detail["a"]["weight_version"] == "default"
                loaded.set()
                assert (await first).status_code == 200
            assert len(asked(a, DISK_PATH)) == len(asked(b, DISK_PATH)) == 1
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


def test_engines_may_be_updated_at_once_at_their_own_ports() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b, engine_ports=free_port()) as it:
            urls = list(engine_urls(it).values())
            body = {"serialized_named_tensors": ["gASVAA=="], "weight_version": "7"}
            sent = [it.http.post(f"{u}/update_weights_from_tensor", json=body) for u in urls * 2]
            assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body"),
    [(DISK_PATH, DISK), ("/update_weights_from_ipc", {"zmq_handles": {}})],
)
def test_an_update_inside_anothers_open_one_is_refused(path: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(post(it, SESSION[0]))
            await good(post(it, SESSION[1], BUCKET))
            answer = await post(it, path, body)
            assert answer.status_code == 409
            assert "/end_weight_update" in answer.json()["message"]
            assert not asked(a, path)
            await good(post(it, SESSION[1], BUCKET))
            await good(post(it, SESSION[2]))
            await good(update(it, "7"))

    run(scenario())


def test_versions_go_back_only_on_purpose() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(update(it, "7"))
            for path, body in (DISK_PATH, DISK | {"weight_version": "6"}), (NAME, {"new_version": "6"}):
                answer = await post(it, path, body)
                assert answer.status_code == 409
                assert "allow_older_version" in answer.json()["message"]
                assert answer.json()["engines"]["b"]["weight_version"] == "7"
            await good(update(it, "6", allow_older_version=True))
            assert "allow_older_version" not in asked(a, DISK_PATH)[-1].json()
            await good(post(it, NAME, {"new_version": "5", "allow_older_version": True}))
            assert "allow_older_version" not in asked(a, NAME)[-1].json()
            assert (await good(it.http.get("/model_info")))["weight_version"] == "5"
            wrong = await update(it, "4", allow_older_version="yes")
            assert wrong.status_code == 400

    run(scenario())


# ---- failures ----


def test_what_fails_in_the_middle_everywhere_leaves_nobody_in_traffic_until_all_is_well() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with cluster(a, b) as it:
            a.script[DISK_PATH] = b.script[DISK_PATH] = BROKE
            answer = await update(it, "7")
            assert answer.status_code == 400
            assert "mixture" in answer.json()["message"]
            assert all((await quarantine(it)).values())
            async with together(it.generate([5, 6])) as waiting:
                await asyncio.sleep(0.02)
                assert not [*a.bodies, *b.bodies]
                a.script.clear()
                b.script.clear()
                await good(update(it, "7"))
                assert (await waiting)["output_ids"] == continuation([5, 6], 128)

    run(scenario())


def test_an_engine_that_takes_too_long_is_given_up() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b, update_timeout_s=0.1) as it:
            never = asyncio.Event()
            slowly(b, DISK_PATH, never)
            answer = await update(it, "7")
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
            assert answer.json()["engines"]["a"] == {
                "success": True,
                "message": "Succeeded to update model weights.",
                "weight_version": "7",
            }
            assert "within 0.1 s" in answer.json()["engines"]["b"]["message"]
            assert "within 0.1 s" in str((await quarantine(it))["b"])
            assert (await it.generate([5, 6]))["output_ids"] == continuation([5, 6], 128)
            assert not b.bodies

    run(scenario())


def test_an_engine_that_says_yes_and_has_another_version_is_not_believed() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            b.script[DISK_PATH] = {"success": True, "message": ""}
            answer = await update(it, "7")
            assert answer.status_code == 400
            assert "'default' now, not '7'" in answer.json()["engines"]["b"]["message"]
            assert answer.json()["failed_engines"] == ["b"]
            found = await quarantine(it)
            assert found["a"] is None
            assert found["b"]

    run(scenario())


def test_weights_that_are_the_same_are_called_the_same() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            b.script[DISK_PATH] = BROKE
            assert (await update(it, "7")).status_code == 400
            b.script.clear()
            await good(update(it))
            assert await quarantine(it) == {"a": None, "b": None}
            assert [call.json()["new_version"] for call in asked(b, NAME)] == ["7"]
            assert b.state.weight_version == "7"

    run(scenario())


def test_a_series_of_which_a_part_was_refused_leaves_nobody_in_traffic() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(post(it, "/pause_generation"))
            await good(post(it, SESSION[1], BUCKET))
            refusal = {"error": {"message": f"{SESSION[1]}: w has another shape"}}
            a.script[SESSION[1]] = b.script[SESSION[1]] = Reply(400, refusal)
            answer = await post(it, SESSION[1], {**BUCKET, "names": ["v"]})
            assert answer.status_code == 400
            assert "nothing was changed" in answer.json()["message"]
            await good(post(it, "/continue_generation"))
            assert all("part of a series" in str(why) for why in (await quarantine(it)).values())

    run(scenario())


def test_weights_that_were_reset_serve_nobody() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await good(post(it, "/weights_checker", {"action": "snapshot"}))
            assert await quarantine(it) == {"a": None, "b": None}
            await good(post(it, "/weights_checker", {"action": "reset_tensors"}))
            assert all("reset" in str(why) for why in (await quarantine(it)).values())
            await good(update(it, "7"))
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())
