"""The scheduling state machine: `handle(event, now_s)` returns the actions that follow.

Invariants: see `check.py`. Late and duplicate messages are normal on a network: an event about a chunk,
request or engine that is no longer known changes nothing. What can only be a bug raises
`IllegalEventError` and changes nothing.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, Outcome
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.check import check_state
from seer_sgl.router.core.context import LengthContext
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
from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.placement import tokens_to_pull
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.settings import CoreSettings, Statistics
from seer_sgl.router.core.settling import Settling
from seer_sgl.router.core.state import Chunk, Engine, Request
from seer_sgl.types import ChunkId


class RouterCore:
    """Decides which request runs next, for how long, and where."""

    def __init__(
        self,
        policy: Policy,
        settings: CoreSettings | None = None,
        context: LengthContext | None = None,
    ) -> None:
        self.policy = policy
        self.settings = settings or CoreSettings()
        self.fleet = Fleet(self.settings.draft_tokens, policy.reserves)
        self.engines = self.fleet.engines
        self.buffer = RequestBuffer(policy, self.settings, context)
        self.settling = Settling(self.buffer)
        self.chunks: dict[ChunkId, Chunk] = {}
        self._chunk_ids = count(1)
        self._dispatched = self._moved = self._delivered = 0
        self._since_oldest = 0  # dispatches since one of the request that had waited longest
        self._handlers: dict[type, Callable[[Any, float], list[Action]]] = {
            Submitted: self._submitted,
            ChunkFinished: self._chunk_finished,
            ChunkFailed: self._chunk_failed,
            Cancelled: self._cancelled,
            EngineJoined: self._engine_joined,
            EngineLeft: self._engine_left,
            Ticked: self._ticked,
        }

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
        check_state(self.fleet, self.chunks, self.buffer, self.policy.reserves)

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
        self.settling.discard(request)
        self.buffer.take(request)
        return self._deliver(request, "cancelled")

    def _engine_joined(self, event: EngineJoined, now_s: float) -> list[Action]:
        engine_id = event.engine.engine_id
        actions = self._engine_left(EngineLeft(engine_id, "started afresh"), now_s)
        self.fleet.join(event.engine)
        self.settling.end_all()
        return actions

    def _engine_left(self, event: EngineLeft, now_s: float) -> list[Action]:
        engine = self.engines.get(event.engine_id)
        if engine is None:
            return []
        lost = [ChunkFailed(chunk_id, event.reason) for chunk_id in engine.chunks]
        actions = [action for failure in lost for action in self._chunk_failed(failure, now_s)]
        self.fleet.leave(engine)
        self.settling.end_all()
        return actions

    def _ticked(self, _event: Ticked, _now_s: float) -> list[Action]:
        self.settling.woken()
        return []

    # ---- decisions ----

    def _schedule(self, now_s: float) -> list[Action]:
        """Dispatch while something waits and fits.

        The first request that fits nowhere holds the engine that could take it soonest: nothing else
        goes there, so it cannot be passed for ever. Smaller ones behind it may use the other engines.
        A request that would pull KV before it has settled waits for a moment, and holds nothing.
        """
        actions: list[Action] = []
        blocked: list[Request] = []
        queue, guard = self.buffer.queue, self.policy.guarded
        self.settling.end_due(now_s)
        room = self.fleet.room_tokens()
        while room >= queue.least_need_tokens and len(blocked) < self.settings.look_ahead:
            oldest = guard and 0 < self.settings.starvation_dispatches <= self._since_oldest + 1
            request = (queue.pop_oldest() if oldest else None) or queue.pop()
            if request is None:
                break
            need, engine = request.need_tokens, None
            if need <= room:
                engine = self.policy.place(request, need, self.fleet, self.settings.placement)
            if engine is None and self.fleet.could_hold(need):
                if not blocked:
                    self.fleet.hold_for(need)
                    room = self.fleet.room_tokens()
                blocked.append(request)
            elif engine is None:
                self.buffer.park(request)
            else:
                pulled = tokens_to_pull(request, engine, self.settings.placement)
                settle_s = self.settings.settle_s if pulled else 0.0
                if not self.settling.set_aside(request, now_s, settle_s):
                    actions.append(self._dispatch(request, engine, pulled))
                    room = self.fleet.room_tokens()
                    self._since_oldest = 0 if oldest else self._since_oldest + 1
                    continue
            guard = guard and not oldest  # one try a round, or it would bring the next oldest
        self.fleet.let_go()
        for request in blocked:
            queue.push(request)
        return actions + self.settling.wake(now_s)

    def _dispatch(self, request: Request, engine: Engine, pulled: int) -> Dispatch:
        budget = request.budget_tokens
        reserved = engine.reservation_for(request.need_tokens) if self.policy.reserves else 0
        chunk = Chunk(ChunkId(next(self._chunk_ids)), request, engine, budget, reserved)
        self.chunks[chunk.chunk_id] = chunk
        self.fleet.take(chunk)
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
            pulled_tokens=pulled,
        )

    def _release(self, chunk: Chunk) -> Request:
        request = chunk.request
        del self.chunks[chunk.chunk_id]
        self.fleet.release(chunk)
        self.settling.end_at(chunk.engine)
        request.chunk, request.place = None, "nowhere"
        return request

    def _deliver(self, request: Request, outcome: Outcome, reason: str = "") -> list[Action]:
        self.buffer.forget(request)
        self._delivered += 1
        return [Deliver(request.request_id, outcome, reason)]
