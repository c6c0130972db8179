"""The lines of one batch that are on their way, and their answers into its files. Acts."""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field

import msgspec

from seer_sgl.router.batch.lines import Numbered, answered_line, decode_line, tokens_of
from seer_sgl.router.batch.objects import Kept, Tokens
from seer_sgl.router.batch.store import Folder, Store
from seer_sgl.router.batch.window import LINES, Window
from seer_sgl.router.batch.writer import Entry, LineFile, Results, Write

log = logging.getLogger(__name__)

AnswerLine = Callable[[str, bytes, str], Awaitable[tuple[int, bytes]]]
"""Answers one line: path, body and an id that nothing else has; status and body."""
Models = Callable[[], Awaitable[Container[str] | None]]
"""Names that lines may ask for; None while nobody knows."""

DIVIDED = "/generate"
"""Lines for it are samples of the router's own; others are calls to an engine, each with connections."""
MOST_CALLS = 512
CANCELLED_AT_ONCE = 64
"""Lines that are called back before others have their turn of the event loop."""
OK = 200
TRIES = {429: 20, 500: 3, 502: 3, 503: 20, 504: 3}
"""How often a line is tried that is answered so; any other answer stands."""
TRY_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Means:
    """What all batches run with."""

    folder: Folder
    store: Store
    answer: AnswerLine
    models: Models
    write: Write = os.write
    now_s: Callable[[], float] = time.time
    """Unix time."""
    window: Window = field(default_factory=Window)
    checking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Inputs are looked through one after the other: each keeps a thread busy."""
    wakes: dict[str, asyncio.Event] = field(default_factory=dict)
    """Of the batches that have files open."""

    def ring(self) -> None:
        """Have every batch look whether it may go on."""
        for wake in self.wakes.values():
            wake.set()


class Flight:
    """Sends lines, and writes what comes back.

    Args:
        kept: whose counts and usage become those of the files.
        wake: set when something may have changed that a sender waits for.
    """

    def __init__(self, means: Means, kept: Kept, wake: asyncio.Event) -> None:
        """Raises OSError where the files cannot be opened."""
        self.stuck = ""
        """Why nothing can be written, where nothing can."""
        self._means = means
        self._batch = kept.batch
        self._wake = wake
        output = LineFile(means.folder.file(kept.output_id), means.write)
        try:
            errors = LineFile(means.folder.file(kept.error_id), means.write)
        except OSError:
            output.close()
            raise
        self.results = Results(output, errors, self._written)
        self._most = LINES if kept.batch.endpoint == DIVIDED else MOST_CALLS
        self._run = uuid.uuid4().hex[:12]
        self._tasks: set[asyncio.Task[None]] = set()
        self._flushes_soon = False
        self._syncing = asyncio.Lock()

    async def open(self) -> None:
        """Count what an earlier process has left, and join the others."""
        await asyncio.to_thread(self.results.recover)
        self.results.counts.total = self._batch.request_counts.total
        self._batch.request_counts, self._batch.usage = self.results.counts, self.results.usage
        self._means.window.join(self._batch.id)
        self._means.wakes[self._batch.id] = self._wake

    async def close(self) -> None:
        """Call back what is on its way, and write what there is."""
        await self.call_back()
        async with self._syncing:
            if self._means.wakes.pop(self._batch.id, None) is not None:
                self._flush()
                self._means.window.leave(self._batch.id)
                self._means.ring()
            self.results.close()

    # ---- lines ----

    def may_send(self, line: bytes) -> bool:
        """Whether there is room for it, and for its answer."""
        if self.stuck or len(self._tasks) >= self._most:
            return False
        return self._means.window.fits(self._batch.id, len(line))

    def send(self, numbered: Numbered) -> None:
        """Have it answered."""
        self._means.window.take(self._batch.id, len(numbered[1]))
        task = asyncio.create_task(self._answer(*numbered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def is_idle(self) -> bool:
        """Every line that was sent is in a file."""
        return not self._tasks and not self.results.pending

    async def call_back(self) -> None:
        """Give up what is on its way. No more may be sent: its part of the window stays taken."""
        while self._tasks:
            some = [task for task, _ in zip(self._tasks, range(CANCELLED_AT_ONCE), strict=False)]
            for task in some:
                task.cancel()
            await asyncio.gather(*some, return_exceptions=True)

    async def _answer(self, number: int, raw: bytes) -> None:
        custom_id = ""
        try:
            line = decode_line(raw)
            custom_id = line.custom_id
            status, body = await self._tried(number, bytes(line.body))
        except Exception as error:
            log.exception("line %d of %s met a bug", number, self._batch.id)
            message = f"a bug in the router: {type(error).__name__}: {error}"
            status, body = 500, msgspec.json.encode({"error": {"message": message}})
        tokens = tokens_of(body) if status == OK else Tokens()
        written = answered_line(self._batch.id, number, custom_id, status, body)
        self.results.add(number, Entry(written, tokens, len(raw)), failed=status != OK)
        self.flush_soon()

    async def _tried(self, number: int, body: bytes) -> tuple[int, bytes]:
        tries = 0
        while True:
            rid = f"{self._run}-{number}" if not tries else f"{self._run}-{number}-{tries}"
            status, answer = await self._means.answer(self._batch.endpoint, body, rid)
            tries += 1
            if tries >= TRIES.get(status, 1):
                return status, answer
            await asyncio.sleep(min(LONGEST_PAUSE_S, TRY_PAUSE_S * 2**tries))

    # ---- files ----

    def flush_soon(self) -> None:
        """Write what is pending, together with what else comes in this turn of the event loop."""
        if not self._flushes_soon and not self.stuck:
            self._flushes_soon = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushes_soon = False
        if self._batch.id in self._means.wakes:
            self._flush()
            self._means.ring()

    def _flush(self) -> None:
        try:
            self.results.flush()
        except OSError as error:
            self._stop(f"cannot write the output: {error.strerror}")
        else:
            self._go_on()

    def _written(self, cost: int) -> None:
        if cost:
            self._means.window.give(self._batch.id, cost)

    def retry(self) -> None:
        """Look whether what could not be written now can."""
        if self.stuck:
            self._flush()
            self._means.ring()

    async def sync(self) -> bool:
        """Have the disk keep what was written; False where it does not."""
        async with self._syncing:
            if self._batch.id not in self._means.wakes:
                return True
            try:
                await asyncio.to_thread(self.results.sync)
            except OSError as error:
                self._stop(f"cannot sync the output: {error.strerror}")
                return False
            return True

    def _stop(self, reason: str) -> None:
        if not self.stuck:
            log.warning("%s is paused: %s", self._batch.id, reason)
        self.stuck = self._batch.seer.paused = reason

    def _go_on(self) -> None:
        if self.stuck:
            log.warning("%s goes on", self._batch.id)
            self.stuck, self._batch.seer.paused = "", None
