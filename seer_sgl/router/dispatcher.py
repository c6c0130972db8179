"""Performs the core's actions and turns what comes of them into events. The one place that does.

Every sample is in `_live` from its submission until the core says `Deliver`; every chunk that the core
dispatched is in `_running` until its engine answers, breaks or leaves. The core alone decides.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.answers import Answers, SampleStream
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.chunking import Epoch, chunk_body
from seer_sgl.router.core import RouterCore
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, LookUp, Wake
from seer_sgl.router.core.events import (
    Cancelled,
    EngineJoined,
    EngineLeft,
    EpochChanged,
    Event,
    Paused,
    PoolFound,
    PoolState,
    Recalled,
    Resumed,
    Submitted,
    Ticked,
)
from seer_sgl.router.endings import Endings
from seer_sgl.router.gathering import Gathering
from seer_sgl.router.grouping import GroupBook
from seer_sgl.router.intake import Intake
from seer_sgl.router.link import AgentLink
from seer_sgl.router.live import Call, Live
from seer_sgl.router.messages import ChunkAnswered, ChunkBroke, ChunkProgress, RunChunk, StopChunk
from seer_sgl.router.pool import NoPool, Reopened
from seer_sgl.router.pooling import Pooling
from seer_sgl.router.requests import Sample
from seer_sgl.router.roster import Roster
from seer_sgl.router.stopping import Stopping
from seer_sgl.types import ChunkId, EngineId, EngineSpec, RequestId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What the router itself holds."""

    waiting: int
    """Requests that no engine runs at the moment."""
    in_flight: int
    waiting_tokens: int
    """Prompt and output so far of those that wait."""


