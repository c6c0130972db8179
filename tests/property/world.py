"""A slow, obvious model of the world around a core, which judges every action of the core's.

The model knows nothing of queues or probes. It keeps what a client and the engines would know, and says
what must hold whatever the policy decides.
"""

from collections.abc import Iterable
from typing import Any

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core import Policy, RouterCore
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, LookUp, Wake
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
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.types import ChunkId, EngineId, EngineSpec, RequestId
from tests.property.cluster import Machine, Prompt, Sample
from tests.property.pool_model import PoolModel


def heard(core: RouterCore, events: list[Event], now_s: float) -> list[Any]:
    try:
        return list(core.handle_all(events, now_s))
    except IllegalEventError as error:
        return list(error.actions)


class World:
    """Drives a core, and checks every action against what a client and the engines know."""

    def __init__(self, policy: Policy, options: CoreSettings) -> None:
        self.policy, self.options = policy, options
        self.core = RouterCore(self.policy, options)
        self.pool = PoolModel(options)
        self.now_s = 0.0
        self.paused = False
        self.wake_s: float | None = None
        self.log: list[tuple[list[Event], float, list[Action]]] = []
        self.samples: dict[RequestId, Sample] = {}
        self.delivered: dict[RequestId, str] = {}
        self.machines: dict[EngineId, Machine] = {}
        self.chunks: dict[ChunkId, tuple[Sample, Machine]] = {}
        self.ended_chunks = [ChunkId(999_999)]
        self.passed = 0
        """Dispatches in a row that passed a request which had waited longer, though all could go."""

    # ---- events in ----

    def feed(self, events: list[Event]) -> None:
        """Tell the model, then the core; judge the answer."""
        aborts = [abort for event in events for abort in self._note(event)]
        self.judge(events, self.core.handle_all(events, self.now_s), aborts)

    def judge(
        self, events: list[Event], actions: list[Action], aborts: Iterable[AbortChunk] = ()
    ) -> None:
        self.log.append((events, self.now_s, actions))
        if Ticked() in events and self.wake_s is not None and self.now_s >= self.wake_s:
            self.wake_s = None
        assert [a for a in actions if isinstance(a, AbortChunk)] == list(aborts)
        for action in actions:
            if isinstance(action, Deliver):
                self._judge_delivery(action)
            elif isinstance(action, Dispatch):
                self._judge_dispatch(action)
            elif isinstance(action, Wake):
                assert self.wake_s is None or action.at_s < self.wake_s, "one too many"
                assert self.now_s < action.at_s
                self.wake_s = action.at_s
            elif isinstance(action, LookUp):
                self._judge_look_up(action)
        self.core.check()
        self._judge_rest()

    def _note(self, event: Event) -> Iterable[AbortChunk]:
        match event:
            case Submitted():
                alive = (s for s in self.samples.values() if s.running or not self._due(s))
                group = [s for s in alive if s.event.group_id == event.group_id]
                prompt = group[0].prompt if group else Prompt()
                begun_on = self.machines.get(event.held_on) if event.held_on else None
                sample = Sample(event, prompt, begun_on, event.held_tokens, ready_s=self.now_s)
                sample.in_pool = event.held_in_pool and self.pool.up is not False
                self.samples[event.request_id] = sample
            case ChunkFinished() if event.chunk_id in self.chunks:
                self._note_finished(event)
            case ChunkFailed() if event.chunk_id in self.chunks:
                self._note_failed(event.chunk_id, event.retryable)
            case EngineJoined():
                self._note_gone(event.engine.engine_id)
                machine = Machine(event.engine, draft_tokens=self.options.draft_tokens)
                self.machines[event.engine.engine_id] = machine
            case EngineLeft():
                self._note_gone(event.engine_id)
            case Cancelled():
                return self._note_cancelled(event.request_id)
            case Paused() | Resumed():
                self.paused = isinstance(event, Paused)
            case Recalled():
                return self._note_recalled()
            case PoolFound():
                asked = self.samples.get(event.request_id)
                gone = asked is None or (asked.running is None and self._due(asked) is not None)
                self.pool.found(None if gone else asked, event.tokens, self.now_s)
            case PoolState():
                self.pool.state(event.up, self.samples.values())
            case EpochChanged():
                self.pool.epoch(self.samples.values())
        return []

    def _end_chunk(self, chunk_id: ChunkId) -> tuple[Sample, Machine]:
        sample, machine = self.chunks.pop(chunk_id)
        self.ended_chunks.append(chunk_id)
        del machine.needs[chunk_id]
        sample.running, sample.ready_s, sample.aside = None, self.now_s, False
        sample.recalled = False
        return sample, machine

    def _note_finished(self, event: ChunkFinished) -> None:
        nothing = not event.new_tokens and not event.ended
        if nothing and not self.chunks[event.chunk_id][0].recalled:
            self._note_failed(event.chunk_id, retryable=True)
            return
        sample, machine = self._end_chunk(event.chunk_id)
        if event.timing is not None:
            self.pool.costs.took(event.timing)
        if nothing:
            return
        if not sample.of_old:
            self.pool.chunk_ended(sample, machine, self.now_s)
        sample.generated_tokens += event.new_tokens
        sample.ended, sample.failures = event.ended, 0
        if not sample.of_old:
            sample.last_on = machine
            sample.prompt.on.add(machine)

    def _note_failed(self, chunk_id: ChunkId, retryable: bool) -> None:
        sample, _ = self._end_chunk(chunk_id)
        sample.failures += 1
        sample.hopeless = not retryable

    def _note_gone(self, engine_id: EngineId) -> None:
        machine = self.machines.pop(engine_id, None)
        for chunk_id in list(machine.needs if machine else ()):
            self._note_failed(chunk_id, retryable=True)

    def _note_recalled(self) -> Iterable[AbortChunk]:
        """All that runs stops, unless its client has stopped it."""
        aborts = []
        for chunk_id, (sample, machine) in self.chunks.items():
            if not sample.cancelled and not sample.recalled:
                sample.recalled = True
                aborts.append(AbortChunk(chunk_id, machine.spec.engine_id))
        return aborts

    def _note_cancelled(self, request_id: RequestId) -> Iterable[AbortChunk]:
        sample = self.samples.get(request_id)
        if sample is None or sample.cancelled:
            return []
        if sample.running is None:
            # One that is due was delivered before this, in the same batch.
            sample.cancelled = self._due(sample) is None
            return []
        sample.cancelled = True
        return [AbortChunk(sample.running.chunk_id, sample.running.engine_id)]

    # ---- actions out ----

    def _judge_delivery(self, action: Deliver) -> None:
        sample = self.samples.pop(action.request_id)  # a KeyError is a second delivery
        assert sample.running is None, "delivered with a chunk in flight"
        assert action.outcome == self._due(sample)
        self.delivered[action.request_id] = action.outcome

    def _due(self, sample: Sample) -> str | None:
        """The outcome that a sample with no chunk in flight must have by now, or None to go on."""
        if sample.cancelled:
            return "cancelled"
        if sample.hopeless or sample.failures >= self.options.max_failures:
            return "failed"
        return "finished" if sample.ended or sample.remaining_tokens == 0 else None

    def _judge_dispatch(self, action: Dispatch) -> None:
        assert not self.paused, "dispatched during a pause"
        sample, machine = self.samples[action.request_id], self.machines[action.engine_id]
        assert action.chunk_id not in self.chunks
        assert action.chunk_id not in self.ended_chunks
        assert sample.running is None, "two chunks of one request at once"
        assert self._due(sample) is None, "dispatched what should have been delivered"
        assert action.max_new_tokens == self._budget(sample)
        moved = sample.last_on if sample.last_on is not machine else None
        assert action.came_from == (moved and moved.spec.engine_id)
        is_here = self._is_here(sample)
        self.pool.judge_pull(sample, machine, action.pulled_tokens, is_here, self.now_s)
        self._judge_turn(sample)
        if self.policy.reserves:
            assert machine.fits(self._need(sample)), "over the engine's KV or slots"
        machine.needs[action.chunk_id] = machine.pages(self._need(sample))
        self.chunks[action.chunk_id] = sample, machine
        sample.running, sample.of_old, sample.pool_life = action, False, self.pool.life

    def _judge_turn(self, sample: Sample) -> None:
        """Where all that wait could go, one that has waited longest goes now and then."""
        waiting = [s for s in self.samples.values() if s.running is None]
        stuck = any(self._is_stuck(self._need(s), None) or self._settles(s) for s in waiting)
        free = not stuck and not any(s.aside for s in waiting)
        longest = sample.ready_s == min(s.ready_s for s in waiting)
        self.passed = self.passed + 1 if free and not longest else 0
        if self.policy.guarded and self.options.starvation_dispatches:
            assert self.passed < self.options.starvation_dispatches, "passed for too long"

    def _judge_look_up(self, action: LookUp) -> None:
        assert not self.paused, "asked during a pause"
        sample = self.samples[action.request_id]
        assert sample.running is None
        assert self._may_settle(sample), "asked for what it does not need"
        self.pool.judge_look_up(sample, action.tokens, action.patience_s, self.now_s)

    def _budget(self, sample: Sample) -> int:
        if not self.policy.divided or not sample.event.divisible:
            return sample.remaining_tokens
        longest = self.options.chunk_tokens
        quarter, so_far = max(1, longest // 4), sample.generated_tokens
        planned = {
            "constant": longest,
            "short_first": longest if so_far else quarter,
            "growing": max(quarter, min(longest, so_far)),
        }[self.options.chunk_plan]
        return min(planned, sample.remaining_tokens)

    def _need(self, sample: Sample) -> int:
        return sample.held_tokens + self._budget(sample)

    def _is_here(self, sample: Sample) -> bool:
        return sample.last_on in self.machines.values()

    def _settles(self, sample: Sample) -> bool:
        """Whether it may wait for its KV."""
        return self.pool.may_wait(sample, self._is_here(sample), self.now_s)

    def _judge_rest(self) -> None:
        waiting = [sample for sample in self.samples.values() if sample.running is None]
        assert [self._due(sample) for sample in waiting] == [None] * len(waiting), "not delivered"
        for request_id, sample in self.samples.items():
            known = self.core.buffer.requests[request_id]
            assert known.generated_tokens == sample.generated_tokens
        counts = self.core.statistics()
        assert counts.delivered == len(self.delivered)
        assert (counts.waiting, counts.in_flight) == (len(waiting), len(self.chunks))
        assert counts.paused == self.paused
        settling = [sample for sample in waiting if self._may_settle(sample)]
        settled = [self._need(sample) for sample in waiting if sample not in settling]
        for sample in waiting:
            able = any(machine.able(self._need(sample)) for machine in self.machines.values())
            sample.aside = sample.aside or sample in settling or not able or self.paused
        if self.paused:
            return
        if self.policy.reserves:
            everyone = [self._need(sample) for sample in waiting]
            assert not settled or self._may_rest(settled, everyone)
            if settling and self.wake_s is None:
                assert self._may_rest([self._need(sample) for sample in settling], everyone)
        else:
            assert not settled or not self.machines, "waits though nothing is reserved"

    def _may_settle(self, sample: Sample) -> bool:
        """Whether it may wait where it would fit: it would pull, and it is too early for that."""
        pulls = any(self.pool.gap(sample, machine) for machine in self.machines.values())
        return pulls and self._settles(sample)

    def _may_rest(self, needs: list[int], everyone: list[int]) -> bool:
        """Work-conserving: all that could move, or as many as are looked at, are stuck.

        Stuck means that it fits no engine but at most the one that is held; an engine is held for a
        request that fits nowhere, could run there, and has no able engine with more room.
        """
        for held in (None, *self.machines.values()):
            stuck = [need for need in everyone if self._is_stuck(need, held)]
            enough = all(need in stuck for need in needs) or len(stuck) >= self.options.look_ahead
            if enough and (held is None or any(self._holds(held, need) for need in everyone)):
                return True
        return False

    def _is_stuck(self, need: int, held: Machine | None) -> bool:
        return not any(m.fits(need) for m in self.machines.values() if m is not held)

    def _holds(self, held: Machine, need: int) -> bool:
        able = [machine for machine in self.machines.values() if machine.able(need)]
        fits_nowhere = not any(machine.fits(need) for machine in able)
        most = max((machine.room_tokens for machine in able), default=None)
        return fits_nowhere and held in able and held.room_tokens == most

    # ---- the end ----

    def drain(self) -> None:
        """Give it an engine that takes everything, and let all engines answer."""
        groups = list(self.core.buffer.groups.values())
        large = EngineSpec(EngineId("large"), 1 << 20, 1, 1 << 10, 1 << 20)
        self.feed([EngineJoined(large), Resumed()])
        while self.chunks or self.wake_s is not None:
            self.now_s = max(self.now_s, self.wake_s or 0.0)
            self.feed([Ticked()])
            if not self.chunks:
                continue
            chunk_id, (sample, _) = next(iter(self.chunks.items()))
            assert sample.running is not None
            tokens = sample.running.max_new_tokens
            self.feed([ChunkFinished(chunk_id, tokens, ended=chunk_id % 2 == 0)])
        assert not self.samples, "never delivered"
        assert not self.core.buffer.requests
        assert not self.core.buffer.groups
        assert not len(self.core.buffer.queue)
        assert self.core.buffer.queue.pop() is None
        assert not self.core.buffer.parked
        assert not len(self.core.settling)
        assert not any(group.underway or group.live or group.waiting_count for group in groups)
        for engine in self.core.engines.values():
            assert not engine.chunks
            assert engine.reserved_tokens == 0

    def leave(self) -> None:
        """Let all engines leave: nothing of them stays."""
        self.feed([EngineLeft(engine_id, "over") for engine_id in self.machines])
        fleet = self.core.fleet
        assert not fleet.engines
        assert not any(fleet.counts)
        assert fleet.by_load.first() is fleet.by_room.first() is None
        assert not len(self.core.settling)

    def replay(self) -> None:
        """A fresh core that is told the same answers the same."""
        again = RouterCore(self.policy, self.options)
        for events, now_s, actions in self.log:
            assert heard(again, events, now_s) == actions
