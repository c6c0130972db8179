"""What the core remembers: engines, groups, requests, chunks. Changed by `machine.py`, `fleet.py`,
`buffer.py` and `queue.py` only.

A live request is in exactly one place: waiting in the queue, parked until an engine joins that can
hold it, or in flight as one chunk on one engine.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId


@dataclass(slots=True, eq=False)
class Engine:
    """An engine and the KV that its chunks may grow to."""

    spec: EngineSpec
    draft_tokens: int = 0
    number: int = 0
    """Engines are numbered as they join."""
    status: Literal["gone", "open", "held"] = "gone"
    """Held: here, but nothing may go there now."""
    version: int = 0
    """Grows with every change, so that the fleet's indexes know what they say of it is void."""
    chunks: dict[ChunkId, Chunk] = field(default_factory=dict)
    reserved_tokens: int = 0
    capacity_tokens: int = field(init=False)
    """KV in whole pages: what is left of the last one cannot be used."""
    room_tokens: int = 0
    """`room_now`, kept by the fleet: decisions ask for it again and again."""

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

    def room_now(self) -> int:
        """The longest request that fits now: `reservation_for` it is at most what is free.

        What is free is whole pages, as the capacity and all reservations are.
        """
        if len(self.chunks) >= self.spec.max_running_requests:
            return 0
        if not self.reserved_tokens:
            return self.capacity_tokens
        return max(0, self.capacity_tokens - self.reserved_tokens - self.draft_tokens)

    def fits(self, tokens: int) -> bool:
        """Whether it fits now."""
        return tokens <= self.room_tokens

    @property
    def load(self) -> tuple[int, int]:
        """Requests in flight, then reserved tokens: smaller is less loaded."""
        return len(self.chunks), self.reserved_tokens


@dataclass(slots=True, eq=False)
class Group:
    """The samples of one prompt, and what they have shown of its length so far."""

    group_id: GroupId
    seq: int
    max_new_tokens: int
    background: bool = False
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
    prompt_in_pool: bool = True
    """What they have computed of it was written to the pool."""
    finished_count: int = 0
    finished_log_sum: float = 0.0
    finished_log_squares: float = 0.0
    """Sums of the logarithms of the finished samples' lengths, and of their squares."""
    underway: dict[int, int] = field(default_factory=dict)
    """Output so far, and how many unfinished samples have so much; those without any left out."""
    log_mean: float = 0.0
    log_variance: float = 0.0
    """What is known of the mean of the logarithms of its lengths; variance 0 while nothing is."""
    prompt_key: str = ""
    prior: tuple[float, float] | None = None
    """Mean and variance that the same prompt's last group leads one to expect."""
    learned: tuple[float, float, int, float] | None = None
    """The group's share in what is common to all, owned by the context."""
    waiting: list[tuple[float, int, Request]] = field(default_factory=list)
    """Heap in the policy's order, owned by the queue."""
    waiting_count: int = 0
    entry: int = 0
    """Number of its newest entry in the queue's heap; older ones are void."""
    listed_key: float | None = None
    """The key of the request that it was ranked for; None where the rank is to be worked out anew."""
    listed_rank: float | None = None
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
    counted_tokens: int = 0
    """Under which it counts in its group's `underway`; 0 where it does not."""
    is_probe: bool = False
    cancelled: bool = False
    failures: int = 0
    """Chunks that failed since the last one that made progress."""
    place: Literal["nowhere", "probes", "group", "parked", "in_flight"] = "nowhere"
    chunk: Chunk | None = None
    last_engine: Engine | None = None
    """The engine of its last chunk, which has its KV; None where that was under other weights."""
    ready_since_s: float = 0.0
    budget_tokens: int = 0
    """What the next chunk may bring."""
    need_tokens: int = 0
    """KV that the next chunk may grow to."""
    listed: tuple[str, float] | None = None
    """The heap and key under which the queue has an entry of it, which may be void for the moment."""
    begun_tokens: int = 0
    """How much of the prompt an earlier request has computed."""
    begun_on: Engine | None = None
    """The engine that did; one that is gone never matches again."""
    shared_tokens: int = sys.maxsize
    """How much of the prompt, at most, is the group's own."""
    in_pool: bool = True
    """What it has computed was written to the pool, or will be in a moment."""
    ended_s: float = 0.0
    """When the last chunk that left KV did."""
    settled_tokens: int = 0
    """Of its prefix, what is known or sure enough to be in the pool. What only that chunk left is not,
    until it was looked up."""
    lacks: bool = False
    """A look-up has missed some of it since it was computed: it may never come to be there."""
    asked_tokens: int = 0
    """How much of its prefix a look-up asked for since then; 0 where none did."""
    asked_s: float = 0.0
    """When."""
    found_tokens: int | None = None
    """What that look-up found; None while there is no answer."""
    until_s: float = 0.0
    """How long it waits for one."""
    turn: int = 0
    """Its number among all that wait, by when they began to; 0 while it has none."""

    @property
    def held_tokens(self) -> int:
        """Tokens whose KV a next chunk starts from."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def remaining_tokens(self) -> int:
        return self.max_new_tokens - self.generated_tokens

    @property
    def pooled_tokens(self) -> int:
        """Tokens of this request's prefix whose KV is in the pool, or will be in a moment."""
        if self.last_engine is not None:
            if self.found_tokens is not None:
                return self.found_tokens
            if self.in_pool:
                return self.held_tokens
        group = self.group
        there = group.prompt_in_pool and group.prompt_on
        shared = min(self.shared_tokens, self.prompt_tokens) if there else 0
        return max(shared, self.begun_tokens if self.in_pool else 0)

    def prefix_on(self, engine: Engine) -> int:
        """Tokens of this request's prefix that the engine has computed."""
        if engine is self.last_engine:
            return self.held_tokens
        begun = self.begun_tokens if engine is self.begun_on else 0
        shared = engine in self.group.prompt_on and min(self.shared_tokens, self.prompt_tokens)
        return max(begun, shared)


@dataclass(slots=True, eq=False)
class Chunk:
    """A bounded piece of a request's generation, running on one engine."""

    chunk_id: ChunkId
    request: Request
    engine: Engine
    max_new_tokens: int
    reserved_tokens: int
    epoch: int = 0
    """The buffer's when it was dispatched."""
    pool_life: int = 0
    """The pool's when it was dispatched."""
    recalled: bool = False
    """It was told to stop, so that its request can go on later."""

    @property
    def may_come_back(self) -> bool:
        """Whether it runs on until it is told to stop."""
        return not self.request.cancelled and not self.recalled
