"""What a change of weights waits for, and what waits for a change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer
from seer_sgl.types import EngineId
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until
from tests.unit.router.control.weights.test_epochs import DISK_PATH, good, slowly, update
from tests.unit.router.control.weights.test_updates import BUCKET, DISK, SESSION, asked, post
from tests.unit.router.test_ports import urls as engine_urls

PROMPTS = prompts(4, tokens_at_least=LONG)
SAVER = {"enable_memory_saver": True}
IN_PLACE = {"mode": "in_place"}
PAUSE, CONTINUE, LOAD = "/pause_generation", "/continue_generation", "/load_lora_adapter"


async def at(it: Cluster, engine: str, path: str, body: Any = None) -> httpx.Response:
    return await it.http.post(engine_urls(it)[EngineId(engine)] + path, json=body or {})


def pair(**known: Any) -> tuple[FakeServer, FakeServer]:
    return tuple(server(name, facts=SAVER, **known) for name in "ab")  # type: ignore[return-value]


@contextlib.asynccontextmanager
async def busy(*engines: FakeServer, tokens: int = LONG, **more: Any) -> AsyncIterator[Cluster]:
    """A router whose engines all run requests."""
    async with cluster(*engines, engine_ports=free_port(), **more) as it:
        body = {"sampling_params": {"max_new_tokens": tokens}}
        work = [asyncio.create_task(it.generate(prompt, **body)) for prompt in PROMPTS]
        await until(lambda: all(engine.state.running for engine in engines))
        yield it
        await asyncio.gather(*work)


def alone(engine: FakeServer) -> None:
    """Its update finds nothing that runs."""

    def answer(_: Asked) -> Reply:
        assert not engine.state.running, "its weights change under a chunk"
        engine.state.weight_version = "7"
        return Reply(200, {"success": True, "message": ""})

    engine.script[DISK_PATH] = answer


def test_requests_end_before_an_update_though_an_adapter_is_loaded_elsewhere() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        loaded = asyncio.Event()
        async with busy(a, b, chunk_tokens=20) as it:
            slowly(b, LOAD, loaded)
            async with together(at(it, "b", LOAD, {"lora_name": "x", "lora_path": "/x"})) as load:
                await until(lambda: asked(b, LOAD))
                async with together(at(it, "a", DISK_PATH, DISK)) as change:
                    await asyncio.sleep(0.05)
                    assert not asked(a, DISK_PATH), "requests have still to end"
                    loaded.set()
                    await load
                    await until(lambda: asked(a, DISK_PATH))
                    assert not it.service.dispatcher.on_their_way
                    assert (await change).status_code == 200

    run(scenario())


@pytest.mark.parametrize("how", ["pause", "release"])
def test_an_update_waits_for_what_runs_though_another_engine_is_held(how: str) -> None:
    first, last = {
        "pause": (PAUSE, CONTINUE),
        "release": ("/release_memory_occupation", "/resume_memory_occupation"),
    }[how]

    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with busy(a, b, chunk_tokens=40) as it:
            alone(a)
            body = IN_PLACE if how == "pause" else {}
            async with together(at(it, "b", first, body)) as held:
                await until(lambda: it.service._plane.holds)
                assert a.state.running
                await good(at(it, "a", DISK_PATH, DISK))
                assert asked(a, DISK_PATH)
                await good(held)
                await good(at(it, "b", last))
                await good(update(it, "7"))

    run(scenario())


def test_an_engine_that_is_paused_itself_is_not_waited_for() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with busy(a, b) as it:
            await good(post(it, PAUSE, IN_PLACE))
            assert it.service.core.statistics().in_flight
            await good(at(it, "a", DISK_PATH, DISK))
            await good(at(it, "b", DISK_PATH, DISK))
            await good(post(it, CONTINUE))

    run(scenario())


# ---- to go on ----


@pytest.mark.parametrize("only", [None, "a"])
def test_what_was_paused_in_place_goes_on_after_the_update_that_is_on(only: str | None) -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        loaded = asyncio.Event()
        async with busy(a, b) as it:
            slowly(a, DISK_PATH, loaded, "7")
            await good(post(it, PAUSE, IN_PLACE) if only is None else at(it, only, PAUSE, IN_PLACE))
            async with together(
                update(it, "7") if only is None else at(it, only, DISK_PATH, DISK)
            ) as on:
                await until(lambda: asked(a, DISK_PATH))
                goes_on = post(it, CONTINUE) if only is None else at(it, only, CONTINUE)
                async with together(goes_on) as going:
                    await asyncio.sleep(0.05)
                    assert not asked(a, CONTINUE)
                    loaded.set()
                    await good(on)
                    await good(going)
            if only is not None:
                await good(at(it, "b", DISK_PATH, DISK))

    run(scenario())


def test_what_was_paused_in_place_does_not_go_on_with_half_an_update() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.002)
        async with busy(a, b) as it:
            await good(post(it, PAUSE, IN_PLACE))
            await good(post(it, SESSION[0]))
            await good(post(it, SESSION[1], BUCKET))
            answer = await post(it, CONTINUE)
            assert answer.status_code == 409
            assert SESSION[2] in answer.json()["message"]
            assert not asked(a, CONTINUE)
            await good(post(it, SESSION[1], BUCKET))
            await good(post(it, SESSION[2]))
            await good(post(it, CONTINUE))
            await good(post(it, SESSION[0]))
            await good(post(it, PAUSE))
            await good(post(it, CONTINUE))
            await good(post(it, SESSION[2]))

    run(scenario())


def test_nobody_waits_for_an_engine_that_is_brought_up_to_date() -> None:
    async def scenario() -> None:
        a, b, c = *pair(token_s=0.002), server("c")
        loaded = asyncio.Event()
        async with cluster(a, b) as it:
            await good(update(it, "7"))
            slowly(c, DISK_PATH, loaded, "7")
            await it.join(c)
            await until(lambda: asked(c, DISK_PATH))
            async with together(it.generate(PROMPTS[0])):
                await until(lambda: a.state.running or b.state.running)
                await good(post(it, PAUSE, IN_PLACE))
                await good(post(it, CONTINUE))
            loaded.set()
            await until(lambda: len(it.service.roster) == 3)

    run(scenario())
