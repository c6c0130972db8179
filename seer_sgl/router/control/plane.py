"""Control calls performed: what the router does itself, what it asks engines, what it answers."""

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.control import merging, views
from seer_sgl.router.control.asking import Engines
from seer_sgl.router.control.fields import as_object, decoded, rank
from seer_sgl.router.control.holds import EVERY, PAUSED, Holds
from seer_sgl.router.control.memory import Memory
from seer_sgl.router.control.merging import Replies, Reply
from seer_sgl.router.control.requests import Abort, FromTensor
from seer_sgl.router.control.table import Act, Merge, Row, Scope, row_of
from seer_sgl.router.control.weights.adapters import RESETS, Adapters
from seer_sgl.router.control.weights.groups import group_bodies
from seer_sgl.router.control.weights.updates import Weights
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.router.roster import Roster
from seer_sgl.types import EngineId

RECALL_S = 10.0
"""How long a pause waits for what engines have of the requests that it recalls."""


@dataclass(frozen=True, slots=True)
class Call:
    """One control call.

    Args:
        body: a JSON object, or nothing.
        asked: the fields of it that are the router's concern, as `row.request`.
        only: the engine that it is for; None for all.
    """

    row: Row
    method: str
    body: bytes
    asked: Any
    query: str
    only: EngineId | None

    @property
    def target(self) -> str:
        """Path and query for engines."""
        return f"{self.row.target}?{self.query}" if self.query else self.row.target


