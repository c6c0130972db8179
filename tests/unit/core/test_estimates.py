"""Length estimates of hand-made groups."""

from math import log, sqrt

import pytest

from seer_sgl.errors import StartError
from seer_sgl.router.core import policy_named
from seer_sgl.router.core.context import LengthContext, LengthPrior
from seer_sgl.router.core.estimates import (
    DEVIATIONS,
    ESTIMATES,
    estimate_named,
    expected_remaining,
    longest_finished,
    longest_likely,
    longest_sibling,
)
from seer_sgl.router.core.state import Group, Request
from seer_sgl.types import GroupId, RequestId

LIMIT = 10_000


def group_of(mean: float = 0.0, variance: float = 0.0, finished: int = 0, longest: int = 0) -> Group:
    """A group of which so much is known; variance 0 for nothing."""
    group = Group(GroupId("g"), seq=0, max_new_tokens=LIMIT)
    group.log_mean, group.log_variance = mean, variance
    group.finished_tokens, group.longest_tokens = finished, longest
    return group


def sample_of(group: Group, generated: int = 0, limit: int = LIMIT) -> Request:
    sample = Request(RequestId("g.0"), group, 1, 5, limit, divisible=True)
    sample.generated_tokens = generated
    return sample


@pytest.mark.parametrize(
    ("finished", "longest", "by_finished", "by_longest"),
    [
        (0, 0, LIMIT, LIMIT),
        (0, 70, LIMIT, LIMIT),
        (30, 30, 30, 30),
        (30, 50, 30, 50),
        (90, 60, 90, 90),
    ],
)
def test_the_papers_estimates(finished: int, longest: int, by_finished: int, by_longest: int) -> None:
    sample = sample_of(group_of(finished=finished, longest=longest), generated=20)
    assert longest_finished(LengthContext(), sample) == by_finished
    assert longest_sibling(LengthContext(), sample) == by_longest


def test_likely_is_so_many_deviations_above_the_groups_mean() -> None:
    context = LengthContext(LengthPrior(within=0.3))
    sample = sample_of(group_of(log(500), variance=0.04**2))
    high = 500 * 2.718281828459045 ** (DEVIATIONS * sqrt(0.3**2 + 0.04**2))
    assert longest_likely(context, sample) == pytest.approx(high)
    sample.generated_tokens = 200
    assert longest_likely(context, sample) == pytest.approx(high - 200)


def test_likely_of_a_group_of_which_nothing_is_known_comes_from_what_is_common() -> None:
    context = LengthContext(LengthPrior(share_of_limit=0.1, between=0.4, within=0.3))
    high = 1_000 * 2.718281828459045 ** (DEVIATIONS * 0.5)
    assert longest_likely(context, sample_of(group_of())) == pytest.approx(high)
    context.shift = -0.7
    assert longest_likely(context, sample_of(group_of())) == pytest.approx(high * 2.71828183**-0.7)


@pytest.mark.parametrize("variance", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("limit", [1, 2, 50, 3_000, LIMIT])
def test_likely_falls_with_each_token_until_outlived_and_is_what_is_left_then(
    variance: float, limit: int
) -> None:
    context = LengthContext(LengthPrior(within=0.2))
    group = group_of(log(400), variance)
    likely = [longest_likely(context, sample_of(group, so_far, limit)) for so_far in range(limit)]
    left = [limit - so_far for so_far in range(limit)]
    most = likely[0]
    for so_far, estimate in enumerate(likely):
        assert 0 < estimate <= left[so_far] * (1 + 1e-9)
        expected = left[so_far] if so_far >= most else most - so_far
        assert estimate == pytest.approx(expected)


def test_remaining_falls_at_first_and_grows_with_what_runs_on() -> None:
    context, group = LengthContext(LengthPrior(within=0.5)), group_of(log(400), 0.01)
    left = [expected_remaining(context, sample_of(group, so_far)) for so_far in range(0, 5_000, 100)]
    assert left[0] == pytest.approx(400 * 2.718281828459045**0.13, rel=1e-3)
    assert left[0] > left[1] > left[2]
    assert left[-1] > left[10]


def test_the_longer_of_two_groups_goes_first_by_every_estimate() -> None:
    context = LengthContext()
    short, long = group_of(log(100), 0.1, 100, 100), group_of(log(900), 0.1, 900, 900)
    for name, estimate in ESTIMATES.items():
        assert estimate(context, sample_of(long)) > estimate(context, sample_of(short)), name


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_policy_may_be_had_with_each_estimate(name: str) -> None:
    policy = policy_named("seer", estimate_named(name))
    sample = sample_of(group_of(log(100), 0.1, 120, 130), 20)
    assert policy.rank(LengthContext(), sample) == -ESTIMATES[name](LengthContext(), sample)
    assert (policy.name, policy.probes_first, policy.guarded) == ("seer", True, True)


def test_the_default_is_the_longest_likely() -> None:
    sample = sample_of(group_of(log(100), 0.1, 120, 130), 20)
    default = policy_named("seer").rank(LengthContext(), sample)
    assert default == -longest_likely(LengthContext(), sample)


def test_a_policy_without_estimates_is_the_same_with_one() -> None:
    assert policy_named("divided", longest_sibling) is policy_named("divided")


def test_an_unknown_estimate_names_those_there_are() -> None:
    with pytest.raises(StartError, match=r"'best'.*: finished, longest, remaining, likely$"):
        estimate_named("best")
