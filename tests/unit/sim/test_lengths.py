"""Drawn lengths have the mean, the spread and the likeness within groups that the workload asks for."""

import statistics
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_sgl.sim.lengths import clipped_mean, draw_lengths, log_mean, normal_cdf
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.workload import Lengths, Workload

ENGINE = EngineModel(1e-3, 1e-3, 1e-5, 1e-8, 1e-5, 1 << 20, 16, 64)


def workload(lengths: Lengths, groups: int, group_size: int, longest: int = 20_000) -> Workload:
    return Workload("drawn", ENGINE, 1, groups, group_size, 10, longest, lengths)


def logs(drawn: list[list[int]]) -> list[list[float]]:
    return [[log(tokens) for tokens in group] for group in drawn]


def intraclass_correlation(groups: list[list[float]]) -> float:
    """ICC(1) from a one-way analysis of variance."""
    size = len(groups[0])
    between = size * statistics.variance([statistics.fmean(group) for group in groups])
    within = statistics.fmean([statistics.variance(group) for group in groups])
    return (between - within) / (between + (size - 1) * within)


# Clipped hardly, noticeably, and so that a third of the samples are at the limit.
@pytest.mark.parametrize(
    ("mean_tokens", "spread", "longest"),
    [(500, 0.6, 20_000), (5000, 1.0, 20_000), (12_000, 1.5, 20_000)],
)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_mean_is_that_after_clipping(
    mean_tokens: float, spread: float, longest: int, correlation: float
) -> None:
    lengths = Lengths(mean_tokens, spread, correlation)
    drawn = draw_lengths(workload(lengths, 8000, 4, longest), seed=1)
    tokens = [length for group in drawn for length in group]
    assert statistics.fmean(tokens) == pytest.approx(mean_tokens, rel=0.04)
    assert min(tokens) >= 1
    assert max(tokens) <= longest


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.95, 1.0])
def test_siblings_are_as_alike_as_asked(correlation: float) -> None:
    """Far below the limit, and long enough that rounding to whole tokens does not count."""
    lengths = Lengths(3000.0, 0.8, correlation)
    drawn = logs(draw_lengths(workload(lengths, 2000, 8, 10**9), seed=2))
    assert intraclass_correlation(drawn) == pytest.approx(correlation, abs=0.03)
    assert statistics.stdev([x for group in drawn for x in group]) == pytest.approx(0.8, rel=0.05)


def test_lengths_are_clipped_at_both_ends() -> None:
    drawn = draw_lengths(workload(Lengths(20.0, 3.0, 0.5), 500, 4, 100), seed=3)
    tokens = [length for group in drawn for length in group]
    assert (min(tokens), max(tokens)) == (1, 100)


def test_a_seed_gives_its_lengths_and_another_one_others() -> None:
    asked = workload(Lengths(500.0, 1.0, 0.5), 20, 4)
    assert draw_lengths(asked, 7) == draw_lengths(asked, 7) != draw_lengths(asked, 8)


def test_there_are_as_many_groups_and_samples_as_asked() -> None:
    drawn = draw_lengths(workload(Lengths(500.0, 1.0, 0.5), 7, 3), seed=0)
    assert [len(group) for group in drawn] == [3] * 7


def test_without_spread_all_are_as_long_as_the_mean() -> None:
    assert draw_lengths(workload(Lengths(500.0, 0.0, 0.5), 3, 2), seed=0) == [[500, 500]] * 3


def test_the_mean_may_be_the_limit() -> None:
    drawn = draw_lengths(workload(Lengths(100.0, 1.0, 0.5), 50, 4, 100), seed=0)
    assert {length for group in drawn for length in group} == {100}


@given(st.floats(2.0, 1e5), st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0]), st.floats(1.01, 1000.0))
def test_the_log_mean_undoes_the_clipped_mean(mean_tokens: float, spread: float, above: float) -> None:
    longest = int(mean_tokens * above) + 1
    center = log_mean(mean_tokens, spread, longest)
    assert clipped_mean(center, spread, longest) == pytest.approx(mean_tokens, rel=1e-6)


def test_the_clipped_mean_is_the_integral() -> None:
    center, spread, longest = log(300), 0.9, 700
    width = 0.001
    points = [(k + 0.5) * width - 9 for k in range(int(18 / width))]
    weights = [exp(-z * z / 2) for z in points]
    values = [min(exp(center + spread * z), longest) for z in points]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert clipped_mean(center, spread, longest) == pytest.approx(expected, rel=1e-5)
    assert clipped_mean(center, spread, 1e12) == pytest.approx(300 * exp(0.9**2 / 2), rel=1e-9)


def test_the_normal_distribution() -> None:
    assert normal_cdf(0.0) == 0.5
    assert normal_cdf(1.959964) == pytest.approx(0.975, abs=1e-6)
    assert normal_cdf(float("inf")) == 1.0
    assert normal_cdf(float("-inf")) == 0.0
