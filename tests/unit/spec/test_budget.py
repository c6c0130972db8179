"""What is drafted on engines whose cost is known, for drafts whose worth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from seer_sgl.spec.acceptance import Acceptance, Floats32, IntArray
from seer_sgl.spec.budget import EXPLORE_STEPS, Budget, Load, Reading, Rules, best_depth
from seer_sgl.spec.cost import Step, StepCost

Engine = Callable[[Step], float]
READINGS: list[Reading] = ["paper", "marginal", "confidence"]


def free(step: Step) -> float:
    return 0.010


def memory_bound(step: Step) -> float:
    return 0.004 + max(0.012, 1e-4 * step.rows)


def dear(step: Step) -> float:
    """Every row costs what a request does."""
    return 0.001 * step.rows


def learnt(engine: Engine) -> StepCost:
    sizes = [(b, w) for b in (1, 2, 4, 8, 16, 32, 64) for w in (1, 2, 4, 8, 16, 32)]
    steps = [Step(b, b * w, 1000.0) for b, w in sizes]
    return StepCost((step, engine(step)) for step in steps)


def budget_of(engine: Engine, **rules: object) -> Budget:
    budget = Budget(Rules(**rules), learnt(engine), Acceptance())  # type: ignore[arg-type]
    budget._steps_left = 1 << 30  # no exploring
    return budget


def drafts(requests: int, confidences: list[float]) -> tuple[IntArray, Floats32]:
    """All requests have the same."""
    starts = np.arange(0, requests * len(confidences) + 1, len(confidences), dtype=np.int32)
    return starts, np.tile(np.array(confidences, np.float32), requests)


def chosen(budget: Budget, requests: int, confidences: list[float], probes: int = 0) -> list[int]:
    load = Load(requests, probes, 1000.0)
    if not budget.cap(load):
        return [0] * requests
    mask = np.arange(requests) < probes
    return [int(count) for count in budget.choose(load, *drafts(requests, confidences), mask)]


FALLING = [0.6 * 0.9**depth for depth in range(31)]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("uniform", [False, True])
def test_nothing_is_drafted_where_rows_are_dear(reading: Reading, uniform: bool) -> None:
    budget = budget_of(dear, reading=reading, uniform=uniform)
    assert chosen(budget, 8, FALLING) == [0] * 8


@pytest.mark.parametrize("uniform", [False, True])
def test_where_rows_are_free_all_is_verified(uniform: bool) -> None:
    assert chosen(budget_of(free, uniform=uniform), 4, FALLING) == [31] * 4


@pytest.mark.parametrize("reading", ["paper", "marginal"])
def test_where_rows_are_free_the_paper_goes_as_deep_as_it_may(reading: Reading) -> None:
    assert chosen(budget_of(free, reading=reading), 4, FALLING) == [8] * 4
    assert chosen(budget_of(free, reading=reading, deepest=5), 4, FALLING) == [5] * 4


def test_a_larger_batch_drafts_less() -> None:
    sums = [sum(chosen(budget_of(memory_bound), requests, FALLING)) for requests in (1, 8, 64)]
    each = [total / requests for total, requests in zip(sums, (1, 8, 64), strict=True)]
    assert each[0] > each[1] > each[2]


def test_the_surest_nodes_are_taken_whosever_they_are() -> None:
    """Of two requests one copies a long loop, the other has nothing to go by."""
    starts = np.array([0, 31, 62], np.int32)
    confidences = np.array([0.95] * 31 + [0.02] * 31, np.float32)
    budget = budget_of(lambda step: 0.01 + 0.001 * step.rows)
    load = Load(2, 0, 1000.0)
    budget.cap(load)
    assert budget.choose(load, starts, confidences, np.zeros(2, bool)).tolist() == [31, 0]


def test_probes_go_deeper_than_others_with_the_same_drafts() -> None:
    nodes = chosen(budget_of(memory_bound), 32, FALLING, probes=4)
    assert min(nodes[:4]) > max(nodes[4:])


def test_no_priority_makes_a_step_slower_than_a_plain_one() -> None:
    """The probes' tokens are worth a lot, but all of them together do not pay."""
    budget = budget_of(dear, priority=100.0)
    assert chosen(budget, 8, [0.5], probes=1) == [0] * 8


def test_uniform_batches_take_a_width_of_the_set() -> None:
    for requests in (1, 4, 16, 64):
        nodes = chosen(budget_of(memory_bound, uniform=True), requests, FALLING)
        assert len(set(nodes)) == 1
        assert nodes[0] + 1 in (1, 2, 4, 8, 16, 32)


def test_drafting_begins_later_than_it_ends() -> None:
    """A step with drafts brings 1 % more tokens per second: enough to go on, too little to begin."""
    budget = budget_of(lambda step: 0.010 if step.rows == step.requests else 0.0109, margin=0.05)
    assert chosen(budget, 1, [0.12]) == [0]
    assert chosen(budget, 1, [0.5]) == [1]
    assert chosen(budget, 1, [0.12]) == [1]
    assert chosen(budget, 1, [0.05]) == [0]
    assert chosen(budget, 1, [0.12]) == [0]


def test_where_drafts_do_not_pay_for_long_few_are_made() -> None:
    budget = budget_of(memory_bound)
    load = Load(4, 0, 1000.0)
    drafted = 0
    for _ in range(400):
        if budget.cap(load):
            drafted += 1
            budget.choose(load, *drafts(4, [0.001]), np.zeros(4, bool))
    assert 40 < drafted < 120
    for _ in range(20):
        assert chosen(budget, 4, FALLING) is not None
    assert sum(chosen(budget, 4, FALLING)) > 0, "once they pay again, they are made again"


