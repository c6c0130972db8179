"""What the context learns of lengths, against samples whose lengths are known.

A rollout is played as engines would: all samples run at once, chunk by chunk, the shortest finish first,
and the others are known only by the edges of their chunks.
"""

from itertools import pairwise
from math import erfc, exp, inf, isfinite, log, pi, sqrt
from random import Random
from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.context import (
    DRIFT,
    NEXT_TIME,
    LengthContext,
    LengthPrior,
    normal_hazard,
)
from seer_sgl.router.core.estimates import mean_beyond
from seer_sgl.router.core.events import Submitted
from seer_sgl.router.core.policy import seer
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId

LIMIT = 400_000
EXPECTED = log(0.25 * LIMIT)
"""What the context assumes of the mean before anything is seen."""
ENGINE = Engine(EngineSpec(EngineId("a"), 1 << 40, 1, 1 << 20, 1 << 40))


class Rollout:
    """Groups of samples whose lengths are drawn, and a context that sees them grow."""

    def __init__(self, groups: int, size: int, spreads: tuple[float, float], shift: float) -> None:
        self.random = Random(1)
        between, within = spreads
        self.buffer = RequestBuffer(seer(), CoreSettings())
        self.context = self.buffer.context
        self.means: list[float] = []
        self.lengths: dict[Request, int] = {}
        for number in range(groups):
            mean = self.random.gauss(EXPECTED + shift, between)
            logs = [self.random.gauss(mean, within) for _ in range(size)]
            lengths = [min(LIMIT, max(1, round(exp(it)))) for it in logs]
            self.means.append(fmean(log(it) for it in lengths))
            for sample, length in enumerate(lengths):
                self.lengths[self._waiting(number, sample)] = length
        self.within = sqrt(
            fmean(
                (log(length) - self.means[int(request.group.group_id)]) ** 2
                for request, length in self.lengths.items()
            )
            * size
            / (size - 1)
        )

    def _waiting(self, group: int, sample: int) -> Request:
        name = RequestId(f"{group}.{sample}")
        self.buffer.add(Submitted(name, GroupId(str(group)), 1, LIMIT), 0.0)
        request = self.buffer.requests[name]
        self.buffer.take(request)
        return request

    @property
    def groups(self) -> list[Group]:
        return list(self.buffer.groups.values())

    def step(self, request: Request, chunk_tokens: int) -> None:
        """Let one chunk of the request end, if it has not ended itself."""
        tokens = min(chunk_tokens, self.lengths[request] - request.generated_tokens)
        if tokens > 0:
            ended = request.generated_tokens + tokens == self.lengths[request]
            self.buffer.record(Chunk(ChunkId(1), request, ENGINE, tokens, 0), tokens, ended)

    def play(self, chunk_tokens: int, until_share: float = 1.0) -> None:
        """Round by round, until so many of the samples have finished."""
        requests = list(self.lengths)
        while sum(group.finished_count for group in self.groups) < until_share * len(requests):
            self.random.shuffle(requests)
            for request in requests:
                self.step(request, chunk_tokens)

    def refresh(self, times: int) -> None:
        for _ in range(times):
            for group in self.groups:
                self.context.refresh(group)

    def off(self) -> tuple[float, float, float]:
        """How far the context is from the samples: shift, between, within, with the prior's part taken
        into account."""
        context, prior, groups = self.context, self.context.prior, len(self.means)
        weight, count = prior.groups, len(self.lengths)
        shift = sum(mean - EXPECTED for mean in self.means) / (weight + groups)
        center = EXPECTED + shift
        squares = sum((mean - center) ** 2 for mean in self.means)
        between = sqrt((weight * prior.between**2 + squares) / (weight + groups))
        residues = self.within**2 * count
        within = sqrt((weight * prior.within**2 + residues) / (weight + count))
        return context.shift - shift, context.between - between, context.within - within


SPREADS = [(0.8, 0.5), (0.0, 0.5), (0.8, 0.0), (0.0, 0.0), (1.5, 0.2), (0.2, 1.2), (0.5, 0.05)]
"""Between groups, and within one."""


@pytest.mark.parametrize("shift", [-1.0, -2.5])
@pytest.mark.parametrize("spreads", SPREADS)
def test_at_the_end_the_common_values_are_the_samples(
    spreads: tuple[float, float], shift: float
) -> None:
    rollout = Rollout(150, 8, spreads, shift)
    rollout.play(chunk_tokens=30_000)
    assert rollout.off() == pytest.approx((0, 0, 0), abs=0.25)
    rollout.refresh(5)
    assert rollout.off() == pytest.approx((0, 0, 0), abs=0.06 + 0.05 * spreads[1])
    errors = [g.log_mean - mean for g, mean in zip(rollout.groups, rollout.means, strict=True)]
    assert max(map(abs, errors)) < 0.1 + 0.6 * spreads[1]
    assert all(0 < group.log_variance < 0.3 for group in rollout.groups)


