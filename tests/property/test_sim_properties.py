"""The simulator under arbitrary work. An engine's closed form is compared with steps taken one by one;
in whole rollouts nothing is lost, and nothing is faster than it can be."""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from seer_sgl.router.core import Policy, RouterCore
from seer_sgl.router.core.actions import Action, Deliver, Dispatch
from seer_sgl.router.core.events import ChunkFinished, Event
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.engine import SimEngine
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.run import SIM_POLICIES, sim_policy, simulate
from seer_sgl.sim.simulation import Simulation, request_name
from seer_sgl.sim.speculation import Drafting
from seer_sgl.sim.workload import Lengths, Workload
from tests.unit.sim.test_engine import MODEL, Task, play

EXAMPLES = 12
PROMPT_TOKENS = 20
MOST_TOKENS = 300
WHOLE = PROMPT_TOKENS + MOST_TOKENS
"""KV of the longest sample: an engine has at least that."""

pytestmark = pytest.mark.timeout(60)  # a simulation that stands still in its own time never ends
everywhere = pytest.mark.parametrize("name", SIM_POLICIES)

# ---- one engine ----


class Steps:
    """The same engine, the slow way: every step is one token for each request that runs."""

    def __init__(self, model: EngineModel, reserved: bool) -> None:
        self.model, self.reserved = model, reserved
        self.now_s = self.busy_s = 0.0
        self.waiting: list[list[int]] = []
        self.running: list[list[int]] = []
        """[number, tokens cached, tokens to go], oldest first."""
        self.preemptions = self.prefilled = 0
        self.ended_s: dict[int, float] = {}

    @property
    def kv(self) -> int:
        return sum(held for _, held, _ in self.running)

    def spend(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds

    def admit(self) -> None:
        room = self.model.kv_capacity_tokens
        while self.waiting:
            fits = self.kv + self.waiting[0][1] + len(self.running) + 1 <= room
            if not (self.reserved or not self.running or fits):
                return
            row = self.waiting.pop(0)
            self.running.append(row)
            self.prefilled += row[1]
            self.spend(row[1] * self.model.prefill_token_s)

    def step(self) -> None:
        while not self.reserved and len(self.running) > 1 and self.over():
            self.waiting.insert(0, self.running.pop())
            self.preemptions += 1
        self.spend(self.model.step_s(len(self.running), self.kv))
        for row in self.running:
            row[1], row[2] = row[1] + 1, row[2] - 1
            if not row[2]:
                self.ended_s[row[0]] = self.now_s
        self.running = [row for row in self.running if row[2]]

    def over(self) -> bool:
        return self.kv + len(self.running) > self.model.kv_capacity_tokens

    def play(self, tasks: list[Task]) -> None:
        arrivals = sorted((t.at_s, number, t.prompt_tokens, t.tokens) for number, t in enumerate(tasks))
        while arrivals or self.waiting or self.running:
            if not self.running and not self.waiting:
                self.now_s = max(self.now_s, arrivals[0][0])
            while arrivals and arrivals[0][0] <= self.now_s:
                self.waiting.append(list(arrivals.pop(0)[1:]))
            self.admit()
            if self.running:
                self.step()


# Steps let in who comes amid one at its end only: 1 % must be more than all prefills at that time.
tasks = st.lists(
    st.builds(
        Task,
        at_s=st.sampled_from([0.0, 0.0, 0.0, 2.5, 20.0]),
        prompt_tokens=st.integers(1, 250),
        tokens=st.integers(700, 1200),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=20, deadline=None)
@given(tasks, st.booleans())
def test_the_closed_form_agrees_with_steps_taken_one_by_one(jobs: list[Task], reserved: bool) -> None:
    steps, engine = Steps(MODEL, reserved), SimEngine(MODEL, None, reserved)
    steps.play(jobs)
    seen = play(engine, jobs)
    assert seen.ended_s == pytest.approx(steps.ended_s, rel=0.01)
    assert engine.busy_s == pytest.approx(steps.busy_s, rel=0.01)
    assert engine.prefilled_tokens == steps.prefilled
    assert seen.tokens == sum(task.tokens for task in jobs)
    assert engine.preemptions == steps.preemptions == 0


@pytest.mark.parametrize("seed", range(12))
def test_so_it_does_where_kv_runs_out(seed: int) -> None:
    draw = random.Random(seed)
    jobs = [Task(0.0, draw.randint(20, 200), draw.randint(300, 900)) for _ in range(8)]
    model = replace(MODEL, kv_capacity_tokens=draw.randint(1100, 3000))
    steps, engine = Steps(model, False), SimEngine(model, None, False)
    steps.play(jobs)
    seen = play(engine, jobs)
    assert seen.ended_s == pytest.approx(steps.ended_s, rel=0.01)
    assert engine.preemptions == steps.preemptions > 0
    assert engine.prefilled_tokens == pytest.approx(steps.prefilled, rel=0.01)
    assert engine.busy_s == pytest.approx(steps.busy_s, rel=0.01)
    assert seen.most_kv <= model.kv_capacity_tokens + 1e-6


crowds = st.lists(
    st.builds(
        Task,
        at_s=st.sampled_from([0.0, 1.0, 7.0]),
        prompt_tokens=st.integers(1, 300),
        tokens=st.integers(1, 300),
        limit_tokens=st.integers(1, 600),
    ),
    min_size=1,
    max_size=25,
)
machines: Any = st.fixed_dictionaries(
    {
        "kv_capacity_tokens": st.sampled_from([640, 1024, 4096]),
        "page_tokens": st.sampled_from([1, 16]),
        "max_running_requests": st.sampled_from([2, 64]),
        "admission": st.sampled_from(["eager", "sglang"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(crowds, machines)
def test_kv_stays_within_the_capacity_and_no_token_is_lost(
    jobs: list[Task], machine: dict[str, Any]
) -> None:
    model = replace(MODEL, **machine)
    seen = play(SimEngine(model, None, False), jobs)
    assert seen.tokens == sum(task.tokens for task in jobs)
    assert sorted(seen.ended_s) == list(range(len(jobs)))
    assert seen.most_kv <= model.kv_capacity_tokens + 1e-6
    assert seen.most_batch <= model.max_running_requests


# ---- whole rollouts ----

engines = st.builds(
    EngineModel,
    fixed_s=st.just(1e-3),
    weights_s=st.sampled_from([0.0, 0.01]),
    token_s=st.sampled_from([1e-5, 2e-3]),
    kv_token_s=st.sampled_from([0.0, 1e-6, 1e-4]),
    prefill_token_s=st.sampled_from([0.0, 1e-4]),
    kv_capacity_tokens=st.sampled_from([WHOLE, WHOLE + 100, 4 * WHOLE, 100 * WHOLE]),
    page_tokens=st.sampled_from([1, 16]),
    max_running_requests=st.sampled_from([1, 3, 64]),
    admission=st.sampled_from(["eager", "sglang"]),
    prefill_s=st.sampled_from([0.0, 0.005]),
    prefix_token_s=st.sampled_from([0.0, 1e-5]),
    turnaround_s=st.sampled_from([0.0, 0.02]),
    move_s=st.sampled_from([0.0, 0.01]),
    move_token_s=st.sampled_from([0.0, 1e-5]),
)
workloads = st.builds(
    Workload,
    name=st.just("drawn"),
    engine=engines,
    engines=st.integers(1, 4),
    groups=st.just(1),
    group_size=st.just(1),
    prompt_tokens=st.just(PROMPT_TOKENS),
    max_new_tokens=st.just(MOST_TOKENS),
    lengths=st.just(Lengths(100.0, 1.0, 0.5)),
    chunk_tokens=st.sampled_from([7, 50, 299, 300, 1000]),
)
settling = st.sampled_from([0.0, 0.5])
all_lengths = st.lists(
    st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=5), min_size=1, max_size=6
)


@dataclass
class Seen:
    """What went in and out of a core."""

    dispatched: list[Dispatch] = field(default_factory=list)
    delivered: list[Deliver] = field(default_factory=list)
    brought_tokens: int = 0


class WatchedCore(RouterCore):
    """A core that checks itself, and that keeps what it is told and says."""

    def __init__(self, policy: Policy, settings: CoreSettings) -> None:
        super().__init__(policy, settings)
        self.seen, self._calls = Seen(), 0

    def handle_all(self, events: tuple[Event, ...] | list[Event], now_s: float) -> list[Action]:
        actions = super().handle_all(events, now_s)
        self.seen.brought_tokens += sum(e.new_tokens for e in events if isinstance(e, ChunkFinished))
        self.seen.dispatched += [action for action in actions if isinstance(action, Dispatch)]
        self.seen.delivered += [action for action in actions if isinstance(action, Deliver)]
        self._calls += 1
        if self._calls % 16 == 0:
            self.check()
        return actions


class WatchedSimulation(Simulation):
    """Sees to it that nothing is expected of the pool that was not written yet."""

    def _dispatch(self, action: Dispatch) -> None:
        before_tokens, written_s = self._written.get(action.request_id, (0, 0.0))
        if self.core.settings.settle_s and action.came_from is not None and self.now_s < written_s:
            # The pool has whole pages, and of the last token there is no KV: what is left is no page.
            page = self.workload.engine.page_tokens
            assert (action.pulled_tokens - 1) // page * page <= before_tokens
        super()._dispatch(action)


def watched(
    workload: Workload, name: str, lengths: list[list[int]], settle_s: float = 0.0
) -> tuple[SimResult, Simulation, WatchedCore]:
    """Told of a time for KV to settle, the core also moves what is short."""
    policy = sim_policy(name, None, workload, lengths)
    placement = PlacementSettings(pull_margin_tokens=0 if settle_s else 512)
    core_settings = CoreSettings(
        chunk_tokens=workload.chunk_tokens, settle_s=settle_s, placement=placement
    )
    simulation = WatchedSimulation(workload, policy, lengths, core_settings)
    simulation.core = core = WatchedCore(policy, core_settings)
    return simulation.run(), simulation, core


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths, settle_s=settling)
def test_every_request_is_delivered_once_with_all_its_tokens(
    name: str, workload: Workload, lengths: list[list[int]], settle_s: float
) -> None:
    result, _, core = watched(workload, name, lengths, settle_s)
    expected = [request_name(g, s) for g, samples in enumerate(lengths) for s in range(len(samples))]
    assert sorted(action.request_id for action in core.seen.delivered) == sorted(expected)
    assert {action.outcome for action in core.seen.delivered} == {"finished"}
    assert core.seen.brought_tokens == result.output_tokens == sum(map(sum, lengths))
    assert result.requests == len(expected)
    assert result.chunks == len(core.seen.dispatched)
    assert result.moved_chunks == sum(d.came_from is not None for d in core.seen.dispatched)


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths, settle_s=settling)
def test_nothing_is_left_behind(
    name: str, workload: Workload, lengths: list[list[int]], settle_s: float
) -> None:
    _, simulation, core = watched(workload, name, lengths, settle_s)
    core.check()
    counts = core.statistics()
    assert (counts.waiting, counts.in_flight, len(core.settling)) == (0, 0, 0)
    held = (core.buffer.requests, core.buffer.groups, core.buffer.parked, core.chunks, core.buffer.queue)
    assert [len(part) for part in held] == [0] * 5
    for engine in simulation.engines.values():
        assert (engine.batch, engine.kv_tokens, len(engine.waiting)) == (0, 0.0, 0)
        assert engine.next_s() is None


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths)
def test_nothing_is_faster_than_it_can_be(
    name: str, workload: Workload, lengths: list[list[int]]
) -> None:
    """Not than the longest sample alone, nor than all work at the pace of the largest batch."""
    result = simulate(workload, name, lengths=lengths)
    model, tokens = workload.engine, [length for samples in lengths for length in samples]

    def least_s(length: int, batch: int) -> float:
        """An engine's time for one sample, if `batch` share what a step costs without KV."""
        kv_s = (PROMPT_TOKENS * length + length * length / 2) * model.kv_token_s
        return length * model.step_s(batch, 0.0) / batch + kv_s

    most = min(len(tokens), model.max_running_requests)
    start_s = model.turnaround_s + model.start_s(PROMPT_TOKENS, 0)
    alone_s = start_s + least_s(max(tokens), 1)
    work_s = start_s + sum(least_s(length, most) for length in tokens) / workload.engines
    assert result.makespan_s >= max(alone_s, work_s) * (1 - 1e-6)
    assert result.tokens_per_s == pytest.approx(sum(tokens) / result.makespan_s)
    assert 0 <= result.tail_s <= result.makespan_s
    assert -1e-9 <= result.idle_share < 1
    if len(tokens) == 1 and not sim_policy(name, None, workload, lengths).divided:
        assert result.makespan_s == pytest.approx(alone_s), "alone it is as fast as it can be"


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths)
def test_only_what_can_happen_is_counted(
    name: str, workload: Workload, lengths: list[list[int]]
) -> None:
    result = simulate(workload, name, lengths=lengths)
    policy = sim_policy(name, None, workload, lengths)
    if policy.reserves:
        assert result.preemptions == 0, "what is reserved is never taken away"
    if workload.engines == 1 or not policy.divided:
        assert (result.moved_chunks, result.moved_tokens) == (0, 0)
    prompts, once = PROMPT_TOKENS * result.requests, PROMPT_TOKENS * len(lengths)
    assert result.prefilled_tokens >= once
    if not result.preemptions and not result.moved_chunks:
        assert result.prefilled_tokens <= prompts, "nothing is computed twice without a reason"
        assert workload.engines > 1 or result.prefilled_tokens == once, "siblings share a prompt"


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths, points=st.sampled_from([1, 10, 100]))
def test_the_same_arguments_give_the_same_rollout_and_timeline(
    name: str, workload: Workload, lengths: list[list[int]], points: int
) -> None:
    result = simulate(workload, name, lengths=lengths, timeline_points=points)
    assert result == simulate(workload, name, lengths=lengths, timeline_points=points)
    assert replace(result, timeline=None) == simulate(workload, name, lengths=lengths)
    timeline = result.timeline
    assert timeline is not None
    samples = len(timeline.times_s)
    assert len(timeline.finished_share) == samples <= 2 * points + 2
    assert len(timeline.running) == len(timeline.kv_share) == workload.engines
    assert {len(series) for series in timeline.running} == {samples}
    assert {len(series) for series in timeline.kv_share} == {samples}
    assert timeline.times_s[-1] == result.makespan_s
    assert all(before < after for before, after in itertools.pairwise(timeline.times_s))
    assert timeline.finished_share == sorted(timeline.finished_share)
    assert (timeline.finished_share[0], timeline.finished_share[-1]) == (0.0, 1.0)
    assert all(0 <= share <= 1 + 1e-9 for series in timeline.kv_share for share in series)
    slots = workload.engine.max_running_requests
    assert all(0 <= running <= slots for series in timeline.running for running in series)
    assert all(series[-1] == 0 for series in timeline.running)


@everywhere
@settings(max_examples=EXAMPLES, deadline=None)
@given(workload=workloads, lengths=all_lengths, max_draft=st.integers(1, 8))
def test_drafts_that_are_never_accepted_change_nothing(
    name: str, workload: Workload, lengths: list[list[int]], max_draft: int
) -> None:
    drafts = replace(workload, speculation=Drafting(max_draft, accepted_x=0.0))
    plain = simulate(workload, name, lengths=lengths)
    assert simulate(drafts, name, lengths=lengths, speculation=True) == plain
    assert simulate(drafts, name, lengths=lengths) == plain
