"""How many lines may be on their way at once, shared among batches. Pure."""

from dataclasses import dataclass

LINES = 8192
"""Enough that the scheduler sees many groups at once."""
INPUT_BYTES = 32 << 20
"""Of the lines as they stand in the file; decoded they take several times as much."""


@dataclass(slots=True)
class Held:
    """What one batch has on its way."""

    lines: int = 0
    bytes: int = 0


class Window:
    """Bounds all batches together, and gives each the same share.

    A batch that comes gets its share as the others' lines end: those who have more than their share get
    nothing until then. One line of a batch always fits, so none waits for ever.
    """

    def __init__(self, lines: int = LINES, input_bytes: int = INPUT_BYTES) -> None:
        self._lines = lines
        self._bytes = input_bytes
        self._held: dict[str, Held] = {}
        self._all = Held()

    def join(self, batch_id: str) -> None:
        """A batch has lines to run."""
        self._held[batch_id] = Held()

    def leave(self, batch_id: str) -> None:
        """It has no more; what it held is free."""
        held = self._held.pop(batch_id)
        self._all.lines -= held.lines
        self._all.bytes -= held.bytes

    def fits(self, batch_id: str, size: int) -> bool:
        """Whether the batch may send a line of so many bytes."""
        held, everything, batches = self._held[batch_id], self._all, len(self._held)
        if not held.lines:
            return True
        if everything.lines >= self._lines or everything.bytes + size > self._bytes:
            return False
        return held.lines < self._lines / batches and held.bytes + size <= self._bytes / batches

    def take(self, batch_id: str, size: int) -> None:
        """The batch sends a line."""
        self._change(batch_id, 1, size)

    def give(self, batch_id: str, size: int) -> None:
        """A line of the batch has ended."""
        self._change(batch_id, -1, -size)

    def _change(self, batch_id: str, lines: int, size: int) -> None:
        for held in (self._held[batch_id], self._all):
            held.lines += lines
            held.bytes += size
