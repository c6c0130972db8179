"""Engines that come back by a series of parts: whose word is taken for it."""

import asyncio

import pytest

from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import FakeServer
from tests.unit.router.conftest import Cluster, cluster, run, server
from tests.unit.router.control.weights.test_epochs import good
from tests.unit.router.control.weights.test_updates import (
    BUCKET,
    DISK,
    FAILED,
    MISSING,
    SESSION,
    asked,
    post,
    quarantine,
)

PATH, CHECKER = "/update_weights_from_disk", "/weights_checker"


async def series(it: Cluster) -> None:
    await good(post(it, "/pause_generation"))
    await good(post(it, SESSION[1], BUCKET))
    await good(post(it, "/continue_generation"))


def sums_to(engine: FakeServer, checksum: str) -> None:
    engine.script[CHECKER] = {"success": True, "per_engine_checksum": checksum}


@pytest.mark.parametrize(
    ("sums", "back"), [("xyz", ""), ("xxy", "ab"), ("xyy", "bc"), ("xy", ""), ("x", "a")]
)
def test_where_nobody_is_in_step_most_have_to_agree(sums: str, back: str) -> None:
    async def scenario() -> None:
        engines = [server(name) for name in "abc"[: len(sums)]]
        async with cluster(*engines) as it:
            for engine, checksum in zip(engines, sums, strict=True):
                engine.script[PATH] = FAILED
                sums_to(engine, checksum)
            assert (await post(it, PATH, DISK)).status_code == 400
            await series(it)
            found = await quarantine(it)
            assert "".join(engine for engine, why in found.items() if not why) == back

    run(scenario())


def test_a_mixture_that_is_asked_first_is_no_model_for_those_that_have_changed_nothing() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b) as it:
            a.script[PATH], b.script[PATH] = FAILED, MISSING
            assert (await post(it, PATH, DISK)).status_code == 400
            sums_to(a, "a mixture")
            await series(it)
            found = await quarantine(it)
            assert found["a"]
            assert found["b"] is None

    run(scenario())


def test_weights_of_before_a_series_that_is_believed_later_are_not_repeated() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a) as it:
            await good(post(it, PATH, {"model_path": "/old"}))
            a.script[PATH] = FAILED
            assert (await post(it, PATH, DISK)).status_code == 400
            a.script[CHECKER] = Reply(400, {"success": False, "message": "busy"})
            await series(it)
            assert (await quarantine(it))["a"]
            del a.script[CHECKER]
            a.script[PATH] = MISSING
            assert (await post(it, PATH, DISK)).status_code == 400
            assert (await quarantine(it))["a"] is None, "by now its checksum is there"
            await it.join(b)
            await asyncio.sleep(0.05)
            assert not asked(b, PATH)
            assert (await quarantine(it))["b"]

    run(scenario())
