"""A simulated engine in cases worked out by hand; `tests/property` compares it with single steps."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from seer_sgl.sim.engine import Job, SimEngine
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.speculation import ALONE, GROUPED, Drafting
from seer_sgl.types import ChunkId, RequestId

MODEL = EngineModel(
    fixed_s=2e-3,
    weights_s=5e-3,
    token_s=1e-3,
    kv_token_s=1e-6,
    prefill_token_s=1e-4,
    kv_capacity_tokens=1_000_000,
    page_tokens=1,
    max_running_requests=64,
)
FLAT = replace(MODEL, fixed_s=1.0, weights_s=0.0, token_s=0.0, kv_token_s=0.0, prefill_token_s=0.0)
"""One token a second, whatever runs."""


@dataclass(frozen=True)
class Task:
    """A job before it is one: jobs change while they run."""

    at_s: float
    prompt_tokens: int
    tokens: int
    limit_tokens: int = 0

    def job(self, number: int) -> Job:
        return Job(
            chunk_id=ChunkId(number),
            request_id=RequestId(str(number)),
            held_tokens=self.prompt_tokens,
            tokens=self.tokens,
            limit_tokens=max(self.limit_tokens, self.tokens),
            new_tokens=self.tokens,
            prefill_tokens=self.prompt_tokens,
        )


@dataclass
class Outcome:
    ended_s: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    most_kv: float = 0.0
    most_batch: int = 0


def play(engine: SimEngine, tasks: Iterable[Task]) -> Outcome:
    """Feed an engine as the simulation does, and look at it after every change."""
    arrivals = sorted(((task.at_s, number, task.job(number)) for number, task in enumerate(tasks)))
    seen = Outcome()
    for _ in range(100_000):
        next_s = engine.next_s()
        if arrivals and (next_s is None or arrivals[0][0] <= next_s):
            at_s, _, job = arrivals.pop(0)
            engine.advance(at_s)
            engine.start(job)
        elif next_s is not None:
            assert next_s >= engine.now_s, "time goes back"
            engine.advance(next_s)
            seen.most_kv = max(seen.most_kv, engine.kv_tokens)
            for job in engine.end():
                seen.ended_s[int(job.chunk_id)] = engine.now_s
                seen.tokens += job.new_tokens
        else:
            break
        seen.most_batch = max(seen.most_batch, engine.batch)
        seen.most_kv = max(seen.most_kv, engine.kv_tokens)
    assert engine.next_s() is None, "the engine never comes to an end"
    assert not engine.waiting
    assert (engine.batch, engine.kv_tokens) == (0, 0.0)
    return seen


# ---- time ----


def test_a_prefill_holds_up_everyone() -> None:
    model = replace(FLAT, prefill_token_s=0.1)
    engine = SimEngine(model)
    seen = play(engine, [Task(0.0, 10, 100), Task(50.0, 200, 10)])
    assert seen.ended_s == {1: pytest.approx(50 + 20 + 10), 0: pytest.approx(1 + 100 + 20)}
    assert engine.busy_s == pytest.approx(121.0)


def test_prefills_that_come_together_go_one_after_the_other() -> None:
    model = replace(FLAT, prefill_token_s=0.1)
    seen = play(SimEngine(model), [Task(0.0, 10, 5), Task(0.0, 20, 5), Task(0.0, 30, 5)])
    assert list(seen.ended_s.values()) == pytest.approx([6.0 + 5.0] * 3)


def test_every_start_costs_a_constant_and_its_cached_prefix() -> None:
    model = replace(FLAT, prefill_s=2.0, prefill_token_s=0.1, prefix_token_s=0.01)
    engine = SimEngine(model)
    job = Task(0.0, 300, 10).job(0)
    job.prefill_tokens = 50
    engine.start(job)
    assert engine.next_s() == pytest.approx(2.0 + 50 * 0.1 + 250 * 0.01 + 10)
    assert engine.prefilled_tokens == 50


def test_a_batch_beyond_the_weights_time_is_slower() -> None:
    for requests, step_s in ((1, 7e-3), (5, 7e-3), (20, 22e-3)):
        model = replace(MODEL, kv_token_s=0.0, prefill_token_s=0.0)
        seen = play(SimEngine(model), [Task(0.0, 1, 100)] * requests)
        assert list(seen.ended_s.values()) == pytest.approx([100 * step_s] * requests)


def test_only_time_with_something_to_run_is_busy() -> None:
    engine = SimEngine(FLAT)
    play(engine, [Task(10.0, 1, 5), Task(12.0, 1, 5), Task(100.0, 1, 3)])
    assert engine.now_s == pytest.approx(103.0)
    assert engine.busy_s == pytest.approx((17 - 10) + 3)


def test_kv_between_two_changes_is_what_an_advance_would_find() -> None:
    engine = SimEngine(MODEL)
    for number in range(3):
        engine.start(Task(0.0, 100, 500).job(number))
    assert engine.kv_at(0.0) == engine.kv_at(0.03) == 300.0, "decoding goes on during a prefill"
    end_s = engine.next_s()
    assert end_s is not None
    for now_s in (end_s / 3, end_s / 2, end_s):
        expected = engine.kv_at(now_s)
        engine.advance(now_s)
        assert engine.kv_tokens == pytest.approx(expected)
    assert engine.kv_tokens == pytest.approx(3 * 600)


def test_nothing_runs_on_an_idle_engine() -> None:
    engine = SimEngine(MODEL)
    engine.advance(5.0)
    assert engine.next_s() is None
    assert (engine.busy_s, engine.kv_at(9.0)) == (0.0, 0.0)


def test_a_draft_brings_more_than_one_token_a_step() -> None:
    drafting = Drafting(max_draft=1)
    alone, grouped = ALONE[0], GROUPED[0]
    both = (alone + grouped) / 2
    engine = SimEngine(FLAT, drafting)
    for number, (gained, tokens) in enumerate(((0.0, 100 * both), (1.0, 100 * both + 50 * grouped))):
        job = Task(0.0, 1, 1_000).job(number)
        job.tokens = tokens
        job.gained = gained
        engine.start(job)
    assert engine.next_s() == pytest.approx(100), "the batch's mean counts"
    engine.advance(100.0)
    assert len(engine.end()) == 1
    assert engine.next_s() == pytest.approx(150), "that of the other alone is higher"


# ---- KV that nobody has reserved ----


def test_the_newest_gives_way_waits_in_front_and_computes_its_output_again() -> None:
    """Three of 10 prompt tokens share 90: full after 20 tokens. The newest, 30 long by then, waits for
    the other two, which may go on to 45 each; the fourth waits behind it all along."""
    model = replace(FLAT, kv_capacity_tokens=90, prefill_token_s=0.0)
    engine = SimEngine(model, None, False)
    for number, tokens in enumerate((30, 35, 25)):
        engine.start(Task(0.0, 10, tokens).job(number))
    engine.start(Task(0.0, 60, 5).job(3))
    assert [job.chunk_id for job in engine.waiting] == [3]
    assert engine.next_s() == pytest.approx(20.0)
    engine.advance(20.0)
    assert engine.end() == []
    assert [job.chunk_id for job in engine.waiting] == [2, 3], "the newest waits in front"
    newest = engine.waiting[0]
    assert [newest.held_tokens, newest.tokens] == pytest.approx([30, 5])
    assert (newest.prefill_tokens, newest.limit_tokens, newest.new_tokens) == (30, 5, 25)
    assert engine.prefilled_tokens == 30
    engine.advance(30.0)
    assert [job.chunk_id for job in engine.end()] == [0]
    assert engine.prefilled_tokens == 60, "prompt and output are computed again"
    assert [job.chunk_id for job in engine.waiting] == [3]
    seen = play(engine, [])
    assert seen.ended_s == {1: pytest.approx(35.0), 2: pytest.approx(35.0), 3: pytest.approx(40.0)}
    assert engine.preemptions == 1


def test_reserved_kv_is_never_taken_away() -> None:
    model = replace(FLAT, kv_capacity_tokens=90)
    engine = SimEngine(model, None, True)
    play(engine, [Task(0.0, 10, 30)] * 3)
    assert engine.preemptions == 0


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize("page_tokens", [1, 16])
def test_a_request_that_alone_is_too_large_still_ends(others: int, page_tokens: int) -> None:
    """One that fills the last page, too: half of that counts as unused."""
    model = replace(FLAT, kv_capacity_tokens=160, page_tokens=page_tokens)
    for tokens in (100, 300):
        work = [Task(0.0, 60, tokens), *[Task(3.0, 60, 50)] * others]
        seen = play(SimEngine(model, None, False), work)
        assert len(seen.ended_s) == 1 + others
        assert seen.ended_s[0] == pytest.approx(tokens), "the oldest is never held up"


def test_no_more_run_than_there_are_slots() -> None:
    model = replace(FLAT, max_running_requests=3)
    seen = play(SimEngine(model, None, False), [Task(0.0, 1, 10)] * 7)
    assert seen.most_batch == 3
    assert sorted(seen.ended_s.values()) == pytest.approx([10.0] * 3 + [20.0] * 3 + [30.0])


def test_half_a_page_of_each_request_lies_unused() -> None:
    for page_tokens, runs in ((1, 9), (17, 5)):
        engine = SimEngine(replace(FLAT, kv_capacity_tokens=100, page_tokens=page_tokens), None, False)
        for number in range(12):
            engine.start(Task(0.0, 10, 5).job(number))
        assert engine.batch == runs, f"pages of {page_tokens}"


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 200), st.integers(1, 400), st.integers(0, 400))
def test_sglang_admits_no_more_at_the_start_than_eager(
    requests: int, prompt_tokens: int, tokens: int, unused_tokens: int
) -> None:
    admitted = {}
    for admission in ("eager", "sglang"):
        model = replace(MODEL, kv_capacity_tokens=2000, admission=admission)
        engine = SimEngine(model, None, False)
        for number in range(requests):
            engine.start(Task(0.0, prompt_tokens, tokens, tokens + unused_tokens).job(number))
        admitted[admission] = engine.batch
    assert 1 <= admitted["sglang"] <= admitted["eager"]


# ---- SGLang's admission: a page, the whole limit, and a share of what the others may still bring ----

SGLANG = replace(FLAT, admission="sglang")


def started(engine: SimEngine, *jobs: tuple[int, int]) -> SimEngine:
    """Jobs of (tokens, limit) with 10 tokens of prompt each, at once."""
    for number, (tokens, limit_tokens) in enumerate(jobs):
        engine.start(Task(0.0, 10, tokens, limit_tokens).job(number))
    return engine


def unreserved(capacity: int, model: EngineModel = SGLANG) -> SimEngine:
    return SimEngine(replace(model, kv_capacity_tokens=capacity), None, False)


@pytest.mark.parametrize("used", [False, True])
def test_sglang_wants_room_for_the_output_and_for_most_of_the_others(used: bool) -> None:
    """10 + 10 + 1000 + a page of 1, and 0.7 of 1000; an engine that has been idle starts again."""
    for capacity, runs in ((1720, 1), (1721, 2)):
        engine = unreserved(capacity)
        if used:
            play(engine, [Task(0.0, 10, 600)])
        assert started(engine, (1000, 1000), (1000, 1000)).batch == runs


def test_sglang_asks_again_when_one_leaves_and_counts_new_ones_in_full() -> None:
    """After 600 tokens 0.098 of 4096 is set aside for the first: 610 + 10 + 3000 + 1 + 402 fit 6000.
    Then the third and the fourth count as 3000 and 2100: 620 + 10 + 2100 + 1 + 3000 + 1 + 402 do not."""
    engine = started(unreserved(6000), (600, 600), (5000, 10_000), (3000, 3000), (2100, 2100))
    assert engine.batch == 2
    engine.advance(599.0)
    engine.start(Task(0.0, 10, 5, 5).job(9))
    assert engine.batch == 2, "nobody leaves, and nobody is asked"
    engine.advance(600.0)
    assert [job.chunk_id for job in engine.end()] == [0]
    assert [job.chunk_id for job in engine.waiting] == [3, 9]


@pytest.mark.parametrize(("limit_tokens", "runs"), [(54, 2), (55, 1)])
def test_after_a_retraction_sglang_goes_by_what_has_been_brought(limit_tokens: int, runs: int) -> None:
    """Full at 2 * (10 + 65) of 150. The oldest has brought 65 of 75, and 20 are added: a share of 1, not
    0.64. So 75 + 10 + limit + 1 + 1 * 10 must fit. Who was retracted waits behind."""
    engine = started(unreserved(150), (70, 75), (70, 75), (40, limit_tokens))
    assert engine.batch == 2
    assert engine.next_s() == pytest.approx(65.0)
    engine.advance(65.0)
    assert engine.end() == []
    assert engine.preemptions == 1
    assert engine.batch == runs
    assert [job.chunk_id for job in engine.waiting] == [2, 1][-(3 - runs) :]
