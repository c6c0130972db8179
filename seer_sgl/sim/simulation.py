"""A rollout in simulated time: a heap of timed events around the router's own core."""

import statistics
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from seer_sgl.router.core import Policy, RouterCore
from seer_sgl.router.core.actions import Action, Deliver, Dispatch, LookUp, Wake
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.events import (
    ChunkFinished,
    ChunkTiming,
    EngineJoined,
    Event,
    PoolFound,
    PoolState,
    Submitted,
    Ticked,
)
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.engine import Job, SimEngine
from seer_sgl.sim.oracles import engine_name
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.speculation import gained
from seer_sgl.sim.timeline import Recorder
from seer_sgl.sim.workload import Workload
from seer_sgl.types import EngineId, EngineSpec, GroupId, RequestId

Meter = Callable[[], int]
"""A clock of CPU time in nanoseconds, such as `time.thread_time_ns`."""

_Timed = tuple[float, int, SimEngine | None, int, Job | PoolFound | None]
"""(seconds, number, engine, version, what): a job arrives at an engine; without one, something in the
engine's batch changes; without an engine, the pool answers, or the core wanted to be woken."""


class Simulation:
    """One iteration under one policy. `lengths[g][i]` is the output of sample `i` of group `g`."""

    def __init__(
        self,
        workload: Workload,
        policy: Policy,
        lengths: list[list[int]],
        settings: CoreSettings,
        meter: Meter | None = None,
        timeline_points: int = 0,
        context: LengthContext | None = None,
    ) -> None:
        self.workload, self.policy, self.lengths = workload, policy, lengths
        self.core = RouterCore(policy, settings, context)
        self.engines = {
            engine_name(number): SimEngine(workload.engine, workload.speculation, policy.reserves)
            for number in range(workload.engines)
        }
        self.recorder = Recorder(list(self.engines.values()), timeline_points)
        self.delivered_s: list[float] = []
        self.now_s = 0.0
        self.moved_tokens = 0
        self.requests = sum(map(len, lengths))
        self._meter = meter
        self._costs_us: list[float] = []
        self._timed: list[_Timed] = []
        self._numbers = count()
        self._left: dict[RequestId, int] = {}
        self._total: dict[RequestId, int] = {}
        self._group_of: dict[RequestId, int] = {}
        self._siblings = [0] * len(lengths)
        """Samples of each group that have sent some of their output."""
        self._prompts: set[tuple[int, EngineId]] = set()
        """Where each group's prompt has been computed."""
        self._touched: dict[int, SimEngine] = {}
        self._written: dict[RequestId, tuple[int, float]] = {}
        """Of requests that have run: tokens in the pool before the last chunk, and when its own are."""

    def run(self) -> SimResult:
        """Until every request is delivered."""
        self._decide(self._arrivals())
        while self._timed:
            self.now_s, _, engine, version, what = heappop(self._timed)
            if engine is not None and what is None and version != engine.version:
                continue
            self.recorder.until(self.now_s, len(self.delivered_s) / self.requests)
            if engine is None:
                self._decide([what if isinstance(what, PoolFound) else Ticked()])
            elif isinstance(what, Job):
                self._arrive(engine, what)
            else:
                self._change(engine)
        left = self.requests - len(self.delivered_s)
        assert not left, f"{left} of {self.requests} requests never ended"
        return self._result()

    # ---- events ----

    def _arrivals(self) -> list[Event]:
        model, workload = self.workload.engine, self.workload
        context = workload.prompt_tokens + workload.max_new_tokens + 2
        events: list[Event] = [
            EngineJoined(
                EngineSpec(
                    engine_id,
                    model.kv_capacity_tokens,
                    model.page_tokens,
                    model.max_running_requests,
                    context,
                )
            )
            for engine_id in self.engines
        ]
        events.append(PoolState(True))
        for group, samples in enumerate(self.lengths):
            group_id = GroupId(str(group))
            for sample, tokens in enumerate(samples):
                name = request_name(group, sample)
                self._left[name] = self._total[name] = tokens
                self._group_of[name] = group
                prompt, limit = workload.prompt_tokens, workload.max_new_tokens
                events.append(Submitted(name, group_id, prompt, limit, prompt_key=group_id))
        return events

    def _arrive(self, engine: SimEngine, job: Job) -> None:
        engine.advance(self.now_s)
        engine.start(job)
        self._touch(engine)
        self._retime()

    def _change(self, engine: SimEngine) -> None:
        engine.advance(self.now_s)
        ended = engine.end()
        self._touch(engine)
        events: list[Event] = []
        for job in ended:
            group = self._group_of[job.request_id]
            if self._left[job.request_id] + job.new_tokens == self._total[job.request_id]:
                self._siblings[group] += 1
            over = not self._left[job.request_id]
            events.append(ChunkFinished(job.chunk_id, job.new_tokens, over, self._timing(job)))
        if events:
            self._decide(events)
        else:
            self._retime()

    def _decide(self, events: list[Event]) -> None:
        if self._meter is None:
            actions = self.core.handle_all(events, self.now_s)
        else:
            began_ns = self._meter()
            actions = self.core.handle_all(events, self.now_s)
            took_us = (self._meter() - began_ns) / 1000
            dispatched = sum(type(action) is Dispatch for action in actions)
            if dispatched and self.now_s > 0:
                self._costs_us += [took_us / dispatched] * dispatched
        for action in actions:
            self._perform(action)
        self._retime()

    # ---- actions ----

    def _perform(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(action)
            case LookUp():
                self._look_up(action)
            case Deliver():
                self.delivered_s.append(self.now_s)
            case Wake():
                self._push(action.at_s, None, 0, None)

    def _dispatch(self, action: Dispatch) -> None:
        name, model = action.request_id, self.workload.engine
        left, total = self._left[name], self._total[name]
        new_tokens = min(action.max_new_tokens, left)
        self._left[name] = left - new_tokens
        first = left == total
        held = self.workload.prompt_tokens + total - left
        # With a chunk behind it a sample has been counted itself; its own history is no sibling's.
        siblings = self._siblings[self._group_of[name]] - (not first)
        delay_s, prefill = model.turnaround_s, 0
        if first or action.came_from is not None:
            prefill = max(0, held - action.pulled_tokens - self._prompt_there(action))
        if action.came_from is not None or action.pulled_tokens:
            delay_s += model.move_takes_s(action.pulled_tokens)
            self.moved_tokens += action.pulled_tokens
        job = Job(
            chunk_id=action.chunk_id,
            request_id=name,
            held_tokens=held,
            tokens=new_tokens,
            limit_tokens=action.max_new_tokens,
            new_tokens=new_tokens,
            prefill_tokens=prefill,
            gained=gained(siblings),
            pulled_tokens=action.pulled_tokens,
        )
        self._push(self.now_s + delay_s, self.engines[action.engine_id], 0, job)

    def _prompt_there(self, action: Dispatch) -> int:
        """Prompt tokens that the engine has computed for a sibling before."""
        place = self._group_of[action.request_id], action.engine_id
        if place in self._prompts:
            return self.workload.prompt_tokens
        self._prompts.add(place)
        return 0

    # ---- the pool ----

    def _timing(self, job: Job) -> ChunkTiming | None:
        """What an engine would tell of the chunk's start; and its KV is on its way to the pool now."""
        model = self.workload.engine
        held_tokens = (
            self.workload.prompt_tokens + self._total[job.request_id] - self._left[job.request_id]
        )
        computed_tokens = job.new_tokens + job.prefill_tokens
        written_s = self.now_s + model.move_takes_s(computed_tokens)
        self._written[job.request_id] = held_tokens - computed_tokens, written_s
        if not job.prefill_tokens and not job.pulled_tokens:
            return None
        prefill_s = model.start_s(job.prefill_tokens, 0)
        load_s = model.move_takes_s(job.pulled_tokens)
        return ChunkTiming(job.prefill_tokens, prefill_s, job.pulled_tokens, load_s)

    def _look_up(self, action: LookUp) -> None:
        """Answer once the last chunk's KV is in the pool, or when patience is over."""
        before_tokens, written_s = self._written[action.request_id]
        in_time = written_s <= self.now_s + action.patience_s
        found = PoolFound(action.request_id, action.tokens if in_time else before_tokens)
        at_s = max(self.now_s, written_s) if in_time else self.now_s + action.patience_s
        self._push(at_s, None, 0, found)

    # ---- time ----

    def _touch(self, engine: SimEngine) -> None:
        self._touched[id(engine)] = engine

    def _retime(self) -> None:
        for engine in self._touched.values():
            engine.version += 1
            at_s = engine.next_s()
            if at_s is not None:
                self._push(at_s, engine, engine.version, None)
        self._touched.clear()

    def _push(
        self, at_s: float, engine: SimEngine | None, version: int, what: Job | PoolFound | None
    ) -> None:
        heappush(self._timed, (at_s, next(self._numbers), engine, version, what))

    def _result(self) -> SimResult:
        makespan_s = self.now_s = self.delivered_s[-1]
        engines = list(self.engines.values())
        late = -(-len(self.delivered_s) * 9 // 10) - 1
        output_tokens = sum(map(sum, self.lengths))
        counts = self.core.statistics()
        return SimResult(
            policy=self.policy.name,
            requests=self.requests,
            output_tokens=output_tokens,
            makespan_s=makespan_s,
            tail_s=makespan_s - self.delivered_s[late],
            tokens_per_s=output_tokens / makespan_s,
            chunks=counts.chunks,
            moved_chunks=counts.moved_chunks,
            moved_tokens=self.moved_tokens,
            preemptions=sum(engine.preemptions for engine in engines),
            prefilled_tokens=int(sum(engine.prefilled_tokens for engine in engines)),
            idle_share=1 - sum(engine.busy_s for engine in engines) / (makespan_s * len(engines)),
            decision_us=statistics.median(self._costs_us) if self._costs_us else 0.0,
            timeline=self.recorder.timeline(makespan_s, 1.0),
        )


def request_name(group: int, sample: int) -> RequestId:
    """The id under which a sample is submitted."""
    return RequestId(f"{group}.{sample}")
