"""Batches over answers that are made up: no router, no engine."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seer_sgl.router.batch.objects import Batch, BatchRequest
from seer_sgl.router.batch.service import BatchService
from seer_sgl.router.batch.window import Window

PATIENCE_S = 10.0
START_S = 1_000_000.0


def line(number: int, **body: Any) -> bytes:
    """An input line for `/generate`; its body tells the number, and how to answer."""
    whole = {
        "custom_id": f"c{number}",
        "method": "POST",
        "url": "/generate",
        "body": {"n": number, **body},
    }
    return msgspec.json.encode(whole) + b"\n"


def lines(count: int, **body: Any) -> bytes:
    return b"".join(line(number, **body) for number in range(count))


class Answers:
    """Answers lines with the status that the body names; once `gate` opens, where it says `wait`."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.rids: list[str] = []
        self.models: set[str] | None = {"served"}
        self.gate = asyncio.Event()

    async def __call__(self, _path: str, body: bytes, rid: str) -> tuple[int, bytes]:
        asked = msgspec.json.decode(body)
        self.asked.append(asked["n"])
        self.rids.append(rid)
        if asked.get("wait"):
            await self.gate.wait()
        else:
            await asyncio.sleep(0)
        meta = {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1}
        return asked.get("status", 200), msgspec.json.encode({"n": asked["n"], "meta_info": meta})

    async def names(self) -> set[str] | None:
        return self.models


class Disk:
    """`os.write` on a disk that may be full."""

    def __init__(self) -> None:
        self.room: int | None = None
        """Bytes that still fit; None: any."""
        self.writes = 0

    def write(self, descriptor: int, data: bytes) -> int:
        self.writes += 1
        if self.room is None:
            return os.write(descriptor, data)
        if not self.room:
            raise OSError(28, "No space left on device")
        written = os.write(descriptor, data[: self.room])
        self.room -= written
        return written


class Desk:
    """A service, and what tests ask of it."""

    def __init__(self, folder: Path, window: Window | None = None) -> None:
        self.folder = folder
        self.answers = Answers()
        self.disk = Disk()
        self.now_s = START_S
        self.window = window
        self.service: BatchService

    async def start(self) -> None:
        self.service = BatchService(self.folder, self.disk.write, lambda: self.now_s, self.window)
        await self.service.open()
        await self.service.run(self.answers, self.answers.names)

    async def file(self, content: bytes) -> str:
        upload = self.service.upload()
        await upload.add(content)
        return (await self.service.keep_upload(upload, "input.jsonl", "batch", None)).id

    async def batch(self, content: bytes, **request: Any) -> Batch:
        """A batch of these lines; the object is live."""
        asked = {"endpoint": "/generate", "completion_window": "1h", **request}
        return await self.service.create(BatchRequest(await self.file(content), **asked))

    async def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """A file's lines; none where there is no file."""
        if file_id is None:
            return []
        _, path = await self.service.content(file_id)
        return [msgspec.json.decode(each) for each in path.read_bytes().splitlines()]

    async def ended(self, batch: Batch) -> Batch:
        await until(lambda: batch.status in ("completed", "failed", "expired", "cancelled"))
        counts = batch.request_counts
        output, errors = (
            await self.content(batch.output_file_id),
            await self.content(batch.error_file_id),
        )
        assert (counts.completed, counts.failed) == (len(output), len(errors))
        return batch


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def desk(folder: Path, window: Window | None = None) -> AsyncIterator[Desk]:
    """A service that runs."""
    it = Desk(folder, window)
    await it.start()
    try:
        yield it
    finally:
        await it.service.stop()


def numbers(found: Iterable[dict[str, Any]]) -> list[int]:
    """Which input lines output lines are about, sorted."""
    return sorted(int(each["custom_id"][1:]) for each in found)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.batch.service.TICK_S", 0.01)
    monkeypatch.setattr("seer_sgl.router.batch.runner.RETRY_S", 0.01)
    monkeypatch.setattr("seer_sgl.router.batch.runner.MODEL_POLL_S", 0.01)
    monkeypatch.setattr("seer_sgl.router.batch.flight.TRY_PAUSE_S", 0.001)
    monkeypatch.setattr("seer_sgl.router.batch.flight.LONGEST_PAUSE_S", 0.004)
