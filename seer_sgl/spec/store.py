"""The draft server's state: what every engine generated, by group, for every other engine to read.

A group is an append-only log of records. Tokens of a request are contiguous: what overlaps is skipped,
what would leave a gap is refused with the count that is known. A group goes when nobody has used it for
its TTL, or when memory is needed and no other was left alone for longer. Knows no socket and no clock.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from seer_sgl.spec.sharing.blocks import (
    BLOCK_BYTES,
    BLOCK_WORDS,
    LIMIT,
    NONE,
    IntArray,
    check_chains,
    clear_chain,
    new_chains,
    with_more_chains,
)
from seer_sgl.spec.sharing.ledger import drop_group, new_ledger, with_room
from seer_sgl.spec.sharing.records import (
    ACCEPTED,
    DUPLICATES,
    FULL,
    GENERATION,
    MAX_WRITER,
    SLOT,
    TROUBLES,
    Groups,
    read_fetches,
    write_updates,
)

GROUP_BYTES = 512
"""What a group costs beside its name, log and requests: dictionary entry, arrays with room to grow."""
REQUEST_BYTES = 64
MIN_BUDGET_BYTES = 64 * BLOCK_BYTES
MAX_BUDGET_BYTES = BLOCK_BYTES * (2**31 // BLOCK_WORDS - 1)
"""Positions in a log are int32. More memory needs more servers."""
ANSWER_WORDS = 256 * 1024
"""Longest answer to a fetch. A reader that is far behind asks again, so that others get their turn."""
RECENT_S = 10.0
"""A group used within this is in use: to evict it means that the budget is too small."""
KINDS = {1: "unknown_group", 2: "gap", 3: "bad_token", 4: "bad_request", 5: "full"}
"""Names of what may be wrong with an update, by the numbers in `records`."""


class StoreStatistics(msgspec.Struct, frozen=True):
    """Counts since the start, but for the first four: what is held now."""

    groups: int
    requests: int
    held_bytes: int
    budget_bytes: int
    accepted_tokens: int
    duplicate_tokens: int
    sent_words: int
    expired_groups: int
    evicted_groups: int
    evicted_in_use: int
    troubles: dict[str, int]
    """Updates that were refused, by reason."""


class DraftStore:
    """All groups of one server.

    Args:
        budget_bytes: what logs, requests and groups may take together.

    Raises:
        ValueError: a budget that no server can keep.
    """

    def __init__(self, budget_bytes: int) -> None:
        if not MIN_BUDGET_BYTES <= budget_bytes <= MAX_BUDGET_BYTES:
            raise ValueError(
                f"a draft server's budget must lie in [{MIN_BUDGET_BYTES}, {MAX_BUDGET_BYTES}] bytes, "
                f"got {budget_bytes}; for more, use more servers"
            )
        self._budget_bytes = budget_bytes
        self._chains = new_chains(budget_bytes // BLOCK_BYTES, 16)
        self._ledger = new_ledger(256, 16)
        self._groups = Groups(np.zeros(16, np.int32), np.zeros(16, np.int32))
        self._used_s: NDArray[np.float64] = np.zeros(16)
        self._ttl_s: NDArray[np.float64] = np.zeros(16)
        self._writers = np.zeros(16, np.int32)
        self._names: list[str] = [""] * 16
        self._slots: dict[str, int] = {}
        self._free = list(reversed(range(16)))
        self._name_bytes = 0
        self._totals = np.zeros(3, np.int64)
        self._sent_words = self._expired = self._evicted = self._evicted_in_use = 0
        self._troubles = dict.fromkeys(KINDS.values(), 0)

    # ---- the paper's calls ----

    def register_group(
        self, name: str, ttl_s: float, vocab_size: int, now_s: float
    ) -> tuple[int, int, int]:
        """Make the group known, or find it; its slot, generation, and a number for a new writer.

        A group lives for the longest TTL that was asked for, from its last use on.
        """
        slot = self._slots.get(name)
        if slot is None:
            slot = self._new_group(name, vocab_size, now_s)
        self._used_s[slot] = now_s
        self._ttl_s[slot] = max(self._ttl_s[slot], ttl_s)
        # After two million readers numbers are used again: the worst is a record that one does not get.
        self._writers[slot] = self._writers[slot] % MAX_WRITER + 1
        return slot, int(self._groups.generations[slot]), int(self._writers[slot])

    def update_cst(self, updates: IntArray, tokens: IntArray, now_s: float) -> IntArray:
        """Append tokens; (row, what, known tokens) of each update that was refused."""
        self._touch(updates, now_s)
        self._ledger = with_room(self._ledger, len(updates), len(self._names))
        self._set_limit(reserved_bytes=len(updates) * REQUEST_BYTES)
        troubles = np.empty((len(updates), 3), np.int32)
        self._totals[TROUBLES] = 0
        row = 0
        while True:
            row = write_updates(
                self._chains,
                self._ledger,
                self._groups,
                updates,
                tokens,
                row,
                troubles,
                self._totals,
            )
            if row == len(updates):
                break
            if self._evict_for(int(updates[row, SLOT]), now_s):
                self._set_limit(reserved_bytes=len(updates) * REQUEST_BYTES)
            else:
                troubles[self._totals[TROUBLES]] = row, FULL, 0
                self._totals[TROUBLES] += 1
                row += 1
        while self.held_bytes > self._budget_bytes:
            self._evict_for(NONE, now_s)
        refused = troubles[: self._totals[TROUBLES]]
        for what in refused[:, 1].tolist():
            self._troubles[KINDS[what]] += 1
        return refused

    def fetch_cst(
        self, fetches: IntArray, known: IntArray, now_s: float, answer_words: int = ANSWER_WORDS
    ) -> tuple[IntArray, IntArray]:
        """What is new: (what, new cursor, words) of each fetch, and the words of all."""
        self._touch(fetches, now_s)
        out = np.empty(answer_words, np.int32)
        results = np.empty((len(fetches), 3), np.int32)
        used = read_fetches(self._chains, self._groups, fetches, known, out, results)
        self._sent_words += used
        return results, out[:used]

    # ---- memory ----

    @property
    def held_bytes(self) -> int:
        """What groups, requests and logs take."""
        return self._chains.used_blocks * BLOCK_BYTES + self._other_bytes()

    def expire(self, now_s: float) -> int:
        """Drop the groups that nobody has used for their TTL; how many."""
        slots = np.array(list(self._slots.values()), np.int64)
        late = slots[self._used_s[slots] + self._ttl_s[slots] <= now_s]
        for slot in late.tolist():
            self._drop(slot)
        self._expired += len(late)
        return len(late)

    def statistics(self) -> StoreStatistics:
        """What is held and what has happened."""
        return StoreStatistics(
            groups=len(self._slots),
            requests=self._ledger.used,
            held_bytes=self.held_bytes,
            budget_bytes=self._budget_bytes,
            accepted_tokens=int(self._totals[ACCEPTED]),
            duplicate_tokens=int(self._totals[DUPLICATES]),
            sent_words=self._sent_words,
            expired_groups=self._expired,
            evicted_groups=self._evicted,
            evicted_in_use=self._evicted_in_use,
            troubles=dict(self._troubles),
        )

    def check(self) -> None:
        """Assert what must hold between calls."""
        check_chains(self._chains)
        assert self.held_bytes <= self._budget_bytes
        alive = {slot for slot, gen in enumerate(self._groups.generations.tolist()) if gen > 0}
        assert alive == set(self._slots.values())
        assert alive.isdisjoint(self._free)
        assert len(alive) + len(self._free) == len(self._names)
        assert self._name_bytes == sum(len(name.encode()) for name in self._slots)
        for slot in range(len(self._names)):
            assert slot in alive or (self._chains.heads[slot] == NONE == self._ledger.firsts[slot])

    # ---- groups ----

    def _new_group(self, name: str, vocab_size: int, now_s: float) -> int:
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[name] = slot
        self._names[slot] = name
        self._name_bytes += len(name.encode())
        self._groups.generations[slot] = 1 - self._groups.generations[slot]
        self._groups.vocabularies[slot] = vocab_size
        self._used_s[slot], self._ttl_s[slot], self._writers[slot] = now_s, 0.0, 0
        while self.held_bytes > self._budget_bytes and self._evict_for(slot, now_s):
            pass
        return slot

    def _grow(self) -> None:
        size = len(self._names)
        self._chains = with_more_chains(self._chains, 2 * size)
        self._ledger = with_room(self._ledger, 0, 2 * size)
        self._groups = Groups(*(np.concatenate((old, np.zeros_like(old))) for old in self._groups))
        self._used_s, self._ttl_s = (
            np.concatenate((old, np.zeros_like(old))) for old in (self._used_s, self._ttl_s)
        )
        self._writers = np.concatenate((self._writers, np.zeros_like(self._writers)))
        self._names += [""] * size
        self._free += reversed(range(size, 2 * size))

    def _touch(self, rows: IntArray, now_s: float) -> None:
        """Note the use of the groups that are really there."""
        slots = rows[:, SLOT]
        slots = slots[(slots >= 0) & (slots < len(self._names)) & (rows[:, GENERATION] > 0)]
        self._used_s[slots] = now_s

    def _evict_for(self, slot: int, now_s: float) -> bool:
        """Drop the group used least recently, but not this one; False where there is no other."""
        candidates = np.where(self._groups.generations > 0, self._used_s, np.inf)
        if 0 <= slot < len(candidates):
            candidates[slot] = np.inf
        victim = int(candidates.argmin())
        if candidates[victim] == np.inf:
            return False
        self._evicted += 1
        self._evicted_in_use += bool(candidates[victim] > now_s - RECENT_S)
        self._drop(victim)
        return True

    def _drop(self, slot: int) -> None:
        name = self._names[slot]
        clear_chain(self._chains, slot)
        drop_group(self._ledger, slot)
        self._groups.generations[slot] *= -1
        del self._slots[name]
        self._name_bytes -= len(name.encode())
        self._names[slot] = ""
        self._free.append(slot)

    def _set_limit(self, reserved_bytes: int = 0) -> None:
        left_bytes = self._budget_bytes - self._other_bytes() - reserved_bytes
        self._chains.state[LIMIT] = max(0, left_bytes // BLOCK_BYTES)

    def _other_bytes(self) -> int:
        return len(self._slots) * GROUP_BYTES + self._name_bytes + self._ledger.used * REQUEST_BYTES
