"""The running measures: what they foretell from samples whose truth is known."""

from random import Random

import pytest

from seer_sgl.router.core.costs import (
    ANSWER_S,
    DAMPING,
    DEVIATIONS,
    MEMORY,
    SHARE_STEP,
    TRIAL_AFTER,
    WARM,
    Costs,
    Line,
)
from seer_sgl.router.core.events import ChunkTiming


def fitted(samples: list[tuple[int, float]]) -> Line:
    line = Line()
    for tokens, seconds in samples:
        line.add(tokens, seconds)
    return line


def test_a_line_is_found_in_noisy_samples() -> None:
    random = Random(3)
    lengths = [random.choice([100, 1_000, 8_000, 30_000]) for _ in range(4 * MEMORY)]
    line = fitted([(n, 0.03 + n * 2e-5 + random.uniform(-0.01, 0.01)) for n in lengths])
    for tokens in (200, 8_000, 60_000):
        assert line.at(tokens) == pytest.approx(0.03 + tokens * 2e-5, rel=0.1, abs=0.01)
    assert 0.002 < line.deviation_s < 0.01


def test_samples_that_are_alike_are_shared_out_by_their_tokens() -> None:
    line = fitted([(1_000 + n % 3, 0.5) for n in range(10)])
    assert line.at(2_000) == pytest.approx(1.0, rel=0.01)
    assert fitted([(100, 0.5)]).at(50) == 0.25
    assert Line().at(50) == 0.0


@pytest.mark.parametrize(
    "samples", [[(100, 1.0), (1_000, 0.1)], [(10, 0.001), (1_000, 2.0), (500, 0.1)]]
)
def test_nothing_is_foretold_to_take_less_than_nothing(samples: list[tuple[int, float]]) -> None:
    line = fitted(samples)
    assert all(line.at(tokens) > 0 for tokens in (1, 10, 100, 10_000))
    assert line.at(10_000) >= line.at(10)


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(0, 1.0), (-3, 1.0), (5, -0.1), (5, float("nan")), (5, float("inf"))]
)
def test_what_cannot_be_teaches_nothing(tokens: int, seconds: float) -> None:
    line = fitted([(100, 1.0), (tokens, seconds)])
    assert (line.count, line.at(100)) == (1, 1.0)


@pytest.mark.parametrize("outlier_s", [1_000.0, 0.0])
def test_one_outlier_moves_little(outlier_s: float) -> None:
    line = fitted([(1_000, 1.0)] * MEMORY + [(1_000, outlier_s)])
    assert abs(line.at(1_000) - 1.0) <= (DAMPING - 1) / MEMORY


def test_a_change_that_lasts_is_followed() -> None:
    line = fitted([(1_000, 1.0)] * MEMORY + [(1_000, 50.0)] * 4 * MEMORY)
    assert line.at(1_000) == pytest.approx(50.0, rel=0.1)
    line = fitted([(1_000, 0.0)] * WARM + [(1_000, 1.0)] * 4 * MEMORY)
    assert line.at(1_000) == pytest.approx(1.0, rel=0.1), "also from nothing"


def test_a_timing_teaches_what_it_tells() -> None:
    costs = Costs()
    costs.took(ChunkTiming())
    assert (costs.compute.count, costs.load.count) == (0, 0)
    costs.took(ChunkTiming(computed_tokens=100, prefill_s=0.2))
    costs.took(ChunkTiming(loaded_tokens=50, load_s=0.1))
    assert (costs.compute.at(200), costs.load.at(200)) == (0.4, 0.4)


def test_the_latest_answer_is_some_deviations_late() -> None:
    costs = Costs()
    for _ in range(20):
        costs.written(1_000, 0.2)
    assert costs.latest_s(1_000) == pytest.approx(0.2 + ANSWER_S)
    for seconds in [0.1, 0.3] * MEMORY:
        costs.written(1_000, seconds)
    assert costs.latest_s(1_000) == pytest.approx(0.2 + DEVIATIONS * 0.1, abs=0.05)


def test_what_is_found_at_once_tells_only_that_it_took_no_longer() -> None:
    costs = Costs()
    costs.written(1_000, 0.3, at_once=True)
    assert costs.write.at(1_000) == 0.3, "better than nothing"
    costs.written(1_000, 5.0, at_once=True)
    assert costs.write.at(1_000) == pytest.approx(0.3)
    costs.written(1_000, 0.1, at_once=True)
    assert costs.write.at(1_000) < 0.3


def test_whoever_asks_late_does_not_make_writing_look_long() -> None:
    """Somebody asks at any time, but for when it should be there anyway."""
    costs, random = Costs(), Random(5)
    costs.written(1_000, 0.3)
    for _ in range(1_000):
        waited_s = random.uniform(0.02, 10.0)
        if waited_s < costs.latest_s(1_000):
            costs.written(1_000, waited_s, at_once=True)
    assert costs.latest_s(1_000) < 0.4


def test_waiting_pays_less_the_more_often_it_was_in_vain() -> None:
    costs = Costs()
    assert costs.wait_pays(0.4, 9.0, 0.5)
    assert not costs.wait_pays(0.5, 0.5, 0.5)
    costs.missed(100, 0.5)
    assert costs.found_share == 1 - SHARE_STEP
    assert costs.wait_pays(0.3, 0.5, 0.5)
    assert not costs.wait_pays(0.4, 0.5, 0.5), "0.3 + 0.125 against 0.375"
    for _ in range(40):
        costs.missed(100, 0.5)
    assert not costs.wait_pays(0.0, 0.5, 1.0)
    for _ in range(10):
        costs.written(100, 0.1)
    assert costs.wait_pays(0.3, 0.5, 0.5)


def test_a_look_up_in_vain_does_not_make_writing_look_short() -> None:
    costs = Costs()
    for _ in range(WARM):
        costs.written(1_000, 0.5)
    costs.missed(1_000, 0.1)
    assert costs.write.at(1_000) == pytest.approx(0.5)
    costs.missed(1_000, 1.0)
    assert costs.write.at(1_000) > 0.5


def test_one_of_many_moves_is_a_trial() -> None:
    costs = Costs()
    once = [False] * (TRIAL_AFTER - 1) + [True]
    assert [costs.skip() for _ in range(2 * TRIAL_AFTER)] == once + once
    costs.skip()
    costs.missed(100, 0.5)
    assert [costs.skip() for _ in range(TRIAL_AFTER)] == once, "an answer is as good as one"
