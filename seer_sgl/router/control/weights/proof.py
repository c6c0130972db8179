"""Lets engines back that have got all weights by a series, as their checksums show."""

import contextlib
import logging
from collections.abc import Iterable

from seer_sgl.errors import SeerError
from seer_sgl.router.control.merging import COMPARED, Reply
from seer_sgl.router.control.weights.making import Making
from seer_sgl.router.control.weights.sync import Unproven
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

CHECKER = "/weights_checker"
_ASK = b'{"action":"checksum"}'


class Proof:
    """Compares weights. One that differs is looked at again after the next change: it may be ahead."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self._unproven: dict[EngineId, Unproven] = {}

    async def of(self, more: Iterable[Unproven] = ()) -> None:
        """Let those be in step that have the weights of one that is; where none is, most of those that
        have taken all of a series, if they have the same."""
        making, sync = self._making, self._making.sync
        self._unproven |= {each.engine: each for each in more}
        self._unproven = {e: each for e, each in self._unproven.items() if sync.is_still(each)}
        out = sync.out_of_step()
        odd = {e: each for e, each in self._unproven.items() if not sync.has_wanted_weights(e)}
        if not odd:
            return
        models = [engine for engine in making.roster.members if engine not in out][:1]
        wanted = sync.wanted
        sums = await self._sums([*models, *odd])
        left = {e: each for e, each in odd.items() if e in sums and sync.is_still(each)}
        if models:
            model = sums.get(models[0])
            same = [engine for engine in left if model is not None and sums[engine] == model]
            if sync.wanted == wanted and models[0] not in sync.out_of_step():
                sync.proven(same)
        else:
            clean = [engine for engine, each in left.items() if each.clean and sums[engine]]
            found = [sums[engine] for engine in clean]
            most = max(found, key=found.count, default=None)
            same = [engine for engine in clean if sums[engine] == most]
            if 2 * len(same) <= len(found) or sync.wanted != wanted:
                same = []  # nobody knows which of them is right, or others have come meanwhile
            else:
                sync.whole(same, left[same[0]].key)
                making.recipe.replaced(None)  # it may tell of weights before these
        for engine in left.keys() - set(same):
            log.warning("engine %s has other weights than %s", engine, models or same or "any other")

    async def _sums(self, engines: list[EngineId]) -> dict[EngineId, str | None]:
        with contextlib.suppress(SeerError):
            timeout_s = self._making.timeout_s
            asked = self._making.engines.ask(engines, "POST", CHECKER, _ASK, timeout_s=timeout_s)
            return {engine: _sum(reply) for engine, reply in (await asked).items()}
        return {}


def _sum(reply: Reply) -> str | None:
    body = reply.json() if reply.good else None
    if not isinstance(body, dict):
        return None
    return next((str(body[key]) for key in COMPARED if body.get(key)), None)
