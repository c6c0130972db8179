"""What a simulated rollout leaves behind."""

import msgspec


class Timeline(msgspec.Struct, frozen=True):
    """Samples of the state at equal steps of time."""

    times_s: list[float]
    running: list[list[int]]
    """Requests that decode, one list per engine, as long as `times_s`."""
    kv_share: list[list[float]]
    """KV in use as a share of the capacity, 0 to 1, one list per engine."""
    finished_share: list[float]
    """Requests delivered as a share of all, 0 to 1."""


class SimResult(msgspec.Struct, frozen=True):
    """One rollout under one policy."""

    policy: str
    requests: int
    output_tokens: int
    makespan_s: float
    tail_s: float
    """Time spent only on the last 10 % of requests (the paper's tail time)."""
    tokens_per_s: float
    chunks: int
    moved_chunks: int
    moved_tokens: int
    """KV tokens that crossed between engines."""
    preemptions: int
    prefilled_tokens: int
    """Prompt tokens, and what had to be computed again."""
    idle_share: float
    """Of engines' time until the end of the rollout, the share without a running request."""
    decision_us: float
    """Median CPU time of the core per dispatched chunk; 0 where it was not measured."""
    timeline: Timeline | None = None
