"""The groups that an engine reads from its draft servers, as arrays by group."""

import hashlib
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from seer_sgl.spec.sharing.blocks import IntArray, LongArray
from seer_sgl.spec.sharing.messages import MAX_NAME_BYTES

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

ABSENT, WANTED, HERE, LEAVING = 0, 1, 2, 3
"""What is true of a group: no such one, to be registered, registered, left but with tokens to send."""

FIRST_SIZE = 16


class GroupTable:
    """Groups by number; numbers are used again.

    Args:
        servers: over how many the groups are spread, by name.
    """

    def __init__(self, servers: int) -> None:
        self.numbers: dict[str, int] = {}
        self.names = [""] * FIRST_SIZE
        self.states: IntArray = np.zeros(FIRST_SIZE, np.int32)
        self.servers: IntArray = np.zeros(FIRST_SIZE, np.int32)
        self.remotes: IntArray = np.zeros((FIRST_SIZE, 4), np.int32)
        """What the server said: slot, generation, writer; and words read so far."""
        self.serials: LongArray = np.zeros(FIRST_SIZE, np.int64)
        """Tells apart groups that had the same number one after the other."""
        self.due_s: FloatArray = np.zeros(FIRST_SIZE)
        """When a group that is wanted may register, or one that is left goes."""
        self.compared_until_s: FloatArray = np.zeros(FIRST_SIZE)
        """Until when fetches tell what has been seen."""
        self._servers = servers
        self._serial = 0
        self._free = list(reversed(range(FIRST_SIZE)))

    def add(self, name: str) -> int:
        """A new group, to be registered."""
        if not self._free:
            self._grow()
        group = self.numbers[name] = self._free.pop()
        self._serial += 1
        self.names[group], self.serials[group] = name, self._serial
        self.states[group] = WANTED
        self.servers[group] = crc32(wire_name(name).encode()) % self._servers
        self.due_s[group] = self.compared_until_s[group] = 0.0
        return group

    def drop(self, group: int) -> None:
        """Forget it."""
        del self.numbers[self.names[group]]
        self.names[group] = ""
        self.states[group] = ABSENT
        self._free.append(group)

    def check(self) -> None:
        """Assert what must hold between calls."""
        present = set(np.flatnonzero(self.states != ABSENT).tolist())
        assert present == set(self.numbers.values())
        assert all(self.names[group] == name for name, group in self.numbers.items())
        assert present.isdisjoint(self._free)
        assert len(present) + len(self._free) == len(self.names)

    def _grow(self) -> None:
        size = len(self.names)
        self.names += [""] * size
        for field in ("states", "servers", "remotes", "serials", "due_s", "compared_until_s"):
            old = getattr(self, field)
            setattr(self, field, np.concatenate((old, np.zeros_like(old))))
        self._free += reversed(range(size, 2 * size))


def wire_name(group_id: str) -> str:
    """What servers call a group: its name, or the name's digest where it is long or no text."""
    name = group_id.encode("utf-8", "surrogatepass")
    try:
        if len(name) <= MAX_NAME_BYTES:
            return name.decode()
    except UnicodeDecodeError:
        pass
    return hashlib.blake2b(name, digest_size=16).hexdigest()