class ControlPlane:
    """The router as one SGLang server, or as several: every call may be for one engine `only`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        roster: Roster,
        calls: EngineCalls,
        update_timeout_s: float = 600.0,
    ) -> None:
        self._dispatcher = dispatcher
        self._update_timeout_s = update_timeout_s
        self.engines = Engines(roster, calls)
        self.holds = Holds(dispatcher)
        self.weights = Weights(dispatcher, self.engines, self.holds, update_timeout_s)
        self.adapters = Adapters(self.weights.making)
        self.memory = Memory(self.engines, self.holds)
        self._sessions: dict[str, EngineId] = {}
        self._shows_queue: EngineId | None = None
        self._acts = {
            Act.ABORT: self._abort,
            Act.PAUSE: self._pause,
            Act.CONTINUE: self._continue,
            Act.INIT_GROUP: self._init_group,
            Act.BEGIN: self._begin,
            Act.END: self._end,
            Act.UPDATE: self._update,
            Act.VERSION: self._version,
            Act.CHECK: self._check,
            Act.FLUSH: self._flush,
            Act.RELEASE: self._release,
            Act.RESUME: self._resume,
            Act.LORA: self._lora,
            Act.OPEN_SESSION: self._open_session,
            Act.CLOSE_SESSION: self._close_session,
        }

    # ---- for the front ----

    async def perform(
        self,
        path: str,
        method: str,
        body: bytes = b"",
        query: str = "",
        only: EngineId | None = EVERY,
    ) -> Reply:
        """The answer to one control call.

        Args:
            only: the engine whose port it came to.

        Raises:
            RequestError: the call is wrong by itself.
            SeerError: no engine is here.
        """
        row = row_of(path, method)
        if row is None:
            raise RequestError("", f"{method} {path} is no control call", status=404)
        content = as_object(body) if row.request is not None else b""
        asked = decoded(content, row.request) if row.request is not None else None
        call = Call(row, row.asks or method, content, asked, query, only)
        return await self._acts.get(row.act, self._plain)(call)

    async def _plain(self, call: Call) -> Reply:
        """A call that only engines answer."""
        row = call.row
        if row.merge in _LOADS:
            return await self._loads(call)
        if row.scope is Scope.ONE:
            engines = self.engines.targets(call.only)
            _, reply = await self.engines.any_of(engines, call.method, call.target, call.body)
            return _told(row, reply)
        return self._merged(row, await self._ask(call))

    def session_engine(self, session_id: str) -> EngineId | None:
        """The engine on which a session is open."""
        return self._sessions.get(session_id)

    def engine_joined(self, engine: EngineId) -> None:
        """A fresh engine; one that has missed an update gets it, where that can be."""
        self.weights.engine_joined(engine)

    async def catch_up_forever(self) -> None:
        """Bring late engines up to date."""
        await self.weights.catch_up_forever()

    def engine_left(self, engine: EngineId) -> None:
        """Nothing waits for an engine that is gone."""
        self.holds.engine_left(engine)
        self.memory.engine_left(engine)
        self.weights.engine_left(engine)
        self._sessions = {name: at for name, at in self._sessions.items() if at != engine}

    async def generates(self, only: EngineId | None = EVERY) -> bool:
        """Whether an engine can generate now. While generation is paused none would answer, and none
        has to: those that are here are alive."""
        engines = self.engines.targets(only)
        if self.holds:
            return True
        return await self.engines.first_good(engines, "GET", "/health_generate")

    # ---- rollout ----

    async def _abort(self, call: Call) -> Reply:
        """Requests end with what they have. One that the router does not know may run on an engine as a
        whole; one that nobody knows has ended, which is what was asked for."""
        asked: Abort = call.asked
        if asked.abort_all:
            self._abort_all(call.only)
        elif not asked.rid or self._dispatcher.abort(asked.rid):
            return Reply(200, b"", "")
        if self.engines.roster.members:
            with contextlib.suppress(SeerError):  # what is gone runs nothing
                await self._ask(call)
        return Reply(200, b"", "")

    def _abort_all(self, only: EngineId | None) -> None:
        """Everything; or what runs on one engine, and what waits."""
        if only is None:
            self._dispatcher.abort_all()
        else:
            self._dispatcher.abort_on(only)

    async def _pause(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        self.holds.add(PAUSED, call.only)
        if call.asked.mode == "abort":
            self._abort_all(call.only)
        elif call.asked.mode == "retract":
            # What an engine retracts it computes again by itself, and might find KV of older weights.
            self._dispatcher.recall()
            await self.holds.recalled(RECALL_S)
        self.weights.paused(engines)
        found = await self._ask(call, self._update_timeout_s)
        if call.asked.mode == "abort":
            await self.holds.idle(call.only)
        return self._merged(call.row, found)

    async def _continue(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        if (refusal := await self.weights.may_continue(engines)) is not None:
            return refusal
        await self.weights.continues(engines)
        reply = self._merged(call.row, await self._ask(call, self._update_timeout_s))
        if reply.good:
            self.holds.drop(PAUSED, call.only)
        else:
            self.weights.paused(engines)
        return reply

    # ---- weights ----

    async def _init_group(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        members = self.engines.roster.members
        ranks = {engine: views.ranks(members[engine].card.facts) for engine in engines}
        bodies = group_bodies(call.body, ranks)
        return merging.success(await self.engines.ask(engines, "POST", call.row.target, b"", bodies))

    async def _begin(self, call: Call) -> Reply:
        return await self.weights.begin(self.engines.targets(call.only), call.body)

    async def _end(self, call: Call) -> Reply:
        return await self.weights.end(self.engines.targets(call.only), call.body)

    async def _update(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        if isinstance(call.asked, FromTensor) and len(engines) > 1:
            raise RequestError(
                "serialized_named_tensors",
                "handles of device memory mean something to one engine only; start the router with "
                "--engine-ports, and send each engine its own, to its own port",
            )
        return await self.weights.update(call.row, engines, call.body)

    async def _version(self, call: Call) -> Reply:
        return await self.adapters.rename(call.row, self.engines.targets(call.only), call.body)

    async def _lora(self, call: Call) -> Reply:
        return await self.adapters.change(call.row, self.engines.targets(call.only), call.body)

    async def _check(self, call: Call) -> Reply:
        if call.asked.action != RESETS:
            return await self._plain(call)
        engines = self.engines.targets(call.only)
        return self._merged(call.row, await self.adapters.reset(call.row, engines, call.body))

    async def _flush(self, call: Call) -> Reply:
        found = await self._ask(call)
        self.weights.flushed([engine for engine, reply in found.items() if reply.good])
        return self._merged(call.row, found)

    # ---- memory ----

    async def _release(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        found = await self.memory.release(engines, call.row.target, call.body, call.only)
        return self._merged(call.row, found)

    async def _resume(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        found = await self.memory.resume(engines, call.row.target, call.body, call.only)
        return self._merged(call.row, found)

    # ---- sessions ----

    async def _open_session(self, call: Call) -> Reply:
        engines = self.engines.targets(call.only)
        open_on = list(self._sessions.values())
        place = self._sessions.get(call.asked.session_id)  # that one says itself that it is open
        place = place or min(engines, key=open_on.count)
        engine, reply = await self.engines.any_of([place], "POST", call.target, call.body)
        opened = reply.json()
        if reply.good and isinstance(opened, str):
            self._sessions[opened] = engine
        return _told(call.row, reply)

    async def _close_session(self, call: Call) -> Reply:
        holder = self._sessions.pop(call.asked.session_id, None)
        engines = [holder] if holder is not None else self.engines.targets(call.only)
        _, reply = await self.engines.any_of(engines, "POST", call.target, call.body)
        return _told(call.row, reply)

    # ---- views ----

    async def _loads(self, call: Call) -> Reply:
        row, only = call.row, call.only
        asked = dict(parse_qsl(call.query, keep_blank_values=True))
        only_rank = rank(asked.pop("dp_rank", None))
        form = asked.pop("format", "json")
        target = row.target if "?" in row.target or not asked else f"{row.target}?{urlencode(asked)}"
        replies: Replies = {}
        total = len(self.engines.roster.members)
        if total or only is not EVERY:
            replies = await self.engines.ask(self.engines.targets(only), "GET", target)
        wrong = merging.refusal({e: r for e, r in replies.items() if r.status != 503})
        if wrong is not None:
            return wrong
        queue = self._queue(only)
        if row.merge is Merge.LOAD:
            return views.load(replies, queue)
        if row.merge is Merge.WORKER_LOADS:
            return views.worker_loads(replies, queue, self.engines.urls(), total)
        if form == "prometheus":
            return views.loads_as_metrics(replies, queue)
        stamp = {"timestamp": datetime.fromtimestamp(time.time(), UTC).isoformat(), "version": ""}
        return views.loads(replies, queue, stamp, only_rank)

    def _queue(self, only: EngineId | None) -> views.Queue | None:
        """What waits here; with a port for each engine it shows at one of them alone, so that their
        sum is right. What runs is told by the engines themselves there."""
        load = self._dispatcher.queue_load()
        if only is EVERY:
            return views.Queue(load.waiting, load.in_flight, load.waiting_tokens)
        members = self.engines.roster.members
        if self._shows_queue not in members:
            self._shows_queue = only if only in members else None
        return views.Queue(load.waiting, 0, load.waiting_tokens) if only == self._shows_queue else None

    # ---- inside ----

    async def _ask(self, call: Call, timeout_s: float | None = None) -> Replies:
        engines = self.engines.targets(call.only)
        return await self.engines.ask(engines, call.method, call.target, call.body, timeout_s=timeout_s)

    def _merged(self, row: Row, replies: Replies) -> Reply:
        plain = _PLAIN.get(row.merge)
        if plain is not None:
            return plain(replies)
        urls = self.engines.urls()
        if row.merge is Merge.METRICS:
            pages = {urls[e]: r.body for e, r in replies.items() if r.good}
            if not pages and all(reply.status == 404 for reply in replies.values()):
                return merging.refused("no engine runs with --enable-metrics", 404)
            return merging.metrics(pages)
        good = {engine: reply for engine, reply in replies.items() if isinstance(reply.json(), dict)}
        good = {engine: reply for engine, reply in good.items() if reply.good}
        if not good:
            return merging.refusal(replies) or merging.refused("no engine described itself")
        return _DESCRIBED[row.merge](good, urls)


_PLAIN = {
    Merge.PASS: merging.passed,
    Merge.SUCCESS: merging.success,
    Merge.TEXT: merging.text,
    Merge.SAME: merging.same,
}
_DESCRIBED = {
    Merge.SERVER_INFO: views.server_info,
    Merge.MODEL_INFO: views.model_info,
    Merge.WEIGHT_VERSION: views.weight_version,
}
_LOADS = (Merge.LOADS, Merge.LOAD, Merge.WORKER_LOADS)


def _told(row: Row, reply: Reply) -> Reply:
    """One engine's own answer. A bug that a call has met there is no failure of the router."""
    if reply.status == 503:
        raise SeerError(reply.said())
    return (
        _PLAIN[row.merge]({EngineId("asked"): reply})
        if reply.good
        else merging.refused(reply.said(), reply.status if reply.status in merging.OWN else 400)
    )
