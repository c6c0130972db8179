"""What to do, in the imperative. The core returns them in order; a dispatcher performs them."""

from typing import Literal

import msgspec

from seer_sgl.types import ChunkId, EngineId, RequestId

Outcome = Literal["finished", "cancelled", "failed"]


class Dispatch(msgspec.Struct, frozen=True):
    """Run one chunk of a request on an engine."""

    chunk_id: ChunkId
    request_id: RequestId
    engine_id: EngineId
    max_new_tokens: int
    came_from: EngineId | None = None
    """The engine that ran the chunk before, if another than this one: its KV may come along. None where
    that chunk was begun under other weights, as all is computed again."""
    pulled_tokens: int = 0
    """Prefix KV to pull from the pool. 0 where the engine has it, or is to compute it itself."""


class AbortChunk(msgspec.Struct, frozen=True):
    """Stop a running chunk; its end still comes as `ChunkFinished` or `ChunkFailed`."""

    chunk_id: ChunkId
    engine_id: EngineId


class LookUp(msgspec.Struct, frozen=True):
    """Ask how much of a waiting request's prefix is in the pool; the answer comes as `PoolFound`.

    Nothing depends on it: without an answer the request goes on when its own time is over.
    """

    request_id: RequestId
    tokens: int
    """Answer once so many of its first tokens are there, in whole pages,"""
    patience_s: float
    """and after this in any case."""


class Deliver(msgspec.Struct, frozen=True):
    """Give the client its answer. Exactly one per submitted request."""

    request_id: RequestId
    outcome: Outcome
    reason: str = ""


class Wake(msgspec.Struct, frozen=True):
    """Send `Ticked` at this time, on the clock of `now_s`: something can be dispatched then."""

    at_s: float


Action = Dispatch | AbortChunk | LookUp | Deliver | Wake
