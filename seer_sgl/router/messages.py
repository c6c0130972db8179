"""What travels between router and engine agents: tagged msgspec structs as MessagePack, one per frame.

An agent dials, asks `AskHead` if it wants the head's settings, and registers its engine with `Register`.
Every message carries the protocol's version; a peer of another version is refused with both versions.
"""

from typing import Any, TypeVar

import msgspec

from seer_sgl.kv.pool import PoolAddress
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.types import ChunkId, EngineId, EngineSpec

PROTOCOL = 2
"""Raised by every change that an older peer would misread."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What all messages share."""

    protocol: int = PROTOCOL


# ---- agent to router ----


class AskHead(Message, frozen=True):
    """A node wants to know what the head serves."""


class Register(Message, frozen=True):
    """An engine is ready."""

    spec: EngineSpec
    url: str
    model: str
    sglang_version: str
    weight_version: str
    facts: dict[str, Any] = {}
    """What SGLang's `/server_info` says of its arguments, scalars only (`tp_size`, `pp_size`,
    `enable_memory_saver`, ...); `front`: true where our plugin serves divided chat; and `pool_layout`:
    `prefix` and `suffixes` of the names of its pages in the pool, where it has such."""
    weight_history: str = ""
    """What the server was told about its weights since it started; see `engine/history.py`. Empty where
    they are those that it started with."""


class Heartbeat(Message, frozen=True):
    """The engine is alive; the load is its own view, from SGLang's `/v1/loads`."""

    engine_id: EngineId
    running_requests: int
    waiting_requests: int
    used_tokens: int


class ChunkProgress(Message, frozen=True):
    """What a chunk that streams has produced since the last such message."""

    engine_id: EngineId
    chunk_id: ChunkId
    keep_chars: int
    """The chunk's text so far is `old_text[:keep_chars] + text`."""
    text: str
    new_ids: list[int]
    meta: dict[str, Any]
    """SGLang's `meta_info`, its lists with an entry per output token cut to the new entries."""


class ChunkAnswered(Message, frozen=True):
    """SGLang's whole answer to one chunk, also after `ChunkProgress`."""

    engine_id: EngineId
    chunk_id: ChunkId
    answer: dict[str, Any]


class ChunkReplied(Message, frozen=True):
    """`ChunkAnswered` as an agent tells it that has not looked into SGLang's answer: as JSON."""

    engine_id: EngineId
    chunk_id: ChunkId
    body: bytes


class ChunkBroke(Message, frozen=True):
    """SGLang refused a chunk, or went away."""

    engine_id: EngineId
    chunk_id: ChunkId
    reason: str
    status: int | None = None
    """SGLang's HTTP status, None where there was no answer."""


class CallAnswered(Message, frozen=True):
    """The whole answer to a `Call`."""

    engine_id: EngineId
    call_id: int
    status: int
    """SGLang's HTTP status; 0 where there was no answer, and `body` says why."""
    headers: dict[str, str]
    body: bytes


class CallBegan(Message, frozen=True):
    """The answer to a `Call` is a stream of events; it follows in parts."""

    engine_id: EngineId
    call_id: int
    status: int
    headers: dict[str, str]


class CallPart(Message, frozen=True):
    """The next bytes of a streamed answer."""

    engine_id: EngineId
    call_id: int
    data: bytes


class CallEnded(Message, frozen=True):
    """A streamed answer is over."""

    engine_id: EngineId
    call_id: int
    error: str
    """Why it is cut off; empty where it is whole."""


class Leave(Message, frozen=True):
    """The engine is going down; what it runs is lost."""

    engine_id: EngineId
    reason: str


# ---- router to agent ----


class Head(Message, frozen=True):
    """What a joining node needs to start engines like the head's own."""

    model: str
    pool: PoolAddress | None
    engine_args: list[str]
    draft: DraftSettings | None = None


class Welcome(Message, frozen=True):
    """The engine is registered."""

    heartbeat_s: float
    http_port: int = 0
    """Where the router serves HTTP, on the host that the agent dialled; 0 where it does not."""


