"""The router's line to the pool's keeper: it tells what runs, and asks what is in the pool.

Nothing here blocks, and nothing waits for the keeper: while it is away, what it would be told is
dropped, and what it would be asked is not answered. Who asks knows when to go on.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import zmq

from seer_sgl.errors import StartError
from seer_sgl.kv.keys import packed
from seer_sgl.kv.messages import (
    Beat,
    Closed,
    EpochChanged,
    Found,
    Grew,
    GroupOver,
    Layout,
    LookUp,
    Message,
    MessageError,
    Opened,
    Unknown,
    Usage,
    decode_from_keeper,
    encode,
)
from seer_sgl.router.link import Pump
from seer_sgl.types import RequestId

log = logging.getLogger(__name__)

BEAT_S = 1.0
FRESH_S = 3.5
"""A keeper that has said nothing for so long is away."""
QUEUED_DELIVERIES = 1000
"""To a keeper that is there and does not read; beyond it they are dropped."""

OnFound = Callable[[RequestId, int | None], None]
OnState = Callable[[bool | None], None]
_STATES = {
    True: "the KV pool works",
    False: "the KV pool is down: KV is computed again",
    None: "nothing is known of the KV pool: nobody keeps it, or its keeper is silent",
}


@dataclass(frozen=True, slots=True)
class Reopened:
    """A live request as a keeper has to be told that does not know it."""

    group: str
    extra_key: str | None
    salt: str | None
    ids: Sequence[int]


Reopen = Callable[[RequestId], Reopened | None]


class NoPool:
    """There is no pool, or none that is kept."""

    usage = Usage()
    """What the keeper said last; `up` is False while it is away."""
    dropped = 0
    """Messages that did not leave."""
    releases = False
    """Whether somebody frees what finished requests have written."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._on_state: OnState | None = None
        self._state: bool | None = None

    def layout(self, prefix: str, suffixes: Sequence[str], page_tokens: int) -> None:
        """How the engines name their pages in the pool that they share. May be told again."""
        told = Layout(prefix, list(suffixes), page_tokens)
        if told != self._layout:
            self._layout = told
            self._send(told)
            self._tell_state()

    def opened(
        self,
        request: RequestId,
        group: str,
        extra_key: str | None,
        salt: str | None,
        ids: Sequence[int],
    ) -> None:
        """A request is about to run, for the first time in this epoch. `ids`: all tokens so far."""

    def grew(self, request: RequestId, ids: Sequence[int]) -> None:
        """A chunk has ended, and the request goes on. `ids`: what is new."""

    def closed(self, request: RequestId, ids: Sequence[int], finished: bool) -> None:
        """A request is over. `finished`: nobody will go on with it, its own pages may go."""

    def group_over(self, group: str) -> None:
        """All requests of a group are over, those too that were never opened."""

    def look_up(self, request: RequestId, tokens: int, patience_s: float) -> None:
        """Ask how much of a request is in the pool. `on_found` is called at most once for each time, and
        not for a question after which another one was asked."""

    def epoch_changed(self) -> None:
        """All known pages go. Requests that go on have to be opened again."""

    async def run(
        self, on_found: OnFound, on_state: OnState | None = None, reopen: Reopen | None = None
    ) -> None:
        """Answer questions until cancelled.

        Args:
            on_found: with a question's request, which may have ended, and the tokens that are there;
                None where nobody could look.
            on_state: called when the pool comes up (True), is not there (False), or nothing is known of
                it (None), as it is at first.
            reopen: what a request is whose story the keeper has lost; None where it is over.
        """
        del on_found, reopen
        self._on_state = on_state
        self._tell_state()
        await asyncio.Event().wait()

    def close(self) -> None:
        """Let go of what is open."""

    def _send(self, message: Message) -> None:
        """There is nobody to tell it."""

    def _state_now(self) -> bool | None:
        """A pool that no engine has named pages of is none."""
        return False if self._layout is None else None

    def _tell_state(self) -> None:
        state = self._state_now()
        if self._on_state is not None and state is not self._state:
            self._state = state
            if self._layout is not None:  # else there is nothing to tell of yet
                log.info(_STATES[state])
            self._on_state(state)


class _LossyPump(Pump):
    """Counts what does not leave; there is nobody to repeat it."""

    dropped = 0

    def lost(self, frames: list[bytes], error: zmq.ZMQError) -> None:
        self.dropped += len(frames)


