"""A simulated engine. Between two changes of its batch it decodes in closed form, not step by step.

All running requests get tokens at the same pace, so one clock per engine is enough: the tokens that each
of them has got since the engine's start. A request ends at a known reading of that clock. With `b`
requests and `n` cached tokens, the next `x` readings take

    a * x + g * x**2 / 2,   a = (step without KV + n * kv_token_s) / t,   g = b * kv_token_s / t

where `t` is the number of tokens that a step brings (1 without speculation).
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import sqrt

from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.speculation import Drafting, best_draft
from seer_sgl.types import ChunkId, RequestId

SGLANG_CLIP_TOKENS = 4096
SGLANG_SHARE = 0.7
SGLANG_LEAST_SHARE = 0.098
SGLANG_DECAY_STEPS = 600
SGLANG_RETRACT_STEPS = 20
"""SGLang 0.5.23 counts each request's remaining output to a limit: in full where it is new, at a share
where it runs. The share falls from 0.7 to 0.14 of that in 600 steps; a retraction sets it to what has
shown, an idle engine starts again. Once a request does not fit, nobody is asked until one leaves
(`schedule_policy`, `new_token_ratio_tracker`, `batch_is_full` of the scheduler)."""

_EPSILON_TOKENS = 1e-6


@dataclass(slots=True, eq=False)
class Job:
    """One chunk on an engine."""

    chunk_id: ChunkId
    request_id: RequestId
    held_tokens: float
    """KV that it starts from."""
    tokens: float
    """What it will generate here before it ends."""
    limit_tokens: int
    """What it was allowed to generate, which is all that the engine knows."""
    new_tokens: int
    """The same, kept for the answer: a preemption lessens the other."""
    prefill_tokens: int
    gained: float = 0.0
    """Share of what siblings can add to its drafts that they do add."""
    pulled_tokens: int = 0
    """Of what it starts from, what came from the pool."""
    number: int = 0
    end_clock: float = 0.0
    running: bool = False


@dataclass(slots=True, eq=False)
class SimEngine:
    """One engine's batch, KV and clock. Advance it to a time before you change it."""

    model: EngineModel
    drafting: Drafting | None = None
    reserved: bool = True
    """Whether the scheduler sees to it that KV never runs out."""
    now_s: float = 0.0
    clock_tokens: float = 0.0
    batch: int = 0
    kv_tokens: float = 0.0
    ready_s: float = 0.0
    """A prefill keeps decoding from going on before this time."""
    busy_s: float = 0.0
    preemptions: int = 0
    prefilled_tokens: float = 0.0
    version: int = 0
    """Of its entry among the timed events; older ones are void."""
    waiting: deque[Job] = field(default_factory=deque)
    """Admitted later, as KV allows: only where the scheduler has not reserved it."""
    _running: list[tuple[float, int, Job]] = field(default_factory=list)
    _newest: list[Job] = field(default_factory=list)
    _gained_sum: float = 0.0
    _full: bool = False
    """Nothing is admitted until a request leaves. Where SGLang admits."""
    _share: float = SGLANG_SHARE
    _share_clock: float = 0.0
    """The share of outputs that SGLang counted at that reading of the clock."""
    _numbers: int = 0
    _step_s: float = 0.0
    """Of a step, the part that does not depend on KV."""
    _pace: float = 1.0
    """Tokens per step."""

    # ---- time ----

    def advance(self, now_s: float) -> None:
        """Decode until `now_s`, which is not beyond `next_s()`."""
        start_s = max(self.now_s, self.ready_s)
        if self.batch:
            self.busy_s += now_s - self.now_s
            if now_s > start_s:
                self._forward(self._tokens_in(now_s - start_s))
        self.now_s = now_s

    def next_s(self) -> float | None:
        """When the next request ends or KV runs out; None while nothing runs."""
        if not self.batch:
            return None
        tokens = self._running[0][0] - self.clock_tokens
        if not self.reserved and self.batch > 1:  # one alone has nothing to preempt, and goes on
            tokens = min(tokens, self._tokens_to_full())
        return max(self.now_s, self.ready_s) + self._seconds_for(max(0.0, tokens))

    def kv_at(self, now_s: float) -> float:
        """Tokens cached at a time before the next change."""
        running_s = now_s - max(self.now_s, self.ready_s)
        if not self.batch or running_s <= 0:
            return self.kv_tokens
        return self.kv_tokens + self.batch * self._tokens_in(running_s)

    def _forward(self, tokens: float) -> None:
        self.clock_tokens += tokens
        self.kv_tokens += tokens * self.batch

    def _tokens_in(self, seconds: float) -> float:
        first_s = (self._step_s + self.kv_tokens * self.model.kv_token_s) / self._pace
        growth_s = self.batch * self.model.kv_token_s / self._pace
        if growth_s * seconds < 1e-9 * first_s * first_s:
            return seconds / first_s
        return (sqrt(first_s * first_s + 2 * growth_s * seconds) - first_s) / growth_s

    def _seconds_for(self, tokens: float) -> float:
        first_s = (self._step_s + self.kv_tokens * self.model.kv_token_s) / self._pace
        return tokens * (first_s + self.batch * self.model.kv_token_s / self._pace * tokens / 2)

    def _tokens_to_full(self) -> float:
        return (self._usable_tokens(self.batch) - self.kv_tokens) / self.batch

    def _usable_tokens(self, requests: int) -> float:
        """KV less what lies unused in each request's last page, half a page on average."""
        return self.model.kv_capacity_tokens - requests * (self.model.page_tokens - 1) / 2

    # ---- work ----

    def start(self, job: Job) -> None:
        """Run a chunk: at once where its KV is reserved, else as soon as there is KV for it."""
        self.waiting.append(job)
        self._make_room()

    def end(self) -> list[Job]:
        """Take out what has ended by now, and go on with the others."""
        ended = self._ended()
        self._make_room()
        return ended

    def _make_room(self) -> None:
        if not self.reserved:
            while self.batch > 1 and self._tokens_to_full() <= _EPSILON_TOKENS:
                self._preempt()
            self._admit_some()
        while self.reserved and self.waiting:
            self._admit(self.waiting.popleft())
        self._set_pace()

    def _admit_some(self) -> None:
        """Start waiting requests while the next one fits."""
        promised = 0.0
        while self.waiting and not self._full:
            job = self.waiting[0]
            if not self._fits(job, promised):
                self._full = self.model.admission == "sglang"
                return
            self._admit(self.waiting.popleft())
            # Of the same round: counted in full, of which the next one sees the share already.
            promised += (1 - self._share_now()) * _clipped(job.limit_tokens) + self.model.page_tokens

    def _ended(self) -> list[Job]:
        ended = []
        while self._running and self._running[0][0] <= self.clock_tokens + _EPSILON_TOKENS:
            job = heappop(self._running)[2]
            if self._newest[-1] is job:
                self._newest.pop()
            self._drop(job, job.held_tokens + job.tokens)
            ended.append(job)
        if not self.batch and not self.waiting:
            self._share, self._share_clock = SGLANG_SHARE, self.clock_tokens
        if not self.batch:
            self.kv_tokens = self._gained_sum = 0.0
            self._newest.clear()
        return ended

    def _fits(self, job: Job, promised: float) -> bool:
        """Whether it may start. `promised`: KV for others of this round that does not show yet."""
        if self.batch >= self.model.max_running_requests:
            return False
        if not self.batch:
            return True
        if self.model.admission == "sglang":
            need = job.held_tokens + _clipped(job.limit_tokens) + self.model.page_tokens
            need += promised + self._set_aside()
        else:
            # One token more for each that runs, or the admission would end in a preemption at once.
            need = job.held_tokens + self.batch + 1
        return self.kv_tokens + need <= self._usable_tokens(self.batch + 1)

    def _set_aside(self) -> float:
        """KV that SGLang expects the running requests to need still."""
        left = (job.limit_tokens - job.tokens + end - self.clock_tokens for end, _, job in self._running)
        return self._share_now() * sum(map(_clipped, left))

    def _share_now(self) -> float:
        steps = self.clock_tokens - self._share_clock
        decayed = steps / SGLANG_DECAY_STEPS * (SGLANG_SHARE - SGLANG_LEAST_SHARE)
        return max(SGLANG_LEAST_SHARE, self._share - decayed)

    def _learn_share(self) -> None:
        """After a retraction SGLang goes by what the requests that still run have brought."""
        brought = limits = 0.0
        for end, _, job in self._running:
            brought += job.new_tokens - (end - self.clock_tokens) + SGLANG_RETRACT_STEPS
            limits += job.limit_tokens + job.new_tokens - job.tokens
        self._share, self._share_clock = min(1.0, brought / (limits + 1)), self.clock_tokens

    def _admit(self, job: Job) -> None:
        self._numbers += 1
        job.number, job.running = self._numbers, True
        job.end_clock = self.clock_tokens + job.tokens
        self.batch += 1
        self.kv_tokens += job.held_tokens
        self._gained_sum += job.gained
        self.prefilled_tokens += job.prefill_tokens
        start_s = self.model.start_s(job.prefill_tokens, job.held_tokens - job.prefill_tokens)
        if start_s:
            self.ready_s = max(self.ready_s, self.now_s) + start_s
        heappush(self._running, (job.end_clock, job.number, job))
        self._newest.append(job)

    def _drop(self, job: Job, kv_tokens: float) -> None:
        job.running = self._full = False
        self.batch -= 1
        self.kv_tokens -= kv_tokens
        self._gained_sum -= job.gained

    def _preempt(self) -> None:
        """The newest request gives up its KV, waits, and computes everything again."""
        while not self._newest[-1].running:
            self._newest.pop()
        job = self._newest.pop()
        self._running.remove((job.end_clock, job.number, job))
        heapify(self._running)
        left = job.end_clock - self.clock_tokens
        done = job.tokens - left
        self._drop(job, job.held_tokens + done)
        job.held_tokens += done
        job.tokens = left
        job.limit_tokens -= int(done)
        job.prefill_tokens = int(job.held_tokens)
        if self.model.admission == "sglang":
            self.waiting.append(job)
            self._learn_share()
        else:
            self.waiting.appendleft(job)
        self.preemptions += 1

    def _set_pace(self) -> None:
        if not self.batch:
            return
        if self.drafting is None:
            self._step_s, self._pace = self.model.step_s(self.batch, 0.0), 1.0
            return
        share = self._gained_sum / self.batch
        self._step_s, self._pace = best_draft(
            self.model, self.drafting, self.batch, self.kv_tokens, share
        )


def _clipped(tokens: float) -> float:
    """What SGLang expects at most of one request."""
    return min(tokens, SGLANG_CLIP_TOKENS)
