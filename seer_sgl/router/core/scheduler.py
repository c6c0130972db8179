"""Which waiting requests run now, and where: looked at after every batch of events."""

from itertools import count

from seer_sgl.router.core.actions import Action, Dispatch
from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.moves import Moves
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.settling import Settling
from seer_sgl.router.core.state import Chunk, Engine, Request
from seer_sgl.types import ChunkId


class Scheduler:
    """Dispatches while something waits and fits, unless it is paused."""

    def __init__(
        self,
        policy: Policy,
        settings: CoreSettings,
        fleet: Fleet,
        buffer: RequestBuffer,
        settling: Settling,
        moves: Moves,
        chunks: dict[ChunkId, Chunk],
    ) -> None:
        self.paused = False
        self.dispatched = self.moved = 0
        """Chunks since the start; of these, those that went on from another engine."""
        self._policy, self._settings = policy, settings
        self._fleet, self._buffer, self._settling = fleet, buffer, settling
        self._moves = moves
        self._chunks = chunks
        self._chunk_ids = count(1)
        self._since_oldest = 0  # dispatches since one of the request that had waited longest
        self._dispatched_at_pause = 0

    def pause(self) -> None:
        """Dispatch nothing until `resume`."""
        self.paused, self._dispatched_at_pause = True, self.dispatched

    def resume(self) -> None:
        self.paused = False

    def check(self) -> None:
        """Raise AssertionError if anything went out during a pause."""
        assert not self.paused or self.dispatched == self._dispatched_at_pause, "dispatched while paused"

    def schedule(self, now_s: float) -> list[Action]:
        """Dispatch while something waits and fits.

        The first request that fits nowhere holds the engine that could take it soonest: nothing else
        goes there, so it cannot be passed for ever. Smaller ones behind it may use the other engines.
        A request whose KV is not in the pool yet waits for a moment if that pays, and holds nothing.
        """
        if self.paused:
            return []
        actions: list[Action] = []
        blocked: list[Request] = []
        queue, guard = self._buffer.queue, self._policy.guarded
        settings = self._settings
        self._settling.end_due(now_s)
        room = self._fleet.room_tokens()
        while room >= queue.least_need_tokens and len(blocked) < settings.look_ahead:
            oldest = guard and 0 < settings.starvation_dispatches <= self._since_oldest + 1
            request = (queue.pop_oldest() if oldest else None) or queue.pop()
            if request is None:
                break
            need, engine = request.need_tokens, None
            if need <= room:
                engine = self._policy.place(request, need, self._fleet, settings.placement)
            if engine is None and self._fleet.could_hold(need):
                if not blocked:
                    self._fleet.hold_for(need)
                    room = self._fleet.room_tokens()
                blocked.append(request)
            elif engine is None:
                self._buffer.park(request)
            else:
                pulled, until_s = self._moves.plan(request, engine, now_s)
                if until_s > now_s:
                    actions += self._moves.ask(request, until_s, now_s)
                    self._settling.set_aside(request)
                else:
                    actions.append(self._dispatch(request, engine, pulled))
                    room = self._fleet.room_tokens()
                    self._since_oldest = 0 if oldest else self._since_oldest + 1
                    continue
            guard = guard and not oldest  # one try a round, or it would bring the next oldest
        self._fleet.let_go()
        for request in blocked:
            queue.push(request)
        return actions + self._settling.wake(now_s)

    def _dispatch(self, request: Request, engine: Engine, pulled: int) -> Dispatch:
        budget = request.budget_tokens
        reserved = engine.reservation_for(request.need_tokens) if self._policy.reserves else 0
        chunk_id = ChunkId(next(self._chunk_ids))
        chunk = Chunk(chunk_id, request, engine, budget, reserved, self._buffer.epoch, self._moves.life)
        self._chunks[chunk.chunk_id] = chunk
        self._fleet.take(chunk)
        request.chunk, request.place = chunk, "in_flight"
        if self._policy.pinned:
            request.group.home = engine
        came_from = request.last_engine
        moved = came_from is not None and came_from is not engine
        self.dispatched += 1
        self.moved += moved
        return Dispatch(
            chunk_id=chunk.chunk_id,
            request_id=request.request_id,
            engine_id=engine.engine_id,
            max_new_tokens=budget,
            came_from=came_from.engine_id if came_from and moved else None,
            pulled_tokens=pulled,
        )
