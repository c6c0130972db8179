"""What the core remembers: engines, groups, requests, chunks. Changed by `machine.py`, `buffer.py` and
`queue.py` only.

A live request is in exactly one place: waiting in the queue, parked until an engine joins that can
hold it, or in flight as one chunk on one engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId


@dataclass(slots=True, eq=False)
class Engine:
    """An engine and the KV that its chunks may grow to."""

    spec: EngineSpec
    draft_tokens: int = 0
    chunks: dict[ChunkId, Chunk] = field(default_factory=dict)
    reserved_tokens: int = 0
    capacity_tokens: int = field(init=False)
    """KV in whole pages: what is left of the last one cannot be used."""

    @property
    def engine_id(self) -> EngineId:
        return self.spec.engine_id

    def __post_init__(self) -> None:
        page = self.spec.page_tokens
        self.capacity_tokens = self.spec.kv_capacity_tokens // page * page

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - self.reserved_tokens

    def reservation_for(self, tokens: int) -> int:
        """KV to set aside for `tokens` and the draft on top, in whole pages.

        A request that fills the engine has no room for a draft, and must still run: never more
        than all.
        """
        page = self.spec.page_tokens
        return min(-(-(tokens + self.draft_tokens) // page) * page, self.capacity_tokens)

    def could_hold(self, tokens: int) -> bool:
        """Whether it fits this engine when nothing else runs."""
        return tokens <= self.capacity_tokens

    def fits(self, tokens: int) -> bool:
        """Whether it fits now."""
        return (
            len(self.chunks) < self.spec.max_running_requests
            and tokens <= self.capacity_tokens
            and self.reservation_for(tokens) <= self.capacity_tokens - self.reserved_tokens
        )


@dataclass(slots=True, eq=False)
class Group:
    """The samples of one prompt, and what they have shown of its length so far."""

    group_id: GroupId
    seq: int
    max_new_tokens: int
    live: int = 0
    probe: Request | None = None
    finished_tokens: int = 0
    """Longest output of a finished sample; 0 while none has finished."""
    longest_tokens: int = 0
    """Longest output so far, finished or not."""
    home: Engine | None = None
    """The engine that a pinning policy chose."""
    prompt_on: set[Engine] = field(default_factory=set)
    """Engines that have computed the prompt. One that is gone never matches again: an engine that comes
    back is another object, as its memory is."""
    waiting: list[tuple[int, Request]] = field(default_factory=list)
    """Heap by arrival, owned by the queue."""
    waiting_count: int = 0
    entry: int = 0
    """Number of its newest entry in the queue's heap; older ones are void."""
    listed_rank: int | None = None
    """Rank of that entry, None while there is none."""


@dataclass(slots=True, eq=False)
class Request:
    """One sample of a group."""

    request_id: RequestId
    group: Group
    seq: int
    prompt_tokens: int
    max_new_tokens: int
    divisible: bool
    generated_tokens: int = 0
    is_probe: bool = False
    cancelled: bool = False
    failures: int = 0
    """Chunks that failed since the last one that made progress."""
    place: Literal["nowhere", "probes", "group", "parked", "in_flight"] = "nowhere"
    chunk: Chunk | None = None
    last_engine: Engine | None = None
    ready_since_s: float = 0.0

    @property
    def held_tokens(self) -> int:
        """Tokens whose KV a next chunk starts from."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def remaining_tokens(self) -> int:
        return self.max_new_tokens - self.generated_tokens

    def prefix_on(self, engine: Engine) -> int:
        """Tokens of this request's prefix that the engine has computed."""
        if engine is self.last_engine:
            return self.held_tokens
        return self.prompt_tokens if engine in self.group.prompt_on else 0


@dataclass(slots=True, eq=False)
class Chunk:
    """A bounded piece of a request's generation, running on one engine."""

    chunk_id: ChunkId
    request: Request
    engine: Engine
    max_new_tokens: int
    reserved_tokens: int
