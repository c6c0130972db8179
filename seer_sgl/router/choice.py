"""Which engine gets a request that runs whole on one server. Pure."""

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b

from seer_sgl.types import EngineId

SLACK = 8
"""How many more requests than the idlest engine one may have and still get its own prompts again."""
KEY_BYTES = 1024
"""How much of a prompt is looked at: what is alike so far shares a prefix worth keeping together."""


def chosen(loads: Sequence[tuple[EngineId, int]], turn: int, key: bytes = b"") -> EngineId:
    """One of these engines.

    With a key, always the same one, so that its server still has the prefix in its cache; unless that
    has much more to do than another. Without one, the engine with the least to do, by turns where
    several have.

    Args:
        loads: engines, at least one, and how many requests each runs.
        turn: counts requests.
    """
    least = min(load for _, load in loads)
    if key:
        near = [engine for engine, load in loads if load <= least + SLACK]
        short = blake2b(key, digest_size=16).digest()
        return max(near, key=lambda engine: blake2b(short, digest_size=8, salt=_salt(engine)).digest())
    idlest = [engine for engine, load in loads if load == least]
    return idlest[turn % len(idlest)]


@cache
def _salt(engine: EngineId) -> bytes:
    return blake2b(engine.encode(), digest_size=16).digest()
