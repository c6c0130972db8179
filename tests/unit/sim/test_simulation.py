"""Rollouts small enough to be worked out by hand. Engines bring a token a second, whatever they run."""

from itertools import count

import pytest
from msgspec.structs import replace

from seer_sgl.router.core import Policy, policy_named
from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.policy import DIVIDED, LEAST_LOADED
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Engine, Request
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.result import SimResult
from seer_sgl.sim.run import simulate
from seer_sgl.sim.simulation import Meter, Simulation
from seer_sgl.sim.speculation import ALONE, GROUPED, Drafting, gained
from seer_sgl.sim.workload import Lengths, Workload

FLAT = EngineModel(
    fixed_s=1.0,
    weights_s=0.0,
    token_s=0.0,
    kv_token_s=0.0,
    prefill_token_s=0.0,
    kv_capacity_tokens=100_000,
    page_tokens=1,
    max_running_requests=64,
)
BASE = Workload("small", FLAT, 1, 1, 1, 10, 1000, Lengths(100.0, 1.0, 0.5), chunk_tokens=8)


def rollout(
    lengths: list[list[int]],
    policy: Policy = DIVIDED,
    workload: Workload = BASE,
    pull_margin_tokens: int = 512,
    meter: Meter | None = None,
    settle_s: float = 0.0,
) -> SimResult:
    settings = CoreSettings(
        chunk_tokens=workload.chunk_tokens,
        chunk_plan="constant",
        settle_s=settle_s,
        placement=PlacementSettings(pull_margin_tokens=pull_margin_tokens),
    )
    return Simulation(workload, policy, lengths, settings, meter).run()


def hop(request: Request, need: int, fleet: Fleet, _settings: PlacementSettings) -> Engine | None:
    """Never the same engine twice in a row."""
    others = [engine for engine in fleet.engines.values() if engine is not request.last_engine]
    return next((engine for engine in others if engine.fits(need)), None)


HOPPING = Policy("hopping", hop, DIVIDED.rank, DIVIDED.within)


def test_chunks_go_one_after_the_other_with_a_turnaround_each() -> None:
    model = replace(FLAT, prefill_token_s=0.1, turnaround_s=0.5)
    result = rollout([[20]], workload=replace(BASE, engine=model))
    assert result.makespan_s == pytest.approx(3 * 0.5 + 1.0 + 20.0), "three chunks, one prefill"
    assert (result.chunks, result.moved_chunks, result.moved_tokens) == (3, 0, 0)
    assert (result.requests, result.output_tokens, result.prefilled_tokens) == (1, 20, 10)
    assert result.tokens_per_s == pytest.approx(20 / 22.5)
    assert result.idle_share == pytest.approx(1.5 / 22.5)
    assert (result.policy, result.decision_us, result.timeline) == ("divided", 0.0, None)


def test_every_chunk_starts_from_the_kv_so_far() -> None:
    model = replace(FLAT, prefill_s=0.5, prefill_token_s=0.1, prefix_token_s=0.01)
    result = rollout([[20]], workload=replace(BASE, engine=model))
    assert result.makespan_s == pytest.approx(20.0 + 3 * 0.5 + 10 * 0.1 + (18 + 26) * 0.01)
    assert result.prefilled_tokens == 10


def test_an_undivided_request_turns_around_once() -> None:
    model = replace(FLAT, turnaround_s=0.5)
    result = rollout([[20]], LEAST_LOADED, replace(BASE, engine=model))
    assert result.makespan_s == pytest.approx(20.5)
    assert result.chunks == 1


MOVING = replace(
    BASE,
    engines=2,
    engine=replace(FLAT, turnaround_s=0.5, move_s=3.0, move_token_s=0.25, prefill_token_s=0.1),
)


def test_a_move_takes_its_latency_and_the_time_of_its_tokens() -> None:
    """Three chunks: the second pulls 10 + 8 tokens, the third 26 less the prompt, which is there."""
    result = rollout([[20]], HOPPING, MOVING, pull_margin_tokens=0)
    assert (result.chunks, result.moved_chunks, result.moved_tokens) == (3, 2, 18 + 16)
    assert result.prefilled_tokens == 10
    assert result.makespan_s == pytest.approx(3 * 0.5 + 1.0 + 20.0 + 2 * 3.0 + (18 + 16) * 0.25)


