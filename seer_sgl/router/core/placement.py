"""Which engine a chunk goes to: plain functions over the fleet."""

from collections.abc import Callable

import msgspec

from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.state import Engine, Request


class PlacementSettings(msgspec.Struct, frozen=True):
    """Thresholds of placement."""

    max_spread_requests: int = 32
    """A longer prefix decides while the in-flight counts differ by no more (the paper's value).
    An engine that runs few requests counts as unbalanced at a quarter of its slots."""
    pull_margin_tokens: int = 512
    """A chosen engine that lacks more of the prefix than this pulls it from the pool; less of it is
    computed again, which costs less than waiting until the KV is there."""


Place = Callable[[Request, int, Fleet, PlacementSettings], Engine | None]
"""(request, tokens it needs, fleet, settings) -> an open engine with room, or None."""


def balanced_prefix(
    request: Request, need_tokens: int, fleet: Fleet, settings: PlacementSettings
) -> Engine | None:
    """The engine with the longest prefix while load is balanced, else the least loaded one."""
    if not fleet.engines:
        return None
    most_requests = min(settings.max_spread_requests, max(1, fleet.least_slots // 4))
    holder = None
    if fleet.spread_requests <= most_requests:
        holder = _prefix_holder(request, need_tokens, fleet)
    return holder or fleet.least_loaded(need_tokens)


def least_loaded(
    _request: Request, need_tokens: int, fleet: Fleet, _settings: PlacementSettings
) -> Engine | None:
    """The engine with the fewest requests in flight, whatever it holds: a stock router's choice."""
    return fleet.least_loaded(need_tokens)


def group_home(
    request: Request, need_tokens: int, fleet: Fleet, _settings: PlacementSettings
) -> Engine | None:
    """The group's own engine, else the least loaded; room is the engine's concern, not ours."""
    home = request.group.home
    return home if home and home.status == "open" else fleet.least_loaded(need_tokens)


def _prefix_holder(request: Request, need_tokens: int, fleet: Fleet) -> Engine | None:
    """The engine with the longest prefix that fits; of equal ones the least loaded.

    Nobody holds more than the engine of the last chunk, or, before the first one, the engine where the
    prompt was begun; others hold the group's prompt at most.
    """
    last = request.last_engine or request.begun_on
    if last is not None and fleet.fits(last, need_tokens):
        return last
    holders = [engine for engine in request.group.prompt_on if fleet.fits(engine, need_tokens)]
    return min(holders, key=lambda engine: (engine.load, engine.number), default=None)
