"""Performs the core's actions and turns what comes of them into events. The one place that does.

Every sample is in `_live` from its submission until the core says `Deliver`; every chunk that the core
dispatched is in `_running` until its engine answers, breaks or leaves. The core alone decides.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from seer_sgl.errors import IllegalEventError, RequestError
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.core import RouterCore
from seer_sgl.router.core.actions import AbortChunk, Action, Deliver, Dispatch, Wake
from seer_sgl.router.core.events import (
    Cancelled,
    ChunkFailed,
    ChunkFinished,
    EngineJoined,
    EngineLeft,
    Event,
    Paused,
    Resumed,
    Submitted,
    Ticked,
)
from seer_sgl.router.link import AgentLink
from seer_sgl.router.messages import ChunkAnswered, ChunkBroke, RunChunk, StopChunk
from seer_sgl.router.requests import Sample, check_against_engines, prompt_key
from seer_sgl.router.roster import Roster
from seer_sgl.router.sampling import with_group_tag
from seer_sgl.router.transcript import Transcript
from seer_sgl.types import ChunkId, EngineId, EngineSpec, GroupId, RequestId

log = logging.getLogger(__name__)

GATHER_S = 0.002
"""Requests that arrive within this are submitted as one, so that all their probes go first."""


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What the router itself holds."""

    waiting: int
    """Requests that no engine runs at the moment."""
    in_flight: int
    waiting_tokens: int
    """Prompt and output so far of those that wait."""


@dataclass(slots=True)
class Live:
    """A sample on its way."""

    sample: Sample
    transcript: Transcript
    done: asyncio.Future[Deliver]
    number: int
    """Tells it from its siblings, for drafts."""
    last_status: int | None = None
    """HTTP status of the last chunk that an engine refused."""
    began_s: float = field(default_factory=time.monotonic)


