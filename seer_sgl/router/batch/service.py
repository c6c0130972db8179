"""Files and batches as the HTTP front uses them. Acts."""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.batch.flight import AnswerLine, Means, Models
from seer_sgl.router.batch.objects import (
    FILE_BYTES,
    PURPOSE,
    Batch,
    BatchList,
    BatchRequest,
    FileDeleted,
    FileList,
    FileObject,
    Kept,
    batch_page,
    file_page,
    new_batch,
)
from seer_sgl.router.batch.runner import Job
from seer_sgl.router.batch.store import Folder, Store, is_full, new_id
from seer_sgl.router.batch.upload import Upload
from seer_sgl.router.batch.window import Window
from seer_sgl.router.batch.writer import Write

log = logging.getLogger(__name__)

TICK_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between two attempts at a batch whose files cannot be used."""
SWEEP_TICKS = 30
"""Ticks between two looks at what has expired."""


class BatchService:
    """The store of one router, and its batches.

    Args:
        data_dir: made where it is missing.
        write, now_s, window: instead of the usual, for tests.
    """

    def __init__(
        self,
        data_dir: Path,
        write: Write = os.write,
        now_s: Callable[[], float] = time.time,
        window: Window | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._write = write
        self._now_s = now_s
        self._window = window or Window()
        self._held: tuple[Folder, Store] | None = None
        self._means: Means | None = None
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ticking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take the folder.

        Raises:
            StartError: another router has it, or it cannot be used.
        """
        folder = await asyncio.to_thread(Folder, self._data_dir)
        try:
            store = await Store.open(folder.database)
        except BaseException:
            folder.close()
            raise
        self._held = folder, store

    async def run(self, answer: AnswerLine, models: Models) -> None:
        """Serve, and take up what an earlier router has left. Called once, after `open`."""
        assert self._held is not None
        folder, store = self._held
        await asyncio.to_thread(folder.sweep, await store.known_files())
        self._means = Means(folder, store, answer, models, self._write, self._now_s, self._window)
        for kept in await store.live_batches():
            self._run(kept)
        self._ticking = asyncio.create_task(self._tick(), name="batches")

    async def stop(self) -> None:
        """Leave everything as the next start wants it."""
        self._means = None
        tasks = [*self._tasks.values(), *filter(None, [self._ticking])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._held is not None:
            folder, store = self._held
            self._held = None
            await store.close()
            folder.close()

    # ---- files ----

    def upload(self) -> Upload:
        """A file to come.

        Raises:
            RequestError: 507, there is no room.
        """
        with room_needed():
            return Upload(self._ready.folder, new_id("file-"), FILE_BYTES)

    async def keep_upload(
        self, upload: Upload, filename: str, purpose: str, lifetime_s: int | None
    ) -> FileObject:
        """Make a whole upload a file.

        Raises:
            RequestError: 507, there is no room; it is gone.
        """
        now_s = int(self._now_s())
        file = FileObject(
            id=upload.file_id,
            bytes=upload.size,
            created_at=now_s,
            filename=filename,
            purpose=purpose,
            expires_at=None if lifetime_s is None else now_s + lifetime_s,
        )
        with room_needed():
            await upload.publish()
            try:
                await self._ready.store.add_file(file)
            except BaseException:
                self._ready.folder.remove(file.id)
                raise
        return file

    async def file(self, file_id: str) -> FileObject:
        """Raises RequestError, 404."""
        found = await self._ready.store.file(file_id, int(self._now_s()))
        if found is None:
            raise _no_file(file_id)
        return found

    async def content(self, file_id: str) -> tuple[FileObject, Path]:
        """The file, and where its content lies.

        Raises:
            RequestError: 404.
        """
        return await self.file(file_id), self._ready.folder.file(file_id)

    async def files(self, purpose: str | None, after: str, newest_first: bool, limit: int) -> FileList:
        now_s = int(self._now_s())
        found = await self._ready.store.files(purpose, after, newest_first, limit + 1, now_s)
        return file_page(found, limit)

    async def delete_file(self, file_id: str) -> FileDeleted:
        """Raises RequestError: 404, or 409 while a batch needs it."""
        await self.file(file_id)
        with room_needed():
            deleted = await self._ready.store.delete_file(file_id)
        if not deleted:
            await self.file(file_id)
            raise RequestError("id", f"{file_id} is the input of a batch that has not ended", status=409)
        await asyncio.to_thread(self._ready.folder.remove, file_id)
        return FileDeleted(file_id)

    # ---- batches ----

    async def create(self, request: BatchRequest) -> Batch:
        """Raises RequestError: 404 for the input, 400 for what is out of its limits, 507."""
        kept = new_batch(request, int(self._now_s()), new_id)
        file = await self.file(request.input_file_id)
        if file.purpose != PURPOSE:
            raise RequestError("input_file_id", f"the file's purpose must be {PURPOSE!r}")
        with room_needed():
            if not await self._ready.store.add_batch(kept):
                raise _no_file(request.input_file_id)
        self._run(kept)
        return kept.batch

    async def batch(self, batch_id: str) -> Batch:
        """Raises RequestError, 404."""
        if batch_id in self._jobs:
            return self._jobs[batch_id].batch
        found = await self._ready.store.batch(batch_id)
        if found is None:
            raise RequestError("id", f"no batch is called {batch_id[:80]!r}", 404, "not_found")
        return found

    async def batches(self, after: str, limit: int) -> BatchList:
        stored = await self._ready.store.batches(after, limit + 1)
        live = [self._jobs[batch.id].batch if batch.id in self._jobs else batch for batch in stored]
        return batch_page(live, limit)

    async def cancel(self, batch_id: str) -> Batch:
        """The batch as it is now.

        Raises:
            RequestError: 404, 409 where it has ended, 507.
        """
        batch = await self.batch(batch_id)
        job = self._jobs.get(batch_id)
        if job is not None:
            with room_needed():
                await job.cancel()
        if batch.status not in ("cancelling", "cancelled"):
            message = f"a batch that is {batch.status} cannot be cancelled"
            raise RequestError("id", message, status=409)
        return batch

    # ---- running ----

    @property
    def _ready(self) -> Means:
        if self._means is None:
            raise SeerError("the router is stopping")
        return self._means

    def _run(self, kept: Kept) -> None:
        job = Job(kept, self._ready)
        self._jobs[kept.batch.id] = job
        task = asyncio.create_task(self._to_end(job), name=kept.batch.id)
        self._tasks[kept.batch.id] = task

    async def _to_end(self, job: Job) -> None:
        pause_s = TICK_S
        while True:
            try:
                await job.run()
                break
            except Exception as error:
                log.exception("%s failed; it is tried again", job.batch.id)
                job.batch.seer.paused = f"{type(error).__name__}: {error}"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        del self._jobs[job.batch.id], self._tasks[job.batch.id]

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            try:
                await asyncio.gather(*(job.tick() for job in list(self._jobs.values())))
                if ticks % SWEEP_TICKS == 0:
                    await self._delete_expired()
            except Exception:
                log.exception("housekeeping failed; it is tried again")

    async def _delete_expired(self) -> None:
        for file_id in await self._ready.store.delete_expired(int(self._now_s())):
            await asyncio.to_thread(self._ready.folder.remove, file_id)


def _no_file(file_id: str) -> RequestError:
    return RequestError("id", f"no file is called {file_id[:80]!r}", 404, "not_found")


@contextlib.contextmanager
def room_needed() -> Iterator[None]:
    """Turns a full disk into an answer: RequestError, 507."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if not is_full(error):
            raise
        raise RequestError("", f"no room is left for it: {error}", 507) from None
