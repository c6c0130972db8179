"""`/v1/files` and `/v1/batches` over HTTP: what is wrong, or has no room, is told in one shape."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.router.batch import service
from seer_sgl.testing.controls import Reply
from tests.unit.router.batch.conftest import until
from tests.unit.router.conftest import Cluster, cluster, run, server

GENERATE: dict[str, Any] = {"endpoint": "/generate", "completion_window": "1h"}


def input_lines(count: int) -> bytes:
    one = '{"custom_id":"c%d","method":"POST","url":"/generate","body":{"input_ids":[%d,3],%s}}\n'
    sampling = '"sampling_params":{"max_new_tokens":4}'
    return "".join(one % (n, 2 + n % 200, sampling) for n in range(count)).encode()


async def upload(http: httpx.AsyncClient, content: bytes, **form: Any) -> httpx.Response:
    fields = {"purpose": "batch", **form}
    return await http.post("/v1/files", files={"file": ("a.jsonl", content)}, data=fields)


def refused(answer: httpx.Response, status: int, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["code"], str)
    assert error["param"] == param


def test_a_router_without_a_folder_says_what_to_do() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            for answer in (
                await upload(it.http, b""),
                await it.http.get("/v1/files"),
                await it.http.get("/v1/batches/x"),
                await it.http.post("/v1/batches", json={"input_file_id": "x", **GENERATE}),
            ):
                refused(answer, 503)
                assert "--data-dir" in answer.json()["error"]["message"]

    run(scenario())


def test_two_routers_need_two_folders(tmp_path: Path) -> None:
    async def scenario() -> None:
        ports: dict[str, Any] = {"http_port": free_port(), "agent_port": free_port()}
        async with cluster(data_dir=tmp_path):
            with pytest.raises(StartError, match="another router uses"):
                async with cluster(data_dir=tmp_path, **ports):
                    pass
        async with cluster(data_dir=tmp_path, **ports) as it:  # its ports are free again
            assert (await it.http.get("/v1/batches")).status_code == 200

    run(scenario())


def test_wrong_uploads_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FILE_BYTES", 1000)

    async def scenario() -> None:
        async with cluster(data_dir=tmp_path) as it:
            http = it.http
            refused(await upload(http, b"x" * 1001), 413, "file")
            refused(await upload(http, b"x", purpose="assistants"), 400, "purpose")
            refused(await http.post("/v1/files", data={"purpose": "batch"}), 400)
            refused(await http.post("/v1/files", files={"purpose": (None, "batch")}), 400, "file")
            refused(await http.post("/v1/files", files={"file": ("a", b"")}), 400, "purpose")
            refused(await http.post("/v1/files", json={}), 400)
            seconds = "expires_after[seconds]"
            for wrong in ("12", "x", "-3600", "9" * 30):
                refused(await upload(http, b"", **{seconds: wrong}), 400, "expires_after.seconds")
            anchor = {"expires_after[anchor]": "now"}
            refused(await upload(http, b"", **anchor), 400, "expires_after.anchor")
            cut = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'
            head = {"content-type": "multipart/form-data; boundary=X"}
            refused(await http.post("/v1/files", content=cut, headers=head), 400)
            padded = {f"p{n}": "x" * 4000 for n in range(20)}
            refused(await upload(http, b"", **padded), 400)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 300000000\r\n\r\n")
            assert b" 413 " in await reader.readline()  # before any of it has come
            writer.close()

            assert (await http.get("/v1/files")).json() == {
                "data": [],
                "has_more": False,
                "first_id": None,
                "last_id": None,
                "object": "list",
            }
            assert [*(tmp_path / "files").iterdir(), *(tmp_path / "uploads").iterdir()] == []
            assert (await upload(http, b"x" * 1000)).status_code == 200

    run(scenario())


def test_wrong_batches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=tmp_path) as it:
            http = it.http
            file_id = (await upload(http, input_lines(1))).json()["id"]

            async def create(**changes: Any) -> httpx.Response:
                asked = {"input_file_id": file_id, **GENERATE, **changes}
                return await http.post("/v1/batches", json=asked)

            refused(await http.post("/v1/batches", content=b"{"), 400)
            refused(await http.post("/v1/batches", json=[]), 400)
            refused(await http.post("/v1/batches", json=GENERATE), 400)
            refused(await create(input_file_id="file-0"), 404, "id")
            refused(await create(input_file_id=7), 400, "input_file_id")
            refused(await create(endpoint="/v1/embeddings"), 400, "endpoint")
            refused(await create(completion_window="now"), 400, "completion_window")
            refused(await create(metadata={"a": 1}), 400, "metadata[...]")
            refused(await create(metadata={str(n): "" for n in range(17)}), 400, "metadata")
            lifetime = {"anchor": "created_at", "seconds": 1}
            refused(await create(output_expires_after=lifetime), 400, "output_expires_after.seconds")
            assert (await http.get("/v1/batches")).json()["data"] == []
            good = await create()
            assert (good.status_code, good.headers["x-should-retry"]) == (200, "false")

    run(scenario())


@pytest.mark.parametrize("path", ["/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}"])
def test_unknown_ids_and_foreign_methods(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=tmp_path) as it:
            for name in ("file-0", "%00", "..%5clock", "store.sqlite3", "x" * 3000, "é"):
                refused(await it.http.get(path.format(name)), 404, "id")
            for name in ("..%2f..%2flock", "%2e%2e/lock"):
                refused(await it.http.get(path.format(name)), 404)
            refused(await it.http.put(path.format("x")), 405)

    run(scenario())


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=10001", "limit=²"])
def test_wrong_limits(tmp_path: Path, query: str) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=tmp_path) as it:
            refused(await it.http.get(f"/v1/files?{query}"), 400, "limit")
            refused(await it.http.get(f"/v1/batches?{query}"), 400, "limit")
            refused(await it.http.get("/v1/batches?limit=101"), 400, "limit")
            refused(await it.http.get("/v1/files?order=up"), 400, "order")

    run(scenario())


def test_lines_run_as_requests_do(tmp_path: Path) -> None:
    """A bad body fails its line alone, and lines with one prompt are one group."""

    async def scenario() -> None:
        engine = server(max_running_requests=64)
        async with cluster(engine, data_dir=tmp_path) as it:
            lines = input_lines(4).replace(b"[2,3]", b"[5,3]").replace(b"[3,3]", b"[5,3]")
            lines += b'{"custom_id":"bad","method":"POST","url":"/generate","body":{"top_p":1}}'
            shown = await ended(it, lines)
            errors = await it.http.get(f"/v1/files/{shown['error_file_id']}/content")
            assert shown["request_counts"] == {"total": 5, "completed": 4, "failed": 1}
            response = errors.json()["response"]
            assert response["status_code"] == 400
            assert response["body"]["error"]["param"] == "input_ids"
        groups = [body["sampling_params"]["custom_params"]["seer"]["group"] for body in engine.bodies]
        by_prompt = {tuple(b["input_ids"]): g for b, g in zip(engine.bodies, groups, strict=True)}
        assert len(groups) == 4
        assert len(set(groups)) == len(by_prompt) == 2

    run(scenario())


def test_lines_for_openais_endpoints_are_passed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = server()
        used = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        engine.script["/v1/completions"] = lambda asked: Reply(
            200, {"object": "text_completion", "choices": [], "usage": used}
        )
        async with cluster(engine, data_dir=tmp_path) as it:
            asked = {"custom_id": "c", "method": "POST", "url": "/v1/completions"}
            lines = [
                {**asked, "custom_id": f"c{n}", "body": {"prompt": "x", "model": "fake-model"}}
                for n in range(5)
            ]
            shown = await ended(it, b"\n".join(map(msgspec.json.encode, lines)), "/v1/completions")
            assert (shown["status"], shown["model"]) == ("completed", "fake-model")
            assert shown["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
            assert (shown["usage"]["input_tokens"], shown["usage"]["output_tokens"]) == (10, 15)
            lines[3]["body"] = {"prompt": "x", "model": "another"}
            failed = await ended(it, b"\n".join(map(msgspec.json.encode, lines)), "/v1/completions")
            assert failed["status"] == "failed"
            assert [error["line"] for error in failed["errors"]["data"]] == [4]

    run(scenario())


def test_who_aborts_everything_that_runs_ends_no_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = server(max_running_requests=8, token_s=0.002)
        async with cluster(engine, data_dir=tmp_path) as it:
            file_id = (await upload(it.http, input_lines(40))).json()["id"]
            asked = {"input_file_id": file_id, **GENERATE}
            batch_id = (await it.http.post("/v1/batches", json=asked)).json()["id"]
            await until(lambda: len(engine.bodies) > 10)
            await it.http.post("/abort_request", json={"abort_all": True})
            shown = await ended(it, batch_id=batch_id)
            output = await it.http.get(f"/v1/files/{shown['output_file_id']}/content")
        assert shown["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        bodies = [msgspec.json.decode(line)["response"]["body"] for line in output.text.splitlines()]
        assert {body["meta_info"]["finish_reason"]["type"] for body in bodies} <= {"length", "stop"}
        assert len(engine.bodies) > 40

    run(scenario())


async def ended(
    it: Cluster, content: bytes = b"", endpoint: str = "/generate", batch_id: str = ""
) -> dict[str, Any]:
    """A batch of these lines, or the one that is named, when it has ended."""
    if not batch_id:
        file_id = (await upload(it.http, content)).json()["id"]
        asked = {"input_file_id": file_id, **GENERATE, "endpoint": endpoint}
        batch_id = (await it.http.post("/v1/batches", json=asked)).json()["id"]
    while True:
        shown: dict[str, Any] = (await it.http.get(f"/v1/batches/{batch_id}")).json()
        if shown["status"] in ("completed", "failed"):
            return shown
        await asyncio.sleep(0.01)


# ---- a disk that is full ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; only root may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_no_room_for_an_upload(small_disk: Path) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=small_disk) as it:
            refused(await upload(it.http, b"x" * 3_000_000), 507)
            assert (await it.http.get("/v1/files")).json()["data"] == []
            assert [*(small_disk / "files").iterdir(), *(small_disk / "uploads").iterdir()] == []
            assert (await upload(it.http, b"x" * 100_000)).status_code == 200

    run(scenario())


def test_a_batch_on_a_full_disk_goes_on_when_there_is_room(small_disk: Path) -> None:
    """Neither output nor database can be written; no line is lost."""

    async def scenario() -> None:
        async with cluster(server(max_running_requests=64), data_dir=small_disk) as it:
            file_id = (await upload(it.http, input_lines(500))).json()["id"]
            _fill(small_disk / "filler")
            asked = {"input_file_id": file_id, **GENERATE}
            refused(await it.http.post("/v1/batches", json=asked), 507)
            (small_disk / "filler").unlink()
            batch_id = (await it.http.post("/v1/batches", json=asked)).json()["id"]
            _fill(small_disk / "filler")
            batch = it.service._front.batches._jobs[batch_id].batch  # type: ignore[union-attr]
            await until(lambda: batch.seer.paused)
            shown = (await it.http.get(f"/v1/batches/{batch_id}")).json()
            assert shown["seer"]["paused"]
            assert shown["status"] in ("validating", "in_progress", "finalizing")
            (small_disk / "filler").unlink()
            await until(lambda: batch.status == "completed")
            output = await it.http.get(f"/v1/files/{batch.output_file_id}/content")
        assert batch.request_counts.completed == 500
        assert len(set(output.text.splitlines())) == 500

    run(scenario())


def _fill(path: Path) -> None:
    """Leave no byte."""
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
