"""Output and error files of a batch: appended at once, counted when written, synced. Acts."""

import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from seer_sgl.router.batch.lines import read_back
from seer_sgl.router.batch.objects import RequestCounts, Tokens, Usage, count_in


class Entry(NamedTuple):
    """A line on its way into a file."""

    line: bytes
    tokens: Tokens
    cost: int
    """What it holds of the window, in bytes of input; 0 where nothing."""


Write = Callable[[int, bytes], int]
_GROUP_BYTES = 1 << 20
"""Lines that are written with one call."""


class LineFile:
    """A file of lines that grows at its end; what cannot be written yet waits in memory.

    Args:
        path: made where it is missing.
        write: `os.write`, or what a test puts in its place.
    """

    def __init__(self, path: Path, write: Write = os.write) -> None:
        self.path = path
        self.pending: deque[Entry] = deque()
        self.size = 0
        """Bytes in the file."""
        self._write = write
        self._in_use = threading.Lock()
        self._begun = 0
        """Bytes of the first pending line that are in the file already."""
        self._unsynced = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def recover(self) -> list[tuple[int, Tokens]]:
        """What an earlier process has written: numbers of input lines, and their answers' tokens.

        From the first line on that is torn or no line of ours the file is cut.
        """
        with self._in_use:
            return self._recover()

    def _recover(self) -> list[tuple[int, Tokens]]:
        found: list[tuple[int, Tokens]] = []
        good = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            for line in file:
                try:
                    if not line.endswith(b"\n"):
                        break
                    found.append(read_back(line))
                except ValueError:
                    break
                good += len(line)
        os.ftruncate(self._descriptor, good)
        self.size = good
        return found

    def flush(self, on_whole: Callable[[Entry], None]) -> None:
        """Write what is pending; `on_whole` is told of each line that is whole in the file now.

        Raises:
            OSError: no more could be written; the rest stays pending.
        """
        while self.pending:
            group, size = [], 0
            for entry in self.pending:
                group.append(entry.line)
                size += len(entry.line)
                if size - self._begun >= _GROUP_BYTES:
                    break
            written = self._write(self._descriptor, b"".join(group)[self._begun :])
            self.size += written
            self._unsynced = True
            self._begun += written
            while self.pending and self._begun >= len(self.pending[0].line):
                entry = self.pending.popleft()
                self._begun -= len(entry.line)
                on_whole(entry)

    @property
    def unsynced(self) -> bool:
        """Whether `sync` has something to do."""
        return self._unsynced

    def sync(self) -> None:
        """Wait until what was written is on the disk. To be called off the event loop."""
        with self._in_use:
            self._unsynced = False
            try:
                os.fsync(self._descriptor)
            except BaseException:
                self._unsynced = True
                raise

    def close(self) -> None:
        """Waits for a thread that is in `recover` or `sync` still."""
        with self._in_use:
            os.close(self._descriptor)


class Results:
    """The two files of a batch, and the counts that always agree with them.

    Args:
        output: of answers with status 200.
        errors: of everything else.
        on_written: told what a line cost that is whole in its file now.
    """

    def __init__(self, output: LineFile, errors: LineFile, on_written: Callable[[int], None]) -> None:
        self.output = output
        self.errors = errors
        self._on_written = on_written
        self.counts = RequestCounts()
        self.usage = Usage()
        self.done: set[int] = set()
        """Numbers of lines that are in the files, or are pending."""

    def recover(self) -> None:
        """Count what an earlier process has left. To be called off the event loop."""
        completed, failed = self.output.recover(), self.errors.recover()
        self.counts.completed, self.counts.failed = len(completed), len(failed)
        for _, tokens in completed:
            count_in(self.usage, tokens)
        self.done = {number for number, _ in [*completed, *failed]}

    def add(self, number: int, entry: Entry, failed: bool) -> None:
        """Take a line in; `flush` writes it."""
        self.done.add(number)
        (self.errors if failed else self.output).pending.append(entry)

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            OSError: not everything could be written; nothing is lost.
        """
        self.output.flush(self._completed)
        self.errors.flush(self._failed)

    def _completed(self, entry: Entry) -> None:
        self.counts.completed += 1
        count_in(self.usage, entry.tokens)
        self._on_written(entry.cost)

    def _failed(self, entry: Entry) -> None:
        self.counts.failed += 1
        self._on_written(entry.cost)

    @property
    def pending(self) -> int:
        """Lines that are not yet whole in a file."""
        return len(self.output.pending) + len(self.errors.pending)

    def sync(self) -> None:
        """To be called off the event loop."""
        for file in (self.output, self.errors):
            if file.unsynced:
                file.sync()

    def close(self) -> None:
        self.output.close()
        self.errors.close()
