"""Output lengths of a simulated iteration."""

from math import erf, exp, inf, log, sqrt
from random import Random

from seer_sgl.sim.workload import Workload

_BISECTIONS = 60


def draw_lengths(workload: Workload, seed: int, iteration: int = 0) -> list[list[int]]:
    """Output tokens of each sample, one list per group. The same seed gives the same lengths.

    A later iteration has the same prompts, hence the same groups, and new samples of them.
    The logarithm of a length is normal: a part that the group shares, a part of the sample's own.
    """
    random, later = Random(seed), Random(f"{seed}, {iteration}")
    lengths, longest = workload.lengths, workload.max_new_tokens
    center = log_mean(lengths.mean_tokens, lengths.spread, longest)
    between = lengths.spread * sqrt(lengths.correlation)
    within = lengths.spread * sqrt(1.0 - lengths.correlation)
    drawn = []
    for _ in range(workload.groups):
        group = center + between * random.gauss(0.0, 1.0)
        samples = [exp(group + within * random.gauss(0.0, 1.0)) for _ in range(workload.group_size)]
        if iteration:
            samples = [exp(group + within * later.gauss(0.0, 1.0)) for _ in samples]
        drawn.append([min(max(1, round(tokens)), longest) for tokens in samples])
    return drawn


def log_mean(mean_tokens: float, spread: float, longest: int) -> float:
    """Mean of the logarithms whose lognormal lengths, clipped to `longest`, have `mean_tokens`."""
    low, high = log(mean_tokens) - spread * spread, log(mean_tokens) + 10.0 * (spread + 1.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if clipped_mean(middle, spread, longest) < mean_tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def clipped_mean(center: float, spread: float, longest: float) -> float:
    """E[min(L, longest)] where log L is normal."""
    if spread <= 0:
        return min(exp(center), longest)
    edge = (log(longest) - center) / spread
    return exp(center + spread * spread / 2) * normal_cdf(edge - spread) + longest * normal_cdf(-edge)


def normal_cdf(z: float) -> float:
    """Of the standard normal distribution."""
    return 0.5 * (1.0 + erf(z / sqrt(2.0))) if z != inf else 1.0
