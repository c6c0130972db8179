"""The core under arbitrary events: a slow, obvious model of the world judges every action.

The model knows nothing of queues or probes. It keeps what a client and the engines would know, and says
what must hold whatever the policy decides.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core import POLICIES, RouterCore
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, Wake
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
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId

EXAMPLES = 120
ENGINE_IDS = [EngineId(name) for name in "abc"]


@dataclass(eq=False)
class Sample:
    """A request as its client sees it."""

    event: Submitted
    generated_tokens: int = 0
    failures: int = 0
    ended: bool = False
    cancelled: bool = False
    hopeless: bool = False
    """A failure that is not to be retried."""
    last_on: "Machine | None" = None
    ready_s: float = 0.0
    running: Dispatch | None = None

    @property
    def remaining_tokens(self) -> int:
        return self.event.max_new_tokens - self.generated_tokens


@dataclass(eq=False)
class Machine:
    """One life of an engine: another one under the same id is another machine."""

    spec: EngineSpec
    needs: dict[ChunkId, int] = field(default_factory=dict)
    """KV tokens of each running chunk, in whole pages."""

    draft_tokens: int = 0

    @property
    def capacity_tokens(self) -> int:
        return self.spec.kv_capacity_tokens - self.spec.kv_capacity_tokens % self.spec.page_tokens

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - sum(self.needs.values())

    def pages(self, tokens: int) -> int:
        with_draft = tokens + self.draft_tokens
        whole = -(-with_draft // self.spec.page_tokens) * self.spec.page_tokens
        return min(whole, self.capacity_tokens)

    def able(self, tokens: int) -> bool:
        return tokens <= self.capacity_tokens

    def fits(self, tokens: int) -> bool:
        slot = len(self.needs) < self.spec.max_running_requests
        return slot and self.able(tokens) and self.pages(tokens) <= self.free_tokens


class World:
    """Drives a core, and checks every action against what a client and the engines know."""

    def __init__(self, policy: str, options: CoreSettings) -> None:
        self.policy, self.options = POLICIES[policy], options
        self.core = RouterCore(self.policy, options)
        self.now_s = 0.0
        self.wake_s: float | None = None
        self.log: list[tuple[list[Event], float, list[Action]]] = []
        self.samples: dict[RequestId, Sample] = {}
        self.delivered: dict[RequestId, str] = {}
        self.machines: dict[EngineId, Machine] = {}
        self.chunks: dict[ChunkId, tuple[Sample, Machine]] = {}
        self.ended_chunks = [ChunkId(999_999)]

    # ---- events in ----

    def feed(self, events: list[Event]) -> None:
        """Tell the model, then the core; judge the answer."""
        aborts = [abort for event in events for abort in self._note(event)]
        actions = self.core.handle_all(events, self.now_s)
        self.log.append((events, self.now_s, actions))
        if Ticked() in events:
            self.wake_s = None
        assert [a for a in actions if isinstance(a, AbortChunk)] == aborts
        for action in actions:
            if isinstance(action, Deliver):
                self._judge_delivery(action)
            elif isinstance(action, Dispatch):
                self._judge_dispatch(action)
            elif isinstance(action, Wake):
                assert self.wake_s is None, "two wake-ups at once"
                assert self.now_s < action.at_s <= self.now_s + self.options.settle_s
                self.wake_s = action.at_s
        self.core.check()
        self._judge_rest()

    def _note(self, event: Event) -> Iterable[AbortChunk]:
        match event:
            case Submitted():
                self.samples[event.request_id] = Sample(event)
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
        return []

    def _end_chunk(self, chunk_id: ChunkId) -> tuple[Sample, Machine]:
        sample, machine = self.chunks.pop(chunk_id)
        self.ended_chunks.append(chunk_id)
        del machine.needs[chunk_id]
        sample.running, sample.ready_s = None, self.now_s
        return sample, machine

    def _note_finished(self, event: ChunkFinished) -> None:
        if not event.new_tokens and not event.ended:
            self._note_failed(event.chunk_id, retryable=True)
            return
        sample, machine = self._end_chunk(event.chunk_id)
        sample.generated_tokens += event.new_tokens
        sample.ended, sample.failures, sample.last_on = event.ended, 0, machine

    def _note_failed(self, chunk_id: ChunkId, retryable: bool) -> None:
        sample, _ = self._end_chunk(chunk_id)
        sample.failures += 1
        sample.hopeless = not retryable

    def _note_gone(self, engine_id: EngineId) -> None:
        machine = self.machines.pop(engine_id, None)
        for chunk_id in list(machine.needs if machine else ()):
            self._note_failed(chunk_id, retryable=True)

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
        sample, machine = self.samples[action.request_id], self.machines[action.engine_id]
        assert action.chunk_id not in self.chunks
        assert action.chunk_id not in self.ended_chunks
        assert sample.running is None, "two chunks of one request at once"
        assert self._due(sample) is None, "dispatched what should have been delivered"
        assert action.max_new_tokens == self._budget(sample)
        moved = sample.last_on if sample.last_on is not machine else None
        assert action.came_from == (moved and moved.spec.engine_id)
        assert moved is None or not self._settles(sample), "moved before its KV was in the pool"
        if self.policy.reserves:
            assert machine.fits(self._need(sample)), "over the engine's KV or slots"
        machine.needs[action.chunk_id] = machine.pages(self._need(sample))
        self.chunks[action.chunk_id] = sample, machine
        sample.running = action

    def _budget(self, sample: Sample) -> int:
        if not self.policy.divided or not sample.event.divisible:
            return sample.remaining_tokens
        return min(self.options.chunk_tokens, sample.remaining_tokens)

    def _need(self, sample: Sample) -> int:
        held = sample.event.prompt_tokens + sample.generated_tokens
        return held + self._budget(sample)

    def _settles(self, sample: Sample) -> bool:
        """Whether it may not move yet."""
        last = sample.last_on
        here = last is not None and last.spec.engine_id in self.machines
        return here and self.now_s < sample.ready_s + self.options.settle_s

    def _judge_rest(self) -> None:
        waiting = [sample for sample in self.samples.values() if sample.running is None]
        assert [self._due(sample) for sample in waiting] == [None] * len(waiting), "not delivered"
        for request_id, sample in self.samples.items():
            known = self.core.buffer.requests[request_id]
            assert known.generated_tokens == sample.generated_tokens
        counts = self.core.statistics()
        assert counts.delivered == len(self.delivered)
        assert (counts.waiting, counts.in_flight) == (len(waiting), len(self.chunks))
        settling = [sample for sample in waiting if self._settles(sample)]
        settled = [self._need(sample) for sample in waiting if not self._settles(sample)]
        if self.policy.reserves:
            assert not settled or self._may_rest(settled)
            if settling and not settled and not self.core.buffer.parked:
                assert self.wake_s is not None or self._may_rest([*map(self._need, settling)])
        else:
            assert not settled or not self.machines, "waits though nothing is reserved"

    def _may_rest(self, needs: list[int]) -> bool:
        """Work-conserving: all waiting requests, or as many as are looked at, are stuck.

        Stuck means that it fits no engine but at most the one that is held; an engine is held for a
        request that fits nowhere, could run there, and has no able engine with more free KV.
        """
        machines = list(self.machines.values())
        for held in (None, *machines):
            others = [machine for machine in machines if machine is not held]
            stuck = [need for need in needs if not any(machine.fits(need) for machine in others)]
            enough = len(stuck) == len(needs) or len(stuck) >= self.options.look_ahead
            if enough and (held is None or any(self._holds(held, need) for need in stuck)):
                return True
        return False

    def _holds(self, held: Machine, need: int) -> bool:
        able = [machine for machine in self.machines.values() if machine.able(need)]
        fits_nowhere = not any(machine.fits(need) for machine in able)
        most = max((machine.free_tokens for machine in able), default=None)
        return fits_nowhere and held in able and held.free_tokens == most

    # ---- the end ----

    def drain(self) -> None:
        """Give it an engine that takes everything, and let all engines answer."""
        self.feed([EngineJoined(EngineSpec(EngineId("large"), 1 << 20, 1, 1 << 10, 1 << 20))])
        while self.chunks or self.wake_s is not None:
            self.now_s += self.options.settle_s
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
        assert all(engine.reserved_tokens == 0 for engine in self.core.engines.values())

    def replay(self) -> None:
        """A fresh core that is told the same answers the same."""
        again = RouterCore(self.policy, self.options)
        for events, now_s, actions in self.log:
            assert again.handle_all(events, now_s) == actions


# ---- what may happen: plain tuples, so that a failing example reads well ----

nth = st.integers(0, 30)
request = st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(1, 60), st.booleans())
events = st.one_of(
    st.tuples(st.just("submit"), st.lists(request, min_size=1, max_size=8)),
    st.tuples(st.just("join"), st.integers(0, 2), st.integers(20, 400), st.sampled_from([1, 16, 64])),
    st.tuples(st.just("leave"), st.integers(0, 2)),
    *[st.tuples(st.just("finish"), nth, st.integers(0, 60), st.integers(0, 3))] * 3,
    st.tuples(st.just("fail"), nth, st.booleans()),
    st.tuples(st.just("cancel"), nth),
    st.tuples(st.just("late"), nth),
)
steps = st.one_of(
    *[events] * 4,
    st.tuples(st.just("together"), st.lists(events, min_size=2, max_size=5)),
    st.tuples(st.just("illegal"), nth),
    st.tuples(st.just("later"), st.sampled_from([0.01, 0.2])),
)
options = st.builds(
    CoreSettings,
    chunk_tokens=st.sampled_from([5, 16, 50]),
    draft_tokens=st.sampled_from([0, 7]),
    max_failures=st.integers(1, 3),
    look_ahead=st.sampled_from([1, 3, 8, 8]),
    settle_s=st.sampled_from([0.0, 0.1]),
)


class Story:
    """Turns steps into events; one that makes no sense at its time becomes none."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.submitted: list[RequestId] = []

    def tell(self, step: tuple[Any, ...]) -> None:
        self.world.feed(self._events(step))

    def _events(self, step: tuple[Any, ...]) -> list[Event]:
        name, *args = step
        told: list[Event] = getattr(self, f"_{name}")(*args)
        return told

    def _together(self, steps: list[tuple[Any, ...]]) -> list[Event]:
        return [event for step in steps for event in self._events(step)]

    def _submit(self, batch: list[tuple[int, int, int, bool]]) -> list[Event]:
        told: list[Event] = []
        for group, prompt, max_new, divisible in batch:
            name = RequestId(f"r{len(self.submitted)}")
            self.submitted.append(name)
            told.append(Submitted(name, GroupId(f"g{group}"), prompt, max_new, divisible))
        return told

    def _join(self, which: int, kv: int, page: int) -> list[Event]:
        return [EngineJoined(EngineSpec(ENGINE_IDS[which], kv, page, 1 + kv % 5, 1_000))]

    def _leave(self, which: int) -> list[Event]:
        return [EngineLeft(ENGINE_IDS[which], "gone")]

    def _running(self, index: int) -> Dispatch | None:
        running = [s.running for s in self.world.samples.values() if s.running is not None]
        return running[index % len(running)] if running else None

    def _finish(self, index: int, tokens: int, ended: int) -> list[Event]:
        chunk = self._running(index)
        if chunk is None:
            return []
        return [ChunkFinished(chunk.chunk_id, min(tokens, chunk.max_new_tokens), ended == 0)]

    def _fail(self, index: int, retryable: bool) -> list[Event]:
        chunk = self._running(index)
        return [ChunkFailed(chunk.chunk_id, "broken", retryable)] if chunk else []

    def _cancel(self, index: int) -> list[Event]:
        return [Cancelled(self.submitted[index % len(self.submitted)])] if self.submitted else []

    def _late(self, index: int) -> list[Event]:
        chunk_id = self.world.ended_chunks[index % len(self.world.ended_chunks)]
        return [ChunkFinished(chunk_id, index, True), ChunkFailed(chunk_id, "late")]

    def _illegal(self, index: int) -> list[Event]:
        """Only the core hears it; the model and the replay show whether it left a trace."""
        chunk = self._running(index)
        wrong: list[Event] = [Submitted(RequestId("wrong"), GroupId("g0"), 0, 5)]
        wrong += [sample.event for sample in self.world.samples.values()]
        if chunk is not None:
            wrong.append(ChunkFinished(chunk.chunk_id, chunk.max_new_tokens + 1, True))
        with pytest.raises(IllegalEventError):
            self.world.core.handle(wrong[index % len(wrong)], self.world.now_s)
        return []

    def _later(self, seconds: float) -> list[Event]:
        self.world.now_s += seconds
        return [Ticked()]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(options=options, steps=st.lists(steps, min_size=20, max_size=60))
def test_whatever_happens_the_core_keeps_its_promises(
    policy: str, options: CoreSettings, steps: list[tuple[Any, ...]]
) -> None:
    world = World(policy, options)
    story = Story(world)
    for step in steps:
        story.tell(step)
    world.drain()
    assert set(world.delivered) == set(story.submitted)
    world.replay()
