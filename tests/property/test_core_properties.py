"""The core under arbitrary events, judged by the model in `world.py`."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core import POLICIES, Policy, RouterCore, policy_named
from seer_sgl.router.core.actions import Dispatch
from seer_sgl.router.core.estimates import ESTIMATES
from seer_sgl.router.core.events import (
    Cancelled,
    ChunkFailed,
    ChunkFinished,
    ChunkTiming,
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
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Engine, Request
from seer_sgl.types import EngineId, EngineSpec, GroupId, RequestId
from tests.property.world import World

EXAMPLES = 70
ENGINE_IDS = [EngineId(name) for name in "abc"]


# ---- what may happen: plain tuples, so that a failing example reads well ----

nth = st.integers(0, 30)
request = st.tuples(
    *(st.integers(0, 5), st.integers(1, 60), st.integers(1, 60), st.booleans()),
    st.sampled_from([None, None, 0.0, 0.5, 1.0]),  # share of the prompt that was computed before
    st.integers(0, 3),
)
timing = st.one_of(
    st.none(),
    st.builds(
        ChunkTiming,
        computed_tokens=st.integers(0, 60),
        prefill_s=st.sampled_from([0.0, 0.001, 0.2]),
        loaded_tokens=st.integers(0, 60),
        load_s=st.sampled_from([0.001, 0.1]),
    ),
)
events = st.one_of(
    st.tuples(st.just("submit"), st.lists(request, min_size=1, max_size=8)),
    st.tuples(st.just("join"), st.integers(0, 2), st.integers(20, 400), st.sampled_from([1, 16, 64])),
    st.tuples(st.just("leave"), st.integers(0, 2)),
    *[st.tuples(st.just("finish"), nth, st.sampled_from([0, *range(61)]), st.integers(0, 3), timing)]
    * 3,
    st.tuples(st.just("found"), nth, st.sampled_from([0.0, 0.5, 1.0, 1.0, None])),
    st.tuples(st.just("pool"), st.sampled_from([True, True, False, None])),
    st.tuples(st.just("fail"), nth, st.booleans()),
    st.tuples(st.just("cancel"), nth),
    st.tuples(st.just("late"), nth),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("epoch")),
    st.tuples(st.just("recall")),
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
    chunk_plan=st.sampled_from(["constant", "constant", "short_first", "growing"]),
    draft_tokens=st.sampled_from([0, 7]),
    max_failures=st.integers(1, 3),
    look_ahead=st.sampled_from([1, 3, 8, 8]),
    settle_s=st.sampled_from([0.0, 0.1, 0.1]),
    starvation_dispatches=st.sampled_from([0, 1, 2, 5]),
    placement=st.builds(
        PlacementSettings,
        max_spread_requests=st.sampled_from([0, 32]),
        pull_margin_tokens=st.sampled_from([0, 0, 20, 512]),
    ),
)


class Story:
    """Turns steps into events; one that makes no sense at its time becomes none."""

    def __init__(self, world: World, timed: bool) -> None:
        self.world, self.timed = world, timed
        self.submitted: list[RequestId] = []

    def tell(self, step: tuple[Any, ...]) -> None:
        self.world.feed(self._events(step))

    def _events(self, step: tuple[Any, ...]) -> list[Event]:
        name, *args = step
        told: list[Event] = getattr(self, f"_{name}")(*args)
        return told

    def _together(self, steps: list[tuple[Any, ...]]) -> list[Event]:
        return [event for step in steps for event in self._events(step)]

    def _submit(self, batch: list[tuple[int, int, int, bool, float | None, int]]) -> list[Event]:
        told: list[Event] = []
        for group, prompt, max_new, divisible, share, where in batch:
            name = RequestId(f"r{len(self.submitted)}")
            self.submitted.append(name)
            event = Submitted(name, GroupId(f"g{group}"), prompt, max_new, divisible, group % 3 == 2)
            if share is not None:
                known = int(prompt * share)
                held_on = ENGINE_IDS[where] if where < len(ENGINE_IDS) else None
                event = msgspec.structs.replace(
                    event,
                    shared_tokens=known // 2,
                    held_tokens=known,
                    held_on=held_on,
                    held_in_pool=known % 3 > 0,
                )
            told.append(event)
        return told

    def _join(self, which: int, kv: int, page: int) -> list[Event]:
        return [EngineJoined(EngineSpec(ENGINE_IDS[which], kv, page, 1 + kv % 5, 1_000))]

    def _leave(self, which: int) -> list[Event]:
        return [EngineLeft(ENGINE_IDS[which], "gone")]

    def _running(self, index: int) -> Dispatch | None:
        running = [s.running for s in self.world.samples.values() if s.running is not None]
        return running[index % len(running)] if running else None

    def _finish(self, index: int, tokens: int, ended: int, timing: ChunkTiming | None) -> list[Event]:
        chunk = self._running(index)
        if chunk is None:
            return []
        tokens = min(tokens, chunk.max_new_tokens)
        return [ChunkFinished(chunk.chunk_id, tokens, ended == 0, timing if self.timed else None)]

    def _found(self, index: int, share: float | None) -> list[Event]:
        """The answer to a look-up, if there is one; else one that nobody asked for."""
        asked = [s for s in self.world.samples.values() if self.world.pool.awaits_answer(s)]
        if not asked:
            return [PoolFound(RequestId(f"r{index}"), index)]
        sample = asked[index % len(asked)]
        tokens = None if share is None else int(sample.asked_tokens * share)
        return [PoolFound(sample.event.request_id, tokens)]

    def _pool(self, up: bool | None) -> list[Event]:
        return [PoolState(up)]

    def _fail(self, index: int, retryable: bool) -> list[Event]:
        chunk = self._running(index)
        return [ChunkFailed(chunk.chunk_id, "broken", retryable)] if chunk else []

    def _cancel(self, index: int) -> list[Event]:
        return [Cancelled(self.submitted[index % len(self.submitted)])] if self.submitted else []

    def _pause(self, on: bool) -> list[Event]:
        return [Paused() if on else Resumed()]

    def _recall(self) -> list[Event]:
        return [Recalled()]

    def _epoch(self) -> list[Event]:
        return [EpochChanged()]

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
        event = wrong[index % len(wrong)]
        with pytest.raises(IllegalEventError) as caught:
            self.world.core.handle(event, self.world.now_s)
        self.world.judge([event], list(caught.value.actions))  # type: ignore[arg-type]
        return []

    def _later(self, seconds: float) -> list[Event]:
        self.world.now_s += seconds
        return [Ticked()]


def elsewhere(request: Request, need: int, fleet: Fleet, _settings: PlacementSettings) -> Engine | None:
    """Another engine than the last one, where another fits: so that much moves."""
    fitting = [engine for engine in fleet.engines.values() if fleet.fits(engine, need)]
    others = [engine for engine in fitting if engine is not request.last_engine]
    return next(iter(others or fitting), None)


WANDERING = Policy("wandering", elsewhere, DIVIDED.rank, DIVIDED.within)
EVERY_POLICY = {
    **POLICIES,
    "wandering": WANDERING,
    **{f"seer by {name}": policy_named("seer", estimate) for name, estimate in ESTIMATES.items()},
}


@pytest.mark.parametrize("policy", EVERY_POLICY.values(), ids=EVERY_POLICY.keys())
@settings(max_examples=EXAMPLES, deadline=None)
@given(options=options, steps=st.lists(steps, min_size=20, max_size=60), timed=st.booleans())
def test_whatever_happens_the_core_keeps_its_promises(
    policy: Policy, options: CoreSettings, steps: list[tuple[Any, ...]], timed: bool
) -> None:
    world = World(policy, options)
    story = Story(world, timed)
    for step in steps:
        story.tell(step)
    world.drain()
    assert set(world.delivered) == set(story.submitted)
    world.leave()
    world.replay()


class Queueing:
    """One engine on which everything fits while a slot is free, so that only the order decides."""

    def __init__(self, policy: Policy, every: int, slots: int) -> None:
        options = CoreSettings(chunk_tokens=10, starvation_dispatches=every)
        self.core, self.every = RouterCore(policy, options), every
        self.dispatched = self.submitted = 0
        self.due: dict[RequestId, int] = {}
        """Of those that wait: by which dispatch they have to go."""
        self.running: list[Dispatch] = []
        self.feed([EngineJoined(EngineSpec(EngineId("a"), 1 << 30, 1, slots, 1 << 30))], [])

    def feed(self, events: list[Event], begin: list[RequestId]) -> None:
        for name in begin:
            self.due[name] = self.dispatched + self.every * (len(self.due) + 1)
        for action in self.core.handle_all(events, 0.0):
            if isinstance(action, Dispatch):
                self.dispatched += 1
                assert self.dispatched <= self.due.pop(action.request_id), "passed for too long"
                self.running.append(action)
        assert all(self.dispatched <= due for due in self.due.values()), "waits for too long"

    def step(self, arrivals: list[int], index: int, tokens: int, ended: bool) -> None:
        """New requests come, by group, and one chunk ends."""
        events: list[Event] = []
        begin = []
        if self.running:
            chunk = self.running.pop(index % len(self.running))
            events.append(ChunkFinished(chunk.chunk_id, min(tokens, chunk.max_new_tokens), ended))
            held = self.core.buffer.requests[chunk.request_id]
            if not ended and held.remaining_tokens > tokens:
                begin.append(chunk.request_id)
        for group in arrivals:
            self.submitted += 1
            name = RequestId(f"r{self.submitted}")
            events.append(Submitted(name, GroupId(f"g{group}"), 5, 1_000))
            begin.append(name)
        self.feed(events, begin)


a_step = st.tuples(
    st.lists(st.integers(0, 30), max_size=3), nth, st.integers(1, 10), st.sampled_from([True, False])
)


GUARDED = {name: policy for name, policy in EVERY_POLICY.items() if policy.guarded}


@pytest.mark.parametrize("policy", GUARDED.values(), ids=GUARDED.keys())
@settings(max_examples=30, deadline=None)
@given(every=st.integers(1, 4), slots=st.integers(1, 3), told=st.lists(a_step, min_size=30, max_size=80))
def test_under_the_guard_nobody_is_passed_for_ever(
    policy: Policy, every: int, slots: int, told: list[tuple[list[int], int, int, bool]]
) -> None:
    """At most `every` dispatches for each that waited before, and as many for the request itself."""
    queueing = Queueing(policy, every, slots)
    for arrivals, index, tokens, ended in told:
        queueing.step(arrivals, index, tokens, ended)
