"""Control calls through a whole router, on engines that make their answers up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from seer_sgl.errors import EngineUnreachable
from seer_sgl.router.control.table import TABLE, Act, Merge, Row, Scope
from seer_sgl.testing.controls import Asked, Reply
from seer_sgl.testing.engine import FakeServer
from tests.unit.router.conftest import Cluster, cluster, run, server, together, until

SAVER = {"tp_size": 2, "pp_size": 1, "dp_size": 1, "enable_memory_saver": True}

BODIES: dict[str, dict[str, Any]] = {
    "/abort_request": {"abort_all": True},
    "/init_weights_update_group": {
        "master_address": "10.0.0.1",
        "master_port": 29500,
        "rank_offset": 1,
        "world_size": 5,
        "group_name": "slime-pp_0",
        "backend": "nccl",
    },
    "/destroy_weights_update_group": {"group_name": "slime-pp_0"},
    "/update_weights_from_distributed": {"names": ["w"], "dtypes": ["bfloat16"], "shapes": [[2, 3]]},
    "/update_weights_from_tensor": {"serialized_named_tensors": ["gASVAA=="]},
    "/update_weights_from_disk": {"model_path": "/new", "weight_version": "7"},
    "/update_weights_from_ipc": {"zmq_handles": {"GPU-1": "ipc:///tmp/x"}},
    "/update_weight_version": {"new_version": "7", "abort_all_requests": False},
    "/get_weights_by_name": {"name": "model.norm.weight"},
    "/load_lora_adapter": {"lora_name": "l", "lora_path": "/l"},
    "/load_lora_adapter_from_tensors": {
        "lora_name": "l",
        "config_dict": {},
        "serialized_named_tensors": ["gASVAA=="],
    },
    "/unload_lora_adapter": {"lora_name": "l"},
    "/hicache/storage-backend": {"hicache_storage_backend": "mooncake"},
    "/open_session": {"capacity_of_str_len": 100},
    "/close_session": {"session_id": "s"},
    "/slow_down": {"forward_sleep_time": None},
    "/set_internal_state": {"server_args": {"pp_max_micro_batch_size": 8}},
    "/tokenize": {"prompt": "ab"},
    "/v1/tokenize": {"prompt": "ab"},
    "/detokenize": {"tokens": [[7, 8]]},
    "/v1/detokenize": {"tokens": [[7, 8]]},
    "/parse_function_call": {"text": "x", "tools": [], "tool_call_parser": "qwen25"},
    "/separate_reasoning": {"text": "x", "reasoning_parser": "deepseek-r1"},
}

GROUP = BODIES["/init_weights_update_group"]


def pair(**known: Any) -> tuple[FakeServer, FakeServer]:
    return server("a", facts=SAVER, **known), server("b", facts=SAVER, **known)


async def send(it: Cluster, row: Row, method: str | None = None) -> httpx.Response:
    method = method or row.methods[-1]
    body = None if row.request is None else BODIES.get(row.path, {})
    if row.act is Act.RESUME:
        assert (await it.http.post("/release_memory_occupation", json={})).status_code == 200
    return await it.http.request(method, row.path, json=body)


async def prepare(it: Cluster, row: Row) -> None:
    """What has to be before a call makes sense."""
    if row.act is Act.END:
        assert (await it.http.post("/begin_weight_update", json={})).is_success
    if row.path == "/stop_profile":
        assert (await it.http.post("/start_profile", json={})).is_success
    if row.path == "/destroy_weights_update_group":
        assert (await it.http.post("/init_weights_update_group", json=GROUP)).is_success


def asked(engine: FakeServer, path: str) -> list[Asked]:
    return [call for call in engine.calls if call.path == path]


async def never() -> AsyncIterator[bytes]:
    await asyncio.sleep(60)
    yield b""


BROADCAST = [row for row in TABLE if row.scope is Scope.ALL]
TENSOR = "/update_weights_from_tensor"


def ids(row: Row) -> str:
    return f"{row.methods[-1]} {row.path}"


@pytest.mark.parametrize("row", [row for row in BROADCAST if row.path != TENSOR], ids=ids)
def test_a_broadcast_reaches_every_engine_once_with_the_callers_body(row: Row) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for method in row.methods:
                await prepare(it, row)
                response = await send(it, row, method)
                assert response.status_code == 200, response.text
            path = row.target.partition("?")[0]
            for engine in (a, b):
                calls = asked(engine, path)
                assert len(calls) >= 1
                assert all(call.method == (row.asks or call.method) for call in calls)
                if row.request is not None and row.act is not Act.INIT_GROUP:
                    sent = dict(calls[0].json())
                    if row.act is Act.UPDATE:  # agents flush by a call of their own
                        assert sent.pop("flush_cache") is False
                    assert sent == BODIES.get(row.path, {})

    run(scenario())


@pytest.mark.parametrize("row", [row for row in TABLE if row.scope is Scope.ONE], ids=ids)
def test_a_routed_call_reaches_one_engine(row: Row) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            response = await send(it, row)
            assert response.status_code == 200, response.text
            assert len(asked(a, row.path)) + len(asked(b, row.path)) == 1

    run(scenario())


CHECKED = [
    row
    for row in BROADCAST
    if row.merge in (Merge.SUCCESS, Merge.TEXT, Merge.SAME, Merge.PASS) and row.path != TENSOR
]


@pytest.mark.parametrize("row", CHECKED, ids=ids)
@pytest.mark.parametrize("status", [400, 500])
def test_one_engine_that_cannot_fails_the_call_and_is_named(row: Row, status: int) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await prepare(it, row)
            b.script[row.path] = Reply(status, {"success": False, "message": "not today"})
            response = await send(it, row)
            body = response.json()
            assert response.status_code == 400
            assert body["success"] is False
            assert body["failed_engines"] == ["b"]
            assert "engine b: not today" in body["error"]["message"]
            assert len((await it.http.get("/engines")).json()["engines"]) == 2, "it stays up"

    run(scenario())


@pytest.mark.parametrize("row", [row for row in CHECKED if row.act is not Act.RESUME], ids=ids)
def test_an_engine_that_leaves_in_the_middle_is_left_out(row: Row) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            await prepare(it, row)
            b.script[row.path] = lambda _: Reply(200, events=never())
            async with together(send(it, row)) as sent:
                await until(lambda: asked(b, row.path))
                b.kill()
                assert (await sent).status_code == 200
            await until(lambda: len(it.service.roster) == 1)

    run(scenario())


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_without_any_engine(row: Row) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            if row.act is Act.RESUME:
                response = await it.http.post(row.path, json={})
            else:
                response = await send(it, row)
            works = row.act is Act.ABORT or row.merge in (Merge.LOADS, Merge.LOAD, Merge.WORKER_LOADS)
            assert response.status_code == (200 if works else 503), response.text
            if not works:
                assert response.json()["error"]["message"] == "no engine is registered"
            assert not it.service.dispatcher.paused

    run(scenario())


@pytest.mark.parametrize("row", [row for row in TABLE if row.request is not None], ids=ids)
def test_a_body_that_is_no_object_reaches_no_engine(row: Row) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            for body in (b"{", b"[]", b"3", b'"x"', b"[" * 3000):
                response = await it.http.request(row.methods[-1], row.path, content=body)
                assert response.status_code == 400, body
                assert response.json()["error"]["type"] == "invalid_request_error"
            assert not asked(a, row.path)
            assert not it.service.dispatcher.paused

    run(scenario())


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/pause_generation", {"mode": "hard"}, "mode"),
        ("/update_weights_from_disk", {}, "model_path"),
        ("/update_weights_from_disk", {"model_path": 3}, "model_path"),
        ("/update_weights_from_distributed", {"names": ["x"], "dtypes": ["y"]}, "shapes"),
        ("/init_weights_update_group", {**GROUP, "rank_offset": "x"}, "rank_offset"),
        ("/init_weights_update_group", {**GROUP, "world_size": 4}, "world_size"),
        ("/release_memory_occupation", {"tags": ["all"]}, "tags"),
        ("/resume_memory_occupation", {"tags": ["weights"]}, "tags"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["gASVAA=="]}, "--engine-ports"),
        ("/close_session", {}, "session_id"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_and_reaches_no_engine(path: str, body: Any, field: str) -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a, b) as it:
            response = await it.http.post(path, json=body)
            assert response.status_code == 400
            assert field in response.json()["error"]["message"]
            assert not asked(a, path)
            assert not it.service.dispatcher.paused

    run(scenario())


def test_a_connection_that_breaks_is_no_failure_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.engine.work.BROKEN_PAUSE_S", 0.01)

    async def scenario() -> None:
        a, b = pair()
        breaks = [EngineUnreachable("ServerDisconnectedError")]

        def once(_: Asked) -> Any:
            return breaks.pop() if breaks else {"message": "paused", "status": "ok"}

        b.script["/pause_generation"] = once
        async with cluster(a, b) as it:
            assert (await it.http.post("/pause_generation", json={})).status_code == 200
            assert [len(asked(engine, "/pause_generation")) for engine in (a, b)] == [1, 2]
            breaks += [EngineUnreachable("no"), EngineUnreachable("no")]
            refused = await it.http.post("/pause_generation", json={})
            assert refused.json()["failed_engines"] == ["b"]

    run(scenario())