def test_what_is_too_short_to_pull_is_computed_again() -> None:
    result = rollout([[16]], HOPPING, MOVING)
    assert (result.chunks, result.moved_chunks, result.moved_tokens) == (2, 1, 0)
    assert result.prefilled_tokens == 10 + 18
    assert result.makespan_s == pytest.approx(2 * 0.5 + 16.0 + 3.0 + 28 * 0.1)


def test_a_move_waits_for_the_pool_where_that_is_to_be_tried_or_pays() -> None:
    """What the first chunk leaves takes 3 s and 18 times 0.25 s to be written, which is waited for. To
    load what the second one leaves would take longer than to compute its 8 tokens again; 8 older ones
    are pulled, and 10 are there."""
    result = rollout([[20]], HOPPING, MOVING, pull_margin_tokens=0, settle_s=100.0)
    assert (result.chunks, result.moved_chunks, result.moved_tokens) == (3, 2, 18 + 8)
    assert result.prefilled_tokens == 10 + 8
    first_s, written_s, loaded_s = 0.5 + 1.0 + 8.0, 3.0 + 4.5, 3.0 + 4.5
    second_s, third_s = 0.5 + loaded_s + 8.0, 0.5 + (3.0 + 2.0) + 0.8 + 4.0
    assert result.makespan_s == pytest.approx(first_s + written_s + second_s + third_s)


def test_what_is_not_written_in_time_is_computed_again() -> None:
    result = rollout([[16]], HOPPING, MOVING, pull_margin_tokens=0, settle_s=1.0)
    assert (result.chunks, result.moved_chunks, result.moved_tokens) == (2, 1, 0)
    assert result.prefilled_tokens == 10 + 18
    first_s, patience_s = 0.5 + 1.0 + 8.0, 1.0
    assert result.makespan_s == pytest.approx(first_s + patience_s + 0.5 + 3.0 + 1.8 + 8.0)


def test_engines_share_the_work() -> None:
    """Four requests of 10 tokens, one slot each: 40 s on one engine, 20 s on two."""
    model = replace(FLAT, max_running_requests=1)
    for engines, makespan_s in ((1, 40.0), (2, 20.0), (4, 10.0), (8, 10.0)):
        result = rollout([[10, 10], [10, 10]], workload=replace(BASE, engine=model, engines=engines))
        assert result.makespan_s == pytest.approx(makespan_s)
        assert result.idle_share == pytest.approx(1 - 40 / (makespan_s * engines))


def test_reserved_kv_limits_what_runs_at_once() -> None:
    """A chunk needs 10 + 8 tokens: two fit into 40, and three do not."""
    model = replace(FLAT, kv_capacity_tokens=40)
    result = rollout([[8]] * 4, workload=replace(BASE, engine=model, max_new_tokens=30))
    assert result.makespan_s == pytest.approx(16.0)
    assert result.preemptions == 0


def test_unreserved_kv_runs_out_and_the_newest_gives_way() -> None:
    """Four of 10 + 8 tokens in 40: three start, and two reach the end; then the other two run."""
    model = replace(FLAT, kv_capacity_tokens=40)
    workload = replace(BASE, engine=model, max_new_tokens=30)
    result = rollout([[8]] * 4, LEAST_LOADED, workload)
    assert result.preemptions == 1
    done = 10 / 3  # of each when 30 tokens have become 40
    assert result.makespan_s == pytest.approx(8 + 8)
    assert result.prefilled_tokens == 40 + int(10 + done)


def test_an_engine_that_wants_room_for_the_output_knows_the_limit_only() -> None:
    """There is room for the 8 tokens of both, and not for the 1000 that they might have."""
    for admission, makespan_s in (("eager", 8.0), ("sglang", 16.0)):
        model = replace(FLAT, kv_capacity_tokens=1100, admission=admission)
        result = rollout([[8, 8]], LEAST_LOADED, replace(BASE, engine=model))
        assert result.makespan_s == pytest.approx(makespan_s)


