"""The scheduling state machine: `handle(event, now_s)` returns the actions that follow.

Invariants, checked by `check()`:
- a live request is in exactly one place: the queue, or one chunk on one engine;
- an engine's reserved tokens are the sum of its chunks' and never exceed its KV capacity;
- every submitted request is delivered exactly once, then forgotten.

Late and duplicate messages are normal on a network: an event about a chunk, request or engine that is
no longer known changes nothing. What can only be a bug raises `IllegalEventError` and changes nothing.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, Outcome
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.check import check_state
from seer_sgl.router.core.events import (
    Cancelled,
    ChunkFailed,
    ChunkFinished,
    EngineJoined,
    EngineLeft,
    Event,
    Submitted,
)
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.state import Chunk, Engine, Request
from seer_sgl.types import ChunkId, EngineId


class CoreSettings(msgspec.Struct, frozen=True):
    """What the core may be told; every length in tokens."""

    chunk_tokens: int = 8192
    """Longest chunk (a summary of the paper's first version names 8K)."""
    draft_tokens: int = 0
    """KV that speculative decoding takes on top of a chunk's own."""
    max_failures: int = 5
    """Chunks of one request that may fail in a row before it is given up."""
    look_ahead: int = 8
    """Waiting requests tried behind one that fits no engine."""
    placement: PlacementSettings = PlacementSettings()


class Statistics(msgspec.Struct, frozen=True):
    """Counts at one moment."""

    waiting: int
    in_flight: int
    engines: int
    chunks: int
    """Dispatched since the start."""
    moved_chunks: int
    """Of these, those that went on from another engine."""
    delivered: int


class RouterCore:
    """Decides which request runs next, for how long, and where."""

    def __init__(self, policy: Policy, settings: CoreSettings | None = None) -> None:
        self.policy = policy
        self.settings = settings or CoreSettings()
        self.engines: dict[EngineId, Engine] = {}
        self.buffer = RequestBuffer(policy)
        self.chunks: dict[ChunkId, Chunk] = {}
        self._chunk_ids = count(1)
        self._dispatched = self._moved = self._delivered = 0
        self._handlers: dict[type, Callable[[Any, float], list[Action]]] = {
            Submitted: self._submitted,
            ChunkFinished: self._chunk_finished,
            ChunkFailed: self._chunk_failed,
            Cancelled: self._cancelled,
            EngineJoined: self._engine_joined,
            EngineLeft: self._engine_left,
        }

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one event into account. `now_s` is any clock that never goes back."""
        return self.handle_all((event,), now_s)

    def handle_all(self, events: tuple[Event, ...] | list[Event], now_s: float) -> list[Action]:
        """Take events that came together into account, then decide once.

        Together matters: of requests that arrive at once, all probes go before any other.
        """
        actions: list[Action] = []
        for event in events:
            actions += self._handlers[type(event)](event, now_s)
        return actions + self._schedule(now_s)

    def statistics(self) -> Statistics:
        return Statistics(
            waiting=len(self.buffer.queue),
            in_flight=len(self.chunks),
            engines=len(self.engines),
            chunks=self._dispatched,
            moved_chunks=self._moved,
            delivered=self._delivered,
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. O(n), for tests and idle moments."""
        check_state(self)

    # ---- events ----

    def _submitted(self, event: Submitted, now_s: float) -> list[Action]:
        self.buffer.add(event, now_s)
        return []

    def _chunk_finished(self, event: ChunkFinished, now_s: float) -> list[Action]:
        chunk = self.chunks.get(event.chunk_id)
        if chunk is None:
            return []
        if not 0 <= event.new_tokens <= chunk.max_new_tokens:
            raise IllegalEventError(
                f"chunk {event.chunk_id} of {chunk.request.request_id!r} brought {event.new_tokens} "
                f"tokens; it was given {chunk.max_new_tokens}"
            )
        if not event.ended and not event.new_tokens:
            return self._chunk_failed(ChunkFailed(event.chunk_id, "made no progress"), now_s)
        request = self._release(chunk)
        complete = self.buffer.record(request, chunk.engine, event.new_tokens, event.ended)
        if request.cancelled:
            return self._deliver(request, "cancelled")
        if complete:
            return self._deliver(request, "finished")
        self.buffer.wait(request, now_s)
        return []

    def _chunk_failed(self, event: ChunkFailed, now_s: float) -> list[Action]:
        chunk = self.chunks.get(event.chunk_id)
        if chunk is None:
            return []
        request = self._release(chunk)
        request.failures += 1
        if request.cancelled:
            return self._deliver(request, "cancelled")
        if not event.retryable or request.failures >= self.settings.max_failures:
            return self._deliver(request, "failed", event.reason)
        self.buffer.wait(request, now_s)
        return []

    def _cancelled(self, event: Cancelled, _now_s: float) -> list[Action]:
        request = self.buffer.requests.get(event.request_id)
        if request is None or request.cancelled:
            return []
        request.cancelled = True
        if request.chunk is not None:
            # Its KV stays reserved until the engine says that the chunk has ended.
            return [AbortChunk(request.chunk.chunk_id, request.chunk.engine.engine_id)]
        self.buffer.queue.discard(request)
        return self._deliver(request, "cancelled")

    def _engine_joined(self, event: EngineJoined, now_s: float) -> list[Action]:
        engine_id = event.engine.engine_id
        actions = self._engine_left(EngineLeft(engine_id, "started afresh"), now_s)
        self.engines[engine_id] = Engine(event.engine)
        return actions

    def _engine_left(self, event: EngineLeft, now_s: float) -> list[Action]:
        engine = self.engines.pop(event.engine_id, None)
        if engine is None:
            return []
        lost = [ChunkFailed(chunk_id, event.reason) for chunk_id in engine.chunks]
        return [action for failure in lost for action in self._chunk_failed(failure, now_s)]

    # ---- decisions ----

    def _schedule(self, now_s: float) -> list[Action]:
        """Dispatch while something waits and fits.

        The first request that fits nowhere holds the engine that could take it soonest: nothing else
        goes there, so it cannot be passed for ever. Smaller ones behind it may use the other engines.
        """
        actions: list[Action] = []
        aside: list[Request] = []
        held: Engine | None = None
        engines = list(self.engines.values())
        while len(aside) < self.settings.look_ahead and any(
            engine.has_room or not self.policy.reserves for engine in engines
        ):
            request = self.buffer.queue.pop()
            if request is None:
                break
            budget = self._chunk_budget(request)
            need = request.held_tokens + budget + self.settings.draft_tokens
            engine = self.policy.place(request, need, engines, self.settings.placement, now_s)
            if engine is not None:
                actions.append(self._dispatch(request, engine, budget, need))
                continue
            aside.append(request)
            if held is None:
                held = _soonest(engines, need)
                engines = [engine for engine in engines if engine is not held]
        for request in aside:
            self.buffer.queue.push(request)
        return actions

    def _chunk_budget(self, request: Request) -> int:
        if not self.policy.divided or not request.divisible:
            return request.remaining_tokens
        return min(self.settings.chunk_tokens, request.remaining_tokens)

    def _dispatch(self, request: Request, engine: Engine, budget: int, need: int) -> Dispatch:
        reserved = engine.pages_for(need) if self.policy.reserves else 0
        chunk = Chunk(ChunkId(next(self._chunk_ids)), request, engine, budget, reserved)
        engine.chunks[chunk.chunk_id] = self.chunks[chunk.chunk_id] = chunk
        engine.reserved_tokens += reserved
        request.chunk, request.place = chunk, "in_flight"
        if self.policy.pinned:
            request.group.home = engine
        came_from = request.last_engine
        moved = came_from is not None and came_from is not engine
        self._dispatched += 1
        self._moved += moved
        return Dispatch(
            chunk_id=chunk.chunk_id,
            request_id=request.request_id,
            engine_id=engine.engine_id,
            max_new_tokens=budget,
            came_from=came_from.engine_id if came_from and moved else None,
        )

    def _release(self, chunk: Chunk) -> Request:
        request = chunk.request
        del self.chunks[chunk.chunk_id]
        del chunk.engine.chunks[chunk.chunk_id]
        chunk.engine.reserved_tokens -= chunk.reserved_tokens
        request.chunk, request.place = None, "nowhere"
        return request

    def _deliver(self, request: Request, outcome: Outcome, reason: str = "") -> list[Action]:
        self.buffer.forget(request)
        self._delivered += 1
        return [Deliver(request.request_id, outcome, reason)]


def _soonest(engines: list[Engine], need_tokens: int) -> Engine | None:
    """The engine with most free KV among those that could hold `need_tokens` when empty."""
    able = [e for e in engines if e.pages_for(need_tokens) <= e.spec.kv_capacity_tokens]
    return max(able, key=lambda engine: engine.free_tokens, default=None)
