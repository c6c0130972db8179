"""Uploads and ids by which somebody tries to get out of the data folder, or to fill it."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.contract.test_sockets import PATIENCE_S, error_of, post, say
from tests.unit.router.conftest import cluster, run

TYPE = "Content-Type: multipart/form-data; boundary=x"
LINE = b'{"custom_id": "1", "method": "POST", "url": "/generate", "body": {"input_ids": [5]}}\n'


def form(filename: bytes = b"a.jsonl", content: bytes = LINE, end: bytes = b"--x--\r\n") -> bytes:
    purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + filename + b'"\r\n\r\n'
    return purpose + head + content + b"\r\n" + end


def inside(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


NAMES = [
    b"../../../etc/passwd",
    b"/etc/passwd",
    b"..\\..\\windows",
    b"a/../../b.jsonl",
    b"%2e%2e%2fb",
    b"\x00b",
    b"..",
    b".",
    b"x" * 5000,
    b"\xff\xfe",
    "файл.jsonl".encode(),
    b"seer.db",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_shown(tmp_path: Path, name: bytes) -> None:
    async def scenario() -> None:
        data = tmp_path / "data"
        async with cluster(data_dir=data) as it:
            answer = await say(it, post(form(name), "/v1/files", TYPE))
            status = int(answer.split()[1])
            assert status in (200, 400), answer
            files = (await it.http.get("/v1/files")).json()["data"]
            assert len(files) == (status == 200)
            for file in files:
                content = await it.http.get(f"/v1/files/{file['id']}/content")
                assert content.content == LINE
                assert "/" not in file["filename"]
                assert "\n" not in content.headers.get("content-disposition", "")
            assert {path.parts[0] for path in map(Path, inside(tmp_path))} <= {"data"}
            assert not [path for path in inside(data) if "passwd" in path or ".." in path]

    run(scenario())


IDS = ["../../seer.db", "..%2f..%2fetc%2fpasswd", "%2e%2e", "file-", "file-" + "a" * 5000, "%00", "%ff"]


@pytest.mark.parametrize("given", IDS)
def test_an_id_is_no_path(tmp_path: Path, given: str) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=tmp_path / "data") as it:
            before = inside(tmp_path)
            for method, path in (
                ("GET", f"/v1/files/{given}"),
                ("GET", f"/v1/files/{given}/content"),
                ("DELETE", f"/v1/files/{given}"),
                ("GET", f"/v1/batches/{given}"),
                ("POST", f"/v1/batches/{given}/cancel"),
                ("GET", f"/workers/{given}"),
                ("DELETE", f"/workers/{given}"),
                ("GET", f"/v1/models/{given}"),
            ):
                told = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
                status, error = error_of(await say(it, told.encode()))
                assert status in (404, 405), (method, path, error)
            assert inside(tmp_path) >= before

    run(scenario())


FORMS: dict[str, tuple[bytes, int]] = {
    "no end": (post(form(end=b""), "/v1/files", TYPE), 400),
    "no form": (post(b"{}", "/v1/files", TYPE), 400),
    "no boundary": (post(form(), "/v1/files", "Content-Type: multipart/form-data"), 400),
    "json": (post(b"{}", "/v1/files", "Content-Type: application/json"), 400),
    "nothing": (post(b"", "/v1/files", TYPE), 400),
    "only purpose": (
        post(
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
            "/v1/files",
            TYPE,
        ),
        400,
    ),
    "headers without end": (post(b"--x\r\n" + b"A: b\r\n" * 100_000, "/v1/files", TYPE), 400),
    "a huge header": (post(b"--x\r\nA: " + b"b" * 1_000_000, "/v1/files", TYPE), 400),
    "many parts": (
        post(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 50_000, "/v1/files", TYPE
        ),
        400,
    ),
    "a huge field": (
        post(
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"b" * 3_000_000,
            "/v1/files",
            TYPE,
        ),
        400,
    ),
    "said to be huge": (post(b"", "/v1/files", TYPE, length=2**40), 413),
    "wrong purpose": (post(form().replace(b"batch", b"steal"), "/v1/files", TYPE), 400),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_is_wrong_leaves_nothing(tmp_path: Path, name: str) -> None:
    sent, expected = FORMS[name]

    async def scenario() -> None:
        async with cluster(data_dir=tmp_path / "data") as it:
            before = inside(tmp_path)
            status, error = error_of(await say(it, sent))
            assert status == expected or (expected == 400 and status == 413), error
            assert (await it.http.get("/v1/files")).json()["data"] == []
            assert inside(tmp_path) == before

    run(scenario())


def test_an_upload_that_stops_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.http.bodies.PART_PATIENCE_S", 0.1)

    async def scenario() -> None:
        async with cluster(data_dir=tmp_path / "data") as it:
            before = inside(tmp_path)
            sent = post(form(content=LINE * 1000, end=b""), "/v1/files", TYPE, length=10_000_000)
            assert error_of(await say(it, sent))[0] == 408
            _, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(sent)
            await writer.drain()
            writer.transport.abort()
            async with asyncio.timeout(PATIENCE_S):
                while inside(tmp_path) != before:  # noqa: ASYNC110 - a file's end is told to nobody
                    await asyncio.sleep(0.01)
            assert (await it.http.get("/v1/files")).json()["data"] == []

    run(scenario())


@pytest.mark.parametrize("query", ["limit=0", "limit=x", f"limit={'9' * 400}", "limit=1e3", "order=up"])
def test_wrong_queries(tmp_path: Path, query: str) -> None:
    async def scenario() -> None:
        async with cluster(data_dir=tmp_path / "data") as it:
            told = f"GET /v1/files?{query}&after={quote('../x')} HTTP/1.1\r\nHost: x\r\n\r\n"
            assert error_of(await say(it, told.encode()))[0] == 400

    run(scenario())
