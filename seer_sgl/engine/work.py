"""What an agent does for its router: runs a chunk, performs a call. Each ends in one message."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from seer_sgl.engine.flushing import FLUSH, unflushed, with_note
from seer_sgl.engine.guards import Watched, asks_for_load, objection, profile_folder
from seer_sgl.engine.history import WeightHistory
from seer_sgl.engine.incoming import Incoming
from seer_sgl.engine.increments import EventError, Events, Increments
from seer_sgl.engine.sglang import Answer, EngineInfo, SGLangClient, decoded, error_message
from seer_sgl.errors import EngineUnreachable
from seer_sgl.router.messages import (
    AgentMessage,
    Call,
    CallAnswered,
    CallBegan,
    CallEnded,
    CallPart,
    ChunkAnswered,
    ChunkBroke,
    ChunkProgress,
    ChunkReplied,
    PostChunk,
)

BROKEN_PAUSE_S = 2.0
"""How long the news of broken work is held back. A server that goes down breaks it within milliseconds:
told at once, the router would send it here again and again, and give it up before it hears that the
engine left."""
_ROUTER = "x-seer-router"
_JSON = {"content-type": "application/json"}


class Work:
    """One engine's side of the wire.

    Args:
        send: takes what is to be told to the router.
    """

    def __init__(
        self, client: SGLangClient, info: EngineInfo, send: Callable[[AgentMessage], None]
    ) -> None:
        self._client = client
        self._engine_id = info.spec.engine_id
        self._watched = Watched(info.facts, info.launched)
        self._is_ours = info.launched
        self._incoming = Incoming(info.facts)
        self._send = send
        self.history = WeightHistory()
        self.router_url = ""
        """Where the router serves HTTP; told to SGLang with every call."""

    async def run_chunk(self, message: PostChunk) -> None:
        """To its end, whichever that is."""
        told: ChunkAnswered | ChunkReplied | ChunkBroke
        try:
            told = await (self._streamed(message) if message.streams else self._whole(message))
        except EngineUnreachable as error:
            told = self._broke(message, f"no answer from SGLang: {error}", None)
        if isinstance(told, ChunkBroke) and (told.status is None or told.status >= 500):
            await asyncio.sleep(BROKEN_PAUSE_S)
        self._send(told)

    async def _whole(self, message: PostChunk) -> ChunkReplied | ChunkBroke:
        async with self._client.open("POST", "/generate", message.body, _JSON) as answer:
            content = await answer.read()
        if answer.status == 200:
            return ChunkReplied(self._engine_id, message.chunk_id, content)
        return self._broke(message, error_message(decoded(content)), answer.status)

    async def _streamed(self, message: PostChunk) -> ChunkAnswered | ChunkBroke:
        events = Events()
        increments = Increments(bool(self._watched.facts.get("incremental_streaming_output")))
        async with self._client.open("POST", "/generate", message.body, _JSON) as answer:
            if answer.status != 200:
                return self._broke(message, error_message(decoded(await answer.read())), answer.status)
            try:
                async for data in answer.parts():
                    if payloads := events.feed(data):
                        delta = increments.take(payloads)
                        self._send(ChunkProgress(self._engine_id, message.chunk_id, *delta))
            except EventError as error:
                return self._broke(message, str(error), error.status)
        finish = increments.finish_reason
        if finish is None:
            return self._broke(message, "SGLang ended the stream before the chunk's end", None)
        # A whole answer of this kind is an HTTP error.
        status = finish.get("status_code")
        if finish.get("type") == "abort" and isinstance(status, int) and status >= 400:
            return self._broke(message, str(finish.get("message")), status)
        return ChunkAnswered(self._engine_id, message.chunk_id, increments.answer())

    def _broke(self, message: PostChunk, reason: str, status: int | None) -> ChunkBroke:
        return ChunkBroke(self._engine_id, message.chunk_id, reason, status)

    async def abort(self, rid: str) -> None:
        """Tell SGLang to end a request; what it was comes as its answer."""
        with contextlib.suppress(EngineUnreachable):
            await self._client.post("/abort_request", {"rid": rid})

    async def perform(self, call: Call) -> None:
        """Make a call and tell its answer, in parts where it is a stream of events."""
        with contextlib.suppress(EngineUnreachable):  # then the call itself tells
            if asks_for_load(call.target):
                self._watched.note_load(await self._client.load())
        if self._is_ours and (folder := profile_folder(call.target, call.body)):
            self._watched.facts["no_folder"] = _why_no_folder(folder)
        reason = objection(call.method, call.target, call.body, self._watched.facts)
        if not reason and self._is_ours and Incoming.concerns(call.target):
            reason = await asyncio.to_thread(self._incoming.objection, call.target, call.body)
        if reason:
            self.history.refused(call.call_id)
            self._send(self._refusal(call, reason))
            return
        # What a client says of the router is not believed: our plugin sends prompts there.
        headers = {name: value for name, value in call.headers.items() if name.lower() != _ROUTER}
        if self.router_url:
            headers[_ROUTER] = self.router_url
        body = unflushed(call.target, call.body)
        sent = call.body if body is None else body
        try:
            async with self._client.open(call.method, call.target, sent, headers) as answer:
                if answer.headers.get("content-type", "").startswith("text/event-stream"):
                    await self._pass_on(call, answer)
                    return
                content = await answer.read()
            if answer.status == 200 and body is not None:
                content = await self._flushed(content)
        except EngineUnreachable as error:
            await asyncio.sleep(BROKEN_PAUSE_S)
            reason = f"no answer from SGLang: {error}"
            self._send(CallAnswered(self._engine_id, call.call_id, 0, {}, reason.encode()))
            return
        if answer.status == 200:
            self._watched.note_done(call.target, call.body)
        self._send(CallAnswered(self._engine_id, call.call_id, answer.status, answer.headers, content))

    async def _flushed(self, content: bytes) -> bytes:
        """Flush after an update; its answer, with a word on it where that cannot be. What runs on would
        keep SGLang waiting, and nobody asks for KV of older weights again."""
        try:
            running, _, _ = await self._client.load()
            if running:
                return with_note(content, f"{running} requests run")
            async with self._client.open("POST", FLUSH, b"{}", _JSON) as answer:
                said = decoded(await answer.read())
        except EngineUnreachable as error:
            return with_note(content, f"no answer: {error}")
        return content if answer.status == 200 else with_note(content, error_message(said).strip())

    def _refusal(self, call: Call, reason: str) -> CallAnswered:
        body = msgspec.json.encode({"error": {"message": reason}})
        return CallAnswered(self._engine_id, call.call_id, 400, dict(_JSON), body)

    async def _pass_on(self, call: Call, answer: Answer) -> None:
        self._send(CallBegan(self._engine_id, call.call_id, answer.status, answer.headers))
        error = ""
        try:
            async for data in answer.parts():
                self._send(CallPart(self._engine_id, call.call_id, data))
        except EngineUnreachable as broken:
            error = f"SGLang broke off: {broken}"
        self._send(CallEnded(self._engine_id, call.call_id, error))


def _why_no_folder(folder: str) -> str:
    """Make a folder; why it cannot be made, or nothing."""
    try:
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        return str(error)
    return ""
