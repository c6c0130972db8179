"""How long an engine's step takes, learnt from its own steps. Pure: times come in as arguments.

A step of `b` requests, whose KV holds `n` tokens, that sends `r` rows through the model (one per request
and one per draft token), is taken to last

    base + b * request + n * kv + rows(r)                          a plain step, r = b
    ... + verify + (r / b - 1) * n * kv_row                        one that verifies drafts

`rows` is a line in pieces that never falls, each an octave wide: flat where the weights' bandwidth
rules, steep where arithmetic does. Coefficients are never negative. They are a linear model's state,
filtered step by step (Kalman, random walk): what is not measured for a while gets less certain, but
never less than at the start. A step that takes much longer than it should counts as a few deviations at
most, so that a busy machine's spikes hardly move the model, and a lasting change does.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from seer_sgl.errors import StartError
from seer_sgl.spec.compiled import kernel

Floats: TypeAlias = npt.NDArray[np.float64]

OCTAVES = 11
"""Rows beyond 1,024 cost what the last ones of those did."""
BASE, REQUEST, KV, VERIFY, KV_ROW, ROWS = range(6)
"""Places of the coefficients; from `ROWS` on one per octave of rows."""
SIZE = ROWS + OCTAVES

NOISE = 0.05
"""Deviation of a step's time, as a share of it, on a quiet machine."""
PROFILE_NOISE = 0.02
"""The same of a profile's median."""
PROFILE_PASSES = 4
"""So often a profile is learnt: what was assumed before fades."""
CLIPPED = 2.5
"""Deviations that a step can count for."""
DRIFT_STEPS = 100_000
"""In so many steps an unmeasured coefficient gets as uncertain as it was at the start. It makes what is
measured all the time an average over some thirty steps."""
ROW_SHARE = 0.02
"""Assumed before anything is known: a row's share of a step of one request. Eight rows cost 1.13 plain
steps on a CPU with a small model, less on a GPU."""
VERIFY_SHARE = 0.05
"""Assumed before anything is known: what verification costs beside its rows, as a share of a step."""
SWEEPS = 20
"""Enough for all coefficients to be positive but for next to nothing."""
ALIKE = 0.8
"""Correlation of a row's cost in neighbouring octaves, before anything is known."""


class Step(NamedTuple):
    """A step of the engine."""

    requests: int
    rows: int
    """At least `requests`; more where drafts are verified."""
    kv_tokens: float


class Curve(NamedTuple):
    """What steps of one batch take, by their rows."""

    plain_s: float
    """Without drafts."""
    verify_s: float
    """With drafts, but for what the rows cost."""
    extra_row_s: float
    """Of each row beyond one per request, beside `row_s`."""
    row_s: Floats
    """Of a row, by octave."""


class StepCost:
    """Seconds of a step; starts from a profile's steps or from nothing but the first step it sees.

    Args:
        profile: measured steps with their seconds.
    """

    def __init__(self, profile: Iterable[tuple[Step, float]] = ()) -> None:
        self.steps = 0
        """Seen so far, those of the profile not counted."""
        self._mean = np.zeros(SIZE)
        self._covariance = np.zeros((SIZE, SIZE))
        self._deviations = np.zeros(SIZE)
        self._known = False
        measured = sorted((step, seconds) for step, seconds in profile if seconds > 0)
        for _ in range(PROFILE_PASSES):
            for step, seconds in measured:
                self._learn(step, seconds, PROFILE_NOISE, 0.0, np.inf)

    @property
    def known(self) -> bool:
        """Whether anything has been measured."""
        return self._known

    def observe(self, step: Step, step_s: float) -> None:
        """Take in how long a step took. Nonsense (a clock set back) is left out."""
        if step.requests > 0 and 0.0 < step_s < np.inf:
            self._learn(step, step_s, NOISE, 1.0 / DRIFT_STEPS, CLIPPED)
            self.steps += 1

    def seconds(self, step: Step) -> float:
        """What such a step is expected to take; 0 before anything is known."""
        curve = self.curve(step.requests, step.kv_tokens)
        if step.rows <= step.requests:
            return curve.plain_s
        return verified_s(curve, step.requests, step.rows)

    def curve(self, requests: int, kv_tokens: float) -> Curve:
        """Steps of so many requests, that hold so many tokens, by rows."""
        mean = self._mean
        fixed_s = float(mean[BASE] + requests * mean[REQUEST] + kv_tokens * mean[KV])
        row_s = mean[ROWS:]
        extra_row_s = float(mean[KV_ROW]) * kv_tokens / max(1, requests)
        plain_s = fixed_s + float(rows_s(row_s, float(requests)))
        return Curve(plain_s, fixed_s + float(mean[VERIFY]), extra_row_s, row_s)

    def _learn(self, step: Step, seconds: float, noise: float, drift: float, clipped: float) -> None:
        if not self._known:
            self._guess(step, seconds)
        load = (float(step.requests), float(max(step.rows, step.requests)), float(step.kv_tokens))
        state = self._mean, self._covariance, self._deviations
        _filter(*state, load, float(seconds), noise, drift, clipped)

    def _guess(self, step: Step, seconds: float) -> None:
        """Of a first step: half of it or more is fixed; how sure this is."""
        requests, rows, kv_tokens = step
        row_s = seconds * min(ROW_SHARE, 0.5 / max(requests, rows))
        held = max(kv_tokens, 1000.0)
        self._mean[:] = 0.0
        self._mean[ROWS:] = row_s
        self._mean[BASE] = seconds - row_s * rows
        self._mean[VERIFY] = seconds * VERIFY_SHARE
        deviations = self._deviations
        deviations[BASE] = 0.5 * seconds
        deviations[REQUEST] = 0.2 * seconds / max(1, requests)
        deviations[KV] = 0.3 * seconds / held
        deviations[VERIFY] = 0.3 * seconds
        deviations[KV_ROW] = 0.05 * seconds / held
        deviations[ROWS:] = 0.5 * seconds / max(requests, rows)
        self._covariance[:] = np.eye(SIZE)
        apart = np.abs(np.subtract.outer(np.arange(OCTAVES), np.arange(OCTAVES)))
        self._covariance[ROWS:, ROWS:] = ALIKE**apart
        self._known = True


