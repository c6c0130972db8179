"""Bytes that no well-behaved client sends: refused in the common error shape, and the router goes on."""

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest

from tests.unit.router.conftest import Cluster, cluster, run, server

PATIENCE_S = 5.0


async def say(it: Cluster, *parts: bytes, close: bool = False) -> bytes:
    """Everything that the router answers to some bytes until it hangs up, or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
    if close:
        writer.write_eof()
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while not whole(answer) and (part := await reader.read(65_536)):
                answer += part
    writer.close()
    return answer


def whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= int(lengths[0].split(b":")[1])


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of a raw answer; anything but the common shape fails."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower(), answer[:500]
    error = json.loads(body)["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert isinstance(error["code"], str)
    return int(head.split()[1]), error


def post(body: bytes, path: str = "/generate", *headers: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


DEEP = b'{"input_ids": [5], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

REFUSED: dict[str, tuple[bytes, int]] = {
    "no http": (b"hello\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "spaces in the path": (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no such version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "length no number": (b"POST /generate HTTP/1.1\r\nContent-Length: ten\r\n\r\n", 400),
    "length negative": (b"POST /generate HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    "length twice": (
        b"POST /generate HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        400,
    ),
    "length beyond 64 bits": (post(b"", length=2**70), 400),
    "length too large": (post(b"", length=2**40), 413),
    "length and chunks": (
        post(b"0\r\n\r\n", "/generate", "Transfer-Encoding: chunked", length=2),
        400,
    ),
    "chunk size no number": (
        b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        400,
    ),
    "body shorter than said, then more": (post(b'{"input_ids": [5', length=16), 400),
    "no such path": (post(b"{}", "/no/such/path"), 404),
    "path upwards": (b"GET /v1/files/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "path upwards, encoded": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "path with a zero": (b"GET /engines%00 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "path not utf-8": (b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "path very long": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "foreign method": (b"DELETE /generate HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "trace": (b"TRACE /generate HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "connect": (b"CONNECT /generate HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "header without end": (b"GET /engines HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
    "headers without end": (b"GET /engines HTTP/1.1\r\n" + b"X: y\r\n" * 40_000, 431),
    "trailers without end": (
        b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 40_000,
        431,
    ),
    "not utf-8": (post(b'{"text": "\xff\xfe"}'), 400),
    "half a surrogate": (post(b'{"text": "\\ud800"}'), 400),
    "utf-16": (post('{"text": "a"}'.encode("utf-16")), 400),
    "byte order mark": (post(b"\xef\xbb\xbf{}"), 400),
    "deep": (post(DEEP), 400),
    "nan": (post(b'{"input_ids": [5], "sampling_params": {"temperature": NaN}}'), 400),
    "infinity": (post(b'{"input_ids": [5], "sampling_params": {"temperature": Infinity}}'), 400),
    "huge float": (post(b'{"input_ids": [5], "sampling_params": {"temperature": 1e999}}'), 400),
    "huge token": (post(b'{"input_ids": [1e30]}'), 400),
    "truth as a token": (post(b'{"input_ids": [true]}'), 400),
    "two values": (post(b'{"input_ids": [5]} {}'), 400),
    "a list": (post(b"[]"), 400),
    "null": (post(b"null"), 400),
    "nothing": (post(b""), 400),
    "compressed": (post(b"\x1f\x8b\x08\x00" + bytes(20), "/generate", "Content-Encoding: gzip"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_the_router_goes_on(name: str) -> None:
    bytes_sent, expected = REFUSED[name]

    async def scenario() -> None:
        async with cluster() as it:
            answer = await say(it, bytes_sent)
            status, error = error_of(answer)
            assert status == expected, error
            assert error["type"] == "invalid_request_error"
            assert (await it.http.get("/engines")).status_code == 200

    run(scenario())


def test_every_byte_may_come_alone() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            whole_request = post(b'{"input_ids": []}')
            status, error = error_of(await say(it, *(bytes([each]) for each in whole_request)))
            assert (status, error["param"]) == (400, "input_ids")

    run(scenario())


def test_two_requests_at_once_are_answered_one_after_the_other() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(post(b'{"input_ids": []}') + b"GET /engines HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            async with asyncio.timeout(PATIENCE_S):
                while b'"total":0' not in answer:
                    answer += await reader.read(65_536)
            assert answer.index(b"400 Bad Request") < answer.index(b"200 OK")
            writer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"\r\n\r\n\r\n", None),
        (b"GET /engi", 408),
        (b"GET /engines HTTP/1.1\r\nHost: x\r\n", 408),
        (post(b'{"input', length=100), 408),
        (b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", 408),
    ],
)
def test_who_stops_in_the_middle_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int | None
) -> None:
    monkeypatch.setattr("seer_sgl.router.http.protocol.HEAD_PATIENCE_S", 0.1)
    monkeypatch.setattr("seer_sgl.router.http.bodies.PART_PATIENCE_S", 0.1)

    async def scenario() -> None:
        async with cluster() as it:
            began_s = time.monotonic()
            answer = await say(it, sent)
            assert time.monotonic() - began_s < 1.0
            if status is None:
                assert answer in (b"",) or error_of(answer)[0] == 408
            else:
                assert error_of(answer)[0] == status

    run(scenario())


@pytest.mark.parametrize("begin", [b"GET /engines HTTP/1.1\r\nX: ", post(b"", length=10_000)])
def test_a_byte_now_and_then_is_not_enough(monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr("seer_sgl.router.http.protocol.HEAD_PATIENCE_S", 0.3)
    monkeypatch.setattr("seer_sgl.router.http.bodies.PART_PATIENCE_S", 0.3)

    async def drip(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with cluster() as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(begin)
            dripping = asyncio.create_task(drip(writer))
            began_s = time.monotonic()
            answer = await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE_S)
            assert 0.2 < time.monotonic() - began_s < 1.5
            assert error_of(answer)[0] == 408
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            writer.close()

    run(scenario())


def test_a_slow_body_that_goes_on_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.http.bodies.PART_PATIENCE_S", 0.2)

    async def scenario() -> None:
        async with cluster() as it:
            body = b'{"input_ids": [], "x": "' + b"a" * 4096 + b'"}'
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(post(b"", length=len(body)))
            for start in range(0, len(body), 512):
                writer.write(body[start : start + 512])
                await asyncio.sleep(0.1)
            answer = await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE_S)
            assert error_of(answer)[1]["param"] == "input_ids"
            writer.close()

    run(scenario())


def test_who_goes_on_sending_after_the_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.http.protocol.HEAD_PATIENCE_S", 0.1)

    async def scenario() -> None:
        async with cluster(max_body_bytes=100) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
            writer.write(post(b"aaaa", length=1000))
            assert error_of(await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE_S))[0] == 413
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
            writer.close()

    run(scenario())


def test_hanging_up_in_the_middle_harms_nobody() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            for sent in (b"", b"GET /eng", post(b'{"inp', length=100), post(b'{"input_ids": [5]}')):
                _, writer = await asyncio.open_connection("127.0.0.1", it.config.http_port)
                writer.write(sent)
                await writer.drain()
                writer.transport.abort()
            assert (await it.http.get("/engines")).status_code == 200

    run(scenario())


def test_a_websocket_is_refused() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            lines = ["GET /generate HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"]
            lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + "A" * 22 + "==", "", ""]
            answer = await say(it, "\r\n".join(lines).encode())
            assert answer.split()[1] in (b"403", b"405")
            assert (await it.http.get("/engines")).status_code == 200

    run(scenario())


@pytest.mark.parametrize(
    "field",
    ["max_new_tokens", "min_new_tokens", "n", "top_k", "sampling_seed", "temperature", "stop_token_ids"],
)
@pytest.mark.parametrize("digits", [20, 4000, 10_000])
def test_huge_numbers(field: str, digits: int) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            number = "9" * digits
            value = f"[{number}]" if field == "stop_token_ids" else number
            body = f'{{"input_ids": [5], "sampling_params": {{"{field}": {value}}}}}'
            assert error_of(await say(it, post(body.encode())))[0] == 400
            assert (await it.generate([5, 6]))["output_ids"]

    run(scenario())
