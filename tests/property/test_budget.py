"""How much is drafted, for any costs and any drafts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.spec.acceptance import Acceptance, Floats32, IntArray
from seer_sgl.spec.budget import Budget, Load, Reading, Rules, divide
from seer_sgl.spec.cost import OCTAVES, ROWS, Curve, Step, StepCost, rows_s, verified_s

MOST = 31
readings = st.sampled_from(["paper", "marginal", "confidence"])
chances = st.floats(0.0, 1.0, width=32)


class KnownCost(StepCost):
    """An engine whose steps take what it says."""

    def __init__(self, base_s: float, verify_s: float, row_s: list[float]) -> None:
        super().__init__()
        self._mean[0], self._mean[3] = base_s, verify_s
        self._mean[ROWS:] = row_s
        self._known = True


@st.composite
def costs(draw: st.DrawFn) -> KnownCost:
    """Row prices may fall and rise from octave to octave."""
    prices = st.floats(0.0, 0.01)
    row_s = draw(st.lists(prices, min_size=OCTAVES, max_size=OCTAVES))
    return KnownCost(draw(st.floats(1e-3, 0.1)), draw(st.floats(0.0, 0.02)), row_s)


@st.composite
def batches(draw: st.DrawFn, most: int = MOST + 5) -> tuple[IntArray, Floats32]:
    """Drafts, best node first; some requests have none."""
    lists = draw(st.lists(st.lists(chances, max_size=most), min_size=1, max_size=6))
    sizes = [len(nodes) for nodes in lists]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    nodes = [chance for nodes in lists for chance in sorted(nodes, reverse=True)]
    return starts, np.array(nodes, np.float32)


def decide(budget: Budget, starts: IntArray, confidences: Floats32, probes: int = 0) -> IntArray:
    requests = starts.size - 1
    load = Load(requests, probes, 0.0)
    budget._steps_left = 1 << 30  # no exploring
    if not budget.cap(load):
        return np.zeros(requests, np.int32)
    return budget.choose(load, starts, confidences, np.arange(requests) < probes)


@given(costs(), batches(), readings, st.booleans(), st.integers(0, 6))
def test_nobody_gets_more_than_is_allowed_or_drafted(
    cost: KnownCost, batch: tuple[IntArray, Floats32], reading: Reading, uniform: bool, probes: int
) -> None:
    starts, confidences = batch
    budget = Budget(Rules(reading=reading, uniform=uniform), cost, Acceptance())
    nodes = decide(budget, starts, confidences, min(probes, starts.size - 1))
    assert nodes.dtype == np.int32
    assert (nodes >= 0).all()
    assert (nodes <= np.minimum(np.diff(starts), MOST if reading == "confidence" else 8)).all()


@given(costs(), batches(), st.booleans())
def test_nothing_is_drafted_where_nothing_is_accepted(
    cost: KnownCost, batch: tuple[IntArray, Floats32], uniform: bool
) -> None:
    starts, confidences = batch
    budget = Budget(Rules(uniform=uniform), cost, Acceptance())
    assert not decide(budget, starts, np.zeros_like(confidences)).any()


@given(st.floats(1e-3, 0.1), batches(MOST), st.booleans())
def test_where_rows_are_free_all_that_may_be_accepted_is_verified(
    base_s: float, batch: tuple[IntArray, Floats32], uniform: bool
) -> None:
    starts, confidences = batch
    confidences = np.maximum(confidences, 0.1)
    cost = KnownCost(base_s, 0.0, [0.0] * OCTAVES)
    budget = Budget(Rules(uniform=uniform, margin=0.0), cost, Acceptance())
    nodes = decide(budget, starts, confidences)
    if uniform:
        assert nodes.max(initial=0) == np.diff(starts).max(initial=0)
    else:
        assert (nodes == np.diff(starts)).all()


@given(costs(), batches(), st.booleans(), st.floats(0.0, 0.05))
def test_dearer_rows_are_never_more_rows(
    cost: KnownCost, batch: tuple[IntArray, Floats32], uniform: bool, dearer_s: float
) -> None:
    """Every row beyond the first of the step costs more, those of a plain step as well."""
    dear = KnownCost(cost._mean[0], cost._mean[3], [price + dearer_s for price in cost._mean[ROWS:]])
    few = decide(Budget(Rules(uniform=uniform, margin=0.0), dear, Acceptance()), *batch)
    many = decide(Budget(Rules(uniform=uniform, margin=0.0), cost, Acceptance()), *batch)
    assert few.sum() <= many.sum()


@given(costs(), batches(), st.integers(0, 6))
def test_a_step_with_drafts_is_expected_to_bring_more_tokens_per_second(
    cost: KnownCost, batch: tuple[IntArray, Floats32], probes: int
) -> None:
    starts, confidences = batch
    requests = starts.size - 1
    nodes = decide(Budget(Rules(), cost, Acceptance()), starts, confidences, min(probes, requests))
    if nodes.any():
        kept = [range(first, first + count) for first, count in zip(starts[:-1], nodes, strict=True)]
        tokens = requests + sum(float(confidences[node]) for row in kept for node in row)
        curve = cost.curve(requests, 0.0)
        drafted_s = verified_s(curve, requests, requests + int(nodes.sum()))
        assert tokens / drafted_s > requests / curve.plain_s


@given(costs(), batches(most=6))
def test_no_other_number_of_the_surest_nodes_is_better(
    cost: KnownCost, batch: tuple[IntArray, Floats32]
) -> None:
    """But for confidences that differ by less than they are told apart."""
    starts, confidences = batch
    requests = starts.size - 1
    rules = Rules(margin=0.0)
    nodes = decide(Budget(rules, cost, Acceptance()), starts, confidences)
    kept = [range(first, first + count) for first, count in zip(starts[:-1], nodes, strict=True)]
    tokens = requests + sum(float(confidences[node]) for row in kept for node in row)
    curve = cost.curve(requests, 0.0)
    spent_s = verified_s(curve, requests, requests + int(nodes.sum())) if nodes.any() else curve.plain_s
    best = requests / curve.plain_s
    sure = np.sort(confidences)[::-1]
    for count in range(1, sure.size + 1):
        gained = requests + float(sure[:count].sum())
        best = max(best, gained / verified_s(curve, requests, requests + count))
    assert tokens / spent_s >= best * (1 - 0.01)


# ---- the paper's loop ----


def printed(
    budget: int, high: int, low: int, gain: list[float], most: int, priority: float
) -> tuple[int, int]:
    """Steps 4 to 18 of Algorithm 1 (arXiv 2511.14617v3), line by line; `gain` from depth 0 on."""
    if budget < high:
        return 0, 0
    depth_high, depth_low, remaining = 1, 0, budget - high
    while remaining > 0:
        benefit_high = high * gain[depth_high]
        benefit_low = low * gain[depth_low]
        if benefit_high > priority * benefit_low and depth_high < most and remaining >= high:
            depth_high += 1
            remaining -= high
        elif low > 0 and depth_low < most and remaining >= low:
            depth_low += 1
            remaining -= low
        else:
            break
    return depth_high, depth_low


@given(
    st.integers(0, 300),
    st.integers(0, 10),
    st.integers(0, 40),
    st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12),
    st.integers(1, 10),
    st.floats(1.0, 4.0),
)
def test_probes_and_others_share_as_the_paper_prints(
    budget: int, high: int, low: int, gain: list[float], most: int, priority: float
) -> None:
    got = divide(budget, high, low, gain.__getitem__, most, priority)
    expected = printed(budget, high, low, gain, most, priority)
    if high and budget:
        assert got == expected
    else:
        assert got == (0, expected[1] if budget else 0)
    assert got[0] * high + got[1] * low <= budget


# ---- what steps cost ----

steps = st.builds(
    lambda requests, width, kv_tokens: Step(requests, requests * width, kv_tokens),
    st.integers(1, 200), st.integers(1, 32), st.floats(0.0, 1e6),
)  # fmt: skip


@settings(max_examples=50)
@given(st.lists(st.tuples(steps, st.floats(1e-5, 10.0)), min_size=1, max_size=60))
def test_whatever_is_measured_costs_stay_sane(seen: list[tuple[Step, float]]) -> None:
    """Finite, never negative, and never less for more rows."""
    cost = StepCost()
    for step, seconds in seen:
        cost.observe(step, seconds)
    ceiling = 100 * max(seconds for _, seconds in seen)
    for step, _ in seen:
        curve = cost.curve(step.requests, step.kv_tokens)
        assert curve.plain_s >= 0.0
        assert np.isfinite(cost.seconds(step))
        assert cost.seconds(step) <= ceiling * max(step.rows, 1)
        assert (
            cost.seconds(Step(step.requests, step.rows + 9, step.kv_tokens))
            >= cost.seconds(step) - 1e-12
        )


@given(st.lists(st.floats(0.0, 1.0), min_size=OCTAVES, max_size=OCTAVES), st.integers(1, 3000))
def test_rows_cost_what_each_of_them_does(row_s: list[float], rows: int) -> None:
    prices = np.array(row_s)
    one_by_one = sum(row_s[min(OCTAVES - 1, (row - 1).bit_length() - 1)] for row in range(2, rows + 1))
    assert np.isclose(rows_s(prices, float(rows)), one_by_one)
    assert verified_s(Curve(0.0, 1.0, 0.5, prices), 1, rows) >= 1.0
