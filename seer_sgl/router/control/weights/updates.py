"""Weight changes: made on engines in one order, one at a time; no mixture of old and new ever serves.

Dispatch stops and what runs ends, or is paused; the engines change their weights; what they say of them
is checked; those that are out of step go out of traffic; a new epoch begins; dispatch goes on.
"""

import asyncio
import contextlib

import msgspec

from seer_sgl.errors import SeerError
from seer_sgl.router.control.asking import Engines
from seer_sgl.router.control.holds import OPENED, PAUSED, Holds
from seer_sgl.router.control.merging import Reply, json_reply
from seer_sgl.router.control.table import Row
from seer_sgl.router.control.weights.changes import Change, Turn, change_of
from seer_sgl.router.control.weights.late import CatchingUp
from seer_sgl.router.control.weights.making import Making
from seer_sgl.router.control.weights.outcome import NOT_BEGUN, Outcome
from seer_sgl.router.control.weights.proof import Proof
from seer_sgl.router.control.weights.recipe import Repeated
from seer_sgl.router.control.weights.results import Results
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

FROM_DISK = "/update_weights_from_disk"
BEGIN, END = "/begin_weight_update", "/end_weight_update"
_OPEN_ALREADY = "already open"
_NO_SUCH_CALL = 404
"""SGLang before 0.5.23 has no begin and end, and wants none."""