@pytest.mark.parametrize("spreads", SPREADS)
def test_a_group_that_runs_on_is_known_to_be_long(spreads: tuple[float, float]) -> None:
    """Samples that still run count, by how far they have come."""
    rollout = Rollout(150, 8, spreads, -1.0)
    rollout.play(chunk_tokens=8_192, until_share=0.5)
    ended = [group.log_mean for group in rollout.groups if group.finished_count == 8]
    running = [group for group in rollout.groups if not group.finished_count]
    for group in running:
        assert group.log_mean > log(min(group.underway)) - rollout.within
    if running and ended:
        assert min(group.log_mean for group in running) > fmean(ended)


@pytest.mark.parametrize("chunk_tokens", [8_192, 30_000])
def test_the_order_of_events_makes_little_difference(chunk_tokens: int) -> None:
    """Group after group, as engines that take one at a time, or all at once, as above."""
    learned = []
    for at_once in (True, False):
        rollout = Rollout(150, 8, (0.8, 0.5), -1.0)
        if at_once:
            rollout.play(chunk_tokens)
        else:
            for request, length in rollout.lengths.items():
                for _ in range(0, length, chunk_tokens):
                    rollout.step(request, chunk_tokens)
        assert rollout.off() == pytest.approx((0, 0, 0), abs=0.25)
        rollout.refresh(8)
        context = rollout.context
        learned.append((context.shift, context.between, context.within))
    assert learned[0] == pytest.approx(learned[1], abs=0.005)


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("spreads", SPREADS)
def test_to_refresh_again_and_again_comes_to_rest(spreads: tuple[float, float], share: float) -> None:
    rollout = Rollout(60, 8, spreads, -1.5)
    rollout.play(8_192, share)
    rollout.refresh(60)
    context, edition = rollout.context, rollout.context.edition
    before = context.shift, context.between, context.within
    means = [group.log_mean for group in rollout.groups]
    rollout.refresh(10)
    assert (context.shift, context.between, context.within) == pytest.approx(before, abs=DRIFT)
    assert context.edition <= edition + 1
    assert [group.log_mean for group in rollout.groups] == pytest.approx(means, abs=3 * DRIFT)


def test_a_new_edition_comes_only_with_drift() -> None:
    rollout = Rollout(60, 8, (0.8, 0.5), -1.0)
    context = rollout.context
    seen, published = 0, (context.shift, context.between, context.within)
    for request in rollout.lengths:
        rollout.step(request, LIMIT)
        now = context.shift, context.between, context.within
        drifted = max(abs(a - b) for a, b in zip(now, published, strict=True)) > DRIFT
        assert context.edition == seen + drifted
        if drifted:
            seen, published = context.edition, now
    assert seen > 3


# ---- sums ----

moves = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 90_000)), max_size=120)


@settings(max_examples=100, deadline=None)
@given(moves, st.sampled_from([(0.0, 0.0), (1.0, 0.4), (0.2, 2.0)]))
def test_the_sums_are_those_over_the_groups(
    told: list[tuple[int, int, int]], spreads: tuple[float, float]
) -> None:
    rollout = Rollout(5, 4, spreads, -1.0)
    requests, context = list(rollout.lengths), rollout.context
    for group, sample, tokens in told:
        rollout.step(requests[4 * group + sample], tokens)
        shares = [group.learned for group in rollout.groups if group.learned is not None]
        assert context._groups == len(shares)
        sums = [sum(column) for column in zip(*shares, strict=True)] or [0.0] * 4
        kept = [context._shifts, context._squares, context._samples, context._residues]
        assert kept == pytest.approx(sums, rel=1e-9, abs=1e-9)
        assert all(map(isfinite, kept))
        assert context.between > 0
        assert context.within > 0


def test_the_sums_do_not_drift_over_many_rounds() -> None:
    rollout = Rollout(40, 8, (0.8, 0.5), -1.0)
    rollout.play(1_024, 0.9)
    rollout.refresh(500)
    shares = [group.learned for group in rollout.groups if group.learned is not None]
    sums = [sum(column) for column in zip(*shares, strict=True)]
    context = rollout.context
    kept = [context._shifts, context._squares, context._samples, context._residues]
    assert kept == pytest.approx(sums, rel=1e-9)


# ---- the normal distribution ----


