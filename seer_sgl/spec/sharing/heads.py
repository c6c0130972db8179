"""The first frames of what travels between engines, draft servers and routers: MessagePack, versioned.

A router needs no more than these; the arrays that may follow are in `messages`.
"""

from collections.abc import Sequence

import msgspec

PROTOCOL = 1
"""Raised by every change that an older peer would misread."""

Frames = Sequence[bytes | memoryview]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What all heads share."""

    protocol: int = PROTOCOL


class CallHead(Message, frozen=True):
    """From an engine."""

    instance: str
    """The server that the groups' slots are from; of another one it takes no update."""
    ttl_s: float
    """How long a group lives without being read."""
    vocab_size: int
    names: list[str]
    """Groups to register."""


class AskStatistics(Message, frozen=True):
    """From a router: counts, please."""


class AnswerHead(Message, frozen=True):
    """To an engine. `instance` differs after every start of a server."""

    instance: str


class Statistics(Message, frozen=True):
    """To a router."""

    counters: dict[str, float]


class Rejected(Message, frozen=True):
    """A call that was not understood."""

    reason: str


class MessageError(ValueError):
    """Frames that are no message of ours, or of another version."""


AnyHead = CallHead | AskStatistics | AnswerHead | Statistics | Rejected

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyHead] = msgspec.msgpack.Decoder(AnyHead)


class _AnyVersion(msgspec.Struct):
    protocol: int


_any_version = msgspec.msgpack.Decoder(_AnyVersion)


def encode(head: Message) -> bytes:
    """One frame."""
    return _encoder.encode(head)


def head_of(frames: Frames) -> AnyHead:
    """The head.

    Raises:
        MessageError: it is none, or of another version.
    """
    if not frames:
        raise MessageError("a message without frames")
    try:
        version = _any_version.decode(frames[0]).protocol
        if version == PROTOCOL:
            return _decoder.decode(frames[0])
    except msgspec.MsgspecError as error:
        raise MessageError(f"not a head of protocol {PROTOCOL}: {error}") from None
    raise MessageError(f"the peer speaks protocol {version}, this side {PROTOCOL}: update the older")
