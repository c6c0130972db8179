"""A workload: what is sampled, how long the samples get, and on how many engines of which kind."""

import msgspec

from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.speculation import Drafting


class Lengths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Output lengths: lognormal, clipped to 1 and `max_new_tokens`, alike within a group."""

    mean_tokens: float
    """Mean after clipping."""
    spread: float
    """Standard deviation of the logarithms (base e) before clipping."""
    correlation: float
    """Share of the logarithms' variance that lies between groups (ICC), 0 to 1."""


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rollout iteration."""

    name: str
    engine: EngineModel
    engines: int
    groups: int
    group_size: int
    prompt_tokens: int
    max_new_tokens: int
    lengths: Lengths
    chunk_tokens: int = 8192
    speculation: Drafting | None = None
