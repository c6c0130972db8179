"""What happened, in the past tense. The only way to change a `RouterCore`."""

import msgspec

from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId


class Submitted(msgspec.Struct, frozen=True):
    """A client wants one sample."""

    request_id: RequestId
    group_id: GroupId
    prompt_tokens: int
    max_new_tokens: int
    divisible: bool = True
    """False where SGLang keeps state per request that a next chunk would lose: it runs whole."""
    background: bool = False
    """Nobody waits for it at the moment: it runs where others leave room. The same for a whole group."""
    prompt_key: str = ""
    """Equal for equal prompts, also of other iterations; empty where nobody knows."""
    shared_tokens: int | None = None
    """How much of its prompt is the group's own prompt; None for all of it."""
    held_tokens: int = 0
    """How much of its prompt a request that has ended computed."""
    held_on: EngineId | None = None
    """The engine that did, and has it still."""
    held_in_pool: bool = True
    """What it wrote to the pool has not been freed since. The engine will not write it again."""


class ChunkTiming(msgspec.Struct, frozen=True):
    """What an engine tells of a chunk's start. What it does not tell is 0, and teaches nothing."""

    computed_tokens: int = 0
    """Prefix that it computed: neither cached there nor loaded."""
    prefill_s: float = 0.0
    """Which took so long, without the time in the engine's queue."""
    loaded_tokens: int = 0
    """Prefix that it loaded from the pool."""
    load_s: float = 0.0
    """Which took so long."""


class ChunkFinished(msgspec.Struct, frozen=True):
    """An engine has answered a chunk."""

    chunk_id: ChunkId
    new_tokens: int
    ended: bool
    """True where the sample ended by itself (end token, stop, abort), so no chunk follows."""
    timing: ChunkTiming | None = None


class ChunkFailed(msgspec.Struct, frozen=True):
    """An engine could not run a chunk; nothing of the chunk is kept."""

    chunk_id: ChunkId
    reason: str
    retryable: bool = True


class Cancelled(msgspec.Struct, frozen=True):
    """The client no longer wants this request."""

    request_id: RequestId


class EngineJoined(msgspec.Struct, frozen=True):
    """An engine is ready for work. The same id again means that it started afresh."""

    engine: EngineSpec


class EngineLeft(msgspec.Struct, frozen=True):
    """An engine is gone, and with it every chunk that it ran."""

    engine_id: EngineId
    reason: str


class Ticked(msgspec.Struct, frozen=True):
    """Time has passed, as a `Wake` asked for."""


class Paused(msgspec.Struct, frozen=True):
    """Nothing may be dispatched until `Resumed`; what runs may end, and what comes waits."""


class Resumed(msgspec.Struct, frozen=True):
    """What waits may go again."""


class PoolFound(msgspec.Struct, frozen=True):
    """The answer to a `LookUp`: once all of it is in the pool, or when its patience is over."""

    request_id: RequestId
    tokens: int | None
    """Of the request's prefix, how much is in the pool, in whole pages; None: nobody could look."""


class PoolState(msgspec.Struct, frozen=True):
    """What is known of the pool itself has changed."""

    up: bool | None
    """False: it is down, or has lost what it held; nothing that was written before will be found. True:
    it works, and look-ups are answered. None: nobody knows, and look-ups may never be answered."""


class Recalled(msgspec.Struct, frozen=True):
    """What runs is to come back with what it has, and goes on later. To be told during a pause, or it
    goes on at once.

    The core answers with one `AbortChunk` for every chunk whose client still wants it. No client is
    answered. Whoever performs it has an engine stop each of these chunks, and then tells

    - `ChunkFinished(chunk, tokens, ended=False)` where the engine answers that it was aborted: with all
      tokens that it brought, which stay, also where there are none (that counts as no failure). A
      request that cannot be divided begins anew: none of its tokens can stay;
    - what it would have told otherwise, where the chunk ended before the abort came, or broke.

    `RouterCore.is_recalled` tells such a chunk from one whose client, or whose engine, ended it.
    """


class EpochChanged(msgspec.Struct, frozen=True):
    """The weights have changed: no KV that was computed before is of use, on an engine or in the pool.

    What is known of lengths stays. A chunk that was dispatched before this and ends after it brings its
    tokens, and leaves no KV. Of requests that are submitted later, what an earlier request is said to
    hold must be of this epoch.
    """


Event = (
    Ticked
    | Submitted
    | ChunkFinished
    | ChunkFailed
    | Cancelled
    | EngineJoined
    | EngineLeft
    | Paused
    | Resumed
    | Recalled
    | PoolFound
    | PoolState
    | EpochChanged
)
