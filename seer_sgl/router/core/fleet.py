"""The engines that are here, found by load and by room in O(log E), whatever their number E.

Every change to an engine's chunks goes through `Fleet`, so that its indexes cannot drift. An index is a
heap that is never searched: an engine that changes gets a new entry, and its old one is void, to be
dropped when it comes up or when void ones outnumber the others.

An engine may be held for one round of decisions: then it is found by nobody, and still here.
"""

import sys
from bisect import bisect_left, insort
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from seer_sgl.router.core.state import Chunk, Engine
from seer_sgl.types import EngineId, EngineSpec

LOOKS = 8
"""Least loaded engines asked for room before the one with most room is taken."""

MOST_VOID = 4
"""Entries per engine in an index before void ones are dropped."""

Entry = tuple[int, int, int, int, Engine]
"""Key in two parts, the engine's number, so that equals go by arrival, and its version then."""


class Index:
    """Open engines by a key, least first."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def first(self) -> Engine | None:
        """The engine with the least key."""
        entries = self.entries
        while entries:
            _, _, _, version, engine = entries[0]
            if version == engine.version:
                return engine
            heappop(entries)
        return None

    def first_where(self, suits: Callable[[Engine], bool], looks: int) -> Engine | None:
        """The first of as many engines as `looks` says that suits."""
        seen: list[Entry] = []
        engine = self.first()
        while engine is not None and not suits(engine):
            seen.append(heappop(self.entries))
            engine = self.first() if len(seen) < looks else None
        for entry in seen:
            heappush(self.entries, entry)
        return engine

    def shorten(self, engines: int) -> None:
        """Drop void entries where there are many; O(1) per change, as it takes as many to get there."""
        if len(self.entries) > MOST_VOID * (engines + 16):
            self.entries = [entry for entry in self.entries if entry[3] == entry[4].version]
            heapify(self.entries)


class Fleet:
    """The engines that are here."""

    def __init__(self, draft_tokens: int = 0, reserves: bool = True) -> None:
        """See `CoreSettings.draft_tokens` and `Policy.reserves`: without, every engine fits."""
        self.engines: dict[EngineId, Engine] = {}
        self.held: Engine | None = None
        self.by_load = Index()
        """By `Engine.load`."""
        self.by_room = Index()
        """By room, most first, then chunks. Stays empty where nothing is reserved."""
        self.counts: list[int] = [0]
        """How many engines have as many chunks as the place says: gives the spread in O(1)."""
        self._low = self._high = 0
        self._slots: list[int] = []
        self._capacities: list[int] = []
        self._draft_tokens = draft_tokens
        self._reserves = reserves
        self._joined = 0

    def join(self, spec: EngineSpec) -> None:
        """Add an engine whose id is free."""
        self._joined += 1
        engine = Engine(spec, self._draft_tokens, self._joined)
        self.engines[engine.engine_id] = engine
        insort(self._slots, spec.max_running_requests)
        insort(self._capacities, engine.capacity_tokens)
        self._load_changed(None, 0)
        engine.status = "open"
        self._changed(engine)

    def leave(self, engine: Engine) -> None:
        """Take out an engine whose chunks have been released."""
        del self.engines[engine.engine_id]
        del self._slots[bisect_left(self._slots, engine.spec.max_running_requests)]
        del self._capacities[bisect_left(self._capacities, engine.capacity_tokens)]
        self._load_changed(0, None)
        engine.status = "gone"
        self._changed(engine)

    def take(self, chunk: Chunk) -> None:
        """Put a chunk on its engine."""
        engine = chunk.engine
        engine.chunks[chunk.chunk_id] = chunk
        engine.reserved_tokens += chunk.reserved_tokens
        load = len(engine.chunks)
        self._load_changed(load - 1, load)
        self._changed(engine)

    def release(self, chunk: Chunk) -> None:
        """Take a chunk off its engine."""
        engine = chunk.engine
        del engine.chunks[chunk.chunk_id]
        engine.reserved_tokens -= chunk.reserved_tokens
        load = len(engine.chunks)
        self._load_changed(load + 1, load)
        self._changed(engine)

    # ---- what is asked of it ----

    @property
    def spread_requests(self) -> int:
        """Chunks on the most loaded engine more than on the least loaded one."""
        return self._high - self._low

    @property
    def least_slots(self) -> int:
        """Request slots of the engine that has fewest; there must be an engine."""
        return self._slots[0]

    def room_tokens(self) -> int:
        """The longest request that some open engine could take now."""
        if not self._reserves:
            return sys.maxsize if self.engines else 0
        roomiest = self.by_room.first()
        return roomiest.room_tokens if roomiest else 0

    def could_hold(self, tokens: int) -> bool:
        """Whether some engine could take it when empty."""
        return not self._reserves or bool(self._capacities and tokens <= self._capacities[-1])

    def fits(self, engine: Engine, tokens: int) -> bool:
        """Whether the engine is here, not held, and could take it now."""
        return engine.status == "open" and (tokens <= engine.room_tokens or not self._reserves)

    def least_loaded(self, tokens: int) -> Engine | None:
        """An open engine that fits and runs few requests; None only where none fits.

        It is the least loaded one if that is among the first few; else the one with most room, which
        fits if any does.
        """
        if not self._reserves:
            return self.by_load.first()
        found = self.by_load.first_where(lambda engine: engine.fits(tokens), LOOKS)
        if found is not None:
            return found
        roomiest = self.by_room.first()
        return roomiest if roomiest and roomiest.fits(tokens) else None

    # ---- holding ----

    def hold_for(self, tokens: int) -> None:
        """Hold the engine that could take it soonest: with most room of those that could when empty.

        Costs a look at each engine that has more room, and is too small for it.
        """
        everyone = len(self.engines)
        engine = self.by_room.first_where(lambda engine: engine.could_hold(tokens), everyone)
        if engine is not None:
            self.held, engine.status = engine, "held"
            self._changed(engine)

    def let_go(self) -> None:
        """End the round: no engine is held."""
        held, self.held = self.held, None
        if held is not None:
            held.status = "open"
            self._changed(held)

    # ---- indexes ----

    def _changed(self, engine: Engine) -> None:
        """Void what the indexes say of the engine, and say it anew where it is open."""
        # Written out, as it runs twice in every decision: calls and properties would double its cost.
        engine.version = version = engine.version + 1
        load, number = len(engine.chunks), engine.number
        if engine.status == "open":
            heappush(self.by_load.entries, (load, engine.reserved_tokens, number, version, engine))
            if self._reserves:
                engine.room_tokens = room = engine.room_now()
                heappush(self.by_room.entries, (-room, load, number, version, engine))
        self.by_load.shorten(len(self.engines))
        self.by_room.shorten(len(self.engines))

    def _load_changed(self, before: int | None, now: int | None) -> None:
        """Count an engine under another number of chunks; None is for not being here."""
        counts = self.counts
        if now is not None:
            if now == len(counts):
                counts.append(0)
            counts[now] += 1
            self._low, self._high = min(self._low, now), max(self._high, now)
        if before is not None:
            counts[before] -= 1
        if self.engines:
            while not counts[self._low]:
                self._low += 1
            while not counts[self._high]:
                self._high -= 1
