"""Which engine a chunk goes to: plain functions over the engines that may take it."""

import sys
from collections.abc import Callable, Iterable

import msgspec

from seer_sgl.router.core.state import Engine, Request


class PlacementSettings(msgspec.Struct, frozen=True):
    """Thresholds of placement."""

    max_spread_requests: int = 32
    """A longer prefix decides while the in-flight counts differ by no more (the paper's value).
    An engine that runs few requests counts as unbalanced at a quarter of its slots."""


Place = Callable[[Request, int, Iterable[Engine], PlacementSettings], Engine | None]
"""(request, tokens it needs, candidates, settings) -> an engine with room, or None."""


def balanced_prefix(
    request: Request,
    need_tokens: int,
    engines: Iterable[Engine],
    settings: PlacementSettings,
) -> Engine | None:
    """The engine with the longest prefix while load is balanced, else the least loaded one."""
    idlest: Engine | None = None
    holder: Engine | None = None
    held_tokens = 0
    low, high, slots = 1 << 60, 0, 1 << 60
    for engine in engines:
        load = len(engine.chunks)
        low, high = min(low, load), max(high, load)
        slots = min(slots, engine.spec.max_running_requests)
        if not engine.fits(need_tokens):
            continue
        if idlest is None or _load(engine) < _load(idlest):
            idlest = engine
        prefix_tokens = request.prefix_on(engine)
        if prefix_tokens > held_tokens or (
            holder and prefix_tokens == held_tokens and _load(engine) < _load(holder)
        ):
            holder, held_tokens = engine, prefix_tokens
    if holder is None:
        return idlest
    balanced = high - low <= min(settings.max_spread_requests, max(1, slots // 4))
    return holder if balanced else idlest


def group_home(
    request: Request,
    _need_tokens: int,
    engines: Iterable[Engine],
    _settings: PlacementSettings,
) -> Engine | None:
    """The group's own engine, else the least loaded; room is the engine's concern, not ours."""
    candidates = list(engines)
    if request.group.home in candidates:
        return request.group.home
    return min(candidates, key=_load, default=None)


def most_room(engines: list[Engine], reserves: bool) -> int:
    """Most tokens that one of these engines could take now; no limit where nothing is reserved."""
    if not reserves:
        return sys.maxsize if engines else 0
    # Written out, as it runs twice in every decision: properties would double its cost.
    return max(
        [
            engine.capacity_tokens - engine.reserved_tokens
            for engine in engines
            if len(engine.chunks) < engine.spec.max_running_requests
        ],
        default=0,
    )


def soonest_able(engines: Iterable[Engine], need_tokens: int) -> Engine | None:
    """The engine with most free KV among those that could hold `need_tokens` when empty."""
    able = (engine for engine in engines if engine.could_hold(need_tokens))
    return max(able, key=lambda engine: engine.free_tokens, default=None)


def _load(engine: Engine) -> tuple[int, int]:
    return len(engine.chunks), engine.reserved_tokens
