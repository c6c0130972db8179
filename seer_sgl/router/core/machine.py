"""The scheduling state machine: `handle(event, now_s)` returns the actions that follow.

Invariants, checked by `check()`:
- a live request is in exactly one place: the queue, parked, or one chunk on one engine;
- an engine's reserved tokens are the sum of its chunks' and never exceed its KV capacity;
- every submitted request is delivered exactly once, then forgotten.

Late and duplicate messages are normal on a network: an event about a chunk, request or engine that is
no longer known changes nothing. What can only be a bug raises `IllegalEventError` and changes nothing.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, Outcome, Wake
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
    Ticked,
)
from seer_sgl.router.core.placement import most_room, soonest_able
from seer_sgl.router.core.policy import Policy, chunk_budget
from seer_sgl.router.core.settings import CoreSettings, Statistics
from seer_sgl.router.core.state import Chunk, Engine, Request
from seer_sgl.types import ChunkId, EngineId


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
            Ticked: self._ticked,
        }
        self._wake_s = 0.0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one event into account. `now_s` is any clock that never goes back."""
        return self.handle_all((event,), now_s)

    def handle_all(self, events: tuple[Event, ...] | list[Event], now_s: float) -> list[Action]:
        """Take events that came together into account, then decide once: of requests that arrive
        at once, all probes go before any other.

        Raises:
            IllegalEventError: with the actions that follow from the other events, to be performed.
        """
        actions: list[Action] = []
        illegal: list[str] = []
        for event in events:
            try:
                actions += self._handlers[type(event)](event, now_s)
            except IllegalEventError as error:
                illegal.append(str(error))
        actions += self._schedule(now_s)
        if illegal:
            raise IllegalEventError("; ".join(illegal), tuple(actions))
        return actions

    def statistics(self) -> Statistics:
        return Statistics(
            waiting=len(self.buffer.queue) + len(self.buffer.parked),
            in_flight=len(self.chunks),
            engines=len(self.engines),
            chunks=self._dispatched,
            moved_chunks=self._moved,
            delivered=self._delivered,
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. O(n), for tests and idle moments."""
        check_state(self.engines, self.chunks, self.buffer, self.policy.reserves)

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
        self.buffer.take(request)
        return self._deliver(request, "cancelled")

    def _engine_joined(self, event: EngineJoined, now_s: float) -> list[Action]:
        engine_id = event.engine.engine_id
        actions = self._engine_left(EngineLeft(engine_id, "started afresh"), now_s)
        self.engines[engine_id] = Engine(event.engine, self.settings.draft_tokens)
        self.buffer.unpark()
        return actions

    def _engine_left(self, event: EngineLeft, now_s: float) -> list[Action]:
        engine = self.engines.pop(event.engine_id, None)
        if engine is None:
            return []
        lost = [ChunkFailed(chunk_id, event.reason) for chunk_id in engine.chunks]
        return [action for failure in lost for action in self._chunk_failed(failure, now_s)]

    def _ticked(self, _event: Ticked, _now_s: float) -> list[Action]:
        self._wake_s = 0.0
        return []

    # ---- decisions ----

    def _schedule(self, now_s: float) -> list[Action]:
        """Dispatch while something waits and fits.

        The first request that fits nowhere holds the engine that could take it soonest: nothing else
        goes there, so it cannot be passed for ever. Smaller ones behind it may use the other engines.
        A request that would move before its KV has settled waits for a moment, and holds nothing.
        """
        actions: list[Action] = []
        blocked: list[Request] = []
        settling: list[Request] = []
        engines = list(self.engines.values())
        room = most_room(engines, self.policy.reserves)
        while room and len(blocked) < self.settings.look_ahead:
            request = self.buffer.queue.pop()
            if request is None:
                break
            budget = chunk_budget(self.policy, request, self.settings.chunk_tokens)
            need = request.held_tokens + budget
            engine = None
            if need <= room:  # spares a look at every engine where that cannot help
                engine = self.policy.place(request, need, engines, self.settings.placement)
            if engine is not None and self._must_settle(request, engine, now_s):
                settling.append(request)
            elif engine is not None:
                actions.append(self._dispatch(request, engine, budget, need))
                room = most_room(engines, self.policy.reserves)
            elif self.policy.reserves and not any(e.could_hold(need) for e in self.engines.values()):
                self.buffer.park(request)
            else:
                blocked.append(request)
                if len(blocked) == 1:
                    held = soonest_able(engines, need)
                    engines = [engine for engine in engines if engine is not held]
                    room = most_room(engines, self.policy.reserves)
        for request in (*blocked, *settling):
            self.buffer.queue.push(request)
        return actions + self._wake_for(settling, now_s)

    def _must_settle(self, request: Request, engine: Engine, now_s: float) -> bool:
        last = request.last_engine
        if last is None or last is engine or last.engine_id not in self.engines:
            return False
        return now_s < request.ready_since_s + self.settings.settle_s

    def _wake_for(self, settling: list[Request], now_s: float) -> list[Action]:
        """One wake-up at a time is enough: it sets the next one."""
        if not settling or now_s < self._wake_s:
            return []
        self._wake_s = min(r.ready_since_s for r in settling) + self.settings.settle_s
        return [Wake(self._wake_s)]

    def _dispatch(self, request: Request, engine: Engine, budget: int, need: int) -> Dispatch:
        reserved = engine.reservation_for(need) if self.policy.reserves else 0
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