class PoolKeeper(NoPool):
    """A keeper at a ZeroMQ address.

    Raises:
        StartError: it is no address.
    """

    releases = True

    def __init__(self, address: str) -> None:
        super().__init__()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, QUEUED_DELIVERIES)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a keeper that is not there
        self._socket.setsockopt(zmq.IDENTITY, b"router-" + secrets.token_hex(8).encode())
        self._socket.setsockopt(zmq.IPV6, 1)
        self._pump = _LossyPump(self._socket)
        self._told: dict[RequestId, int] = {}
        """Tokens told of each live request."""
        self._asked: dict[RequestId, int] = {}
        """Tokens that live requests have asked for, and no answer has come."""
        self._on_found: OnFound | None = None
        self._reopen: Reopen | None = None
        self._heard_s = 0.0
        """When the keeper spoke last; 0 while it is silent."""
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise StartError(
                f"no ZeroMQ address of the pool's keeper: {address}: {error}. It has the form tcp://HOST:PORT."
            ) from None

    @property
    def dropped(self) -> int:  # type: ignore[override]
        """Messages that did not leave."""
        return self._pump.dropped

    def opened(
        self,
        request: RequestId,
        group: str,
        extra_key: str | None,
        salt: str | None,
        ids: Sequence[int],
    ) -> None:
        self._told[request] = len(ids)
        self._send(Opened(request, group, extra_key, salt, packed(ids)))

    def grew(self, request: RequestId, ids: Sequence[int]) -> None:
        done = self._told.get(request)
        if done is not None and ids:
            self._told[request] = done + len(ids)
            self._send(Grew(request, done, packed(ids)))

    def closed(self, request: RequestId, ids: Sequence[int], finished: bool) -> None:
        self._asked.pop(request, None)
        done = self._told.pop(request, None)
        if done is not None:
            self._send(Closed(request, done, packed(ids), finished))

    def group_over(self, group: str) -> None:
        self._send(GroupOver(group))

    def look_up(self, request: RequestId, tokens: int, patience_s: float) -> None:
        self._asked.pop(request, None)
        if request not in self._told:
            asyncio.get_running_loop().call_soon(self._found, request, None)
        elif self.usage.up:
            self._asked[request] = tokens
            self._send(LookUp(request, tokens, patience_s))

    def epoch_changed(self) -> None:
        self._send(EpochChanged())

    async def run(
        self, on_found: OnFound, on_state: OnState | None = None, reopen: Reopen | None = None
    ) -> None:
        self._on_found, self._on_state, self._reopen = on_found, on_state, reopen
        self._tell_state()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump.run(self._take))
            group.create_task(self._beat())

    def close(self) -> None:
        self._context.destroy(linger=0)

    # ---- what the keeper says ----

    def _take(self, frames: list[bytes]) -> None:
        for frame in frames:
            try:
                message = decode_from_keeper(frame)
            except MessageError as error:
                log.warning("%s. Do router and keeper come from the same version?", error)
                continue
            self._heard_s = time.monotonic()
            match message:
                case Usage():
                    self._note(message)
                case Found():
                    self._answered(RequestId(message.request), message)
                case Unknown(request=request):
                    self._open_again(RequestId(request))

    def _answered(self, request: RequestId, found: Found) -> None:
        if self._asked.get(request) == found.asked_tokens:
            del self._asked[request]
            self._found(request, found.tokens)

    def _found(self, request: RequestId, tokens: int | None) -> None:
        if self._on_found is not None:
            self._on_found(request, tokens)

    def _open_again(self, request: RequestId) -> None:
        told = self._reopen(request) if self._reopen is not None and request in self._told else None
        if told is not None:
            self.opened(request, told.group, told.extra_key, told.salt, told.ids)

    def _note(self, usage: Usage) -> None:
        self.usage = usage
        self._tell_state()

    def _state_now(self) -> bool | None:
        known = self._heard_s or self._layout is None
        return self.usage.up and self._layout is not None if known else None

    async def _beat(self) -> None:
        while True:
            self._send(self._layout or Beat())
            if self._heard_s and time.monotonic() - self._heard_s > FRESH_S:
                self._heard_s = 0.0
                silent = {"used_bytes": 0, "capacity_bytes": 0, "kept_pages": 0, "up": False}
                self._note(msgspec.structs.replace(self.usage, **silent))  # the counts go on
            await asyncio.sleep(BEAT_S)

    def _send(self, message: Message) -> None:
        self._pump.send(None, encode(message))
