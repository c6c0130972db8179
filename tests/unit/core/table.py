"""Short words for the core's events and actions, so that a test reads as a table.

Request "g.0" belongs to group "g". Engine "a" has one-token pages and room for nearly everything.
"""

from collections.abc import Sequence

from seer_sgl.router.core import RouterCore
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, LookUp, Outcome
from seer_sgl.router.core.events import (
    Cancelled,
    ChunkFailed,
    ChunkFinished,
    ChunkTiming,
    EngineJoined,
    EngineLeft,
    Event,
    PoolFound,
    Submitted,
)
from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId

Step = tuple[Event | list[Event], list[Action]]
"""What comes in (a list comes in at once) and all that must come out."""


def play(core: RouterCore, steps: Sequence[Step], now_s: float = 0.0) -> None:
    """Feed each step's events and compare its actions; the core must hold together after each."""
    for number, (events, expected) in enumerate(steps):
        actions = core.handle_all(events if isinstance(events, list) else [events], now_s)
        assert actions == expected, f"step {number}: {events}"
        core.check()


def snapshot(core: RouterCore) -> str:
    """Everything that the core remembers, to compare before and after."""
    buffer = core.buffer
    return repr((core.engines, buffer.groups, buffer.requests, core.chunks, core.statistics()))


def engine(engine_id: str, kv: int = 1_000_000, page: int = 1, slots: int = 64) -> EngineSpec:
    return EngineSpec(EngineId(engine_id), kv, page, slots, context_tokens=1_000_000)


def submitted(name: str, max_new: int = 100, prompt: int = 10, divisible: bool = True) -> Submitted:
    group = GroupId(name.partition(".")[0])
    return Submitted(RequestId(name), group, prompt, max_new, divisible)


def all_submitted(names: str, max_new: int = 100) -> list[Event]:
    return [submitted(name, max_new) for name in names.split()]


def finished(
    chunk: int, tokens: int, ended: bool = False, timing: ChunkTiming | None = None
) -> ChunkFinished:
    return ChunkFinished(ChunkId(chunk), tokens, ended, timing)


def found(name: str, tokens: int) -> PoolFound:
    return PoolFound(RequestId(name), tokens)


def failed(chunk: int, reason: str = "broken", retryable: bool = True) -> ChunkFailed:
    return ChunkFailed(ChunkId(chunk), reason, retryable)


def cancelled(name: str) -> Cancelled:
    return Cancelled(RequestId(name))


def joined(spec: EngineSpec) -> EngineJoined:
    return EngineJoined(spec)


def left(engine_id: str) -> EngineLeft:
    return EngineLeft(EngineId(engine_id), f"{engine_id} is gone")


def dispatch(
    chunk: int, name: str, tokens: int, on: str = "a", came_from: str | None = None, pulled: int = 0
) -> Dispatch:
    origin = None if came_from is None else EngineId(came_from)
    return Dispatch(ChunkId(chunk), RequestId(name), EngineId(on), tokens, origin, pulled)


def abort(chunk: int, on: str = "a") -> AbortChunk:
    return AbortChunk(ChunkId(chunk), EngineId(on))


def look_up(name: str, tokens: int, patience_s: float = 0.5) -> LookUp:
    return LookUp(RequestId(name), tokens, patience_s)


def deliver(name: str, outcome: Outcome = "finished", reason: str = "") -> Deliver:
    return Deliver(RequestId(name), outcome, reason)
