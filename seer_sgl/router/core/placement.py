"""Which engine a chunk goes to: plain functions over the engines that may take it."""

from collections.abc import Callable, Iterable

import msgspec

from seer_sgl.router.core.state import Engine, Request


class PlacementSettings(msgspec.Struct, frozen=True):
    """Thresholds of placement."""

    max_spread_requests: int = 32
    """A longer prefix decides while the in-flight counts differ by no more (the paper's value).
    An engine that runs few requests counts as unbalanced at a quarter of its slots."""
    settle_s: float = 0.1
    """SGLang writes KV to the pool in the background after a chunk ends; a request that became ready
    less than this ago stays on its engine when that has room."""


Place = Callable[[Request, int, Iterable[Engine], PlacementSettings, float], Engine | None]
"""(request, tokens it needs, candidates, settings, now_s) -> an engine with room, or None."""


def balanced_prefix(
    request: Request,
    need_tokens: int,
    engines: Iterable[Engine],
    settings: PlacementSettings,
    now_s: float,
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
    unsettled = holder is request.last_engine and now_s - request.ready_since_s < settings.settle_s
    balanced = high - low <= min(settings.max_spread_requests, max(1, slots // 4))
    return holder if balanced or unsettled else idlest


def group_home(
    request: Request,
    _need_tokens: int,
    engines: Iterable[Engine],
    _settings: PlacementSettings,
    _now_s: float,
) -> Engine | None:
    """The group's own engine, else the least loaded; room is the engine's concern, not ours."""
    candidates = list(engines)
    if request.group.home in candidates:
        return request.group.home
    return min(candidates, key=_load, default=None)


def _load(engine: Engine) -> tuple[int, int]:
    return len(engine.chunks), engine.reserved_tokens
