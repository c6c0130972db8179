"""Engines that are brought up to date, and what comes between."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer
from seer_sgl.types import EngineId
from tests.unit.router.conftest import Cluster, cluster, run, server, until
from tests.unit.router.control.weights.test_epochs import DISK_PATH, good, slowly
from tests.unit.router.control.weights.test_updates import DISK, asked, post, quarantine
from tests.unit.router.test_ports import urls as engine_urls

LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"
FROM_MEMORY = "/load_lora_adapter_from_tensors"
THERE = Reply(400, {"success": False, "error_message": "x is already loaded"})
IN_MEMORY = {"lora_name": "m", "config_dict": {}, "serialized_named_tensors": ["gASVAA=="]}


def has_it_already(engine: FakeServer) -> None:
    """Until it unloads the adapter."""
    before = len(asked(engine, UNLOAD))

    def answer(_: Asked) -> Reply:
        there = len(asked(engine, UNLOAD)) == before
        return THERE if there else Reply(200, {"success": True, "error_message": ""})

    engine.script[LOAD] = answer


async def at(it: Cluster, engine: str, path: str, body: Any) -> httpx.Response:
    """The answer at an engine's own port."""
    return await it.http.post(engine_urls(it)[EngineId(engine)] + path, json=body)


async def gone_and_back(it: Cluster) -> None:
    count = len(it.service.roster.members)
    await until(lambda: len(it.service.roster.members) < count)
    await until(lambda: len(it.service.roster.members) == count)


def test_an_engine_that_leaves_while_it_is_looked_at_ends_nothing() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        never = asyncio.Event()

        async def parts() -> AsyncIterator[bytes]:
            await never.wait()
            yield b"{}"

        def info(_: Asked) -> Reply:
            if asked(b, DISK_PATH):
                return Reply(200, events=parts())
            return Reply(200, {"model_path": "/m", "weight_version": "default", "is_generation": True})

        async with cluster(a) as it:
            await good(post(it, DISK_PATH, DISK))
            b.script["/model_info"] = info
            await it.join(b)
            await until(lambda: asked(b, DISK_PATH) and b.calls[-1].path == "/model_info")
            b.kill()
            await until(lambda: len(it.service.roster.members) == 1)
            await it.join(c := server("c"))
            await until(lambda: len(it.service.roster) == 2)
            assert asked(c, DISK_PATH), "the router goes on, and so does this"

    run(scenario())


def test_what_an_engine_has_got_is_not_asked_of_it_again() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a) as it:
            await good(post(it, DISK_PATH, DISK))
            await good(post(it, LOAD, {"lora_name": "x", "lora_path": "/x"}))
            await good(post(it, FROM_MEMORY, IN_MEMORY))
            await it.join(b)
            await until(lambda: asked(b, LOAD))
            await asyncio.sleep(0.05)
            assert str((await quarantine(it))["b"]).endswith(": m"), "that one alone is missing"
            a.script[FROM_MEMORY] = THERE
            await good(post(it, FROM_MEMORY, IN_MEMORY))
            assert await quarantine(it) == {"a": None, "b": None}
            assert len(asked(b, DISK_PATH)) == len(asked(b, LOAD)) == 1

    run(scenario())


def test_an_adapter_of_unknown_origin_makes_way_for_the_right_one() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b, update_timeout_s=0.1) as it:
            slowly(b, LOAD, asyncio.Event())
            answer = await post(it, LOAD, {"lora_name": "x", "lora_path": "/x"})
            assert answer.status_code == 504
            has_it_already(b)
            await good(post(it, DISK_PATH, DISK))
            await until(lambda: len(it.service.roster) == 2)
            assert [call.path for call in asked(b, LOAD, UNLOAD)] == [LOAD, LOAD, UNLOAD, LOAD]

    run(scenario())


