"""What the core may be told, and what it tells of itself. Lengths in tokens, times in seconds."""

import msgspec

from seer_sgl.router.core.placement import PlacementSettings


class CoreSettings(msgspec.Struct, frozen=True):
    """Settings of a `RouterCore`."""

    chunk_tokens: int = 8192
    """Longest chunk (a summary of the paper's first version names 8K)."""
    chunk_plan: str = "short_probe"
    """How much of that a request gets, by its phase: a name of `CHUNK_PLANS`."""
    draft_tokens: int = 0
    """KV that speculative decoding takes on top of a chunk's own."""
    settle_s: float = 0.5
    """SGLang writes KV to the pool in the background after a chunk ends. This long is assumed for it
    until something is measured, and wherever nobody can look (see `moves.py`).
    Two busy servers on two cores: 0.1 s found 94 to 99 % of the prefix, 0.5 s 99 %."""
    max_failures: int = 5
    """Chunks of one request that may fail in a row before it is given up."""
    look_ahead: int = 8
    """Waiting requests tried behind one that fits no engine."""
    starvation_dispatches: int = 64
    """Every so many dispatches the request that has waited longest goes first, whatever the policy's
    order (the paper schedules under-served groups "occasionally"); 0 for never."""
    placement: PlacementSettings = PlacementSettings()


class Statistics(msgspec.Struct, frozen=True):
    """Counts at one moment."""

    waiting: int
    in_flight: int
    engines: int
    chunks: int
    """Dispatched since the start."""
    moved_chunks: int
    """Of these, those that went on from another engine."""
    delivered: int
    paused: bool = False
