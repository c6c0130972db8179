"""What travels between router and engine agents: tagged msgspec structs as MessagePack, one per frame.

An agent dials, asks `AskHead` if it wants the head's settings, and registers its engine with `Register`.
Every message carries the protocol's version; a peer of another version is refused with both versions.
"""

from typing import Any, TypeVar

import msgspec

from seer_sgl.kv.pool import PoolAddress
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.types import ChunkId, EngineId, EngineSpec

PROTOCOL = 1
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


class Heartbeat(Message, frozen=True):
    """The engine is alive; the load is its own view, from SGLang's `/v1/loads`."""

    engine_id: EngineId
    running_requests: int
    waiting_requests: int
    used_tokens: int


class ChunkAnswered(Message, frozen=True):
    """SGLang's whole answer to one chunk."""

    engine_id: EngineId
    chunk_id: ChunkId
    answer: dict[str, Any]


class ChunkBroke(Message, frozen=True):
    """SGLang refused a chunk, or went away."""

    engine_id: EngineId
    chunk_id: ChunkId
    reason: str
    status: int | None = None
    """SGLang's HTTP status, None where there was no answer."""


class CallAnswered(Message, frozen=True):
    """The answer to a `Call`."""

    engine_id: EngineId
    call_id: int
    status: int
    body: Any


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


class Refused(Message, frozen=True):
    """The engine may not join."""

    reason: str


class WhoAreYou(Message, frozen=True):
    """The router does not know this engine (any more): register again."""


class RunChunk(Message, frozen=True):
    """Send this body to SGLang's `/generate`."""

    chunk_id: ChunkId
    body: dict[str, Any]


class StopChunk(Message, frozen=True):
    """Abort a chunk."""

    chunk_id: ChunkId


class Call(Message, frozen=True):
    """Send this body to another of SGLang's paths, by POST."""

    call_id: int
    path: str
    body: dict[str, Any]


AgentMessage = AskHead | Register | Heartbeat | ChunkAnswered | ChunkBroke | CallAnswered | Leave
RouterMessage = Head | Welcome | Refused | WhoAreYou | RunChunk | StopChunk | Call

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
_from_router: msgspec.msgpack.Decoder[RouterMessage] = msgspec.msgpack.Decoder(RouterMessage)


class _AnyVersion(msgspec.Struct):
    protocol: int


_any_version = msgspec.msgpack.Decoder(_AnyVersion)


class ProtocolError(ValueError):
    """A frame that is no message of ours, or of another version."""


def encode(message: Message) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_from_agent(frame: bytes) -> AgentMessage:
    """Raises ProtocolError."""
    return _decode(_from_agent, frame)


def decode_from_router(frame: bytes) -> RouterMessage:
    """Raises ProtocolError."""
    return _decode(_from_router, frame)


def _decode(decoder: "msgspec.msgpack.Decoder[M]", frame: bytes) -> M:
    try:
        version = _any_version.decode(frame).protocol
        if version == PROTOCOL:
            return decoder.decode(frame)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not a message of protocol {PROTOCOL}: {error}") from None
    raise ProtocolError(f"the peer speaks protocol {version}, this side {PROTOCOL}: update the older")
