"""What travels between a router and the pool's keeper: msgspec structs as MessagePack, one per frame.

A router's life is one ZeroMQ identity. Requests are known by the router's own names for them. What is
lost on the way costs memory in the pool for a while, never anything else.
"""

import msgspec

PROTOCOL = 2
"""Raised by every change that an older peer would misread; part of every frame's tag."""


class Message(msgspec.Struct, frozen=True, tag=lambda name: f"{name}.{PROTOCOL}", array_like=True):
    """What all messages share."""


# ---- router to keeper ----


class Layout(Message, frozen=True):
    """How engines name their pages; the same for all. Another one than before: what is known is
    forgotten, and the store is left to remove it."""

    prefix: str
    suffixes: list[str]
    page_tokens: int


class Opened(Message, frozen=True):
    """A request is about to run for the first time, or the first time after an epoch has changed; or the
    keeper did not know it. More of its group may come until `GroupOver`."""

    request: str
    group: str
    extra_key: str | None
    salt: str | None
    ids: bytes
    """All its tokens so far, packed (`keys.packed`)."""


class Grew(Message, frozen=True):
    """A chunk has ended, and the request goes on."""

    request: str
    done: int
    """Tokens that were told before."""
    ids: bytes
    """What is new."""


class Closed(Message, frozen=True):
    """A request is over."""

    request: str
    done: int
    ids: bytes
    """What is new."""
    finished: bool
    """Its own pages go now. Otherwise they are kept for a while, as a client may go on with it."""


class GroupOver(Message, frozen=True):
    """No request of a group is left at the router, not even one that has never run."""

    group: str


class LookUp(Message, frozen=True):
    """Say how much of a request is in the pool: once it is so much, or when the patience is over."""

    request: str
    tokens: int
    patience_s: float


class EpochChanged(Message, frozen=True):
    """The weights are others: all known pages of the router's requests are removed, and its groups are
    over."""


class Beat(Message, frozen=True):
    """The router lives. One that is silent for long is taken for gone, and all its pages go."""


# ---- keeper to router ----


class Found(Message, frozen=True):
    """The answer to a `LookUp`."""

    request: str
    asked_tokens: int
    """Of which one: so many it asked for."""
    tokens: int | None
    """So many of the request's beginning are in the pool, in whole pages; None: nobody could look."""


class Unknown(Message, frozen=True):
    """The keeper does not know this request, or missed something: open it again."""

    request: str


class Usage(Message, frozen=True):
    """Once a second, to every router that is heard of."""

    used_bytes: int = 0
    capacity_bytes: int = 0
    released_pages: int = 0
    """Pages that were there and were removed."""
    kept_pages: int = 0
    """Known pages that are not about to go."""
    late_pages: int = 0
    """Of those released, the ones that came only after a first removal."""
    errors: int = 0
    """Calls of the store that failed, and pages that could not be removed."""
    up: bool = False
    """The store's master answers."""


FromRouter = Layout | Opened | Grew | Closed | GroupOver | LookUp | EpochChanged | Beat
FromKeeper = Found | Unknown | Usage

_encoder = msgspec.msgpack.Encoder()
_from_router: msgspec.msgpack.Decoder[FromRouter] = msgspec.msgpack.Decoder(FromRouter)
_from_keeper: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)


class MessageError(ValueError):
    """A frame that is no message of ours, or of another version."""


def encode(message: Message) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_from_router(frame: bytes) -> FromRouter:
    """A message.

    Raises:
        MessageError: it is none, or of another version.
    """
    try:
        return _from_router.decode(frame)
    except msgspec.MsgspecError as error:
        raise MessageError(f"not a message of protocol {PROTOCOL} from a router: {error}") from None


def decode_from_keeper(frame: bytes) -> FromKeeper:
    """A message.

    Raises:
        MessageError: it is none, or of another version.
    """
    try:
        return _from_keeper.decode(frame)
    except msgspec.MsgspecError as error:
        raise MessageError(f"not a message of protocol {PROTOCOL} from a keeper: {error}") from None