def test_an_adapter_that_is_gone_already_need_not_be_unloaded() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        adapter = {"lora_name": "x", "lora_path": "/x"}
        async with cluster(a, b) as it:
            await good(post(it, LOAD, adapter))
            b.script[UNLOAD] = Reply(500, {"error_message": "no"})
            assert not (await post(it, UNLOAD, adapter)).is_success
            assert (await quarantine(it))["b"]
            b.script[UNLOAD] = Reply(400, {"success": False, "error_message": "x does not exist"})
            await good(post(it, DISK_PATH, DISK))
            await until(lambda: len(it.service.roster) == 2)

    run(scenario())


def test_an_engine_that_registers_again_gets_its_adapters_anew() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b) as it:
            await good(post(it, DISK_PATH, DISK))
            await good(post(it, LOAD, {"lora_name": "x", "lora_path": "/x"}))
            has_it_already(b)
            it.service._remove(EngineId("b"), "silent")
            await until(lambda: len(it.service.roster) == 2)
            assert [call.path for call in asked(b, LOAD, UNLOAD)][1:] == [UNLOAD, LOAD]

    run(scenario())


@pytest.mark.parametrize("stays", [True, False])
def test_an_engine_whose_adapters_alone_have_changed_comes_back_without_an_update(stays: bool) -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        adapter = {"lora_name": "x", "lora_path": "/x"}
        async with cluster(a, b) as it:
            await good(post(it, LOAD, adapter))
            if not stays:
                await good(post(it, UNLOAD, adapter))
            before = len(asked(b, LOAD, UNLOAD))
            it.service._remove(EngineId("b"), "silent")
            await until(lambda: len(it.service.roster) == 2)
            assert len(asked(b, LOAD, UNLOAD)) == before + 2 * stays

    run(scenario())


def test_an_adapter_that_an_engine_should_have_lost_meanwhile_is_unloaded() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        adapter = {"lora_name": "x", "lora_path": "/x"}
        async with cluster(a, b, engine_ports=free_port()) as it:
            await good(post(it, LOAD, adapter))
            await good(at(it, "a", UNLOAD, adapter))
            it.service._remove(EngineId("b"), "silent")
            await until(lambda: len(it.service.roster) == 2)
            assert len(asked(b, UNLOAD)) == 1

    run(scenario())


def test_unloading_an_older_adapter_leaves_the_recipe_of_the_newer() -> None:
    async def scenario() -> None:
        a, first, again = server("a"), server("b"), server("b")
        async with cluster(a, engine_ports=free_port()) as it:
            await it.join(first, again)
            await good(post(it, LOAD, {"lora_name": "x", "lora_path": "/1"}))
            await good(at(it, "a", UNLOAD, {"lora_name": "x"}))
            await good(at(it, "a", LOAD, {"lora_name": "x", "lora_path": "/2"}))
            await good(at(it, "b", UNLOAD, {"lora_name": "x"}))
            first.kill()
            await gone_and_back(it)
            await until(lambda: len(it.service.roster) == 2)
            assert [call.json()["lora_path"] for call in asked(again, LOAD)] == ["/2"]

    run(scenario())


def test_loading_an_older_adapter_leaves_the_recipe_of_the_newer() -> None:
    async def scenario() -> None:
        a, b, c = server("a"), server("b"), server("c")
        async with cluster(a, engine_ports=free_port()) as it:
            older = {"lora_name": "x", "lora_path": "/1"}
            for adapter in (older, {"lora_name": "x", "lora_path": "/2"}):
                await good(post(it, LOAD, adapter))
            b.script[LOAD] = lambda call: Reply(200 if call.json() == older else 400, {"message": "no"})
            await it.join(b)
            await until(lambda: asked(b, LOAD))
            await good(at(it, "b", LOAD, older))
            await it.join(c)
            await until(lambda: len(it.service.roster) == 2)
            assert [call.json()["lora_path"] for call in asked(c, LOAD)] == ["/2"]
            assert (await quarantine(it))["b"]

    run(scenario())


def test_an_adapter_that_cannot_be_repeated_keeps_an_engine_out() -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a) as it:
            await good(post(it, LOAD, {"lora_name": "x", "lora_path": "/x"}))
            it.service._plane.weights.making.recipe.unloaded("x")
            await it.join(b)
            await asyncio.sleep(0.05)
            assert (await quarantine(it))["b"]

    run(scenario())
