"""A port for each engine: trainers that speak to every server by itself."""

import asyncio
import socket
from typing import Any

import httpx

from seer_sgl.engine.process import free_port
from seer_sgl.router.http.front import Front
from seer_sgl.router.service import RouterService
from seer_sgl.testing.controls import Reply
from seer_sgl.testing.engine import FakeServer, continuation
from seer_sgl.types import EngineId
from tests.unit.router.conftest import Cluster, cluster, prompts, run, server, together, until

A, B = EngineId("a"), EngineId("b")
LONG_PROMPTS = prompts(6, tokens_at_least=100)


def pair(**known: Any) -> tuple[FakeServer, FakeServer]:
    return server("a", **known), server("b", **known)


def front_of(service: RouterService) -> Front:
    return service._front


def urls(it: Cluster) -> dict[EngineId, str]:
    ports = front_of(it.service).ports
    assert ports is not None
    return ports.urls("127.0.0.1")


async def ask(it: Cluster, engine: EngineId, method: str, path: str, body: Any = None) -> httpx.Response:
    return await it.http.request(method, urls(it)[engine] + path, json=body)


def paths(engine: FakeServer) -> list[str]:
    return [call.path for call in engine.calls]


def requests_of(loads: Any) -> int:
    """As slime counts them."""
    return sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in loads["loads"])


def test_every_engine_has_a_port_and_keeps_it() -> None:
    async def scenario() -> None:
        a, again, b = server("a"), server("a"), server("b")
        back, start = asyncio.Event(), again.start

        async def later() -> Any:
            await back.wait()
            return await start()

        again.start = later  # type: ignore[method-assign]
        first = free_port()
        async with cluster(b, engine_ports=first) as it:
            await it.join(a, again)
            ports = {engine: int(url.rpartition(":")[2]) for engine, url in urls(it).items()}
            assert first <= ports[B] < ports[A] < first + 20, "in a row, less those that are taken"
            listed = (await it.http.get("/workers")).json()["workers"]
            assert {worker["url"] for worker in listed} == set(urls(it).values())
            a.kill()
            await until(lambda: len(it.service.roster) == 1)
            gone = await ask(it, A, "GET", "/health")
            assert gone.status_code == 503
            assert "engine a is not here" in gone.json()["error"]["message"]
            assert (await ask(it, A, "POST", "/pause_generation", {})).status_code == 503
            assert (await ask(it, A, "GET", "/some_path")).status_code == 503
            back.set()
            await until(lambda: len(it.service.roster) == 2)
            assert urls(it)[A] == f"http://127.0.0.1:{ports[A]}"
            assert (await ask(it, A, "GET", "/health")).json() == {"status": "ok", "engine": "a"}
        for port in ports.values():
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)), "still open"

    run(scenario())


def test_a_port_that_is_taken_is_left_out() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = taken.getsockname()[1]
            async with cluster(server("a"), engine_ports=number) as it:
                assert urls(it)[A] != f"http://127.0.0.1:{number}"
                assert (await ask(it, A, "GET", "/health")).status_code == 200

    run(scenario())


def test_control_calls_are_for_one_engine_and_requests_for_all() -> None:
    async def scenario() -> None:
        a, b = pair(facts={"tp_size": 2})
        async with cluster(a, b, engine_ports=free_port()) as it:
            for body in ({"serialized_named_tensors": ["gASVAA==", "gASVAA=="], "weight_version": "4"},):
                answer = await ask(it, A, "POST", "/update_weights_from_tensor", body)
                assert answer.status_code == 200, answer.text
            assert "/update_weights_from_tensor" in paths(a)
            await until(lambda: b.calls)
            assert paths(b) == ["/abort_request"], "it is behind, and runs nothing until it has that"
            assert (await ask(it, A, "GET", "/get_weight_version")).json() == {"weight_version": "4"}
            assert (await ask(it, B, "GET", "/get_weight_version")).json() == {
                "weight_version": "default"
            }
            info = (await ask(it, A, "GET", "/server_info")).json()
            assert (info["num_gpus"], len(info["internal_states"])) == (2, 1)
            group = {"master_address": "x", "master_port": 1, "rank_offset": 3, "world_size": 9}
            assert (await ask(it, B, "POST", "/init_weights_update_group", group)).status_code == 200
            assert b.calls[-1].json()["rank_offset"] == 3, "the caller counts by itself"

            behind = await ask(it, B, "POST", "/generate", {"input_ids": [5, 6, 90]})
            assert behind.json()["output_ids"] == continuation([5, 6, 90], 128)
            assert not b.bodies
            assert (await ask(it, B, "POST", "/update_weights_from_tensor", body)).status_code == 200
            work = [ask(it, A, "POST", "/generate", {"input_ids": [5, 6, n + 2]}) for n in range(8)]
            answers = [answer.json()["output_ids"] for answer in await asyncio.gather(*work)]
            assert answers == [continuation([5, 6, n + 2], 128) for n in range(8)]
            assert a.bodies
            assert b.bodies
            page = (await it.http.get("/metrics")).text.splitlines()
            assert 'smg_http_requests_total{method="POST",path="/generate"} 9.0' in page

    run(scenario())


