"""Takes one batch from its file to its end. Acts.

A batch is `validating` while its input is looked through, `in_progress` while lines run, then its files
are made. Whatever ends the process, the next one begins with what the two files say.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncGenerator, Container, Iterable
from contextlib import aclosing
from typing import Any

import msgspec

from seer_sgl.router.batch.flight import DIVIDED, Flight, Means
from seer_sgl.router.batch.lines import Checker, Numbered, decode_line, unrun_line
from seer_sgl.router.batch.objects import (
    OUTPUT_PURPOSE,
    Batch,
    FileObject,
    Kept,
    LineErrors,
    SeerState,
    Status,
    Tokens,
)
from seer_sgl.router.batch.reader import blocks, check
from seer_sgl.router.batch.store import is_full
from seer_sgl.router.batch.writer import Entry, LineFile

log = logging.getLogger(__name__)

RETRY_S = 1.0
MODEL_POLL_S = 0.2
TURN_LINES = 32
"""Lines that are sent before others have their turn of the event loop."""
UNRUN_LINES = 512
MOST_RUNNING = 64
"""Batches with lines on their way; each has three files open."""
_CAN_END: tuple[Status, ...] = ("validating", "in_progress")


class Job:
    """One batch that has not ended yet."""

    def __init__(self, kept: Kept, means: Means) -> None:
        self.kept = kept
        self._means = means
        self._flight: Flight | None = None
        self._wake = asyncio.Event()
        self._changing = asyncio.Lock()
        kept.batch.seer.paused = None

    @property
    def batch(self) -> Batch:
        return self.kept.batch

    @property
    def _ending(self) -> bool:
        """No more lines are to run."""
        return self.kept.overdue or self.batch.status == "cancelling"

    # ---- from outside ----

    async def cancel(self) -> None:
        """End it; what has finished stays. Nothing happens where it ends already.

        Raises:
            sqlite3.Error: that could not be noted; it goes on.
        """
        async with self._changing:
            if self.batch.status in _CAN_END and not self.kept.overdue:
                await self._change({"status": "cancelling", "cancelling_at": self._now_s()})
        self._ring()

    async def tick(self) -> None:
        """Once a second: end it when its time is over, try again what failed, sync."""
        if self._means.now_s() >= self.batch.expires_at and self.batch.status in _CAN_END:
            self.kept.overdue = True
            self._ring()
        if self._flight is not None:
            self._flight.retry()
            await self._flight.sync()

    def _ring(self) -> None:
        self._wake.set()
        self._means.ring()

    # ---- its life ----

    async def run(self) -> None:
        """Until it has ended. Cancelled or failed, it can be taken up again, here or by another process.

        Raises:
            OSError, sqlite3.Error: of the disk, where waiting was no answer to it.
        """
        await self.tick()  # its time may have gone by while no router ran
        if self.batch.in_progress_at is None and not await self._validate():
            return
        flight = await self._opened()
        try:
            await flight.open()
            self._flight = flight
            if not self._ending:
                await self._send_lines(flight)  # nothing where all are done
            if not await self._become_unless_ending("finalizing"):
                await self._become()  # that it is overdue, before any line says so
                await flight.call_back()
                await self._write_unrun(flight)
            await self._finish(flight)
        finally:
            self._flight = None
            await flight.close()

    async def _validate(self) -> bool:
        """Whether there are lines to run, or to tell of."""
        models: Container[str] | None = None
        if self.batch.endpoint != DIVIDED:
            while not self._ending and (models := await self._means.models()) is None:
                await self._nap(MODEL_POLL_S)
        checker = Checker(self.batch.endpoint, models)
        async with self._means.checking:
            try:
                await check(self._means.folder.file(self.batch.input_file_id), checker)
            except OSError as error:
                checker.fail("unreadable_file", f"the input cannot be read: {error.strerror}")
        if not checker.errors:
            self.batch.request_counts.total = checker.total
            await self._become_unless_ending("in_progress", model=checker.model)
            return True
        errors = LineErrors(checker.errors)
        if not await self._become_unless_ending("failed", errors=errors):
            await self._become(**self._end(self._last_status))
        return False

    async def _opened(self) -> Flight:
        while True:
            if len(self._means.wakes) < MOST_RUNNING or self._ending:
                try:
                    return Flight(self._means, self.kept, self._wake)
                except OSError as error:
                    self._pause(f"cannot open the output: {error.strerror}")
            await self._nap(RETRY_S)

    async def _send_lines(self, flight: Flight) -> None:
        """Until every line is in a file, or no more are to run."""
        done = flight.results.done
        sent = 0
        async with aclosing(self._input()) as source:
            async for lines in source:
                for numbered in lines:
                    if numbered[0] in done:
                        continue
                    while not self._ending and not flight.may_send(numbered[1]):
                        await self._woken()
                    if self._ending:
                        return
                    flight.send(numbered)
                    sent += 1
                    if sent % TURN_LINES == 0:
                        await asyncio.sleep(0)
        while not self._ending and not flight.is_idle:
            await self._woken()

    async def _write_unrun(self, flight: Flight) -> None:
        """An error line for each line that has no answer."""
        results = flight.results
        code = "batch_expired" if self.kept.overdue else "batch_cancelled"
        async with aclosing(self._input()) as source:
            async for lines in source:
                for number, raw in lines:
                    if number in results.done:
                        continue
                    line = unrun_line(self.batch.id, number, decode_line(raw).custom_id, code)
                    results.add(number, Entry(line, Tokens(), 0), failed=True)
                    if results.pending >= UNRUN_LINES:
                        await self._written(flight)

    async def _finish(self, flight: Flight) -> None:
        await self._written(flight)
        while not await flight.sync():
            await self._nap(RETRY_S)
        await asyncio.to_thread(self._means.folder.sync)
        files = []
        ids: dict[str, Any] = {}
        for kind, file in (("output", flight.results.output), ("error", flight.results.errors)):
            if file.size:
                files.append(self._file(kind, file))
                ids[f"{kind}_file_id"] = files[-1].id
        await self._become(files, **ids, **self._end(self._last_status))
        for file in (flight.results.output, flight.results.errors):
            if not file.size:
                file.path.unlink(missing_ok=True)

    def _file(self, kind: str, file: LineFile) -> FileObject:
        now_s, lifetime_s = self._now_s(), self.kept.output_lifetime_s
        return FileObject(
            id=file.path.name,
            bytes=file.size,
            created_at=now_s,
            filename=f"{self.batch.id}_{kind}.jsonl",
            purpose=OUTPUT_PURPOSE,
            expires_at=None if lifetime_s is None else now_s + lifetime_s,
        )

    # ---- waiting ----

    def _input(self) -> AsyncGenerator[list[Numbered], None]:
        return blocks(self._means.folder.file(self.batch.input_file_id))

    async def _written(self, flight: Flight) -> None:
        """Return once nothing is pending."""
        while flight.results.pending:
            flight.flush_soon()
            await self._woken()

    async def _woken(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    async def _nap(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken()

    def _now_s(self) -> int:
        return int(self._means.now_s())

    # ---- status ----

    @property
    def _last_status(self) -> Status:
        if self.batch.status == "finalizing":
            return "completed"
        return "expired" if self.kept.overdue else "cancelled"

    def _end(self, status: Status) -> dict[str, Any]:
        return {"status": status, f"{status}_at": self._now_s()}

    async def _become_unless_ending(self, status: Status, **changes: Any) -> bool:
        """Whether it has: a batch that is to end does not go on."""
        return await self._become(unless_ending=True, **changes, **self._end(status))

    async def _become(
        self, files: Iterable[FileObject] = (), unless_ending: bool = False, **changes: Any
    ) -> bool:
        while True:
            async with self._changing:
                if unless_ending and self._ending:
                    return False
                try:
                    await self._change(changes, files)
                    return True
                except sqlite3.Error as error:
                    if not is_full(error):
                        raise
                    self._pause(f"cannot write the store: {error}")
            await self._nap(RETRY_S)

    async def _change(self, changes: dict[str, Any], files: Iterable[FileObject] = ()) -> None:
        """Into the store first, so that nobody sees what a restart would not know."""
        after = msgspec.structs.replace(self.batch, **changes, seer=SeerState())
        await self._means.store.save_batch(msgspec.structs.replace(self.kept, batch=after), files)
        for name, value in changes.items():
            setattr(self.batch, name, value)
        if self._flight is None or not self._flight.stuck:
            self.batch.seer.paused = None

    def _pause(self, reason: str) -> None:
        if self.batch.seer.paused is None:
            log.warning("%s is paused: %s", self.batch.id, reason)
        self.batch.seer.paused = reason
