"""Weight changes: sent to engines in one order, one at a time; what fails is kept out of traffic."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.control.asking import Engines
from seer_sgl.router.control.holds import Holds
from seer_sgl.router.control.merging import Replies, Reply, json_reply, success
from seer_sgl.router.control.sync import Sync
from seer_sgl.router.control.table import Row
from seer_sgl.router.control.views import ranks
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

_POLL_S = 0.02
_FROM_DISK = "/update_weights_from_disk"
_BEGIN, _END = "/begin_weight_update", "/end_weight_update"
PAUSED = "paused"
_FAILED = "a weight update failed on it, and it waits for a whole one"


class Weights:
    """Performs weight changes and keeps account of who has which.

    Args:
        dispatcher: told of every change, and of engines that go out of traffic and come back.
    """

    def __init__(self, dispatcher: Dispatcher, engines: Engines, holds: Holds) -> None:
        self._dispatcher = dispatcher
        self._engines = engines
        self._roster = engines.roster
        self._holds = holds
        self._sync = Sync()
        self._locks: dict[EngineId, asyncio.Lock] = {}
        self._opened: set[EngineId] = set()
        """Engines whose update the caller opened itself, and has to close."""
        self._late: asyncio.Queue[EngineId] = asyncio.Queue()
        self._updating = 0
        """Changes that are on; nothing is taken in meanwhile."""
        self._recipe: list[tuple[str, bytes]] | None = []
        """The calls that give a fresh engine the weights that there are now; None where none can."""

    # ---- engines come and go ----

    def engine_joined(self, engine: EngineId) -> None:
        """Note a fresh engine."""
        member = self._roster.members[engine]
        self._opened.discard(engine)
        self._sync.joined(engine, stale=bool(member.quarantine))
        if member.quarantine:
            log.warning("engine %s is in quarantine: %s", engine, member.quarantine)
            self._late.put_nowait(engine)

    async def catch_up_forever(self) -> None:
        """Repeat the last update on engines that came too late for it, where it can be repeated."""
        while True:
            await self._catch_up(await self._late.get())

    async def _catch_up(self, engine: EngineId) -> None:
        while self._updating:  # noqa: ASYNC110 - what it ends with is to be repeated
            await asyncio.sleep(_POLL_S)
        recipe, member = self._recipe, self._roster.members.get(engine)
        if recipe is None:
            return
        with contextlib.suppress(SeerError):
            async with self._one_by_one([engine]):
                for target, body in recipe:
                    found = await self._engines.ask([engine], "POST", target, body)
                    fields = msgspec.json.decode(body)
                    self._note_version(found, fields.get("weight_version", fields.get("new_version")))
                    if not found[engine].good:
                        log.warning("engine %s stays in quarantine: %s", engine, found[engine].said())
                        return
            if self._recipe == recipe and self._roster.members.get(engine) is member:
                self._sync.updated({engine: True}, full=True)
                self._settle_traffic()

    def engine_left(self, engine: EngineId) -> None:
        self._opened.discard(engine)
        self._sync.left(engine)

    # ---- series of updates ----

    def series_begins(self, engines: list[EngineId]) -> None:
        """A pause, or an opened update."""
        self._sync.series_begins(engines)

    def series_ends(self, engines: list[EngineId]) -> None:
        """What takes traffic again after it."""
        self._sync.series_ends(engines)
        self._settle_traffic()

    async def begin(self, engines: list[EngineId], body: bytes) -> Reply:
        """Open an update on those where none is open."""
        closed = [engine for engine in engines if engine not in self._opened]
        if not closed:
            return json_reply({"success": True, "message": "the weight update is open already"})
        async with self._one_by_one(closed), self._quiet({}):
            found = dict(await self._engines.ask(closed, "POST", _BEGIN, body))
        for engine, reply in found.items():
            if "already open" in reply.said():  # by somebody who went past the router
                found[engine] = json_reply({"success": True, "message": "Success"})
        self._opened |= {engine for engine, reply in found.items() if reply.good}
        self.series_begins([engine for engine, reply in found.items() if reply.good])
        return success(found)

    async def end(self, engines: list[EngineId], body: bytes) -> Reply:
        """Close the update where the caller opened one."""
        opened = [engine for engine in engines if engine in self._opened]
        if not opened:
            return json_reply({"success": True, "message": "no weight update is open"})
        async with self._one_by_one(opened), self._quiet({}):
            found = await self._engines.ask(opened, "POST", _END, body)
        self._opened -= set(opened)
        self._recipe = None  # weights may have come by themselves between begin and end
        self._new_epoch()
        bad = {engine: False for engine, reply in found.items() if not reply.good}
        self._sync.updated(bad, full=False)
        self.series_ends([engine for engine, reply in found.items() if reply.good])
        return success(found)

    # ---- changes ----

    async def update(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """One update on all of these engines."""
        fields = msgspec.json.decode(body)
        self._roster.epoch += 1  # from here on, who joins is late
        async with self._one_by_one(engines), self._quiet(fields):
            self._dispatcher.new_epoch()
            if row.own_session:
                found = await self._in_own_sessions(row.target, engines, body)
            else:
                found = await self._engines.ask(engines, "POST", row.target, body)
        full = row.full and fields.get("selector", "all") == "all"
        if any(reply.good for reply in found.values()):
            self._recipe = [(row.target, body)] if row.target == _FROM_DISK else None
        await self._took(found, fields, full)
        return success(found)

    async def _in_own_sessions(self, target: str, engines: list[EngineId], body: bytes) -> Replies:
        """An update that SGLang takes only between begin and end, for callers who do not say so."""
        closed = [engine for engine in engines if engine not in self._opened]
        if closed:
            begun = await self._engines.ask(closed, "POST", _BEGIN, b"{}")
            unknown = [engine for engine, reply in begun.items() if reply.status == 404]
            refused = {
                engine: reply
                for engine, reply in begun.items()
                if not reply.good and engine not in unknown and "already open" not in reply.said()
            }
            if refused:
                await self._close([engine for engine in begun if engine not in refused])
                return {engine: refused.get(engine, _not_begun(refused)) for engine in begun}
        found = await self._engines.ask(engines, "POST", target, body)
        ended = await self._close([engine for engine in closed if engine in found])
        # What the update itself said is kept where that went wrong.
        late = {engine: reply for engine, reply in ended.items() if found[engine].good}
        return {**found, **{e: r for e, r in late.items() if not r.good and r.status != 404}}

    async def _close(self, engines: list[EngineId]) -> Replies:
        with contextlib.suppress(SeerError):
            return await self._engines.ask(engines, "POST", _END, b"{}") if engines else {}
        return {}

    async def rename(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """`/update_weight_version`: the weights stay, and get another name."""
        fields = msgspec.json.decode(body)
        if fields.get("abort_all_requests", True):
            self._dispatcher.abort_all()
        self._new_epoch()
        found = await self._engines.ask(engines, "POST", row.target, body)
        self._note_version(found, fields.get("new_version"))
        if self._recipe is not None and any(reply.good for reply in found.values()):
            before = [call for call in self._recipe if call[0] != row.target]
            self._recipe = [*before, (row.target, body)]
        return success(found)

    async def init_group(self, row: Row, engines: list[EngineId], body: bytes) -> Reply:
        """A process group of the trainer and of all engines: each gets ranks after those before it."""
        fields = msgspec.json.decode(body)
        for name in ("rank_offset", "world_size", "master_port"):
            fields[name] = _whole_number(fields, name)
        if len(engines) == 1:
            bodies = {engines[0]: msgspec.json.encode(fields)}
        else:
            bodies, offset = {}, fields["rank_offset"]
            for engine in engines:
                bodies[engine] = msgspec.json.encode({**fields, "rank_offset": offset})
                offset += ranks(self._roster.members[engine].card.facts)
            if offset > fields["world_size"]:
                raise RequestError(
                    "world_size",
                    f"{fields['world_size']} has no room for the engines' ranks "
                    f"{fields['rank_offset']} to {offset - 1}; see num_gpus in /server_info",
                )
        return success(await self._engines.ask(engines, "POST", row.target, b"", bodies))

    def new_adapter(self) -> None:
        """An adapter's weights have changed."""
        self._dispatcher.new_epoch()

    # ---- inside ----

    def _new_epoch(self) -> None:
        self._roster.epoch += 1
        self._dispatcher.new_epoch()

    async def _took(self, found: Replies, fields: Mapping[str, Any], full: bool) -> None:
        self._note_version(found, fields.get("weight_version"))
        self._sync.updated({engine: reply.good for engine, reply in found.items()}, full)
        out = self._settle_traffic()
        if out:  # what it held on to runs elsewhere by now
            with contextlib.suppress(SeerError):
                await self._engines.ask(out, "POST", "/abort_request", b'{"abort_all":true}')

    def _note_version(self, found: Replies, version: Any) -> None:
        if version is None:
            return
        for engine, reply in found.items():
            if reply.good:
                self._roster.set_weight_version(engine, str(version))

    def _settle_traffic(self) -> list[EngineId]:
        """Take engines that are out of step out of traffic, and put those back that are not any more.

        Returns those that went out.
        """
        out = self._sync.out_of_step()
        gone = []
        for engine, member in self._roster.members.items():
            if engine in out and not member.quarantine:
                member.quarantine = _FAILED
                log.warning("engine %s is in quarantine: %s", engine, _FAILED)
                self._dispatcher.engine_left(engine, _FAILED)
                gone.append(engine)
            elif engine not in out and member.quarantine:
                member.quarantine = ""
                log.info("engine %s is back from quarantine", engine)
                self._dispatcher.engine_joined(member.card.spec)
        return gone

    @contextlib.asynccontextmanager
    async def _one_by_one(self, engines: list[EngineId]) -> AsyncIterator[None]:
        """Every engine hears of one change at a time, and all of them in the same order."""
        async with contextlib.AsyncExitStack() as stack:
            for engine in sorted(engines):
                await stack.enter_async_context(self._locks.setdefault(engine, asyncio.Lock()))
            yield

    @contextlib.asynccontextmanager
    async def _quiet(self, fields: Mapping[str, Any]) -> AsyncIterator[None]:
        """Nothing runs inside. A caller that has paused has seen to that itself. For others, requests
        end first and later ones wait, as with SGLang: none goes on with other weights than it began
        with."""
        if fields.get("abort_all_requests") is True:
            self._dispatcher.abort_all()
        self._updating += 1
        self._dispatcher.hold()
        try:
            await self._holds.drained()
            yield
        finally:
            self._updating -= 1
            if not self._updating:
                self._dispatcher.release()


def _not_begun(refused: Replies) -> Reply:
    return Reply(400, f"not begun, as {', '.join(refused)} did not".encode(), "text/plain")


def _whole_number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)  # AReaL sends the port as text
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(name, f"must be a whole number, not {value!r}")
    return value