def test_what_the_router_does_not_know_is_the_servers() -> None:
    async def scenario() -> None:
        a, b = pair()
        a.script["/remote_instance_transfer_engine_info"] = Reply(200, {"rank": 0})
        a.script["/metrics"] = Reply(200, b"x 1\n", headers={"content-type": "text/plain"})
        a.script["/nope"] = Reply(404, {"detail": "Not Found"})
        async with cluster(a, b, engine_ports=free_port()) as it:
            got = await ask(it, A, "GET", "/remote_instance_transfer_engine_info?rank=0")
            assert got.json() == {"rank": 0}
            assert a.calls[-1].target == "/remote_instance_transfer_engine_info?rank=0"
            assert (await ask(it, A, "GET", "/metrics")).text == "x 1\n"
            missing = await ask(it, A, "PUT", "/nope", {"x": 1})
            assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
            assert a.calls[-1].json() == {"x": 1}
            assert not b.calls

    run(scenario())


def test_nothing_is_dispatched_while_one_engine_is_paused_through_its_port() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b, engine_ports=free_port()) as it:
            for engine in (A, B):
                assert (await ask(it, engine, "POST", "/pause_generation", {})).status_code == 200
            assert (await ask(it, A, "GET", "/ready")).status_code == 503
            async with together(it.generate([5, 6])) as work:
                assert (await ask(it, A, "POST", "/continue_generation", {})).status_code == 200
                await asyncio.sleep(0.05)
                assert not work.done()
                assert (await ask(it, B, "POST", "/continue_generation", {})).status_code == 200
                await work
            assert [path for path in paths(a) if "generation" in path] == [
                "/pause_generation",
                "/continue_generation",
            ]

    run(scenario())


def test_an_engine_that_leaves_paused_holds_nothing_up() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b, engine_ports=free_port()) as it:
            assert (await ask(it, B, "POST", "/pause_generation", {})).status_code == 200
            async with together(it.generate([5, 6])) as work:
                b.kill()
                await work

    run(scenario())


def test_slime_aborts_every_port_until_all_are_idle() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.003, max_running_requests=1)
        async with cluster(a, b, engine_ports=free_port()) as it:
            work = [asyncio.create_task(it.generate(prompt)) for prompt in LONG_PROMPTS]
            await until(lambda: it.service.core.statistics().waiting == 4)
            loads = [(await ask(it, e, "GET", "/v1/loads?include=core")).json() for e in (A, B)]
            entries = [[load["worker"] for load in each["loads"]] for each in loads]
            assert entries == [["a", "router"], ["b"]], "the queue shows once"
            assert sum(map(requests_of, loads)) == len(LONG_PROMPTS)

            async def until_idle(engine: EngineId) -> None:
                idle = False
                while not idle:
                    await ask(it, engine, "POST", "/abort_request", {"abort_all": True})
                    loads = await ask(it, engine, "GET", "/v1/loads?include=core")
                    idle = not requests_of(loads.json())

            await asyncio.gather(until_idle(A), until_idle(B))
            answers = await asyncio.gather(*work)
            assert {x["meta_info"]["finish_reason"]["type"] for x in answers} == {"abort"}

    run(scenario())


def test_an_abort_at_a_port_spares_what_runs_elsewhere() -> None:
    async def scenario() -> None:
        a, b = pair(token_s=0.003, max_running_requests=1)
        async with cluster(a, b, engine_ports=free_port()) as it:
            body = {"sampling_params": {"max_new_tokens": 100}}
            work = [asyncio.create_task(it.generate(prompt, **body)) for prompt in LONG_PROMPTS]
            await until(lambda: a.state.running and b.state.running)
            assert (await ask(it, A, "POST", "/abort_request", {"abort_all": True})).status_code == 200
            kinds = [x["meta_info"]["finish_reason"]["type"] for x in await asyncio.gather(*work)]
            assert sorted(kinds) == ["abort"] * 5 + ["length"]

    run(scenario())


def test_a_quarantined_engine_says_so_at_its_port() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b, engine_ports=free_port()) as it:
            body = {"model_path": "/new"}
            b.script["/update_weights_from_disk"] = Reply(400, {"success": False, "message": "torn"})
            answers = [
                await ask(it, engine, "POST", "/update_weights_from_disk", body) for engine in (A, B)
            ]
            assert [answer.status_code for answer in answers] == [200, 400]
            assert "failed" in (await ask(it, B, "GET", "/ready")).json()["error"]["message"]
            assert (await ask(it, B, "GET", "/health")).status_code == 200, "it lives"
            assert (await ask(it, A, "GET", "/ready")).status_code == 200

    run(scenario())