class Dispatcher:
    """Between the HTTP front and the engines."""

    def __init__(
        self,
        core: RouterCore,
        link: AgentLink,
        roster: Roster,
        calls: EngineCalls,
        groups: GroupBook | None = None,
        salted: bool = True,
        pool: NoPool | None = None,
    ) -> None:
        """`salted`: chunks find no KV of other weights. False only to show what would come of it."""
        self.core = core
        self.roster = roster
        self.stopping = Stopping()
        """Set when the router ends: nothing will be answered any more."""
        self._salted = salted
        self.epoch = self._epoch_now()
        """Of the chunks that are dispatched now."""
        self._link = link
        self._pooling = Pooling(pool or NoPool())
        self._endings = Endings(core, self._pooling)
        self._answers = Answers(calls, roster)
        self._groups = GroupBook() if groups is None else groups
        self._intake = Intake(roster, calls, self._groups, self._submit)
        self.stopping.then.add(self._intake.stop)
        self._passed_on = 0
        self._live: dict[RequestId, Live] = {}
        self._running: dict[ChunkId, Dispatch] = {}
        self._gathering = Gathering(lambda events: self._handle([*events]), core.at_ease)

    # ---- for clients ----

    async def generate(self, samples: list[Sample]) -> list[dict[str, Any]]:
        """Run samples to their end; answers in the same order.

        Requests wait where no engine is registered. If this is cancelled, so are they. A sample whose
        id is on its way is not run again; its answer goes to all that ask for it.

        Raises:
            RequestError: a sample can never run; then none of them does. Or an id is on its way with
                another body (409).
        """
        call = self._intake.open(samples, streams=False)
        try:
            await call.ended()
            return await self._answers.whole(call.lives)
        finally:
            self._close(call)

    def stream(self, samples: list[Sample]) -> SampleStream:
        """Samples as they grow: index and answer so far, cumulative, in SGLang's shape. The last one of
        each sample has a finish reason. Closing the stream cancels what still runs.

        An answer is to be used before the next one is asked for: its lists grow.

        Raises:
            RequestError: as `generate`; also while iterating, where it took time to know.
        """
        call = self._intake.open(samples, streams=True)
        return SampleStream(call, self._answers, self._close)

    # ---- control ----

    @property
    def paused(self) -> bool:
        return self.core.scheduler.paused

    def pause(self) -> None:
        """Dispatch nothing until `resume`; requests wait."""
        self._gathering.flush()
        self._handle([Paused()])

    def resume(self) -> None:
        self._handle([Resumed()])

    def recall(self) -> None:
        """Bring back what runs, with the tokens that it has: it goes on after `resume`. What cannot be
        divided begins anew, or ends with what its client has seen. To be called during a pause, and
        before engines themselves pause: those that did lose tokens of what they abort.
        """
        self._handle([Recalled()])

    def hold(self) -> None:
        """Take in nothing more until `release`: what comes waits, what is on its way ends."""
        self._intake.hold()

    def release(self) -> None:
        self._intake.release()

    @property
    def on_their_way(self) -> int:
        """Requests that were taken in, or passed on to an engine as they were, and have not ended."""
        return len(self._live) + self._passed_on

    @property
    def holds(self) -> bool:
        """Whether no request may begin to run now."""
        return self.paused or self._intake.held

    @contextlib.contextmanager
    def passing_on(self) -> Iterator[Epoch]:
        """Inside, an engine works on a request that it does not send back here to be divided. Not to be
        entered while the dispatcher `holds`.
        """
        self._passed_on += 1
        try:
            yield self.epoch
        finally:
            self._passed_on -= 1

    def abort(self, rid: str) -> int:
        """End the request of this id, or those that were made of it; they are answered with what
        exists. Returns how many were told to."""
        return self._abort(self._intake.registry.named(rid))

    def abort_all(self) -> int:
        """End all requests, as `abort`."""
        return self._abort(self._intake.registry.everyone())

    def abort_on(self, engine_id: EngineId) -> int:
        """End those that run on one engine, and those that wait."""
        elsewhere = {d.request_id for d in self._running.values() if d.engine_id != engine_id}
        everyone = self._intake.registry.everyone()
        return self._abort(live for live in everyone if live.request_id not in elsewhere)

    def abort_begun(self) -> int:
        """End those that have tokens already."""
        everyone = self._intake.registry.everyone()
        return self._abort(live for live in everyone if live.transcript.ended_tokens)

    def queue_load(self) -> QueueLoad:
        """What waits here, and what runs."""
        lives = self._intake.registry.everyone()
        running = {dispatch.request_id for dispatch in self._running.values()}
        waiting = [live for live in lives if live.state != "done" and live.request_id not in running]
        tokens = sum(len(w.transcript.prompt_ids) + w.transcript.ended_tokens for w in waiting)
        return QueueLoad(len(waiting), len(running), tokens)

    def new_epoch(self) -> None:
        """The weights change: what is known of groups and of KV is of the past.

        To be called when nothing is dispatched, and before anything is under the new weights.
        """
        self._gathering.flush()
        self.roster.epoch += 1
        self.epoch = self._epoch_now()
        for dispatch in self._running.values():  # they go on, under other weights
            self._live[dispatch.request_id].transcript.weights_changed(self.epoch.number)
        self._groups.new_epoch()
        self._pooling.new_epoch()
        self._handle([EpochChanged()])

    def _epoch_now(self) -> Epoch:
        return Epoch(self.roster.epoch, self.roster.epoch_name if self._salted else None)

    async def watch_pool(self) -> None:
        """Hear of the pool until cancelled."""
        await self._pooling.pool.run(
            lambda request_id, tokens: self._handle([PoolFound(request_id, tokens)]),
            lambda up: self._handle([PoolState(up)]),
            self._told_of,
        )

    def _told_of(self, request_id: RequestId) -> Reopened | None:
        live = self._live.get(request_id)
        return None if live is None else self._pooling.told_of(live, self.epoch)

    def _abort(self, lives: Iterable[Live]) -> int:
        told = [live for live in lives if live.state != "done" and not live.aborted]
        for live in told:
            live.aborted = "Abort in waiting queue"
        self._cancel(told)
        return len(told)

    def _cancel(self, lives: Iterable[Live]) -> None:
        cancelled: list[Event] = []
        for live in lives:
            name = live.request_id
            if live.state == "submitted" and not self._gathering.take(name):
                cancelled.append(Cancelled(name))
            else:
                if self._live.pop(name, None) is not None:
                    self._pooling.over(live, finished=False)
                live.end(Deliver(name, "cancelled"))
        if cancelled:
            self._handle(cancelled)

    # ---- on their way ----

    def _submit(self, placed: list[tuple[Live, Submitted]]) -> None:
        for live, _ in placed:
            self._live[live.request_id] = live
            self._pooling.submitted(live)
        self._gathering.add([event for _, event in placed])

    def _close(self, call: Call) -> None:
        left = self._intake.close(call)
        if left:
            self._cancel(left)

    # ---- from engines ----

    def engine_joined(self, spec: EngineSpec) -> None:
        self._groups.engine_gone(spec.engine_id)  # one that is back has forgotten everything
        self._lose(spec.engine_id, "started afresh", [EngineJoined(spec)])
        self._intake.engine_joined()

    def engine_left(self, engine_id: EngineId, reason: str) -> None:
        self._groups.engine_gone(engine_id)
        self._lose(engine_id, reason, [EngineLeft(engine_id, reason)])

    def _lose(self, engine_id: EngineId, reason: str, then: list[Event]) -> None:
        """Take note that an engine's chunks are lost. What they have shown to a client stays."""
        gone = [dispatch for dispatch in self._running.values() if dispatch.engine_id == engine_id]
        events: list[Event] = []
        for dispatch in gone:
            del self._running[dispatch.chunk_id]
            live = self._live[dispatch.request_id]
            if (shown := self._endings.lost(live, dispatch, reason)) is not None:
                events.append(shown)
        self._handle(events + then)

    def chunk_progressed(self, message: ChunkProgress) -> None:
        """Show it to those who want to see the sample grow."""
        dispatch = self._running.get(message.chunk_id)
        if dispatch is None or dispatch.engine_id != message.engine_id:
            return
        live = self._live[dispatch.request_id]
        live.transcript.progress(message.keep_chars, message.text, message.new_ids, message.meta)
        live.grew()

    def chunk_answered(self, message: ChunkAnswered) -> None:
        dispatch = self._take_running(message)
        if dispatch is None:
            return
        live = self._live[dispatch.request_id]
        self._handle(self._endings.answered(live, dispatch, message.answer))

    def chunk_broke(self, message: ChunkBroke) -> None:
        dispatch = self._take_running(message)
        if dispatch is None:
            return
        log.warning("chunk %d on %s: %s", message.chunk_id, message.engine_id, message.reason)
        live = self._live[dispatch.request_id]
        self._handle(self._endings.broke(live, dispatch, message.reason, message.status))

    def _take_running(self, message: ChunkAnswered | ChunkBroke) -> Dispatch | None:
        """What a message is about; None for a late one, or one about an earlier router's chunk."""
        dispatch = self._running.get(message.chunk_id)
        if dispatch is None or dispatch.engine_id != message.engine_id:
            return None
        return self._running.pop(message.chunk_id)

    # ---- actions ----

    def _handle(self, events: list[Event]) -> None:
        try:
            actions = self.core.handle_all(events, time.monotonic())
        except IllegalEventError as error:
            log.exception("a bug: the core refused an event")
            actions = list(error.actions)  # type: ignore[arg-type]
        self._perform(actions)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch():
                    self._run(action)
                case AbortChunk(chunk_id=chunk_id, engine_id=engine_id):
                    if chunk_id in self._running:
                        self._send(engine_id, StopChunk(chunk_id))
                case LookUp(request_id=request_id, tokens=tokens, patience_s=patience_s):
                    self._pooling.about_to_run(self._live[request_id], self.epoch)
                    self._pooling.pool.look_up(request_id, tokens, patience_s)
                case Wake(at_s=at_s):
                    loop = asyncio.get_running_loop()
                    ticked: list[Event] = [Ticked()]
                    loop.call_later(max(0.0, at_s - time.monotonic()), self._handle, ticked)
                case Deliver(request_id=request_id):
                    self._deliver(self._live.pop(request_id), action)

    def _deliver(self, live: Live, deliver: Deliver) -> None:
        self._pooling.over(live, deliver.outcome == "finished")
        engine_id = live.transcript.last_engine
        current = live.transcript.epoch == self.epoch.number
        if engine_id is not None and live.trail is not None and current:
            kept = not (deliver.outcome == "finished" and self._pooling.pool.releases)
            self._groups.end(live.trail, live.transcript.output_ids, live.group_id, engine_id, kept)
        live.end(deliver)

    def _run(self, dispatch: Dispatch) -> None:
        live = self._live[dispatch.request_id]
        request = self.core.buffer.requests.get(dispatch.request_id)
        is_probe = request is not None and request.is_probe
        self._running[dispatch.chunk_id] = dispatch
        try:
            body = chunk_body(live, dispatch, self.epoch, is_probe)
        except Exception as error:  # the actions that come with this one are not to suffer
            log.exception("a bug: no body for chunk %d of %s", dispatch.chunk_id, live.sample.rid)
            reason = f"a bug in the router: {error!r}"
            broke = ChunkBroke(dispatch.engine_id, dispatch.chunk_id, reason, status=500)
            asyncio.get_running_loop().call_soon(self.chunk_broke, broke)
            return
        live.transcript.epoch = self.epoch.number
        live.transcript.pulled_tokens = dispatch.pulled_tokens
        self._pooling.about_to_run(live, self.epoch)
        self._send(dispatch.engine_id, RunChunk(dispatch.chunk_id, body, live.streams))

    def _send(self, engine_id: EngineId, message: RunChunk | StopChunk) -> None:
        self._link.send(self.roster.members[engine_id].peer, message)