@pytest.mark.parametrize(("requests", "tail_s"), [(1, 0), (9, 0), (10, 1), (11, 1), (20, 2), (100, 10)])
def test_the_tail_is_the_time_after_nine_tenths_are_delivered(requests: int, tail_s: float) -> None:
    lengths = [[tokens] for tokens in range(1, requests + 1)]
    workload = replace(BASE, engine=replace(FLAT, max_running_requests=100))
    result = rollout(lengths, LEAST_LOADED, workload)
    assert result.makespan_s == pytest.approx(requests)
    assert result.tail_s == pytest.approx(tail_s)


# ---- the meter ----


def test_the_meter_is_read_around_each_decision() -> None:
    ticks = count(0, 2000)
    lengths = [[20]]
    result = rollout(lengths, meter=lambda: next(ticks))
    assert result.decision_us == pytest.approx(2.0)
    assert replace(result, decision_us=0.0) == rollout(lengths), "measuring changes nothing"


def test_decisions_that_come_together_share_the_time() -> None:
    ticks = count(0, 2000)
    assert rollout([[16, 16]], meter=lambda: next(ticks)).decision_us == pytest.approx(1.0)


def test_the_start_of_a_rollout_is_not_measured() -> None:
    ticks = count(0, 2000)
    assert rollout([[8, 8]], meter=lambda: next(ticks)).decision_us == 0.0


# ---- speculation ----


def drafting(accepted_x: float, model: EngineModel = FLAT) -> Workload:
    speculation = Drafting(accepted_x=accepted_x)
    return replace(BASE, engine=model, speculation=speculation, chunk_tokens=100)


def test_free_drafts_are_faster_by_the_tokens_accepted() -> None:
    plain = rollout([[1000]], workload=BASE)
    faster = rollout([[1000]], workload=drafting(1.0))
    gain = plain.makespan_s / faster.makespan_s
    assert gain == pytest.approx(ALONE[-1])
    assert faster.output_tokens == plain.output_tokens


def test_a_sample_drafts_from_siblings_that_have_sent_something() -> None:
    """One slot: the second sample starts when the first one has ended; so does another group."""
    workload = drafting(1.0, replace(FLAT, max_running_requests=1))
    alone_s, helped_s = 100 / ALONE[-1], 100 / (ALONE[-1] + gained(1) * (GROUPED[-1] - ALONE[-1]))
    assert rollout([[100, 100]], workload=workload).makespan_s == pytest.approx(alone_s + helped_s)
    assert rollout([[100], [100]], workload=workload).makespan_s == pytest.approx(2 * alone_s)


def test_a_sibling_counts_from_its_first_chunk_on_and_once() -> None:
    """Side by side: their own history alone in the first chunk, one another in the others."""
    later = ALONE[-1] + gained(1) * (GROUPED[-1] - ALONE[-1])
    result = rollout([[300, 300]], workload=drafting(1.0))
    assert result.makespan_s == pytest.approx(100 / ALONE[-1] + 200 / later)


def test_drafts_of_which_nothing_is_accepted_change_nothing() -> None:
    lengths = [[30, 200, 70], [400, 5, 90]]
    model = replace(FLAT, token_s=0.2, kv_token_s=1e-3, prefill_token_s=0.01)
    for name in ("divided", "seer", "least_loaded"):
        with_drafts = drafting(0.0, model)
        plain = replace(with_drafts, speculation=None)
        policy = policy_named(name)
        assert rollout(lengths, policy, with_drafts) == rollout(lengths, policy, plain)


def test_without_speculation_the_workloads_drafts_are_not_used() -> None:
    workload = drafting(2.0)
    assert simulate(workload, "seer", lengths=[[1000]]).makespan_s == pytest.approx(1000.0)
    assert simulate(workload, "seer", lengths=[[1000]], speculation=True).makespan_s < 500