def test_large_batches_draft_no_more_than_they_use() -> None:
    budget = budget_of(free)
    load = Load(64, 0, 1000.0)
    caps = []
    for _ in range(4):
        caps.append(budget.cap(load))
        budget.choose(load, *drafts(64, FALLING[: caps[-1]]), np.zeros(64, bool))
    assert caps == [8, 17, 31, 31]


def test_an_empty_batch_is_no_case() -> None:
    assert budget_of(free).cap(Load(0, 0, 0.0)) == 0


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("uniform", [False, True])
def test_no_drafts_are_no_widths(reading: Reading, uniform: bool) -> None:
    budget = budget_of(free, reading=reading, uniform=uniform)
    load = Load(3, 1, 10.0)
    assert budget.cap(load) > 0
    nothing = np.zeros(4, np.int32), np.zeros(0, np.float32)
    assert budget.choose(load, *nothing, np.array([True, False, False])).tolist() == [0, 0, 0]


def test_the_papers_depth_is_that_of_least_time_per_token() -> None:
    assert best_depth([1.0, 1.1, 1.2, 1.3], 0.5, 0.0) == 2
    assert best_depth([1.0, 1.6, 2.2, 2.8], 0.5, 0.0) == 0
    assert best_depth([1.0, 1.5], 0.5, 0.0) == 0
    assert best_depth([1.0, 1.45], 0.5, 0.1) == 0
    assert best_depth([1.0] * 9, 1.0, 0.0) == 8
    assert best_depth([1.0], 1.0, 0.0) == 0


# ---- learning as it goes ----


def run(
    budget: Budget, engine: Engine, requests: int, steps: int, honest: bool = True
) -> tuple[int, float]:
    """Tokens and seconds of so many steps whose drafts come true as often as they say."""
    luck = np.random.default_rng(1)
    tokens, seconds = 0, 0.0
    load = Load(requests, 0, 1000.0)
    for _ in range(steps):
        nodes = np.zeros(requests, np.int32)
        cap = budget.cap(load)
        if cap:
            rates = np.full(cap, 0.7 if honest else 0.0)
            starts, said = drafts(requests, [0.7 ** (depth + 1) for depth in range(cap)])
            nodes = budget.choose(load, starts, said, np.zeros(requests, bool))
            hits = np.cumprod(luck.random((requests, cap)) < rates, axis=1)
            parents = np.tile(np.arange(-1, cap - 1, dtype=np.int32), requests)
            kept = (np.arange(cap) < nodes[:, None]).ravel()
            starts = np.concatenate([[0], np.cumsum(nodes)]).astype(np.int32)
            taken = hits.ravel()[kept].astype(np.uint8)
            budget.acceptance.observe(starts, parents[kept], said[kept], taken)
            tokens += int(taken.sum())
        step = Step(requests, requests + int(nodes.sum()), 1000.0)
        tokens += requests
        step_s = engine(step) * (1.0 + 0.03 * luck.standard_normal())
        seconds += step_s
        budget.observe(step, step_s)
    return tokens, seconds


@pytest.mark.parametrize("engine", [dear, memory_bound])
@pytest.mark.parametrize("requests", [1, 64])
def test_without_a_profile_it_finds_out_what_pays(engine: Engine, requests: int) -> None:
    """Next to an engine whose costs are known from the start and that never explores."""
    blind = Budget(Rules(), StepCost(), Acceptance())
    run(blind, engine, requests, 1500)
    tokens, seconds = run(blind, engine, requests, 1500)
    best_tokens, best_s = run(budget_of(engine), engine, requests, 1500)
    assert tokens / seconds > 0.96 * best_tokens / best_s


def test_exploring_costs_little_even_where_drafts_never_pay() -> None:
    budget = Budget(Rules(), StepCost(), Acceptance())
    run(budget, dear, 64, 500)
    tokens, seconds = run(budget, dear, 64, 2000, honest=False)
    assert tokens / seconds > 0.98 * 64 / dear(Step(64, 64, 1000.0))
    assert budget.explored > 3, "and it goes on exploring"


@pytest.mark.parametrize("reading", READINGS)
def test_exploring_is_a_matter_of_counting(reading: Reading) -> None:
    """Both plain steps and wider ones come up, at the same steps in every run."""

    def explored() -> list[tuple[int, int]]:
        budget = Budget(Rules(reading=reading), learnt(memory_bound), Acceptance())
        load, found = Load(2, 0, 1000.0), []
        for number in range(3000):
            before = budget.explored
            cap = budget.cap(load)
            if cap:
                budget.choose(load, *drafts(2, FALLING[:cap]), np.zeros(2, bool))
            if budget.explored > before:
                found.append((number, cap))
        return found

    found = explored()
    assert found == explored()
    assert {cap == 0 for _, cap in found} == {True, False}
    assert found[0][0] == EXPLORE_STEPS - 1


def test_drafts_that_lie_are_found_out() -> None:
    def engine(step: Step) -> float:
        return 0.010 + 5e-4 * step.rows

    budget, said = budget_of(engine), [0.7**depth for depth in range(1, 20)]
    assert sum(chosen(budget, 8, said)) > 0
    run(budget, engine, 8, 100, honest=False)
    assert sum(chosen(budget, 8, said)) == 0