class Weights:
    """Performs weight changes and keeps account of who has which.

    Args:
        dispatcher: told of every change, and of engines that go out of traffic and come back.
        timeout_s: how long an engine may take for one call.
    """

    def __init__(
        self, dispatcher: Dispatcher, engines: Engines, holds: Holds, timeout_s: float = 600.0
    ) -> None:
        making = self.making = Making(dispatcher, engines, holds, timeout_s)
        self._holds = holds
        self._sync, self._quarantine = making.sync, making.quarantine
        self._opened: dict[EngineId, str] = {}
        """Engines whose update the caller opened itself, and has to close; by which calls it goes on."""
        self._unflushed: set[EngineId] = set()
        """Engines that were told to keep their KV in a change."""
        self._catching_up = CatchingUp(making)
        self._proof = Proof(making)

    # ---- engines come and go ----

    def engine_joined(self, engine: EngineId) -> None:
        """Note a fresh engine; sets its quarantine."""
        self._opened.pop(engine, None)
        if self._quarantine.joined(engine, self.making.on):
            self._catching_up.add(engine)

    async def catch_up_forever(self) -> None:
        """Repeat the last update on engines that came too late for it, where it can be repeated."""
        try:
            await self._catching_up.run()
        finally:
            self._quarantine.stop()

    def engine_left(self, engine: EngineId) -> None:
        self._opened.pop(engine, None)
        self._unflushed.discard(engine)
        self._sync.left(engine)

    # ---- series of updates ----

    def paused(self, engines: list[EngineId]) -> None:
        """A series of updates may begin on these."""
        self._sync.series_begins(engines)

    async def may_continue(self, engines: list[EngineId]) -> Reply | None:
        """Wait for changes of weights that are on at engines that are to go on where they are.

        Returns a refusal where more parts are to come: a chunk would go on with a mixture.
        """
        stopped = [e for e in engines if self._holds.busy(e) and self._holds.has(PAUSED, e)]
        with contextlib.suppress(TimeoutError):  # the update may itself wait for what is to go on
            async with asyncio.timeout(self.making.timeout_s):
                await self.making.turns.over(frozenset(stopped))
        opened = [engine for engine in engines if engine in self._opened and self._holds.busy(engine)]
        if not opened:
            return None
        message = (
            f"/continue_generation: a weight update is open on {', '.join(opened)}, where requests are "
            f"paused in place; close it first with {END}"
        )
        return self.making.conflict(message, opened)

    async def continues(self, engines: list[EngineId]) -> None:
        """These are about to go on: what is out of step must not, and old KV is not needed any more."""
        loaded = self._sync.loaded_in_series(engines)
        await self._proof.of(self._sync.series_ends(engines))
        if any(map(self._sync.has_wanted_weights, loaded)):
            self.making.recipe.replaced(None)
        await self.making.align(self._sync.engines())
        self._quarantine.put_out(engines)
        await self._flush(engines)
        await self._quarantine.quiet()

    def flushed(self, engines: list[EngineId]) -> None:
        """They have forgotten all KV."""
        self._unflushed -= set(engines)

    async def begin(self, engines: list[EngineId], body: bytes) -> Reply:
        """Open an update on those where none is open. Nothing is dispatched until it is closed."""
        making = self.making
        closed = [engine for engine in engines if engine not in self._opened]
        if not closed:
            return json_reply({"success": True, "message": "the weight update is open already"})
        turn = Turn(BEGIN, frozenset(closed))
        if (refusal := making.objection(turn)) is not None:
            return refusal
        async with making.turn(turn), making.quiet({}, closed):
            results = await self._begun(closed, body)
            took = results.of(Outcome.TOOK)
            if len(took) < len(results.replies):
                await self._close(took, results)
                await making.settle(results, BEGIN)
            else:
                self._sync.series_begins(took)
                for engine in took:
                    self._opened[engine] = ""
                    self._holds.add(OPENED, engine)
        return results.told(making.versions())

    async def end(self, engines: list[EngineId], body: bytes) -> Reply:
        """Close the update where the caller opened one."""
        making = self.making
        opened = [engine for engine in engines if engine in self._opened]
        if not opened:
            return json_reply({"success": True, "message": "no weight update is open"})
        async with making.turn(Turn(END, frozenset(opened), waits=True)), making.quiet({}, opened):
            try:
                results = await making.ask(opened, END, body)
                took = results.of(Outcome.TOOK)
                # Weights may have come by themselves between begin and end.
                self._sync.part(took, ("end",), loads=False)
                await self._proof.of(self._sync.series_ends(took))
                if results.changed:
                    making.recipe.replaced(None)
                await making.settle(results, END)
                if not self._holds.any(PAUSED):
                    await self._flush(took)
            finally:
                for engine in opened:
                    self._opened.pop(engine, None)
                    self._holds.drop(OPENED, engine)
        return results.told(making.versions())

    # ---- updates ----

    async def update(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """One update on all of these engines."""
        making = self.making
        fields = msgspec.json.decode(body)
        change = change_of(row, body, fields)
        turn = Turn(change.path, frozenset(engines), change.in_session, change.version)
        refusal = making.objection(turn, change.version, change.allow_older)
        refusal = refusal or self._other_series(change, engines)
        if refusal is not None:
            return refusal
        self._opened |= {engine: change.path for engine in engines if engine in self._opened}
        async with making.turn(turn), making.quiet(fields, engines):
            if change.in_session:
                results = await self._in_own_sessions(change, engines)
            else:
                results = await making.ask(engines, change.path, change.body)
            await making.verify(results, change.version)
            self._note(change, results)
            await self._proof.of()
            await making.settle(results, change.path)
            if not (self._holds.any(PAUSED) or self._holds.any(OPENED)):
                await self._flush(results.of(Outcome.TOOK))
        return results.told(making.versions())

    def _other_series(self, change: Change, engines: list[EngineId]) -> Reply | None:
        """A refusal where an update of another kind is open: one of the two would remain half done."""
        for engine in engines:
            path = self._opened.get(engine)
            if path is None or path == change.path or (change.in_session and not path):
                continue
            by = f" by {path}" if path else ""
            message = (
                f"{change.path}: a weight update{by} is open on engine {engine}; close it first "
                f"with {END}"
            )
            return self.making.conflict(message, engines)
        return None

    def _note(self, change: Change, results: Results) -> None:
        """Keep account of who has which weights, and how others could get them."""
        took = results.of(Outcome.TOOK)
        if change.full:
            self._sync.whole(took, change.key)
        else:
            self._sync.part(took, change.key, change.digest)
            self._sync.refused(results.of(Outcome.UNTOUCHED), change.digest)
        if any(map(self._sync.has_wanted_weights, took)):
            again = change.full and change.path == FROM_DISK
            self.making.recipe.replaced(Repeated(change.path, change.body) if again else None)
        for engine in filter(self._sync.has_wanted_weights, took):
            if any(self._sync.odd_adapters(engine)):
                self._catching_up.add(engine)
        if change.flushes:
            self._unflushed -= set(took)
        else:
            self._unflushed |= set(took)

    async def _in_own_sessions(self, change: Change, engines: list[EngineId]) -> Results:
        """An update that SGLang takes only between begin and end, for callers who do not say so."""
        closed = [engine for engine in engines if engine not in self._opened]
        begun = await self._begun(closed, b"{}")
        refused = [engine for engine, reply in begun.replies.items() if not reply.good]
        refused = [engine for engine in refused if begun.replies[engine].status != _NO_SUCH_CALL]
        if refused:
            spared = Reply(400, f"{NOT_BEGUN}{', '.join(refused)} did not".encode(), "text/plain")
            for engine in engines:
                if engine not in refused:
                    begun.set(engine, spared, Outcome.UNTOUCHED)
            await self._close([engine for engine in closed if engine not in refused], begun)
            return begun
        results = await self.making.ask(engines, change.path, change.body)
        await self._close([engine for engine in closed if engine in results.replies], results)
        return results

    async def _begun(self, engines: list[EngineId], body: bytes) -> Results:
        results = await self.making.ask(engines, BEGIN, body)
        for engine, reply in results.replies.items():
            if not reply.good and _OPEN_ALREADY in reply.said():  # by somebody who went past the router
                results.set(engine, json_reply({"success": True, "message": "Success"}), Outcome.TOOK)
        return results

    async def _close(self, engines: list[EngineId], results: Results) -> None:
        """Close updates that were opened here. Where that fails, `results` say so, unless the update has
        failed there itself: then that is what is told."""
        ended = Results()
        with contextlib.suppress(SeerError):
            ended = await self.making.ask(engines, END, b"{}")
        for engine, reply in ended.replies.items():
            if not reply.good and reply.status != _NO_SUCH_CALL:
                told = reply if results.replies[engine].good else results.replies[engine]
                results.set(engine, told, Outcome.DOUBTFUL)

    async def _flush(self, engines: list[EngineId]) -> None:
        """Let those forget old KV that were told to keep it."""
        unflushed = [engine for engine in engines if engine in self._unflushed]
        self._unflushed -= set(unflushed)
        await self.making.flush(unflushed)
