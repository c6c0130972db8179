"""Brings engines up to date that came too late for a weight change, where its calls can be repeated."""

import asyncio
import logging

import msgspec

from seer_sgl.errors import SeerError
from seer_sgl.router.control.merging import Reply
from seer_sgl.router.control.weights.changes import Turn
from seer_sgl.router.control.weights.making import Making
from seer_sgl.router.control.weights.outcome import Outcome
from seer_sgl.router.control.weights.recipe import Recipe, Repeated
from seer_sgl.router.control.weights.results import Results
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

UNLOAD = "/unload_lora_adapter"
THERE, NOT_THERE = "already loaded", "does not exist"
"""What engines say of an adapter that they have, or have not."""
_POLL_S = 0.02


class CatchingUp:
    """Repeats what the others have had, for one engine at a time."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self._late: asyncio.Queue[EngineId] = asyncio.Queue()

    def add(self, engine: EngineId) -> None:
        """It lacks something."""
        self._late.put_nowait(engine)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            engine = await self._late.get()
            try:
                while await self._again(engine):
                    pass
            except SeerError as error:
                log.warning("engine %s stays in quarantine: %s", engine, error)

    async def _again(self, engine: EngineId) -> bool:
        """Try once; whether the world has moved on meanwhile, and it has to be tried again."""
        making = self._making
        while making.on:  # noqa: ASYNC110 - it tells nobody that it ends
            await asyncio.sleep(_POLL_S)
        async with making.turns.take(Turn("the last update again", frozenset([engine]), waits=True)):
            member = making.roster.members.get(engine)
            if making.on and member is not None:
                return True
            if member is None or engine not in making.sync.out_of_step():
                making.quarantine.settle_if_going()
                return False
            recipe, wanted = making.recipe.copy(), making.sync.wanted
            if not (reason := await self._repeat(engine, recipe)):
                reason = await self._repeat_adapters(engine, recipe)
            if making.roster.members.get(engine) is not member:
                return False
            if making.on or recipe != making.recipe or wanted != making.sync.wanted:
                return True
        if reason:
            log.warning("engine %s stays in quarantine: %s", engine, reason)
        making.quarantine.settle_if_going()  # by now the reason for it may be another one
        return False

    async def _repeat(self, engine: EngineId, recipe: Recipe) -> str:
        """Give it the weights. Returns why it has not got them; nothing where it has.

        What is achieved is noted at once: what comes of adapters is another thing.
        """
        making, wanted = self._making, self._making.sync.wanted
        if making.sync.has_wanted_weights(engine):
            return ""
        if not (recipe.is_whole or self._from_the_start(engine, recipe)):
            return "its weights came by a way that is gone"
        member = making.roster.members[engine]
        for call in recipe.weights or ():
            if reason := await self._ask(engine, call):
                return reason
        results = Results({engine: Reply(200)}, {engine: Outcome.TOOK})
        await making.verify(results, None)
        for name in results.names.values():
            making.roster.set_weight_version(engine, name)
        reason = await making.misnamed(engine)
        if making.roster.members.get(engine) is not member:
            return "it has left"
        if not reason:
            making.sync.has_caught_up(engine, wanted)
        return reason

    def _from_the_start(self, engine: EngineId, recipe: Recipe) -> bool:
        return recipe.weights is not None and self._making.sync.has_first_weights(engine)

    async def _repeat_adapters(self, engine: EngineId, recipe: Recipe) -> str:
        """Each step is noted as soon as it is done: what fails later does not undo it."""
        sync = self._making.sync
        superfluous, missing = sync.odd_adapters(engine)
        for name in superfluous:
            reason = await self._ask(engine, _unload(name))
            if reason and NOT_THERE not in reason:
                return reason
            sync.unloaded([engine], name)
        known = [name for name in recipe.adapters if name in missing]
        for name in [*known, *(name for name in missing if name not in recipe.adapters)]:
            mark = sync.wanted_adapter(name)
            if recipe.adapters != self._making.recipe.adapters:
                return ""  # it has to be tried again
            if reason := await self._load(engine, name, recipe.adapters.get(name)):
                return reason
            sync.has_got_adapter(engine, name, mark)
        return ""

    async def _load(self, engine: EngineId, name: str, call: Repeated | None) -> str:
        if call is None:
            return f"adapter {name} cannot be loaded again from here: load it on engine {engine}"
        reason = await self._ask(engine, call)
        if THERE in reason:  # nobody knows which one
            reason = await self._ask(engine, _unload(name)) or await self._ask(engine, call)
        return reason

    async def _ask(self, engine: EngineId, call: Repeated) -> str:
        found = await self._making.engines.ask(
            [engine], "POST", call.target, call.body, timeout_s=self._making.timeout_s
        )
        reply = found[engine]
        return "" if reply.good else f"{call.target}: {reply.said()}"


def _unload(name: str) -> Repeated:
    return Repeated(UNLOAD, msgspec.json.encode({"lora_name": name}))
