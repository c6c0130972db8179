"""The fit finds the engine behind its observations, and says so where there is none to be found."""

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_sgl.errors import SeerError
from seer_sgl.sim.fit import Fit, Limits, Observation, Plan, _nonnegative, fit, plan_for
from seer_sgl.sim.model import EngineModel

LIMITS = Limits(kv_capacity_tokens=8192, page_tokens=16, max_running_requests=16)
PLAN = plan_for(LIMITS, context_tokens=8192, max_batch=None, quick=False)
PLAIN = EngineModel(
    fixed_s=3e-3,
    weights_s=0.0,
    token_s=4e-4,
    kv_token_s=1.5e-6,
    prefill_token_s=1e-4,
    kv_capacity_tokens=8192,
    page_tokens=16,
    max_running_requests=16,
    admission="sglang",
    prefill_s=7e-3,
    prefix_token_s=2e-5,
    turnaround_s=0.012,
    move_s=0.02,
    move_token_s=3e-5,
)
PREFILL_FIXED_S = 0.014


def observed(
    engine: EngineModel, plan: Plan = PLAN, noise: float = 0.0, seed: int = 0
) -> list[Observation]:
    """What a profile would see of an engine; `noise` is the most relative error."""
    luck = random.Random(seed)
    found = [
        Observation("step", load.requests, load.kv_tokens, engine.step_s(load.requests, load.kv_tokens))
        for load in plan.loads
    ]
    for tokens in plan.prefill_tokens:
        seconds = PREFILL_FIXED_S + tokens * engine.prefill_token_s
        found.append(Observation("prefill", 1, tokens, seconds))
    turnaround_s = engine.turnaround_s + engine.start_s(0, 200) + engine.step_s(1, 200)
    found.append(Observation("turnaround", 1, 200, turnaround_s))
    for tokens in plan.start_tokens:
        found.append(Observation("start", 1, tokens, engine.start_s(0, tokens)))
    for tokens in plan.move_tokens:
        found.append(Observation("move", 1, tokens, engine.move_s + tokens * engine.move_token_s))
    return [
        msgspec.structs.replace(row, seconds=row.seconds * (1 + luck.uniform(-noise, noise)))
        for row in found
    ]


def numbers(engine: EngineModel) -> dict[str, float]:
    values = msgspec.structs.asdict(engine)
    return {name: value for name, value in values.items() if isinstance(value, float)}


seconds = st.floats(1e-6, 1.0)


@given(fixed_s=seconds, token_s=seconds, kv_token_s=st.floats(1e-9, 1e-4), prefill_token_s=seconds)
def test_exact_observations_give_the_engine_back(**coefficients: float) -> None:
    engine = msgspec.structs.replace(PLAIN, **coefficients)
    found = fit(observed(engine), LIMITS)
    for row in found.fitted:
        assert row.fitted_s == pytest.approx(row.observation.seconds, rel=1e-6)
    assert found.residual_worst < 1e-6


def test_every_coefficient_is_found() -> None:
    found = fit(observed(PLAIN), LIMITS)
    assert found.engine.admission == PLAIN.admission
    assert numbers(found.engine) == pytest.approx(numbers(PLAIN), rel=1e-6)
    assert found.prefill_fixed_s == pytest.approx(PREFILL_FIXED_S)


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_predictions_less_than_itself(seed: int) -> None:
    found = fit(observed(PLAIN, noise=0.1, seed=seed), LIMITS)
    assert found.engine.weights_s == 0, "noise was taken for a knee"
    assert 0.005 < found.residual_median < 0.1
    assert found.residual_worst < 0.2
    for load in PLAN.loads:
        true_s = PLAIN.step_s(load.requests, load.kv_tokens)
        assert found.engine.step_s(load.requests, load.kv_tokens) == pytest.approx(true_s, rel=0.1)


def test_a_knee_is_found_where_there_is_one() -> None:
    limits = Limits(kv_capacity_tokens=500_000, page_tokens=64, max_running_requests=256)
    plan = plan_for(limits, context_tokens=32_768, max_batch=None, quick=False)
    knee = msgspec.structs.replace(PLAIN, fixed_s=2e-3, weights_s=8e-3, token_s=2e-4, kv_token_s=2e-8)
    exact = fit(observed(knee, plan), limits).engine
    assert (exact.weights_s, exact.token_s) == pytest.approx((knee.weights_s, knee.token_s), rel=1e-6)
    rough = fit(observed(knee, plan, noise=0.03, seed=1), limits).engine
    assert rough.weights_s == pytest.approx(knee.weights_s, rel=0.25)
    assert rough.step_s(256, 0) == pytest.approx(knee.step_s(256, 0), rel=0.1)