class Dispatcher:
    """Between the HTTP front and the engines."""

    def __init__(self, core: RouterCore, link: AgentLink, roster: Roster, calls: EngineCalls) -> None:
        self.core = core
        self.roster = roster
        self.stopping = asyncio.Event()
        """Set when the router ends: nothing will be answered any more."""
        self._link = link
        self._calls = calls
        self._live: dict[RequestId, Live] = {}
        self._running: dict[ChunkId, Dispatch] = {}
        self._pending: list[Event] = []
        self._engine_here = asyncio.Event()
        self._numbers = itertools.count()

    # ---- for clients ----

    async def generate(self, samples: list[Sample]) -> list[dict[str, Any]]:
        """Run samples to their end; answers in the same order.

        Requests wait where no engine is registered. If this is cancelled, so are they.

        Raises:
            RequestError: a sample can never run; then none of them does.
        """
        await self._engine_here.wait()
        await self._tokenize(samples)
        while not (engines := self.roster.specs()):
            await self._engine_here.wait()  # the last one left meanwhile
        budgets = [check_against_engines(sample, engines) for sample in samples]
        for sample in samples:
            if sample.rid in self._live:
                raise RequestError("rid", f"{sample.rid!r} is already running", status=409)
        lives = [self._submit(*pair) for pair in zip(samples, budgets, strict=True)]
        try:
            await asyncio.wait([live.done for live in lives])
        except asyncio.CancelledError:
            self._flush()
            self._handle(Cancelled(RequestId(live.sample.rid)) for live in lives)
            raise
        return list(await asyncio.gather(*map(self._answer, lives)))

    async def stream(self, samples: list[Sample]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """Samples as they grow: index and answer so far, cumulative, in SGLang's shape. The last one of
        each sample has a finish reason. Leaving the iteration cancels what still runs."""
        for item in enumerate(await self.generate(samples)):
            yield item

    # ---- control ----

    @property
    def paused(self) -> bool:
        return self.core.scheduler.paused

    def pause(self) -> None:
        """Dispatch nothing until `resume`; requests wait."""
        self._flush()
        self._handle([Paused()])

    def resume(self) -> None:
        self._handle([Resumed()])

    def abort(self, rid: str) -> int:
        """End the request of this id, or those that were made of it; they are answered with what
        exists. Returns how many were told to."""
        return self._abort(name for name in self._live if name == rid or name.startswith(f"{rid}_"))

    def abort_all(self) -> int:
        """End all requests, as `abort`."""
        return self._abort(self._live)

    def abort_on(self, engine_id: EngineId) -> int:
        """End those that run on one engine, and those that wait."""
        elsewhere = {d.request_id for d in self._running.values() if d.engine_id != engine_id}
        return self._abort(name for name in self._live if name not in elsewhere)

    def queue_load(self) -> QueueLoad:
        """What waits here, and what runs."""
        waiting = [r for r in self.core.buffer.requests.values() if r.chunk is None]
        tokens = sum(request.held_tokens for request in waiting)
        return QueueLoad(len(waiting), len(self.core.chunks), tokens)

    def new_epoch(self) -> None:
        """The weights have changed: what is known of groups and of KV is of the past."""

    def _abort(self, names: Iterable[RequestId]) -> int:
        self._flush()
        told = list(names)
        self._handle(map(Cancelled, told))
        return len(told)

    async def _tokenize(self, samples: list[Sample]) -> None:
        texts = {sample.text: list[int]() for sample in samples if sample.text is not None}
        if not texts:
            return
        body = await self._calls.call("/tokenize", {"prompt": list(texts)})
        texts = dict(zip(texts, body["tokens"], strict=True))
        for sample in samples:
            if sample.text is None:
                continue
            sample.prompt_ids = texts[sample.text]
            if not sample.prompt_ids:
                raise RequestError("text", f"has no token in this vocabulary: {sample.text[:80]!r}")

    def _submit(self, sample: Sample, max_new_tokens: int) -> Live:
        live = Live(
            sample,
            Transcript(sample.rid, sample.prompt_ids),
            asyncio.get_running_loop().create_future(),
            next(self._numbers) % 2**31,
        )
        self._live[RequestId(sample.rid)] = live
        if not self._pending:
            asyncio.get_running_loop().call_later(GATHER_S, self._flush)
        self._pending.append(
            Submitted(
                request_id=RequestId(sample.rid),
                group_id=GroupId(sample.group_id),
                prompt_tokens=len(sample.prompt_ids),
                max_new_tokens=max_new_tokens,
                prompt_key=prompt_key(sample.prompt_ids),
                divisible=sample.divisible,
            )
        )
        return live

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._handle(pending)

    async def _answer(self, live: Live) -> dict[str, Any]:
        transcript, deliver = live.transcript, live.done.result()
        texts = None
        if not transcript.text_is_whole:
            skip = live.sample.sampling.get("skip_special_tokens")
            body = {
                "tokens": transcript.text_request(),
                "skip_special_tokens": True if skip is None else skip,
            }
            texts = (await self._calls.call("/detokenize", body))["text"]
        answer = transcript.answer(time.monotonic() - live.began_s, texts)
        if deliver.outcome != "finished":
            answer["meta_info"]["finish_reason"] = {
                "type": "abort",
                "message": deliver.reason or "cancelled",
                "status_code": live.last_status or 503,
            }
        return answer

    # ---- from engines ----

    def engine_joined(self, spec: EngineSpec) -> None:
        self._drop_running(spec.engine_id)
        self._engine_here.set()
        self._handle([EngineJoined(spec)])

    def engine_left(self, engine_id: EngineId, reason: str) -> None:
        self._drop_running(engine_id)
        if not len(self.roster):
            self._engine_here.clear()
        self._handle([EngineLeft(engine_id, reason)])

    def chunk_answered(self, message: ChunkAnswered) -> None:
        dispatch = self._take_running(message)
        if dispatch is None:
            return
        finish = message.answer["meta_info"]["finish_reason"] or {}
        live = self._live[dispatch.request_id]
        if finish.get("type") == "abort" and not self._is_cancelled(dispatch.request_id):
            live.last_status = finish.get("status_code")
            reason = f"{dispatch.engine_id} aborted it: {finish.get('message')}"
            self._handle([ChunkFailed(message.chunk_id, reason)])
            return
        new_tokens = len(message.answer["output_ids"])
        if new_tokens > dispatch.max_new_tokens:
            reason = f"{dispatch.engine_id} sent {new_tokens} tokens for {dispatch.max_new_tokens}"
            self._handle([ChunkFailed(message.chunk_id, reason)])
            return
        live.transcript.add(message.answer, dispatch.engine_id, dispatch.came_from)
        # SGLang also ends with `length` where it cut the budget itself: nothing would follow.
        ended = finish.get("type") != "length" or new_tokens < dispatch.max_new_tokens
        self._handle([ChunkFinished(message.chunk_id, new_tokens, ended)])

    def chunk_broke(self, message: ChunkBroke) -> None:
        dispatch = self._take_running(message)
        if dispatch is None:
            return
        self._live[dispatch.request_id].last_status = message.status
        refused = message.status is not None and 400 <= message.status < 500
        log.warning("chunk %d on %s: %s", message.chunk_id, message.engine_id, message.reason)
        self._handle([ChunkFailed(message.chunk_id, message.reason, retryable=not refused)])

    def _take_running(self, message: ChunkAnswered | ChunkBroke) -> Dispatch | None:
        """What a message is about; None for a late one, or one about an earlier router's chunk."""
        dispatch = self._running.get(message.chunk_id)
        if dispatch is None or dispatch.engine_id != message.engine_id:
            return None
        return self._running.pop(message.chunk_id)

    def _is_cancelled(self, request_id: RequestId) -> bool:
        request = self.core.buffer.requests.get(request_id)
        return request is not None and request.cancelled

    def _drop_running(self, engine_id: EngineId) -> None:
        gone = [c for c, dispatch in self._running.items() if dispatch.engine_id == engine_id]
        for chunk_id in gone:
            del self._running[chunk_id]

    # ---- actions ----

    def _handle(self, events: Iterable[Event]) -> None:
        try:
            actions = self.core.handle_all(list(events), time.monotonic())
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
                    self._send(engine_id, StopChunk(chunk_id))
                case Wake(at_s=at_s):
                    loop = asyncio.get_running_loop()
                    loop.call_later(max(0.0, at_s - time.monotonic()), self._handle, [Ticked()])
                case Deliver(request_id=request_id):
                    live = self._live.pop(request_id)
                    if not live.done.done():
                        live.done.set_result(action)

    def _run(self, dispatch: Dispatch) -> None:
        live = self._live[dispatch.request_id]
        params = {**live.sample.sampling, "max_new_tokens": dispatch.max_new_tokens}
        request = self.core.buffer.requests.get(dispatch.request_id)
        held_ids = live.transcript.held_ids
        tag = {
            "group": live.sample.group_id,
            "request": live.number,
            "done": len(held_ids) - len(live.sample.prompt_ids),
            "probe": request is not None and request.is_probe,
        }
        body = {
            **live.sample.body,
            "rid": f"{live.sample.rid}.{dispatch.chunk_id}",
            "input_ids": held_ids,
            "sampling_params": with_group_tag(params, tag),
        }
        self._running[dispatch.chunk_id] = dispatch
        self._send(dispatch.engine_id, RunChunk(dispatch.chunk_id, body))

    def _send(self, engine_id: EngineId, message: RunChunk | StopChunk) -> None:
        self._link.send(self.roster.members[engine_id].peer, message)
