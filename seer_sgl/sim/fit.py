"""An engine's model from measurements: the loads that tell its terms apart, and the fit. Pure.

Errors are relative throughout: a step of 3 ms counts as much as one of 30 ms.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from seer_sgl.errors import SeerError
from seer_sgl.sim.model import EngineModel

Floats: TypeAlias = npt.NDArray[np.float64]

LEAD_TOKENS = 8
"""Output tokens of the shorter of two runs; the longer one has `WINDOW_STEPS` more."""
WINDOW_STEPS = 64
"""Steps between the two: what differs is decoding alone, with every request of the batch running."""
SHORT_PROMPT_TOKENS = 16
KV_SHARE = 0.6
"""Of the KV, what a load may fill. SGLang holds requests back, or retracts them, close to the limit."""
MOST_KV_TOKENS = 131_072
"""Bounds what one load has to prefill where the KV is large."""
LONGEST_PROMPT_TOKENS = 16_384
MOST_ROWS = 512
"""Of a step with drafts: more rows are never worth it, and take long to measure."""
KNEE_GAIN = 3.0
"""A knee has to cut the squared error by this factor: it has a parameter more, and its place is free."""
KNEE_ERROR = 0.01
"""Where the plain model is closer than this (root mean square), no knee is looked for."""


class Load(msgspec.Struct, frozen=True):
    """A batch to decode."""

    requests: int
    prompt_tokens: int
    width: int = 1
    """Tokens that each step verifies of each request."""

    @property
    def kv_tokens(self) -> float:
        """Cached tokens in sum, in the middle of the measured steps."""
        return self.requests * (self.prompt_tokens + LEAD_TOKENS + WINDOW_STEPS / 2)


class Plan(msgspec.Struct, frozen=True):
    """What to measure."""

    loads: list[Load]
    prefill_tokens: list[int]
    """Prompt lengths."""
    start_tokens: list[int]
    """Lengths of prefixes that chunks start from."""
    beside_requests: int
    """How many others run meanwhile."""
    move_tokens: list[int]
    """Lengths of prefixes that another engine has."""
    rounds: int


class Limits(msgspec.Struct, frozen=True):
    """What an SGLang server says of itself."""

    kv_capacity_tokens: int
    page_tokens: int
    max_running_requests: int


class Observation(msgspec.Struct, frozen=True):
    """Something that took time.

    A turnaround is a chunk of one token whose prefix is cached, from one end to the other; a start is by
    how much such a chunk delays the others.
    """

    kind: Literal["step", "verify", "prefill", "start", "turnaround", "move"]
    requests: int
    tokens: float
    """Of a step all cached tokens, of a prefill, start or turnaround the prompt's, of a move the moved
    ones."""
    seconds: float
    rows: int = 0
    """Tokens that a step with drafts verifies, of all requests together."""


class Fitted(msgspec.Struct, frozen=True):
    """An observation beside what the model makes of it."""

    observation: Observation
    fitted_s: float
    residual: float | None
    """fitted / measured - 1; None where nothing was measured: a difference of times can be below 0."""


class Fit(msgspec.Struct, frozen=True):
    """The model, and how far to trust it."""

    engine: EngineModel
    prefill_fixed_s: float
    """What a lone request of one token costs besides its prompt's tokens."""
    fitted: list[Fitted]
    residual_median: float
    """Median of the absolute residuals of steps and prefills."""
    residual_worst: float


