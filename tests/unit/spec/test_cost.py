"""What steps cost, learnt from made-up engines whose cost is known."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import msgspec
import pytest

from seer_sgl.errors import StartError
from seer_sgl.spec.cost import Step, StepCost, profiled_steps, verified_s

WIDTHS = (1, 2, 4, 8, 16, 32)
Engine = Callable[[Step], float]


def memory_bound(step: Step) -> float:
    """As on a GPU: rows are free until arithmetic takes longer than reading the weights."""
    return 0.004 + max(0.012, 2.5e-5 * step.rows) + 4e-9 * step.kv_tokens


def compute_bound(step: Step) -> float:
    """As on a CPU: rows cost from the first one on, and verification has a cost of its own."""
    verify_s = 5e-4 if step.rows > step.requests else 0.0
    return 0.010 + verify_s + 2e-4 * step.rows + 1e-8 * step.kv_tokens


def play(
    cost: StepCost,
    engine: Engine,
    steps: int,
    *,
    noise: float = 0.0,
    spikes: float = 0.0,
    most: int = 64,
) -> None:
    """A batch that shrinks to one request; every tenth step is of another width than 1."""
    luck = Random(0)
    for number in range(steps):
        requests = max(1, most - number * most // steps)
        width = WIDTHS[number // 10 % len(WIDTHS)] if number % 10 == 0 else 1
        step = Step(requests, requests * width, requests * 700.0)
        spike = 3.0 if luck.random() < spikes else 0.0
        cost.observe(step, engine(step) * (1.0 + luck.gauss(0.0, noise) + spike))


def worst_error(cost: StepCost, engine: Engine, requests: int) -> float:
    steps = [Step(requests, requests * width, requests * 700.0) for width in WIDTHS]
    return max(abs(cost.seconds(step) / engine(step) - 1) for step in steps)


@pytest.mark.parametrize("engine", [memory_bound, compute_bound])
def test_it_learns_an_engine_from_its_steps_alone(engine: Engine) -> None:
    cost = StepCost()
    assert not cost.known
    play(cost, engine, 3000)
    assert cost.known
    assert cost.steps == 3000
    assert worst_error(cost, engine, 1) < 0.05


@pytest.mark.parametrize("engine", [memory_bound, compute_bound])
def test_a_busy_machine_disturbs_it_little(engine: Engine) -> None:
    cost = StepCost()
    play(cost, engine, 6000, noise=0.05, spikes=0.05)
    assert worst_error(cost, engine, 1) < 0.15


def test_one_spike_of_a_thousand_times_is_next_to_nothing() -> None:
    cost = StepCost()
    play(cost, compute_bound, 2000)
    before_s = cost.seconds(Step(1, 8, 700.0))
    cost.observe(Step(1, 1, 700.0), 1000 * compute_bound(Step(1, 1, 700.0)))
    assert cost.seconds(Step(1, 8, 700.0)) == pytest.approx(before_s, rel=0.05)


def test_a_lasting_change_is_followed() -> None:
    cost = StepCost()
    play(cost, compute_bound, 2000)
    for number in range(1500):
        step = Step(1, WIDTHS[number % len(WIDTHS)], 700.0)
        cost.observe(step, 2.0 * compute_bound(step))
    assert cost.seconds(Step(1, 1, 700.0)) == pytest.approx(
        2 * compute_bound(Step(1, 1, 700.0)), rel=0.1
    )
    assert cost.seconds(Step(1, 8, 700.0)) == pytest.approx(
        2 * compute_bound(Step(1, 8, 700.0)), rel=0.1
    )


def test_more_rows_never_take_less() -> None:
    cost = StepCost()
    play(cost, memory_bound, 500, noise=0.3, spikes=0.2)
    for requests in (1, 7, 64):
        curve = cost.curve(requests, 1000.0)
        seconds = [verified_s(curve, requests, rows) for rows in range(requests, 40 * requests)]
        assert all(before <= after for before, after in pairwise(seconds))
        assert min(seconds) >= curve.plain_s


def test_its_first_step_is_what_it_expects_of_the_next() -> None:
    cost = StepCost()
    cost.observe(Step(16, 16, 5000.0), 0.02)
    assert cost.seconds(Step(16, 16, 5000.0)) == pytest.approx(0.02, rel=1e-3)
    assert cost.seconds(Step(16, 128, 5000.0)) > 0.02


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_times_that_cannot_be_are_left_out(seconds: float) -> None:
    cost = StepCost()
    cost.observe(Step(1, 1, 0.0), seconds)
    cost.observe(Step(0, 0, 0.0), 1.0)
    assert not cost.known
    assert cost.seconds(Step(1, 1, 0.0)) == 0.0


def test_a_profile_is_known_from_the_start() -> None:
    steps = [
        Step(b, b * width, b * kv) for b in (1, 8, 64) for width in (1, 4, 16) for kv in (100.0, 900.0)
    ]
    cost = StepCost((step, compute_bound(step)) for step in steps)
    assert cost.known
    assert cost.steps == 0
    for step in steps:
        assert cost.seconds(step) == pytest.approx(compute_bound(step), rel=0.05)


# ---- the profile's file ----


def profile_of(*observations: dict[str, object]) -> bytes:
    fitted = [{"observation": row, "fitted_s": 1.0, "residual": 0.0} for row in observations]
    return msgspec.json.encode({"fit": {"fitted": fitted, "residual_worst": 0.1}, "model": "small"})


def test_steps_are_read_from_a_profile() -> None:
    plain = {"kind": "step", "requests": 4, "tokens": 500.0, "seconds": 0.01}
    wide = {"kind": "verify", "requests": 4, "tokens": 500.0, "seconds": 0.02, "rows": 32}
    other = {"kind": "prefill", "requests": 1, "tokens": 500.0, "seconds": 0.5}
    assert profiled_steps(profile_of(plain, wide, other)) == [
        (Step(4, 4, 500.0), 0.01),
        (Step(4, 32, 500.0), 0.02),
    ]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"fit": {"fitted": 3}}'])
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(StartError, match="not what `seer-sgl profile --json` writes"):
        profiled_steps(content)


def test_a_profile_without_steps_is_refused() -> None:
    with pytest.raises(StartError, match="no step"):
        profiled_steps(profile_of({"kind": "move", "requests": 1, "tokens": 1.0, "seconds": 1.0}))
