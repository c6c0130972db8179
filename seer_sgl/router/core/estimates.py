"""Length estimates by name: how many tokens to rank a waiting request by; more goes first.

Each is a plain function of what is known about all groups, the request's group and the request itself.
"""

from collections.abc import Callable
from math import erfc, exp, log, sqrt

from seer_sgl.errors import StartError
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.state import Request

DEVIATIONS = 3.0
"""How far above its expected logarithm a length is feared to lie."""

Estimate = Callable[[LengthContext, Request], float]


def longest_finished(_context: LengthContext, request: Request) -> float:
    """The group's longest finished sample, or `max_new_tokens` while none has finished (arXiv
    2511.14617v3, Algorithm 2, UpdateEstimate)."""
    group = request.group
    return group.finished_tokens or group.max_new_tokens


def longest_sibling(_context: LengthContext, request: Request) -> float:
    """The same, where a sample that still runs and is longer counts, too."""
    group = request.group
    return (
        max(group.finished_tokens, group.longest_tokens)
        if group.finished_tokens
        else group.max_new_tokens
    )


def expected_remaining(context: LengthContext, request: Request) -> float:
    """Tokens that the request is expected to take still, given its group and what it has already."""
    mean, spread = _next_length(context, request)
    return mean_beyond(mean, spread, request.generated_tokens, request.max_new_tokens)


def longest_likely(context: LengthContext, request: Request) -> float:
    """Tokens that the request may take still if its length is `DEVIATIONS` above what is expected.

    The end of a rollout is that of its longest sample, so what may turn out long goes first, even where
    it is not likely to. With siblings alike that is the group that looks longest; where siblings tell
    little, all may be long, and the one with the fewest tokens so far has the longest way to go.
    """
    mean, spread = _next_length(context, request)
    limit = request.max_new_tokens
    high = mean + DEVIATIONS * spread
    length = exp(high) if high < log(limit) else limit
    # One that has outlived even that may be as long as any.
    return (length if length > request.generated_tokens else limit) - request.generated_tokens


def _next_length(context: LengthContext, request: Request) -> tuple[float, float]:
    """Mean and deviation of the logarithm of a length in the request's group."""
    group = request.group
    if group.log_variance > 0:
        return group.log_mean, sqrt(group.log_variance + context.within**2)
    return context.center(group.max_new_tokens), sqrt(context.between**2 + context.within**2)


def mean_beyond(mean: float, spread: float, tokens: float, limit: float) -> float:
    """E[min(L, limit) - tokens | L > tokens], where log L is normal with `mean` and `spread`."""
    low = (log(tokens) - mean) / spread if tokens > 0 else -40.0
    high = (log(limit) - mean) / spread
    alive = _upper(low)
    if alive < 1e-12:  # far beyond all that was expected: it may go on as long as it already has
        return min(tokens, limit - tokens)
    part = exp(mean + spread * spread / 2) * (_upper(low - spread) - _upper(high - spread))
    return (part + limit * _upper(high)) / alive - tokens


def _upper(z: float) -> float:
    """Upper tail of the standard normal distribution."""
    return 0.5 * erfc(z / sqrt(2.0))


ESTIMATES: dict[str, Estimate] = {
    "finished": longest_finished,
    "longest": longest_sibling,
    "remaining": expected_remaining,
    "likely": longest_likely,
}


def estimate_named(name: str) -> Estimate:
    """The estimate of that name.

    Raises:
        StartError: there is none; the message lists those there are.
    """
    if name not in ESTIMATES:
        raise StartError(f"no length estimate is called {name!r}; there are: {', '.join(ESTIMATES)}")
    return ESTIMATES[name]