def plan_for(
    limits: Limits,
    context_tokens: int,
    max_batch: int | None,
    quick: bool,
    widths: Sequence[int] = (),
) -> Plan:
    """Loads that tell requests, KV and fixed costs apart, within what the engine holds.

    Args:
        widths: what steps with drafts may verify of each request, where the engine drafts.

    Raises:
        SeerError: the engine, or `max_batch`, leaves no two batch sizes to compare.
    """
    longest = min(context_tokens // 4, limits.kv_capacity_tokens // 2, LONGEST_PROMPT_TOKENS)
    most = min(max_batch or limits.max_running_requests, limits.max_running_requests)
    run_tokens = LEAD_TOKENS + WINDOW_STEPS + limits.page_tokens
    room = min(int(limits.kv_capacity_tokens * KV_SHARE), MOST_KV_TOKENS)
    sizes = sorted({1 << power for power in range(most.bit_length())} | {most})
    sizes = [size for size in sizes if size * (SHORT_PROMPT_TOKENS + run_tokens) <= room]
    if quick and len(sizes) > 3:
        sizes = [sizes[0], sizes[-2], sizes[-1]]
    if len(sizes) < 2 or longest < 8 * SHORT_PROMPT_TOKENS:
        raise SeerError(
            f"nothing to compare: batches of up to {most} requests in {limits.kv_capacity_tokens} KV "
            f"tokens, context {context_tokens}; two batch sizes and prompts of 128 tokens are needed"
        )
    loads = [Load(size, SHORT_PROMPT_TOKENS) for size in sizes]
    for size in sizes:
        long = min(longest, room // size - run_tokens)
        if long >= 4 * SHORT_PROMPT_TOKENS:
            loads.append(Load(size, long))
    loads += _with_drafts(loads, widths, room)
    prefills = sorted({longest, longest // 4, longest // 16, *([] if quick else [longest // 2])})
    return Plan(
        loads=loads,
        prefill_tokens=prefills,
        start_tokens=[longest // 8, longest // 2],
        beside_requests=max(1, sizes[-1] // 2),
        move_tokens=[longest // 4, longest],
        rounds=3 if quick else 5,
    )


def _with_drafts(loads: Sequence[Load], widths: Sequence[int], room: int) -> list[Load]:
    """Short prompts in any batch, and long ones alone, where attention counts most."""
    least = min(load.requests for load in loads)
    return [
        msgspec.structs.replace(load, width=width)
        for load in loads
        for width in widths
        if load.requests * width <= MOST_ROWS
        and (load.prompt_tokens == SHORT_PROMPT_TOKENS or load.requests == least)
        and load.kv_tokens + load.requests * width <= room
    ]


def fit(observations: Sequence[Observation], limits: Limits) -> Fit:
    """The engine that explains the observations best, with no negative coefficient.

    Raises:
        SeerError: the observations do not determine it.
    """
    of_kind: defaultdict[str, list[Observation]] = defaultdict(list)
    for observation in observations:
        of_kind[observation.kind].append(observation)
    _check(of_kind["step"], of_kind["prefill"])
    fixed_s, weights_s, token_s, kv_token_s = _fit_steps(of_kind["step"])
    prefill_fixed_s, prefill_token_s = _fit_line(of_kind["prefill"])
    prefill_s, prefix_token_s = _fit_line(of_kind["start"])
    move_s, move_token_s = _fit_line(of_kind["move"])
    engine = EngineModel(
        fixed_s=fixed_s,
        weights_s=weights_s,
        token_s=token_s,
        kv_token_s=kv_token_s,
        prefill_token_s=prefill_token_s,
        kv_capacity_tokens=limits.kv_capacity_tokens,
        page_tokens=limits.page_tokens,
        max_running_requests=limits.max_running_requests,
        admission="sglang",
        prefill_s=prefill_s,
        prefix_token_s=prefix_token_s,
        move_s=move_s,
        move_token_s=move_token_s,
    )
    # Its token counts as a step of the chunk.
    rests = [
        row.seconds - engine.start_s(0, row.tokens) - engine.step_s(1, row.tokens)
        for row in of_kind["turnaround"]
    ]
    turnaround_s = max(0.0, float(np.median(rests))) if rests else 0.0
    engine = msgspec.structs.replace(engine, turnaround_s=turnaround_s)
    fitted = [_fitted(observation, engine, prefill_fixed_s) for observation in observations]
    trusted = [row for row in fitted if row.observation.kind in ("step", "prefill")]
    errors = [abs(row.residual) for row in trusted if row.residual is not None]
    return Fit(engine, prefill_fixed_s, fitted, float(np.median(errors)), max(errors))


def _check(steps: list[Observation], prefills: list[Observation]) -> None:
    for observation in (*steps, *prefills):
        if not (math.isfinite(observation.seconds) and observation.seconds > 0):
            raise SeerError(
                f"a {observation.kind} of {observation.requests} requests and {observation.tokens:g} "
                f"tokens took {observation.seconds:g} s: the machine is too busy with something else"
            )
    loads = np.array([[1.0, row.requests, row.tokens] for row in steps]).reshape(-1, 3)
    if len(loads) < 3 or np.linalg.matrix_rank(_scaled(loads)[0]) < 3:
        raise SeerError(
            "the steps do not tell fixed cost, requests and KV apart: measure at least two batch sizes, "
            "and two amounts of KV with one of them"
        )
    if len({row.tokens for row in prefills}) < 2:
        raise SeerError("the prefills do not tell a token's cost: measure at least two prompt lengths")


def _fit_steps(steps: list[Observation]) -> tuple[float, float, float, float]:
    """fixed_s, weights_s, token_s, kv_token_s; weights_s is 0 unless a knee is clearly there."""
    requests = np.array([float(row.requests) for row in steps])
    kv_tokens = np.array([row.tokens for row in steps])
    seconds = np.array([row.seconds for row in steps])
    ones = np.ones_like(seconds)

    def error(knee: tuple[float, float, float, float]) -> float:
        fixed_s, weights_s, token_s, kv_token_s = knee
        products_s = np.maximum(weights_s, requests * token_s)
        return float(np.sum(((fixed_s + products_s + kv_tokens * kv_token_s) / seconds - 1) ** 2))

    fixed_s, token_s, kv_token_s = _nonnegative([ones, requests, kv_tokens], seconds)
    plain = (fixed_s, 0.0, token_s, kv_token_s)
    sizes = sorted(set(requests.tolist()))
    knees = []
    # Two sizes on each side: with one, the knee's terms cannot be told from the fixed cost.
    for last_flat in sizes[1:-2]:
        flat = requests <= last_flat
        columns = [ones, flat * 1.0, ~flat * requests, kv_tokens]
        fixed_s, weights_s, token_s, kv_token_s = _nonnegative(columns, seconds)
        knees.append((fixed_s, weights_s, token_s, kv_token_s))
    best = min(knees, key=error, default=plain)
    clear = error(best) * KNEE_GAIN < error(plain) and error(plain) > len(steps) * KNEE_ERROR**2
    return best if clear else plain


def _fit_line(observations: list[Observation]) -> tuple[float, float]:
    """Seconds at no token, and per token; both 0 without observations."""
    if not observations:
        return 0.0, 0.0
    seconds = np.array([row.seconds for row in observations])
    tokens = np.array([row.tokens for row in observations])
    fixed_s, token_s = _nonnegative([np.ones_like(seconds), tokens], seconds)
    return fixed_s, token_s


def _nonnegative(columns: list[Floats], seconds: Floats) -> list[float]:
    """Least squares on relative errors, without negative coefficients.

    Exact for few columns: the best solution is the plain one over the columns that it uses.
    """
    # A difference of two times can be next to nothing, and must not rule the others then.
    scale = np.maximum(seconds, max(0.05 * float(seconds.max()), 1e-9))
    matrix, norms = _scaled(np.column_stack(columns) / scale[:, None])
    target = seconds / scale
    best, least = np.zeros(len(columns)), float(target @ target)
    for count in range(1, len(columns) + 1):
        for used in map(list, combinations(range(len(columns)), count)):
            found = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
            error = float(np.sum((matrix[:, used] @ found - target) ** 2))
            if error < least and found.min() >= 0:
                best, least = np.zeros(len(columns)), error
                best[used] = found
    return [float(value) for value in best / norms]


def _scaled(matrix: Floats) -> tuple[Floats, Floats]:
    """Columns of length 1, and their lengths: requests and KV tokens differ by thousands."""
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1.0
    return matrix / norms, norms


def _fitted(observation: Observation, engine: EngineModel, prefill_fixed_s: float) -> Fitted:
    match observation.kind:
        case "step":
            fitted_s = engine.step_s(observation.requests, observation.tokens)
        case "verify":
            width = observation.rows / observation.requests
            fitted_s = engine.step_s(observation.requests, observation.tokens, width)
        case "prefill":
            fitted_s = prefill_fixed_s + observation.tokens * engine.prefill_token_s
        case "start":
            fitted_s = engine.start_s(0, observation.tokens)
        case "turnaround":
            fitted_s = engine.turnaround_s + engine.start_s(0, observation.tokens)
            fitted_s += engine.step_s(1, observation.tokens)
        case "move":
            fitted_s = engine.move_s + observation.tokens * engine.move_token_s
    measured = observation.seconds > 0
    return Fitted(observation, fitted_s, fitted_s / observation.seconds - 1 if measured else None)
