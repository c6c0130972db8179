"""The router's line to the pool's keeper: it tells what runs, and asks what is in the pool.

Nothing here blocks, and nothing waits for the keeper without an end: while it is away, what it would be
told is dropped, and what it would be asked is answered with 0.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from seer_sgl.errors import StartError
from seer_sgl.kv.keys import packed
from seer_sgl.kv.messages import (
    Beat,
    Closed,
    EpochChanged,
    Found,
    Grew,
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
GRACE_S = 0.5
"""What an answer may take beyond the asker's patience."""
QUEUED_DELIVERIES = 1000
"""To a keeper that is there and does not read; beyond it they are dropped."""

OnFound = Callable[[RequestId, int], None]
OnState = Callable[[bool | None], None]
_STATES = {
    True: "the KV pool works",
    False: "the KV pool is down: KV is computed again",
    None: "nothing is known of the KV pool: its keeper is silent, or no engine has named its pages",
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

    def __init__(self) -> None:
        self._on_found: OnFound | None = None

    def layout(self, prefix: str, suffixes: Sequence[str], page_tokens: int) -> None:
        """How the engines name their pages. May be told again."""

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

    def look_up(self, request: RequestId, tokens: int, patience_s: float) -> None:
        """Ask how much of a request is in the pool. `on_found` is called once for each time."""
        asyncio.get_running_loop().call_soon(self._found, request, 0)

    def epoch_changed(self) -> None:
        """All known pages go. Requests that go on have to be opened again."""

    async def run(
        self, on_found: OnFound, on_state: OnState | None = None, reopen: Reopen | None = None
    ) -> None:
        """Answer questions until cancelled.

        Args:
            on_found: with each question's request and the tokens that are there; it may have ended.
            on_state: called when the pool comes up (True), goes down, or nothing is known of it (None),
                as it is at first.
            reopen: what a request is whose story the keeper has lost; None where it is over.
        """
        del on_state, reopen
        self._on_found = on_found
        await asyncio.Event().wait()

    def close(self) -> None:
        """Let go of what is open."""

    def _found(self, request: RequestId, tokens: int) -> None:
        if self._on_found is not None:
            self._on_found(request, tokens)


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
        self._layout: Layout | None = None
        self._told: dict[RequestId, int] = {}
        """Tokens told of each live request."""
        self._asked: dict[RequestId, asyncio.TimerHandle] = {}
        self._on_state: OnState | None = None
        self._state: bool | None = None
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

    def layout(self, prefix: str, suffixes: Sequence[str], page_tokens: int) -> None:
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
        self._told[request] = len(ids)
        self._send(Opened(request, group, extra_key, salt, packed(ids)))

    def grew(self, request: RequestId, ids: Sequence[int]) -> None:
        done = self._told.get(request)
        if done is not None and ids:
            self._told[request] = done + len(ids)
            self._send(Grew(request, done, packed(ids)))

    def closed(self, request: RequestId, ids: Sequence[int], finished: bool) -> None:
        done = self._told.pop(request, None)
        if done is not None:
            self._send(Closed(request, done, packed(ids), finished))

    def look_up(self, request: RequestId, tokens: int, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        if (older := self._asked.pop(request, None)) is not None:
            older.cancel()
            loop.call_soon(self._found, request, 0)
        wait_s = patience_s + GRACE_S if self.usage.up else 0.0
        self._asked[request] = loop.call_later(wait_s, self._give_up, request)
        if self.usage.up:
            self._send(LookUp(request, tokens, patience_s))

    def epoch_changed(self) -> None:
        self._send(EpochChanged())

    async def run(
        self, on_found: OnFound, on_state: OnState | None = None, reopen: Reopen | None = None
    ) -> None:
        self._on_found, self._on_state, self._reopen = on_found, on_state, reopen
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
                case Found(request=request, tokens=tokens):
                    self._answered(RequestId(request), tokens)
                case Unknown(request=request):
                    self._open_again(RequestId(request))

    def _answered(self, request: RequestId, tokens: int) -> None:
        asked = self._asked.pop(request, None)
        if asked is not None:
            asked.cancel()
            self._found(request, tokens)

    def _give_up(self, request: RequestId) -> None:
        if self._asked.pop(request, None) is not None:
            self._found(request, 0)

    def _open_again(self, request: RequestId) -> None:
        told = self._reopen(request) if self._reopen is not None and request in self._told else None
        if told is not None:
            self.opened(request, told.group, told.extra_key, told.salt, told.ids)

    def _note(self, usage: Usage) -> None:
        self.usage = usage
        self._tell_state()

    def _tell_state(self) -> None:
        state = self.usage.up if self._heard_s and self._layout is not None else None
        if state is not self._state:
            self._state = state
            log.info(_STATES[state])
            if self._on_state is not None:
                self._on_state(state)

    async def _beat(self) -> None:
        while True:
            self._send(self._layout or Beat())
            if self._heard_s and time.monotonic() - self._heard_s > FRESH_S:
                self._heard_s = 0.0
                self._note(Usage())
            await asyncio.sleep(BEAT_S)

    def _send(self, message: Message) -> None:
        self._pump.send(None, encode(message))
