"""The scheduling state machine: `handle(event, now_s)` returns the actions that follow.

Invariants: see `check.py`. Late and duplicate messages are normal on a network: an event about a chunk,
request or engine that is no longer known changes nothing. What can only be a bug raises
`IllegalEventError` and changes nothing.
"""

from collections.abc import Callable
from typing import Any

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Outcome
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.check import check_state
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.events import (
    Cancelled,
    ChunkFailed,
    ChunkFinished,
    EngineJoined,
    EngineLeft,
    EpochChanged,
    Event,
    Paused,
    PoolFound,
    PoolState,
    Recalled,
    Resumed,
    Submitted,
    Ticked,
)
from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.moves import Moves
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.scheduler import Scheduler
from seer_sgl.router.core.settings import CoreSettings, Statistics
from seer_sgl.router.core.settling import Settling
from seer_sgl.router.core.state import Chunk, Request
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
        self.moves = Moves(self.settings)
        self.chunks: dict[ChunkId, Chunk] = {}
        self.scheduler = Scheduler(
            policy, self.settings, self.fleet, self.buffer, self.settling, self.moves, self.chunks
        )
        self._delivered = 0
        self._handlers: dict[type, Callable[[Any, float], list[Action]]] = {
            Submitted: self._submitted,
            ChunkFinished: self._chunk_finished,
            ChunkFailed: self._chunk_failed,
            Cancelled: self._cancelled,
            EngineJoined: self._engine_joined,
            EngineLeft: self._engine_left,
            Ticked: self._ticked,
            Paused: self._paused,
            Resumed: self._resumed,
            Recalled: self._recalled,
            PoolFound: self._pool_found,
            PoolState: self._pool_state,
            EpochChanged: self._epoch_changed,
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
        actions += self.scheduler.schedule(now_s)
        if illegal:
            raise IllegalEventError("; ".join(illegal), tuple(actions))
        return actions

    def at_ease(self, tokens: int) -> bool:
        """Whether nothing waits, and some engine has room for so many tokens more."""
        return not len(self.buffer.queue) and tokens <= self.fleet.room_tokens()

    def is_recalled(self, chunk_id: ChunkId) -> bool:
        """Whether the chunk runs, and `Recalled` has told it to stop."""
        return chunk_id in self.chunks and self.chunks[chunk_id].recalled

    def statistics(self) -> Statistics:
        return Statistics(
            waiting=len(self.buffer.queue) + len(self.buffer.parked),
            in_flight=len(self.chunks),
            engines=len(self.engines),
            chunks=self.scheduler.dispatched,
            moved_chunks=self.scheduler.moved,
            delivered=self._delivered,
            paused=self.scheduler.paused,
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold. O(n), for tests and idle moments."""
        check_state(self.fleet, self.chunks, self.buffer, self.policy.reserves)
        self.scheduler.check()

    # ---- events ----

    def _submitted(self, event: Submitted, now_s: float) -> list[Action]:
        begun_on = self.engines.get(event.held_on) if event.held_on is not None else None
        self.moves.began(self.buffer.add(event, now_s, begun_on), event.held_in_pool)
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
        nothing = not event.ended and not event.new_tokens
        if nothing and not chunk.recalled:
            return self._chunk_failed(ChunkFailed(event.chunk_id, "made no progress"), now_s)
        request = self._release(chunk)
        if chunk.epoch == self.buffer.epoch and not nothing:
            self.moves.ended(chunk, now_s)
        if event.timing is not None:
            self.moves.costs.took(event.timing)
        complete = not nothing and self.buffer.record(chunk, event.new_tokens, event.ended)
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

    def _ticked(self, _event: Ticked, now_s: float) -> list[Action]:
        self.settling.woken(now_s)
        return []

    def _paused(self, _event: Paused, _now_s: float) -> list[Action]:
        self.scheduler.pause()
        return []

    def _resumed(self, _event: Resumed, _now_s: float) -> list[Action]:
        self.scheduler.resume()
        return []

    def _recalled(self, _event: Recalled, _now_s: float) -> list[Action]:
        back = [chunk for chunk in self.chunks.values() if chunk.may_come_back]
        for chunk in back:
            chunk.recalled = True
        return [AbortChunk(chunk.chunk_id, chunk.engine.engine_id) for chunk in back]

    def _pool_found(self, event: PoolFound, now_s: float) -> list[Action]:
        request = self.buffer.requests.get(event.request_id)
        if self.moves.found(request, event.tokens, now_s) and request is not None:
            self.settling.end(request)
        return []

    def _pool_state(self, event: PoolState, _now_s: float) -> list[Action]:
        self.settling.end_all()
        self.moves.state(event.up, self.buffer.requests.values(), self.buffer.groups.values())
        return []

    def _epoch_changed(self, _event: EpochChanged, _now_s: float) -> list[Action]:
        self.settling.end_all()
        self.buffer.forget_kv()
        return []

    # ---- ends ----

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
