"""Simulated rollouts by name: what the arguments mean."""

import pytest
from msgspec.structs import replace

from seer_sgl.errors import StartError
from seer_sgl.router.core import POLICIES
from seer_sgl.router.core.estimates import ESTIMATES
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.lengths import draw_lengths
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.run import SIM_POLICIES, sim_policy, simulate
from seer_sgl.sim.workload import Lengths, Workload

MODEL = EngineModel(
    fixed_s=2e-3,
    weights_s=5e-3,
    token_s=1e-4,
    kv_token_s=1e-7,
    prefill_token_s=1e-4,
    kv_capacity_tokens=4096,
    page_tokens=16,
    max_running_requests=16,
    turnaround_s=0.01,
    move_s=0.01,
    move_token_s=1e-5,
)
WORKLOAD = Workload(
    name="small",
    engine=MODEL,
    engines=2,
    groups=12,
    group_size=4,
    prompt_tokens=50,
    max_new_tokens=2000,
    lengths=Lengths(300.0, 1.0, 0.8),
    chunk_tokens=200,
)


def test_the_routers_policies_and_those_that_know_the_future_can_be_simulated() -> None:
    assert set(SIM_POLICIES) == {*POLICIES, "oracle", "oracle_left", "streamrl_oracle"}
    for name in SIM_POLICIES:
        assert simulate(WORKLOAD, name).policy == name


@pytest.mark.parametrize(
    ("policy", "estimate", "names"), [("best", None, SIM_POLICIES), ("seer", "exact", tuple(ESTIMATES))]
)
def test_a_wrong_name_is_answered_with_the_right_ones(
    policy: str, estimate: str | None, names: tuple[str, ...]
) -> None:
    with pytest.raises(StartError) as caught:
        simulate(WORKLOAD, policy, estimate=estimate)
    assert repr(estimate or policy) in str(caught.value)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize("name", SIM_POLICIES)
def test_the_seed_draws_the_lengths_and_nothing_else(name: str) -> None:
    drawn = simulate(WORKLOAD, name, seed=3)
    assert drawn == simulate(WORKLOAD, name, seed=5, lengths=draw_lengths(WORKLOAD, 3))
    assert drawn != simulate(WORKLOAD, name, seed=4)


@pytest.mark.parametrize("name", SIM_POLICIES)
def test_a_request_is_cut_into_the_workloads_chunks_or_not_at_all(name: str) -> None:
    lengths = draw_lengths(WORKLOAD, 0)
    divided = sim_policy(name, None, WORKLOAD, lengths).divided
    for chunk_tokens in (64, 200, 20_000):
        result = simulate(replace(WORKLOAD, chunk_tokens=chunk_tokens), name, lengths=lengths)
        cut = sum(-(-tokens // chunk_tokens) for group in lengths for tokens in group)
        assert result.chunks >= cut if divided else result.chunks == 48
        told = CoreSettings(chunk_tokens=chunk_tokens, settle_s=0.0)
        assert result == simulate(WORKLOAD, name, lengths=lengths, settings=told)


def test_an_estimate_is_for_the_policy_that_uses_one() -> None:
    seer = {simulate(WORKLOAD, "seer", estimate=name).makespan_s for name in ESTIMATES}
    assert len(seer) > 1
    for name in set(SIM_POLICIES) - {"seer"}:
        plain = simulate(WORKLOAD, name)
        assert all(simulate(WORKLOAD, name, estimate=estimate) == plain for estimate in ESTIMATES)


def test_who_knows_the_lengths_takes_the_longest_first() -> None:
    """Two slots, a token a second: four samples of 30, then one of 100."""
    model = replace(MODEL, fixed_s=1.0, weights_s=0.0, token_s=0.0, kv_token_s=0.0, prefill_token_s=0.0)
    model = replace(model, max_running_requests=2, turnaround_s=0.0, kv_capacity_tokens=8192)
    workload = replace(WORKLOAD, engine=model, engines=1, chunk_tokens=2000)
    lengths = [[30], [30], [30], [30], [100]]
    expected = {"divided": 160.0, "least_loaded": 160.0, "oracle": 120.0, "streamrl_oracle": 120.0}
    found = {name: simulate(workload, name, lengths=lengths).makespan_s for name in expected}
    assert found == pytest.approx(expected)


def test_the_core_does_not_wait_for_kv_to_settle_unless_told_to() -> None:
    """Moves happen where engines have little room: a move takes its time in the engine's model."""
    model = replace(MODEL, kv_capacity_tokens=4096)
    workload = replace(WORKLOAD, engine=model, engines=3, prompt_tokens=600)
    found = simulate(workload, "divided")
    assert found.moved_tokens > 0
    assert found == simulate(workload, "divided", settings=CoreSettings(200, settle_s=0.0))
    assert found != simulate(workload, "divided", settings=CoreSettings(200, settle_s=0.5))


def test_a_policy_may_be_given_itself() -> None:
    lengths = draw_lengths(WORKLOAD, 0)
    policy = sim_policy("oracle", None, WORKLOAD, lengths)
    assert simulate(WORKLOAD, policy, lengths=lengths) == simulate(WORKLOAD, "oracle")


def test_a_timeline_is_kept_where_it_is_asked_for() -> None:
    assert simulate(WORKLOAD, "seer").timeline is None
    timeline = simulate(WORKLOAD, "seer", timeline_points=20).timeline
    assert timeline is not None
    assert 20 <= len(timeline.times_s) <= 41