def test_no_coefficient_is_negative() -> None:
    """More requests make these steps faster, more tokens these prefills and moves."""
    odd = [
        msgspec.structs.replace(row, seconds=0.1 / (row.requests * row.tokens))
        for row in observed(PLAIN)
    ]
    found = fit(odd, LIMITS)
    assert min(numbers(found.engine).values()) == 0
    assert found.prefill_fixed_s > 0
    assert found.residual_worst > 0.5, "what does not fit has to show"


def test_a_chunk_that_delays_others_longer_than_itself() -> None:
    """Noise, or work that goes on after its end: nothing is left for the way there and back."""
    rows = [
        msgspec.structs.replace(row, seconds=0.05) if row.kind == "start" else row
        for row in observed(PLAIN)
    ]
    found = fit(rows, LIMITS).engine
    assert found.prefill_s == pytest.approx(0.05)
    assert found.turnaround_s == 0.0


def test_moves_that_cost_nothing_measurable() -> None:
    rows = [
        msgspec.structs.replace(row, seconds=-0.002) if row.kind == "move" else row
        for row in observed(PLAIN)
    ]
    found = fit(rows, LIMITS)
    assert (found.engine.move_s, found.engine.move_token_s) == (0, 0)
    assert found.residual_worst < 1e-6, "moves do not count among the errors"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Fit) == found


@given(st.integers(0, 10_000))
def test_least_squares_are_least(seed: int) -> None:
    """No step into the allowed side improves the solution (Karush, Kuhn, Tucker)."""
    luck = np.random.default_rng(seed)
    columns = [luck.normal(size=9) for _ in range(4)]
    target = luck.uniform(0.5, 2.0, size=9)
    found = np.array(_nonnegative(columns, target))
    matrix = np.column_stack(columns) / target[:, None]
    slope = matrix.T @ (matrix @ found - 1)
    assert found.min() >= 0
    assert slope[found > 0] == pytest.approx(0, abs=1e-8)
    assert slope.min() > -1e-8


STEPS = [row for row in observed(PLAIN) if row.kind == "step"]
PREFILLS = [row for row in observed(PLAIN) if row.kind == "prefill"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "fixed cost, requests and KV apart"),
        (PREFILLS, "fixed cost, requests and KV apart"),
        ([*(row for row in STEPS if row.requests == 1), *PREFILLS], "two batch sizes"),
        ([*(row for row in STEPS if row.tokens == 56 * row.requests), *PREFILLS], "two amounts of KV"),
        (STEPS, "two prompt lengths"),
        ([*STEPS, PREFILLS[0], PREFILLS[0]], "two prompt lengths"),
        (
            [msgspec.structs.replace(STEPS[0], seconds=-1e-4), *STEPS[1:], *PREFILLS],
            "a step of 1 requests",
        ),
        ([*STEPS, msgspec.structs.replace(PREFILLS[0], seconds=float("nan"))], "took nan s"),
    ],
)
def test_too_little_to_go_by(rows: list[Observation], says: str) -> None:
    with pytest.raises(SeerError, match=says):
        fit(rows, LIMITS)


@given(
    kv_tokens=st.integers(2_000, 2_000_000),
    page_tokens=st.sampled_from([1, 16, 64]),
    running=st.integers(2, 1024),
    context_tokens=st.integers(1_000, 200_000),
    quick=st.booleans(),
)
def test_every_plan_fits_the_engine_and_determines_it(
    kv_tokens: int, page_tokens: int, running: int, context_tokens: int, quick: bool
) -> None:
    limits = Limits(kv_tokens, page_tokens, running)
    plan = plan_for(limits, context_tokens, None, quick)
    for load in plan.loads:
        assert load.requests <= running
        assert load.requests * (load.prompt_tokens + 72) < 0.7 * kv_tokens
        assert load.prompt_tokens + 72 < context_tokens
    assert max(*plan.prefill_tokens, *plan.start_tokens, *plan.move_tokens) < min(
        context_tokens, kv_tokens
    )
    assert fit(observed(PLAIN, plan), limits).residual_worst < 1e-6


def test_a_quick_plan_is_shorter_and_a_smaller_one_smaller() -> None:
    quick = plan_for(LIMITS, 8192, None, quick=True)
    assert len(quick.loads) < len(PLAN.loads)
    assert quick.rounds < PLAN.rounds
    assert {load.requests for load in quick.loads} == {1, 8, 16}
    small = plan_for(LIMITS, 8192, 3, quick=False)
    assert {load.requests for load in small.loads} == {1, 2, 3}


@pytest.mark.parametrize(
    ("limits", "context_tokens"),
    [
        (Limits(8192, 16, 1), 8192),
        (Limits(160, 16, 16), 8192),
        (Limits(8192, 16, 16), 256),
    ],
)
def test_an_engine_that_is_too_small(limits: Limits, context_tokens: int) -> None:
    with pytest.raises(SeerError, match="nothing to compare"):
        plan_for(limits, context_tokens, None, quick=False)