def integral(low: float, high: float, of: list[float], steps: int = 4_000) -> float:
    """Simpson's rule over values of a function at `steps` + 1 points."""
    assert len(of) == steps + 1
    ends, odd, even = of[0] + of[-1], sum(of[1:-1:2]), sum(of[2:-1:2])
    return (ends + 4 * odd + 2 * even) * (high - low) / steps / 3


@pytest.mark.parametrize("z", [-40, -8, -3.3, -1, -0.1, 0, 0.1, 1, 2.5, 5.9, 6, 6.1, 9, 20, 40])
def test_the_hazard_is_density_over_tail(z: float) -> None:
    """1 / hazard is the integral of exp(-z t - t^2 / 2) over t > 0, which keeps its digits anywhere."""
    if z < -30:
        assert normal_hazard(z) == pytest.approx(0, abs=1e-300)
        return
    high = 12.0 + max(0.0, -2 * z)
    high = min(high, 60.0 / z) if z > 5 else high
    points = [high * i / 4_000 for i in range(4_001)]
    tail = integral(0, high, [exp(-z * t - t * t / 2) for t in points])
    assert normal_hazard(z) == pytest.approx(1 / tail, rel=2e-3 if z > 6 else 1e-8)


def test_the_hazard_grows_from_0_to_z_and_never_breaks() -> None:
    values = [normal_hazard(z / 16) for z in range(-640, 641)]
    assert all(map(isfinite, values))
    assert all(a <= b for a, b in pairwise(values))
    assert all(max(0.0, z / 16) <= normal_hazard(z / 16) for z in range(-640, 641))
    for z in (-1e9, -1e200, 1e9, 1e200):
        assert normal_hazard(z) == pytest.approx(max(0.0, z))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 13), st.floats(0.02, 2.5), st.floats(0, 0.999), st.integers(1, 1_000_000))
@example(mean=3.0, spread=0.1, share=0.9, limit=100_000)
def test_the_mean_beyond_is_that_of_the_distribution(
    mean: float, spread: float, share: float, limit: int
) -> None:
    tokens = int(share * limit)
    beyond = mean_beyond(mean, spread, tokens, limit)
    assert 0 <= beyond <= (limit - tokens) * (1 + 1e-6)
    low, high = max(-12.0, ((log(tokens) if tokens else -inf) - mean) / spread), 12.0
    alive = 0.5 * erfc(low / sqrt(2))
    if low > 5:
        return
    points = [low + (high - low) * i / 4_000 for i in range(4_001)]
    lengths = [min(limit, exp(mean + spread * z)) for z in points]
    density = [exp(-z * z / 2) / sqrt(2 * pi) for z in points]
    total = integral(low, high, [d * it for d, it in zip(density, lengths, strict=True)])
    assert beyond == pytest.approx(total / alive - tokens, rel=1e-3, abs=1e-3 * limit)


def test_a_prompt_that_comes_back_begins_with_what_it_showed() -> None:
    context = LengthContext()
    group = Group(GroupId("g"), 0, 1_000, prompt_key="p")
    group.finished_count, group.finished_log_sum = 4, 4 * log(50)
    group.finished_log_squares = 4 * log(50) ** 2
    context.learn(group)
    context.remember(group)
    again = Group(GroupId("h"), 1, 1_000, prompt_key="p")
    context.recall(again)
    assert again.prior is not None
    assert again.prior[0] == group.log_mean
    assert again.prior[1] == pytest.approx(group.log_variance + NEXT_TIME**2)
    assert (again.log_mean, again.log_variance) == again.prior
    other = Group(GroupId("i"), 2, 1_000, prompt_key="q")
    context.recall(other)
    assert (other.prior, other.log_variance) == (None, 0.0)
    again.underway[10] = 1
    context.learn(again)
    assert abs(again.log_mean - group.log_mean) < 0.05, "one that has hardly begun tells little"


def test_the_past_fades_and_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.core.context.PAST_GROUPS", 10)
    monkeypatch.setattr("seer_sgl.router.core.context.PAST_PROMPTS", 3)
    context = LengthContext(LengthPrior(groups=1.0))
    for number in range(200):
        group = Group(GroupId(str(number)), number, 1_000, prompt_key=str(number))
        length = log(20 if number < 100 else 700)
        group.finished_count, group.finished_log_sum = 2, 2 * length
        group.finished_log_squares = 2 * length * length
        context.learn(group)
        context.remember(group)
    assert context.center(1_000) == pytest.approx(log(700), abs=0.3), "the first hundred have faded"
    known = [Group(GroupId("x"), 0, 1_000, prompt_key=str(number)) for number in range(200)]
    for group in known:
        context.recall(group)
    assert [group.prior is not None for group in known] == [False] * 197 + [True] * 3