class Refused(Message, frozen=True):
    """The engine may not join."""

    reason: str


class WhoAreYou(Message, frozen=True):
    """The router does not know this engine (any more): register again."""


class RunChunk(Message, frozen=True):
    """Send this body to SGLang's `/generate`. It arrives as `PostChunk`."""

    chunk_id: ChunkId
    body: dict[str, Any]
    """With an `rid`."""
    streams: bool = False
    """Tell what comes of it while it runs, by `ChunkProgress`."""


class PostChunk(Message, frozen=True):
    """`RunChunk` as it travels: its body is JSON, which the agent need not look into."""

    chunk_id: ChunkId
    rid: str
    body: bytes
    streams: bool


class StopChunk(Message, frozen=True):
    """Abort a chunk."""

    chunk_id: ChunkId


class Call(Message, frozen=True):
    """An HTTP request to the engine's server."""

    call_id: int
    method: str
    target: str
    """Path with query."""
    headers: dict[str, str]
    body: bytes


class StopCall(Message, frozen=True):
    """Nobody waits for this call any more: hang up."""

    call_id: int


AgentMessage = (
    AskHead
    | Register
    | Heartbeat
    | ChunkProgress
    | ChunkAnswered
    | ChunkReplied
    | ChunkBroke
    | CallAnswered
    | CallBegan
    | CallPart
    | CallEnded
    | Leave
)
RouterMessage = Head | Welcome | Refused | WhoAreYou | PostChunk | StopChunk | Call | StopCall

M = TypeVar("M", bound=Message)

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
_from_router: msgspec.msgpack.Decoder[RouterMessage] = msgspec.msgpack.Decoder(RouterMessage)


class _AnyVersion(msgspec.Struct):
    protocol: int


_any_version = msgspec.msgpack.Decoder(_AnyVersion)
_answer = msgspec.json.Decoder(dict[str, Any])


class ProtocolError(ValueError):
    """A frame that is no message of ours, or of another version."""


def encode(message: Message) -> bytes:
    """One frame."""
    if type(message) is RunChunk:
        message = _to_post(message)
    return _encoder.encode(message)


def _to_post(chunk: RunChunk) -> PostChunk:
    body = {**chunk.body, "stream": True} if chunk.streams else chunk.body
    return PostChunk(chunk.chunk_id, body["rid"], msgspec.json.encode(body), chunk.streams)


def decode_from_agent(frame: bytes) -> AgentMessage:
    """A message; never `ChunkReplied`, but what it stands for.

    Raises:
        ProtocolError: it is none, or of another version.
    """
    message = _decode(_from_agent, frame)
    return _to_answered(message) if type(message) is ChunkReplied else message


def _to_answered(reply: ChunkReplied) -> "ChunkAnswered | ChunkBroke":
    try:
        answer = _answer.decode(reply.body)
    except msgspec.MsgspecError as error:
        return ChunkBroke(reply.engine_id, reply.chunk_id, f"an answer that is none: {error}")
    return ChunkAnswered(reply.engine_id, reply.chunk_id, answer)


def decode_from_router(frame: bytes) -> RouterMessage:
    """A message.

    Raises:
        ProtocolError: it is none, or of another version.
    """
    return _decode(_from_router, frame)


def _decode(decoder: "msgspec.msgpack.Decoder[M]", frame: bytes) -> M:
    try:
        message = decoder.decode(frame)
        if message.protocol == PROTOCOL:
            return message
        version = message.protocol
    except msgspec.MsgspecError as error:
        version = _version_of(frame)
        if version == PROTOCOL:
            raise ProtocolError(f"not a message of protocol {PROTOCOL}: {error}") from None
    raise ProtocolError(f"the peer speaks protocol {version}, this side {PROTOCOL}: update the older")


def _version_of(frame: bytes) -> int:
    """What a frame that could not be decoded says of itself; ours where it says nothing."""
    try:
        return _any_version.decode(frame).protocol
    except msgspec.MsgspecError:
        return PROTOCOL
