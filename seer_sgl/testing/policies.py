"""Policies that no user wants."""

from collections.abc import Iterable

import msgspec

from seer_sgl.router.core.placement import PlacementSettings, balanced_prefix
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.core.state import Engine, Request


def elsewhere(
    request: Request,
    need_tokens: int,
    engines: Iterable[Engine],
    settings: PlacementSettings,
) -> Engine | None:
    """Any engine but the one that ran the last chunk: every chunk's KV has to move."""
    others = [engine for engine in engines if engine is not request.last_engine]
    return balanced_prefix(request, need_tokens, others, settings)


ALWAYS_MOVE = msgspec.structs.replace(DIVIDED, name="always_move", place=elsewhere)
