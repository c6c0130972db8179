"""Samples on their way, and the calls that wait for them. Nothing here decides or sends."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from seer_sgl.errors import SeerError
from seer_sgl.router.core.actions import Deliver
from seer_sgl.router.grouping import Trail
from seer_sgl.router.requests import Sample
from seer_sgl.router.transcript import Transcript
from seer_sgl.types import RequestId


@dataclass(slots=True, eq=False)
class Live:
    """A sample from its arrival until every call that wants it is over."""

    sample: Sample
    request_id: RequestId
    """The core's name for it: two samples of one `rid` may overlap, where the first was given up."""
    number: int
    """Tells it from its siblings, for drafts."""
    transcript: Transcript
    streams: bool = False
    """Someone wants to see it grow."""
    budget_tokens: int = 0
    group_id: str = ""
    trail: Trail | None = None
    state: Literal["new", "submitted", "done"] = "new"
    calls: "list[tuple[Call, int]]" = field(default_factory=list)
    """Those that wait for it, each with its place there."""
    deliver: Deliver | None = None
    failure: SeerError | None = None
    """It can never run."""
    complete: bool = False
    """The model has ended it, or it has all its tokens."""
    aborted: str = ""
    """Why it was told to end, if it was."""
    last_status: int | None = None
    """HTTP status of the last chunk that an engine refused."""
    answer: dict[str, Any] | None = None
    began_s: float = field(default_factory=time.monotonic)

    def grew(self) -> None:
        for call, index in self.calls:
            call.note(index)

    def end(self, deliver: Deliver | None, failure: SeerError | None = None) -> None:
        """Tell every call that waits for it."""
        if self.state == "done":
            return
        self.state, self.deliver, self.failure = "done", deliver, failure
        for call, index in self.calls:
            call.note_end(index, failure)

    @property
    def text_is_missing(self) -> bool:
        """Whether `finished` needs texts."""
        return bool(self.transcript.output_ids) and not self.transcript.text_is_whole

    def finished(self, texts: list[str] | None, weight_version: str) -> dict[str, Any]:
        """The whole answer. `texts`: of the transcript's request, where text is missing."""
        answer = self.transcript.answer(time.monotonic() - self.began_s, texts)
        meta = answer["meta_info"]
        meta.setdefault("weight_version", weight_version)
        outcome = self.deliver.outcome if self.deliver is not None else "cancelled"
        if outcome == "finished" or (outcome == "cancelled" and self.complete):
            if meta["finish_reason"]["type"] == "abort":  # of a last chunk that had all its tokens
                meta["finish_reason"] = {"type": "length", "length": len(answer["output_ids"])}
            return answer
        status = None if outcome == "cancelled" else self.last_status or 503
        engines_own = self.transcript.finish_reason
        message = self.deliver.reason if self.deliver is not None else ""
        if outcome == "cancelled" and engines_own.get("type") == "abort":
            message = engines_own.get("message") or ""
        message = message or self.aborted or "cancelled"
        meta["finish_reason"] = {
            "type": "abort",
            "message": message,
            "status_code": status,
            "err_type": None,
        }
        meta.setdefault("output_token_logprobs", [])
        return answer


class Call:
    """One client's wait for some samples."""

    def __init__(self, lives: list[Live]) -> None:
        self.lives = lives
        self._open = 0
        self._failure: SeerError | None = None
        self._news: dict[int, None] = {}
        self._untold = len(lives)  # samples whose end `next` has not returned
        self._waiter: asyncio.Future[None] | None = None
        self._streams = False
        for index, live in enumerate(lives):
            live.calls.append((self, index))
            if live.state == "done":
                self._news[index] = None
                self._failure = self._failure or live.failure
            else:
                self._open += 1

    def note(self, index: int) -> None:
        """A sample has grown."""
        self._news[index] = None
        if self._streams:
            self._wake()

    def note_end(self, index: int, failure: SeerError | None) -> None:
        self._open -= 1
        self._news[index] = None
        self._failure = self._failure or failure
        if self._streams or not self._open or self._failure is not None:
            self._wake()

    async def ended(self) -> None:
        """Wait until all samples have.

        Raises:
            SeerError: one of them can never run.
        """
        while self._open and self._failure is None:
            await self._wait()
        self.check()

    async def next(self) -> int | None:
        """Wait until a sample has grown or ended; which one. None when the end of all was told.

        Raises:
            SeerError: one of them can never run.
        """
        self._streams = True
        self.check()
        while not self._news:
            if not self._untold:
                return None
            await self._wait()
            self.check()
        index = next(iter(self._news))
        del self._news[index]
        if self.lives[index].state == "done":
            self._untold -= 1
        return index

    def check(self) -> None:
        """Raise what keeps one of its samples from running, if anything does."""
        if self._failure is not None:
            raise self._failure

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Registry:
    """Live samples by the ids that clients know them by."""

    def __init__(self) -> None:
        self.by_rid: dict[str, Live] = {}
        """The newest sample of each id."""
        self._named: dict[str, dict[Live, None]] = {}

    def add(self, live: Live) -> None:
        self.by_rid[live.sample.rid] = live
        for name in live.sample.names:
            self._named.setdefault(name, {})[live] = None

    def remove(self, live: Live) -> None:
        if self.by_rid.get(live.sample.rid) is live:
            del self.by_rid[live.sample.rid]
        for name in live.sample.names:
            named = self._named.get(name)
            if named is not None:
                named.pop(live, None)
                if not named:
                    del self._named[name]

    def running(self, rid: str) -> Live | None:
        """The sample of this id, unless it was told to end."""
        live = self.by_rid.get(rid)
        return live if live is not None and not live.aborted else None

    def named(self, rid: str) -> list[Live]:
        """The sample of this id, or those that were made of the request of this id."""
        own = self.by_rid.get(rid)
        others = self._named.get(rid, ())
        return [*([own] if own is not None and own not in others else []), *others]

    def everyone(self) -> Iterable[Live]:
        return list(self.by_rid.values())
