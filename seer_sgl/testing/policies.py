"""Policies that no user wants."""

import msgspec

from seer_sgl.router.core.fleet import Fleet
from seer_sgl.router.core.placement import PlacementSettings, least_loaded
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.core.state import Engine, Request


def elsewhere(
    request: Request, need_tokens: int, fleet: Fleet, _settings: PlacementSettings
) -> Engine | None:
    """Any engine but the one that ran the last chunk: every chunk's KV has to move."""
    engines = [engine for engine in fleet.engines.values() if fleet.fits(engine, need_tokens)]
    others = [engine for engine in engines if engine is not request.last_engine]
    return min(others, key=lambda engine: engine.load, default=None)


def elsewhere_if_there_is(
    request: Request, need_tokens: int, fleet: Fleet, settings: PlacementSettings
) -> Engine | None:
    """As `elsewhere`, but while there is one engine alone, that one."""
    place = elsewhere if len(fleet.engines) > 1 else least_loaded
    return place(request, need_tokens, fleet, settings)


MOVE_WHERE_POSSIBLE = msgspec.structs.replace(
    DIVIDED, name="move_where_possible", place=elsewhere_if_there_is
)
ALWAYS_MOVE = msgspec.structs.replace(DIVIDED, name="always_move", place=elsewhere)