def verified_s(curve: Curve, requests: int, rows: int) -> float:
    """Seconds of a step that verifies drafts."""
    drafted_s = curve.extra_row_s * max(0, rows - requests)
    return curve.verify_s + drafted_s + float(rows_s(curve.row_s, float(rows)))


class _Seen(msgspec.Struct):
    """An observation of `seer-sgl profile`, as far as it matters here."""

    kind: str
    requests: int
    tokens: float
    seconds: float
    rows: int = 0


class _Fitted(msgspec.Struct):
    observation: _Seen


class _Fit(msgspec.Struct):
    fitted: list[_Fitted]


class _Profile(msgspec.Struct):
    fit: _Fit


def profiled_steps(profile: bytes) -> list[tuple[Step, float]]:
    """The steps of a file that `seer-sgl profile --json` wrote, for `StepCost`.

    Raises:
        StartError: it is no such file, or has no step.
    """
    try:
        rows = msgspec.json.decode(profile, type=_Profile).fit.fitted
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartError(f"not what `seer-sgl profile --json` writes: {error}") from None
    steps = [
        (Step(seen.requests, max(seen.rows, seen.requests), seen.tokens), seen.seconds)
        for seen in (row.observation for row in rows)
        if seen.kind in ("step", "verify") and seen.requests > 0 and seen.seconds > 0
    ]
    if not steps:
        raise StartError("the profile has no step: write it again with `seer-sgl profile --json`")
    return steps


@kernel
def rows_s(row_s: Floats, rows: float) -> float:
    """Seconds of so many rows: each at the price of its octave; the first one is part of the base."""
    total = 0.0
    low, width = 1.0, 1.0
    for octave in range(row_s.size):
        if rows <= low:
            break
        inside = rows - low
        if octave < row_s.size - 1:
            inside = min(inside, width)
        total += row_s[octave] * inside
        low += width
        width *= 2.0
    return total


@kernel
def _filter(
    mean: Floats,
    covariance: Floats,
    deviations: Floats,
    load: tuple[float, float, float],
    seconds: float,
    noise: float,
    drift: float,
    clipped: float,
) -> None:
    """One step of the filter, in place. The covariance is of coefficients in units of `deviations`."""
    requests, rows, kv_tokens = load
    size = mean.size
    x = np.zeros(size)
    x[BASE], x[REQUEST], x[KV] = 1.0, requests, kv_tokens
    if rows > requests:
        x[VERIFY] = 1.0
        x[KV_ROW] = (rows / requests - 1.0) * kv_tokens
    low, width = 1.0, 1.0
    for octave in range(size - ROWS):
        if rows > low:
            inside = rows - low
            x[ROWS + octave] = inside if octave == size - ROWS - 1 else min(inside, width)
        low += width
        width *= 2.0
    for i in range(size):
        if covariance[i, i] < 1.0:
            covariance[i, i] += drift
    gain = np.zeros(size)  # written out: numba's dot products would need scipy
    expected_s = variance = 0.0
    for i in range(size):
        expected_s += mean[i] * x[i]
        x[i] *= deviations[i]
    for i in range(size):
        for j in range(size):
            gain[i] += covariance[i, j] * x[j]
        variance += gain[i] * x[i]
    variance += (noise * max(seconds, expected_s)) ** 2
    bound = clipped * np.sqrt(variance)
    error_s = min(bound, max(-bound, seconds - expected_s))
    for i in range(size):
        mean[i] += deviations[i] * gain[i] * error_s / variance
        for j in range(i + 1):
            covariance[i, j] -= gain[i] * gain[j] / variance
            covariance[j, i] = covariance[i, j]
    _keep_positive(mean, covariance, deviations)


@kernel
def _keep_positive(mean: Floats, covariance: Floats, deviations: Floats) -> None:
    """Raise what is negative to 0, and move the others so that what is well known stays as it is.

    Setting it to 0 alone would raise the whole, step after step.
    """
    for _ in range(SWEEPS):
        lowest = 0.0
        for i in range(mean.size):
            if mean[i] < 0.0:
                short = mean[i] / deviations[i]
                lowest = min(lowest, short)
                for j in range(mean.size):
                    mean[j] -= deviations[j] * covariance[j, i] / covariance[i, i] * short
                mean[i] = 0.0
        if lowest > -1e-9:
            break
    for i in range(mean.size):
        mean[i] = max(0.0, mean[i])
