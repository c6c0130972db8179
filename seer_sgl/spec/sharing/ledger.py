"""How many tokens of which request are known: counts by (group, request), for kernels to use.

An *entry* is a small number that stands for one request of one group until the group is dropped. Groups
are small numbers, too. A hash table finds entries: open addressing, at most half full, and what is
removed closes its gap, so that it never needs to be cleaned up.
"""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.compiled import inlined, kernel
from seer_sgl.spec.sharing.blocks import NONE, IntArray

FREE, FRESH, USED = 0, 1, 2
"""Where `Ledger.state` has: first freed entry, entries ever used, entries in use."""


class Ledger(NamedTuple):
    """The arrays behind all counts."""

    places: IntArray
    """Hash table: entries, or NONE."""
    groups: IntArray
    requests: IntArray
    known: IntArray
    """Tokens, by entry."""
    after: IntArray
    """Next entry of the same group; of a freed entry, the next freed one."""
    firsts: IntArray
    """First entry, by group."""
    state: IntArray

    @property
    def used(self) -> int:
        return int(self.state[USED])


def new_ledger(entries: int, groups: int) -> Ledger:
    """Nothing known; room for so many."""
    places = 1 << max(4, (2 * entries - 1).bit_length())
    return Ledger(
        places=np.full(places, NONE, np.int32),
        groups=np.empty(entries, np.int32),
        requests=np.empty(entries, np.int32),
        known=np.empty(entries, np.int32),
        after=np.empty(entries, np.int32),
        firsts=np.full(groups, NONE, np.int32),
        state=np.array([NONE, 0, 0], np.int32),
    )


def with_room(ledger: Ledger, more_entries: int, groups: int) -> Ledger:
    """The same with room for so many new entries, and for so many groups in all."""
    needed, room = ledger.used + more_entries, len(ledger.known)
    if needed <= room and groups <= len(ledger.firsts):
        return ledger
    grown = new_ledger(max(needed, 2 * room) if needed > room else room, max(groups, len(ledger.firsts)))
    grown.firsts[: len(ledger.firsts)] = ledger.firsts
    for old, new in zip(ledger[1:5], grown[1:5], strict=True):
        new[:room] = old
    grown.state[:] = ledger.state
    _place_all(grown)
    return grown


@inlined
def _home(ledger: Ledger, group: int, request: int) -> int:
    """Where the hash table begins to look."""
    mixed = (np.uint64(group) << np.uint64(32)) | np.uint64(request)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(29)
    return int(np.int64(mixed & np.uint64(len(ledger.places) - 1)))


@inlined
def find(ledger: Ledger, group: int, request: int) -> int:
    """The request's entry, or NONE."""
    place = _home(ledger, group, request)
    entry = ledger.places[place]
    while entry != NONE and (ledger.groups[entry] != group or ledger.requests[entry] != request):
        place = (place + 1) & (len(ledger.places) - 1)
        entry = ledger.places[place]
    return int(entry)


@kernel
def list_group(ledger: Ledger, group: int, requests: IntArray, entries: IntArray) -> int:
    """A group's requests and their entries, as many as the arrays hold; how many.

    To look for siblings in this is cheaper than in the hash table, which is all over the memory.
    """
    count = 0
    entry = ledger.firsts[group]
    while entry != NONE and count < len(requests):
        requests[count] = ledger.requests[entry]
        entries[count] = entry
        count += 1
        entry = ledger.after[entry]
    return count


@inlined
def _place(ledger: Ledger, entry: int) -> None:
    place = _home(ledger, ledger.groups[entry], ledger.requests[entry])
    while ledger.places[place] != NONE:
        place = (place + 1) & (len(ledger.places) - 1)
    ledger.places[place] = entry


@kernel
def _place_all(ledger: Ledger) -> None:
    for group in range(len(ledger.firsts)):
        entry = ledger.firsts[group]
        while entry != NONE:
            _place(ledger, entry)
            entry = ledger.after[entry]


@kernel
def find_or_add(ledger: Ledger, group: int, request: int) -> int:
    """The request's entry. `with_room` has to have made room for it."""
    entry = find(ledger, group, request)
    if entry != NONE:
        return entry
    state = ledger.state
    entry = state[FREE]
    if entry != NONE:
        state[FREE] = ledger.after[entry]
    else:
        entry = state[FRESH]
        state[FRESH] += 1
    state[USED] += 1
    ledger.groups[entry] = group
    ledger.requests[entry] = request
    ledger.known[entry] = 0
    ledger.after[entry] = ledger.firsts[group]
    ledger.firsts[group] = entry
    _place(ledger, entry)
    return int(entry)


@kernel
def _unplace(ledger: Ledger, entry: int) -> None:
    mask = len(ledger.places) - 1
    hole = _home(ledger, ledger.groups[entry], ledger.requests[entry])
    while ledger.places[hole] != entry:
        hole = (hole + 1) & mask
    place = hole
    while True:
        place = (place + 1) & mask
        other = ledger.places[place]
        if other == NONE:
            break
        home = _home(ledger, ledger.groups[other], ledger.requests[other])
        if ((place - home) & mask) >= ((place - hole) & mask):
            ledger.places[hole] = other
            hole = place
    ledger.places[hole] = NONE


@kernel
def drop_group(ledger: Ledger, group: int) -> int:
    """Forget all requests of a group; how many there were."""
    state = ledger.state
    dropped = 0
    entry = ledger.firsts[group]
    while entry != NONE:
        after = ledger.after[entry]
        _unplace(ledger, entry)
        ledger.after[entry] = state[FREE]
        state[FREE] = entry
        entry = after
        dropped += 1
    ledger.firsts[group] = NONE
    state[USED] -= dropped
    return dropped
