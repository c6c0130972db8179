"""What all changes of weights have in common: order, quiet, questions to engines, and what follows."""

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any

import msgspec

from seer_sgl.errors import SeerError
from seer_sgl.router.control.asking import NO_ANSWER_IN_TIME, Engines
from seer_sgl.router.control.holds import CHANGING, Holds
from seer_sgl.router.control.merging import Replies, Reply, refused
from seer_sgl.router.control.weights.changes import ALLOW_OLDER, Turn, older_version
from seer_sgl.router.control.weights.outcome import Outcome, adapter_outcome, outcome
from seer_sgl.router.control.weights.quarantine import Quarantine
from seer_sgl.router.control.weights.recipe import Recipe
from seer_sgl.router.control.weights.results import Results
from seer_sgl.router.control.weights.turns import Turns
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

RENAME = "/update_weight_version"
LOOK_S = 60.0
"""How long an engine may take to say what its weights are called."""


class Making:
    """Makes changes; knows nothing of their kinds.

    Args:
        timeout_s: how long an engine may take for one call.
    """

    def __init__(self, dispatcher: Dispatcher, engines: Engines, holds: Holds, timeout_s: float) -> None:
        self.dispatcher = dispatcher
        self.engines = engines
        self.roster = engines.roster
        self.holds = holds
        self.timeout_s = timeout_s
        self.recipe = Recipe()
        self.turns = Turns()
        self.quarantine = Quarantine(dispatcher, engines, holds)
        self.sync = self.quarantine.sync
        self._serial = itertools.count(1)
        self._draining = 0
        self._on = 0

    @property
    def on(self) -> bool:
        """Whether a change is on, or waits for its turn."""
        return self._on > 0

    # ---- before ----

    def objection(
        self, turn: Turn, version: str | None = None, allow_older: bool = False
    ) -> Reply | None:
        """A refusal where this change may not be made now.

        Args:
            version: what the weights will be called.
        """
        if reason := self.turns.objection(turn):
            return self.conflict(f"{turn.path}: {reason}", turn.engines)
        members = self.roster.members.values()
        serving = [member.card.weight_version for member in members if not member.quarantine]
        newer = "" if allow_older else older_version(version, serving)
        if not newer:
            return None
        message = (
            f"{turn.path}: version {version} is older than {newer}, which serves; send "
            f'"{ALLOW_OLDER}": true to go back on purpose'
        )
        return self.conflict(message, turn.engines)

    def conflict(self, message: str, engines: Iterable[str]) -> Reply:
        """A refusal of the router's own; no engine has heard of the call."""
        versions = self.versions()
        detail = {
            str(engine): {
                "success": False,
                "message": "not asked",
                "weight_version": versions.get(EngineId(engine)),
            }
            for engine in sorted(engines)
        }
        return refused(message, 409, engines=detail)

    @contextlib.asynccontextmanager
    async def turn(self, turn: Turn) -> AsyncIterator[None]:
        """No other change is on at its engines inside; who joins meanwhile waits for the end."""
        self._on += 1
        try:
            async with self.turns.take(turn):
                yield
        finally:
            self._on -= 1

    @contextlib.asynccontextmanager
    async def quiet(
        self, fields: Mapping[str, Any], engines: Collection[EngineId]
    ) -> AsyncIterator[None]:
        """Nothing runs on these inside, and nothing is dispatched, whoever else says that it may go on.

        A caller that has paused has seen to the former itself. For others, requests end first and later
        ones wait, as with SGLang: none goes on with other weights than it began with.
        """
        if fields.get("abort_all_requests") is True:
            self.dispatcher.abort_all()
        self._draining += 1
        self.dispatcher.hold()
        try:
            await self.holds.drained(engines)
            async with self.held():
                yield
        finally:
            self._draining -= 1
            if not self._draining:
                self.dispatcher.release()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nothing is dispatched inside; what runs goes on."""
        name = f"{CHANGING} ({next(self._serial)})"
        self.holds.add(name)
        try:
            yield
        finally:
            self.holds.drop(name)

    # ---- engines ----

    async def ask(
        self, engines: list[EngineId], path: str, body: bytes, keeps_weights: bool = False
    ) -> Results:
        """Answers of engines, and what they say of the weights there.

        Args:
            keeps_weights: what is refused by whatever words has changed nothing.

        Raises:
            SeerError: all of them have left.
        """
        if not engines:
            return Results()
        replies = await self.engines.ask(engines, "POST", path, body, timeout_s=self.timeout_s)
        judge = adapter_outcome if keeps_weights else outcome
        results = Results()
        for engine, reply in replies.items():
            results.set(engine, reply, judge(path, reply, self.roster.members[engine].card.facts))
        return results

    async def verify(self, results: Results, version: str | None) -> None:
        """Look at what the engines that took a change call their weights now. Where the call named a
        version, one that has another is not believed."""
        took = results.of(Outcome.TOOK)
        found = await self.look(took)
        for engine in took:
            reply = found.get(engine)
            if reply is None:
                results.drop(engine)
            elif reply.status in NO_ANSWER_IN_TIME:
                results.set(engine, reply, Outcome.DOUBTFUL)
            elif (name := _name_in(reply) or version) is not None:
                results.names[engine] = name
                if version not in (None, name):
                    message = f"it says that its weights are {name!r} now, not {version!r}"
                    results.set(engine, refused(message), Outcome.DOUBTFUL)

    async def look(self, engines: list[EngineId]) -> Replies:
        """`/model_info` of engines. Those that left are left out."""
        look_s = min(self.timeout_s, LOOK_S)
        with contextlib.suppress(SeerError):
            if engines:
                return await self.engines.ask(engines, "GET", "/model_info", timeout_s=look_s)
        return {}

    async def align(self, engines: Iterable[EngineId]) -> None:
        """Let weights that are the same be called the same. An engine that was out of traffic may have
        missed a version that updates do not name any more; its answers would tell another one."""
        out = self.sync.out_of_step()
        for engine in engines:
            if engine not in self.roster.members or engine in out:
                continue
            with contextlib.suppress(SeerError):  # it has left
                if reason := await self.misnamed(engine):
                    self.sync.doubted(engine, reason)

    async def misnamed(self, engine: EngineId) -> str:
        """Give the weights of an engine that is in step the name that the others' have.

        Returns what speaks against that; nothing where it is called so.

        Raises:
            SeerError: it has left.
        """
        out, members = self.sync.out_of_step(), self.roster.members
        if engine not in members:
            raise SeerError(f"engine {engine} has left")
        in_step = [member for name, member in members.items() if name not in out]
        serving = [member.card.weight_version for member in in_step if not member.quarantine]
        names = serving or [member.card.weight_version for member in in_step]
        name = max(names, key=names.count, default=None)
        if name in (None, members[engine].card.weight_version):
            return ""
        body = msgspec.json.encode({"new_version": name, "abort_all_requests": False})
        results = await self.ask([engine], RENAME, body, keeps_weights=True)
        if results.of(Outcome.TOOK):
            self.roster.set_weight_version(engine, str(name))
            return ""
        said = results.replies[engine].said()
        return f"its weights cannot be called {name!r} as those of the others: {said}"

    def versions(self) -> dict[EngineId, str]:
        """What the engines' weights are called, as far as the router knows."""
        return {engine: m.card.weight_version for engine, m in self.roster.members.items()}

    # ---- after ----

    async def settle(self, results: Results, path: str) -> None:
        """What follows from a change: engines that may have anything go out, and a new epoch begins."""
        for engine in results.of(Outcome.DOUBTFUL):
            said = results.replies[engine].said()[:200]
            self.sync.doubted(
                engine, f"{path} failed on it ({said}), and it waits for a whole update of its weights"
            )
        if results.changed:
            self.dispatcher.new_epoch()
        for engine, name in results.names.items():
            self.roster.set_weight_version(engine, name)
        await self.align(results.of(Outcome.TOOK))
        self.quarantine.put_out()

    async def flush(self, engines: Iterable[EngineId]) -> None:
        """Have engines forget KV that nobody will ask for any more. That frees memory; it is found by
        nobody anyway, as its salt is of the past."""
        here = [engine for engine in engines if engine in self.roster.members]
        if not here:
            return
        with contextlib.suppress(SeerError):
            found = await self.engines.ask(here, "POST", "/flush_cache", timeout_s=self.timeout_s)
            for engine, reply in found.items():
                if not reply.good:
                    log.info("engine %s keeps KV of older weights: %s", engine, reply.said())


def _name_in(reply: Reply) -> str | None:
    body = reply.json() if reply.good else None
    name = body.get("weight_version") if isinstance(body, dict) else None
    return None if name is None else str(name)
