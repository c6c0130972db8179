"""Engines that fail in a weight change, or come late for it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import cluster, run, server, until
from tests.unit.router.control.weights.test_updates import (
    BUCKET,
    DISK,
    FACTS,
    FAILED,
    LONG_PROMPT,
    MISSING,
    SENT,
    SESSION,
    asked,
    pair,
    post,
    quarantine,
)


def test_an_engine_that_fails_alone_gets_no_traffic_until_it_has_all_weights() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            b.script["/update_weights_from_disk"] = FAILED
            answer = await post(it, "/update_weights_from_disk", DISK)
            assert answer.status_code == 400
            assert answer.json()["failed_engines"] == ["b"]
            assert "failed" in str((await quarantine(it))["b"])
            await until(lambda: asked(b, "/abort_request"))
            assert [call.json() for call in asked(b, "/abort_request")] == [{"abort_all": True}]
            for number in range(6):
                await it.generate([5, 6, number + 2])
            assert not b.bodies
            assert (await it.http.get("/readiness")).json()["total_workers"] == 2
            assert (await it.http.get("/model_info")).json()["weight_versions"] is not None

            assert (await post(it, SESSION[1], BUCKET)).status_code == 200, "it is still told of updates"
            assert (await quarantine(it))["b"]
            del b.script["/update_weights_from_disk"]
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            assert await quarantine(it) == {"a": None, "b": None}
            await asyncio.gather(*(it.generate([5, 6, number + 2]) for number in range(6)))
            assert b.bodies

    run(scenario())


def test_an_update_that_fails_everywhere_changes_nothing() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            a.script["/update_weights_from_disk"] = b.script["/update_weights_from_disk"] = MISSING
            answer = await post(it, "/update_weights_from_disk", DISK)
            assert (answer.status_code, answer.json()["failed_engines"]) == (400, ["a", "b"])
            assert await quarantine(it) == {"a": None, "b": None}
            assert await it.generate([5, 6])

    run(scenario())


def test_only_engines_in_quarantine_are_as_none() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            b.script["/update_weights_from_disk"] = FAILED
            await post(it, "/update_weights_from_disk", DISK)
            a.kill()
            await until(lambda: not len(it.service.roster))
            for path in ("/health", "/ping", "/ready", "/health_generate"):
                answer = await it.http.get(path)
                assert answer.status_code == 503
                assert "engine b" in answer.json()["error"]["message"]

    run(scenario())


@pytest.mark.parametrize("series", ["pause", "begin"])
def test_a_late_engine_waits_for_a_series_that_it_sees_whole(series: str) -> None:
    first, last = {
        "pause": ("/pause_generation", "/continue_generation"),
        "begin": (SESSION[0], SESSION[2]),
    }[series]

    async def scenario() -> None:
        a, b = pair()
        async with cluster(a) as it:
            for path, body in ((first, {}), (SESSION[1], {**BUCKET, "weight_version": "2"})):
                assert (await post(it, path, body)).status_code == 200
            await it.join(b)
            assert "after the weights had changed" in str((await quarantine(it))["b"])
            assert (await post(it, last)).status_code == 200
            assert (await quarantine(it))["b"], "it has seen only the end"
            for path, body in ((first, {}), (SESSION[1], BUCKET), (last, {})):
                assert (await post(it, path, body)).status_code == 200
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


def test_a_late_engine_gets_the_last_weights_from_disk() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a) as it:
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            await it.join(b)
            await until(lambda: len(it.service.roster) == 2)
            assert asked(b, "/update_weights_from_disk")[0].json() == SENT
            versions = {
                e["id"]: e["weight_version"] for e in (await it.http.get("/engines")).json()["engines"]
            }
            assert versions == {"a": "7", "b": "7"}

    run(scenario())


def test_a_server_that_starts_again_is_not_taken_for_the_one_that_was_updated() -> None:
    async def scenario() -> None:
        first, again = pair()[0], server("a", facts=FACTS)
        b = server("b", facts=FACTS)
        async with cluster(b) as it:
            await it.join(first, again)
            for path, body in (
                ("/pause_generation", {}),
                (SESSION[1], BUCKET),
                ("/continue_generation", {}),
            ):
                assert (await post(it, path, body)).status_code == 200
            first.kill()
            await until(lambda: len(it.service.roster.members) == 1)
            await until(lambda: len(it.service.roster.members) == 2)
            assert list((await quarantine(it)).values()).count(None) == 1
            assert not again.bodies

    run(scenario())


def test_a_late_engine_gets_the_last_name_too() -> None:
    async def scenario() -> None:
        a, b, c = *pair(), server("c", facts=FACTS)
        async with cluster(a) as it:
            a.script["/update_weights_from_disk"] = MISSING
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 400
            assert (await post(it, "/update_weight_version", {"new_version": "3"})).status_code == 200
            await it.join(b)
            await until(lambda: len(it.service.roster) == 2)
            assert not asked(b, "/update_weights_from_disk"), "nothing has changed"
            del a.script["/update_weights_from_disk"]
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            assert (await post(it, "/update_weight_version", {"new_version": "8"})).status_code == 200
            await it.join(c)
            await until(lambda: len(it.service.roster) == 3)
            writes = [call.path for call in c.calls if call.path.startswith("/update")]
            assert writes == ["/update_weights_from_disk", "/update_weight_version"]
            assert (await it.http.get("/model_info")).json()["weight_version"] == "8"

    run(scenario())


def test_a_late_engine_that_cannot_catch_up_stays_out() -> None:
    async def scenario() -> None:
        a, b = pair()
        b.script["/update_weights_from_disk"] = FAILED
        async with cluster(a) as it:
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 200
            await it.join(b)
            await until(lambda: asked(b, "/update_weights_from_disk"))
            await asyncio.sleep(0.05)
            assert len(it.service.roster) == 1
            assert (await it.generate([5, 6]))["output_ids"] == continuation([5, 6], 128)

    run(scenario())


@pytest.mark.parametrize("moment", ["before", "during"])
def test_an_engine_that_comes_in_the_middle_of_an_update_gets_it(moment: str) -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.005)
        loaded = asyncio.Event()

        async def loading() -> AsyncIterator[bytes]:
            await loaded.wait()
            a.state.weight_version = "7"
            yield b'{"success": true, "message": ""}'

        a.script["/update_weights_from_disk"] = lambda _: Reply(200, events=loading())
        async with cluster(a) as it:
            work = asyncio.create_task(it.generate(LONG_PROMPT))
            await until(lambda: it.service.core.statistics().in_flight)
            update = asyncio.create_task(post(it, "/update_weights_from_disk", DISK))
            if moment == "before":  # requests have still to end
                await asyncio.sleep(0.02)
                assert not asked(a, "/update_weights_from_disk")
            else:
                await until(lambda: asked(a, "/update_weights_from_disk"))
            await it.join(b)
            assert (await quarantine(it))["b"]
            loaded.set()
            assert (await update).status_code == 200
            await until(lambda: len(it.service.roster) == 2)
            assert [call.json() for call in asked(b, "/update_weights_from_disk")] == [SENT]
            await work

    run(scenario())


@pytest.mark.parametrize("equal", [True, False])
def test_a_series_brings_back_whom_its_checksum_shows_to_have_all(equal: bool) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            b.script["/update_weights_from_disk"] = FAILED
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 400
            if not equal:  # what comes next is a change to what only `a` has
                b.script["/weights_checker"] = {"success": True, "per_engine_checksum": "other"}
            for path, body in (
                ("/pause_generation", {}),
                (SESSION[1], BUCKET),
                ("/continue_generation", {}),
            ):
                assert (await post(it, path, body)).status_code == 200
            assert ((await quarantine(it))["b"] is None) == equal
            assert (await quarantine(it))["a"] is None

    run(scenario())


def test_where_nobody_is_in_step_a_series_is_believed_where_all_have_the_same() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            a.script["/update_weights_from_disk"] = b.script["/update_weights_from_disk"] = FAILED
            assert (await post(it, "/update_weights_from_disk", DISK)).status_code == 400
            assert all((await quarantine(it)).values())
            for path, body in (
                ("/pause_generation", {}),
                (SESSION[1], BUCKET),
                ("/continue_generation", {}),
            ):
                assert (await post(it, path, body)).status_code == 200
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


def test_weights_of_before_a_series_are_not_given_to_a_late_engine() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a) as it:
            for path, body in (
                ("/update_weights_from_disk", DISK),
                ("/pause_generation", {}),
                (SESSION[1], BUCKET),
                ("/continue_generation", {}),
            ):
                assert (await post(it, path, body)).status_code == 200
            await it.join(b)
            await asyncio.sleep(0.05)
            assert not asked(b, "/update_weights_from_disk")
            assert (await quarantine(it))["b"]

    run(scenario())
