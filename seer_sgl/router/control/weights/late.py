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
        while self._making.on:  # noqa: ASYNC110 - it tells nobody that it ends
            await asyncio.sleep(_POLL_S)
        sync = self._making.sync
        async with self._making.turns.take(
            Turn("the last update again", frozenset([engine]), waits=True)
        ):
            recipe = self._making.recipe.copy()
            member = self._making.roster.members.get(engine)
            if member is None or engine not in sync.out_of_step():
                return False
            adapters_only = sync.has_wanted_weights(engine)
            if not (adapters_only or recipe.is_whole or self._from_the_start(engine, recipe)):
                return False
            reason = "" if adapters_only else await self._repeat(engine, recipe)
            reason = reason or await self._repeat_adapters(engine, recipe)
            if self._making.roster.members.get(engine) is not member:
                return False
            if self._making.on or recipe != self._making.recipe:
                return True
            if reason:
                log.warning("engine %s stays in quarantine: %s", engine, reason)
                return False
            sync.caught_up(engine)
        self._making.quarantine.settle_if_going()
        return False

    def _from_the_start(self, engine: EngineId, recipe: Recipe) -> bool:
        return recipe.weights is not None and self._making.sync.has_first_weights(engine)

    async def _repeat(self, engine: EngineId, recipe: Recipe) -> str:
        for call in recipe.weights or ():
            if reason := await self._ask(engine, call):
                return reason
        results = Results({engine: Reply(200)}, {engine: Outcome.TOOK})
        await self._making.verify(results, None)
        for name in results.names.values():
            self._making.roster.set_weight_version(engine, name)
        return await self._making.misnamed(engine)

    async def _repeat_adapters(self, engine: EngineId, recipe: Recipe) -> str:
        superfluous, missing = self._making.sync.odd_adapters(engine)
        for name in superfluous:
            body = msgspec.json.encode({"lora_name": name})
            if reason := await self._ask(engine, Repeated(UNLOAD, body)):
                return reason
        for name, call in recipe.adapters.items():
            if name not in missing:
                continue
            if call is None:
                return f"adapter {name} came from memory: load it again on engine {engine}"
            if reason := await self._ask(engine, call):
                return reason
        return ""

    async def _ask(self, engine: EngineId, call: Repeated) -> str:
        found = await self._making.engines.ask(
            [engine], "POST", call.target, call.body, timeout_s=self._making.timeout_s
        )
        reply = found[engine]
        return "" if reply.good else f"{call.target}: {reply.said()}"
