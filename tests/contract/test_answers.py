"""Good answers have the form that the document promises: what schemathesis reaches only by luck."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema_rs import Draft202012Validator

from seer_sgl.router.control.table import TABLE
from seer_sgl.testing.engine import FakeServer
from tests.unit.router.conftest import Cluster, cluster, run, server

LINES = [
    {"custom_id": f"{number}", "method": "POST", "url": "/generate", "body": {"input_ids": [5, number]}}
    for number in range(3)
]
BAD_LINE = {**LINES[0], "custom_id": "bad", "body": {"input_ids": [5], "rid": 7}}


class Checked:
    """A client that holds every answer to the document."""

    def __init__(self, it: Cluster, document: dict[str, Any]) -> None:
        self._it, self._document = it, document
        self.seen: set[tuple[str, str, int]] = set()

    async def __call__(self, method: str, path: str, _as: str = "", **more: Any) -> httpx.Response:
        """Send a request.

        Args:
            _as: the path as the document writes it, where it has parameters.
        """
        answer = await self._it.http.request(method, path, **more)
        declared = self._document["paths"][_as or path.partition("?")[0]][method.lower()]["responses"]
        assert str(answer.status_code) in declared, (method, path, answer.text)
        content = declared[str(answer.status_code)].get("content", {})
        kind = answer.headers.get("content-type", "").partition(";")[0]
        assert kind in content or not (kind or answer.content), (method, path, kind)
        if kind == "application/json":
            schema = {**content[kind].get("schema", {}), "components": self._document["components"]}
            Draft202012Validator(schema).validate(answer.json())
        self.seen.add((_as or path, method, answer.status_code))
        return answer


def checked(*engines: FakeServer, **settings: Any) -> Any:
    """A decorator-like runner: starts a router, hands a checked client to a scenario."""

    def runner(scenario: Any) -> None:
        async def work() -> None:
            async with cluster(*engines, **settings) as it:
                document = (await it.http.get("/openapi.json")).json()
                await scenario(it, Checked(it, document))

        run(work())

    return runner


def test_files_and_batches(tmp_path: Path) -> None:
    async def batch(call: Checked, lines: list[dict[str, Any]]) -> dict[str, Any]:
        content = "\n".join(map(json.dumps, lines)).encode()
        parts = {"file": ("a.jsonl", content)}
        answer = await call("POST", "/v1/files", files=parts, data={"purpose": "batch"})
        file = answer.json()
        body = {"input_file_id": file["id"], "endpoint": "/generate", "completion_window": "24h"}
        made = (await call("POST", "/v1/batches", json={**body, "metadata": {"a": "b"}})).json()
        one = "/v1/batches/{id}"
        async with asyncio.timeout(5):
            while made["status"] not in ("completed", "failed"):
                await asyncio.sleep(0.01)
                made = (await call("GET", f"/v1/batches/{made['id']}", one)).json()
        return dict(made)

    async def scenario(it: Cluster, call: Checked) -> None:
        good = await batch(call, [*LINES, BAD_LINE])
        assert (good["status"], good["request_counts"]["completed"]) == ("completed", 3)
        failed = await batch(call, [*LINES, LINES[0]])
        assert (failed["status"], failed["errors"]["data"][0]["line"]) == ("failed", 4)
        await call("POST", f"/v1/batches/{good['id']}/cancel", "/v1/batches/{id}/cancel")
        for path in ("/v1/batches", "/v1/batches?limit=1", "/v1/files", "/v1/files?order=asc&limit=2"):
            await call("GET", path)
        file, one = good["output_file_id"], "/v1/files/{id}"
        await call("GET", f"/v1/files/{file}", one)
        await call("GET", f"/v1/files/{file}/content", one + "/content")
        for wanted in ("bytes=0-9", "bytes=99999-", "bytes=9-2", "bytes=", "lines=1-2", "x"):
            whole = one + "/content"
            await call("GET", f"/v1/files/{file}/content", whole, headers={"range": wanted})
        await call("DELETE", f"/v1/files/{file}", one)
        await call("GET", f"/v1/files/{file}", one)
        assert {(one, "GET", 200), (one, "GET", 404), (one, "DELETE", 200)} <= call.seen

    checked(server(), data_dir=tmp_path / "data")(scenario)


def test_generate() -> None:
    async def scenario(_it: Cluster, call: Checked) -> None:
        for body in (
            {"input_ids": [5]},
            {"text": ["a", "b"], "sampling_params": [{"n": 2}, {"n": 1}], "return_logprob": True},
            {"input_ids": [5], "stream": True},
            {"input_ids": [[5], [6]], "stream": True},
        ):
            assert (await call("POST", "/generate", json=body)).status_code == 200

    checked(server())(scenario)


BODIES: dict[str, dict[str, Any]] = {
    "/init_weights_update_group": {
        "master_address": "a",
        "master_port": 1,
        "rank_offset": 1,
        "world_size": 3,
        "group_name": "g",
        "backend": "nccl",
    },
    "/destroy_weights_update_group": {"group_name": "g"},
    "/update_weights_from_distributed": {
        "names": ["w"],
        "dtypes": ["bfloat16"],
        "shapes": [[1]],
        "group_name": "g",
    },
    "/update_weights_from_tensor": {"serialized_named_tensors": ["x"]},
    "/update_weights_from_disk": {"model_path": "m"},
    "/update_weights_from_ipc": {"zmq_handles": {}},
    "/update_weight_version": {"new_version": "2"},
    "/get_weights_by_name": {"name": "w"},
    "/weights_checker": {"action": "checksum"},
    "/load_lora_adapter": {"lora_name": "a", "lora_path": "p"},
    "/unload_lora_adapter": {"lora_name": "a"},
    "/load_lora_adapter_from_tensors": {"lora_name": "a", "serialized_tensors": "x", "config_dict": {}},
    "/tokenize": {"prompt": "a"},
    "/v1/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [[5]]},
    "/v1/detokenize": {"tokens": [[5]]},
    "/open_session": {"capacity_of_str_len": 9},
    "/close_session": {"session_id": "s"},
    "/slow_down": {"forward_sleep_time": 0.1},
    "/set_internal_state": {"server_args": {}},
}


@pytest.mark.parametrize("index", range(len(TABLE)))
def test_control(index: int) -> None:
    row = TABLE[index]

    async def scenario(_it: Cluster, call: Checked) -> None:
        if row.path == "/resume_memory_occupation":
            await call("POST", "/release_memory_occupation", json={})
        for method in row.methods:
            await call(method, row.path, json=BODIES.get(row.path, {}))

    checked(server(facts={"enable_memory_saver": True, "enable_lora": True}))(scenario)


def test_what_the_router_tells_of_itself() -> None:
    async def scenario(it: Cluster, call: Checked) -> None:
        for path in ("/health", "/engines", "/metrics", "/v1/models", "/workers", "/list_workers"):
            assert (await call("GET", path)).status_code == 200
        url, one = f"http://127.0.0.1:{it.config.http_port}", "/workers/{worker}"
        added = (await call("POST", "/workers", json={"url": url})).json()
        await call("GET", f"/workers/{added['worker_id']}", one)
        await call("PUT", f"/workers/{added['worker_id']}", one, json={"priority": 3})
        await call("DELETE", f"/workers/{added['worker_id']}", one)
        await call("POST", f"/add_worker?url={url}")
        await call("POST", f"/remove_worker?url={url}")
        await call("GET", "/workers/nobody", one)

    checked(server())(scenario)


def test_without_an_engine(tmp_path: Path) -> None:
    async def scenario(_it: Cluster, call: Checked) -> None:
        for row in TABLE:
            if row.path not in ("/abort_request", "/v1/loads", "/get_load", "/get_loads"):
                answer = await call(row.methods[0], row.path, json=BODIES.get(row.path, {}))
                assert answer.status_code in (400, 503), row
        for path in ("/health", "/health_generate"):
            assert (await call("GET", path)).status_code == 503
        for path in ("/v1/models", "/engines", "/metrics", "/workers"):
            assert (await call("GET", path)).status_code == 200

    checked(data_dir=tmp_path / "data")(scenario)
