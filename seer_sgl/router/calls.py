"""HTTP calls to engines that are no chunks, carried by their agents: to one, to any, to all."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from seer_sgl.errors import SeerError
from seer_sgl.router.link import AgentLink
from seer_sgl.router.messages import (
    Call,
    CallAnswered,
    CallBegan,
    CallEnded,
    CallPart,
    StopCall,
)
from seer_sgl.router.roster import Member, Roster
from seer_sgl.types import EngineId

ATTEMPTS = 5
_POLL_S = 0.1
NO_ANSWER = "x-seer-no-answer"
"""A header of answers that are ours, as the engine or its server gave none."""
_JSON = {"content-type": "application/json"}


class CallError(SeerError):
    """No engine could answer, or an answer broke off."""


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """A server's whole answer to a call. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body.

        Raises:
            msgspec.DecodeError: it is no JSON.
        """
        return msgspec.json.decode(self.body)


class EngineStream:
    """An answer that comes in parts. Iterate over it for its bytes.

    Raises:
        CallError: while iterating: the server or its engine went away in the middle.
    """

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._parts: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._error: str | None = None

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self._news.set()

    def end(self, error: str) -> None:
        if self._error is None:
            self._error = error
        self._news.set()

    def __aiter__(self) -> "EngineStream":
        return self

    async def __anext__(self) -> bytes:
        """All bytes that have come since the last call."""
        while not self._parts:
            if self._error:
                raise CallError(self._error)
            if self._error is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._parts)
        self._parts.clear()
        return data


@dataclass(slots=True, eq=False)
class _Asked:
    """A call on its way."""

    engine_id: EngineId
    peer: bytes
    answer: "asyncio.Future[CallAnswered | EngineStream]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    ended: bool = False
    """Nothing more comes from the engine."""


class EngineCalls:
    """Sends calls to engines and waits for their answers. Whoever stops waiting stops the call."""

    def __init__(self, link: AgentLink, roster: Roster) -> None:
        self._link = link
        self._roster = roster
        self._ids = count(1)
        self._asked: dict[int, _Asked] = {}
        self._turn = count()
        self.in_flight: Counter[EngineId] = Counter()
        """Calls that each engine has now."""

    # ---- for callers ----

    async def call(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer of one engine to a POST. Waits where no engine is registered.

        Raises:
            CallError: an engine answered with an error, or none stayed long enough to answer.
        """
        answer = EngineAnswer(503, {}, b"")
        encoded = msgspec.json.encode(body)
        for _ in range(ATTEMPTS):
            answer = await self.ask_any("POST", path, encoded, _JSON)
            if answer.status == 200:
                return answer.json()
            if answer.status < 500:
                break
        raise CallError(f"{path} failed: {answer.status}: {answer.body.decode(errors='replace')}")

    async def ask(
        self,
        engine_id: EngineId,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> EngineAnswer:
        """One engine's answer; one of status 503 where it is not here, leaves, or its server ends."""
        member = self._roster.members.get(engine_id)
        if member is None:
            return no_answer(engine_id, "it is not here")
        return await self._ask(member, method, target, body, headers)

    async def ask_any(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> EngineAnswer:
        """The answer of one engine, by turns. Waits where none is registered; another one is asked
        where an engine leaves or its server ends; one of status 503 after some such attempts."""
        answer = no_answer(EngineId("any"))
        for _ in range(ATTEMPTS):
            while not len(self._roster):  # noqa: ASYNC110 - rare, and soon over
                await asyncio.sleep(_POLL_S)
            members = list(self._roster.members.values())
            member = members[next(self._turn) % len(members)]
            answer = await self._ask(member, method, target, body, headers)
            if NO_ANSWER not in answer.headers:
                break
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self,
        engine_id: EngineId,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[EngineStream]:
        """One engine's answer as it comes. One that is no stream comes as a single part; where the
        engine is not here or gives no answer, one of status 503. Leaving the block stops the call."""
        member = self._roster.members.get(engine_id)
        if member is None:
            yield _as_stream(no_answer(engine_id, "it is not here"))
            return
        call_id, asked = self._send(member, method, target, body, headers)
        try:
            answer = await asked.answer
            if isinstance(answer, CallAnswered):
                answer = _as_stream(_whole(answer))
            yield answer
        finally:
            self._done_with(call_id)

    # ---- from engines ----

    def answered(self, message: CallAnswered | CallBegan | CallPart | CallEnded) -> None:
        """Take a message about a call; one about a call that is no longer known changes nothing."""
        asked = self._asked.get(message.call_id)
        if asked is None or asked.engine_id != message.engine_id or asked.ended:
            return
        match message:
            case CallAnswered():
                asked.ended = True
                if not asked.answer.done():
                    asked.answer.set_result(message)
            case CallBegan():
                if not asked.answer.done():
                    asked.answer.set_result(EngineStream(message.status, message.headers))
            case CallPart() if (stream := _stream_of(asked)) is not None:
                stream.add(message.data)
            case CallEnded() if (stream := _stream_of(asked)) is not None:
                asked.ended = True
                stream.end(message.error)

    def engine_left(self, engine_id: EngineId) -> None:
        """Calls that the engine had are answered; those to any engine are asked again elsewhere."""
        for call_id, asked in list(self._asked.items()):
            if asked.engine_id != engine_id:
                continue
            if (stream := _stream_of(asked)) is not None:
                stream.end(f"{engine_id} left")
                asked.ended = True
            self.answered(CallAnswered(engine_id, call_id, 0, {}, b"it left"))

    # ---- inside ----

    async def _ask(
        self,
        member: Member,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str] | None,
    ) -> EngineAnswer:
        """A whole answer; with the header `NO_ANSWER` where the engine or its server went away."""
        call_id, asked = self._send(member, method, target, body, headers)
        try:
            answer = await asked.answer
            if isinstance(answer, EngineStream):
                data = b"".join([part async for part in answer])
                return EngineAnswer(answer.status, answer.headers, data)
        except CallError as error:
            return no_answer(member.engine_id, str(error))
        finally:
            self._done_with(call_id)
        return _whole(answer)

    def _send(
        self,
        member: Member,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str] | None,
    ) -> tuple[int, _Asked]:
        call_id, asked = next(self._ids), _Asked(member.engine_id, member.peer)
        self._asked[call_id] = asked
        self.in_flight[member.engine_id] += 1
        self._link.send(member.peer, Call(call_id, method, target, dict(headers or {}), body))
        return call_id, asked

    def _done_with(self, call_id: int) -> None:
        asked = self._asked.pop(call_id)
        self.in_flight[asked.engine_id] -= 1
        if not asked.ended:
            self._link.send(asked.peer, StopCall(call_id))


def _stream_of(asked: _Asked) -> EngineStream | None:
    if not asked.answer.done() or asked.answer.cancelled():
        return None
    answer = asked.answer.result()
    return answer if isinstance(answer, EngineStream) else None


def no_answer(engine_id: EngineId, reason: str = "it has left, or its server ended") -> EngineAnswer:
    """What a caller gets for an engine that gives no answer, in SGLang's shape of errors."""
    error = {"error": {"message": f"no answer from engine {engine_id}: {reason}"}}
    return EngineAnswer(503, {**_JSON, NO_ANSWER: "1"}, msgspec.json.encode(error))


def _whole(message: CallAnswered) -> EngineAnswer:
    if not message.status:
        return no_answer(message.engine_id, message.body.decode("utf-8", "replace"))
    return EngineAnswer(message.status, message.headers, message.body)


def _as_stream(answer: EngineAnswer) -> EngineStream:
    stream = EngineStream(answer.status, answer.headers)
    stream.add(answer.body)
    stream.end("")
    return stream
