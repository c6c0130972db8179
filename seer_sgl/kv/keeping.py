"""What the pool's keeper does with messages, time and the store. No socket, and no clock of its own."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from seer_sgl.errors import SeerError
from seer_sgl.kv.client import PoolUnreachable, Room
from seer_sgl.kv.keys import Objects, namespace_seed
from seer_sgl.kv.ledger import Counts, Ledger, LedgerSettings, Outcome
from seer_sgl.kv.messages import (
    Beat,
    Closed,
    EpochChanged,
    Found,
    FromRouter,
    Grew,
    GroupOver,
    Layout,
    LookUp,
    Message,
    Opened,
    Unknown,
    Usage,
)
from seer_sgl.kv.seeking import Seeking

log = logging.getLogger(__name__)

TELL_S = 1.0
"""How often routers are told, and the store is looked at."""
RECONNECT_S = 10.0
"""A store that has failed for so long is connected to anew."""
PAGES_AT_ONCE = 500
"""Removed before messages have their turn."""
_PROBE = "seer-sgl-is-anybody-there"

Replies = list[tuple[bytes, Message]]


class Store(Protocol):
    """What is needed of `StoreClient`."""

    def exists(self, keys: Sequence[str]) -> list[bool]: ...
    def release(self, keys: Sequence[str]) -> list[Outcome]: ...
    def close(self) -> None: ...


class Keeping:
    """Everything about one store.

    Args:
        connect: makes a client; may raise `PoolUnreachable`, and is tried again then.
        room: how full the store is, where that can be known.
        now_s: monotonic, as everywhere here.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        room: Callable[[], Room | None],
        settings: LedgerSettings,
        now_s: float,
    ) -> None:
        self._connect, self._ask_room, self._settings = connect, room, settings
        self._store: Store | None = None
        self._up = False
        self._well_s = self._tell_s = now_s
        self._counts, self._failures = Counts(), 0
        self._room = Room(0, 0)
        self._layout: Layout | None = None
        self._objects = Objects("", ())
        self.ledger = Ledger(1, settings)
        self._seeking: dict[tuple[bytes, str], Seeking] = {}
        self._routers: dict[bytes, float] = {}

    def close(self) -> None:
        """Leave the store."""
        if self._store is not None:
            self._store.close()

    # ---- messages ----

    def take(self, router: bytes, message: FromRouter, now_s: float) -> Replies:
        """Note what a router says; what to tell it at once."""
        self._routers[router] = now_s
        if isinstance(message, Layout):
            return self._lay_out(message, router, now_s)
        if self._layout is None:
            return [_nobody_looked(router, message)] if isinstance(message, LookUp) else []
        match message:
            case Beat():
                self.ledger.heard(router, now_s)
            case Opened(request=request, group=group, ids=ids):
                seed = namespace_seed(message.extra_key, message.salt)
                self.ledger.opened(router, request, group, seed, ids, now_s)
            case Grew(request=request, done=done, ids=ids):
                if not self.ledger.grew(router, request, done, ids, now_s):
                    return [(router, Unknown(request))]
            case Closed(request=request, done=done, ids=ids, finished=finished):
                self.ledger.closed(router, request, done, ids, finished, now_s)
            case GroupOver(group=group):
                self.ledger.group_over(router, group, now_s)
            case LookUp():
                return self._seek(router, message, now_s)
            case EpochChanged():
                self.ledger.epoch_changed(router, now_s)
        return []

    def _lay_out(self, layout: Layout, router: bytes, now_s: float) -> Replies:
        replies: Replies = []
        if layout != self._layout:
            if layout.page_tokens < 1 or not layout.suffixes:
                log.error("a layout without pages: %s", layout)
                return []
            # What was named otherwise cannot be found any more; the store will evict it.
            replies = self._give_up_seeking()
            self._layout = layout
            self._objects = Objects(layout.prefix, tuple(layout.suffixes))
            self.ledger = Ledger(layout.page_tokens, self._settings, self._counts)
        self.ledger.heard(router, now_s)
        return replies

    def _seek(self, router: bytes, asked: LookUp, now_s: float) -> Replies:
        digests = self.ledger.wanted(router, asked.request, asked.tokens)
        if digests is None:
            return [(router, Unknown(asked.request)), _nobody_looked(router, asked)]
        if not self._up:
            return [_nobody_looked(router, asked)]
        if not digests:
            return [(router, Found(asked.request, asked.tokens, 0))]
        seeking = Seeking(asked.tokens, digests, now_s + asked.patience_s, now_s)
        self._seeking[router, asked.request] = seeking
        return []

    def _give_up_seeking(self) -> Replies:
        """To all who wait: nobody can look."""
        asked = [*self._seeking.items()]
        self._seeking.clear()
        return [(peer, Found(name, seeking.asked_tokens, None)) for (peer, name), seeking in asked]

    # ---- time ----

    def wait_s(self, now_s: float) -> float:
        """How long there is nothing to do unless a message comes."""
        times = [self._tell_s, *(seeking.next_s for seeking in self._seeking.values())]
        if self._up and self.ledger.next_due_s is not None:
            times.append(self.ledger.next_due_s)
        return max(0.0, min(times) - now_s)

    def work(self, now_s: float) -> Replies:
        """Do what is due now."""
        replies: Replies = []
        if now_s >= self._tell_s:
            replies += self._look_round(now_s)
        try:
            if self._up:
                self._look_up(now_s, replies)
                self._sweep(now_s)
        except PoolUnreachable as error:
            self._fail(error)
        return replies if self._up else [*replies, *self._give_up_seeking()]

    def _look_up(self, now_s: float, replies: Replies) -> None:
        """Add what can be answered to the replies: so it is not lost where a later question fails."""
        names = [name for name, seeking in self._seeking.items() if seeking.next_s <= now_s]
        if not names:
            return
        there = self._pages_exist([self._seeking[name].page for name in names])
        for name, found in zip(names, there, strict=True):
            seeking = self._seeking[name]
            if not found and not seeking.is_over(now_s):
                seeking.put_off(now_s)
                continue
            pages = seeking.counted(self._pages_exist(seeking.digests), now_s)
            if pages is not None:
                del self._seeking[name]
                tokens = pages * self.ledger.page_tokens
                replies.append((name[0], Found(name[1], seeking.asked_tokens, tokens)))

    def _sweep(self, now_s: float) -> None:
        if self._store is None:
            return
        runs = self.ledger.due(now_s, PAGES_AT_ONCE)
        if not runs:
            return
        digests = [digest for run in runs for digest in run.split_digests()]
        outcomes = self._store.release(self._objects.keys(digests))
        parts = len(self._objects.suffixes)
        pages = (_of_page(outcomes[at : at + parts]) for at in range(0, len(outcomes), parts))
        for run in runs:
            swept = list(islice(pages, run.pages))
            self.ledger.swept(run, swept, now_s)
            self._failures += Outcome.FAILED in swept

    def _pages_exist(self, digests: Iterable[bytes]) -> list[bool]:
        if self._store is None:
            raise PoolUnreachable("there is no connection to the KV pool")
        there = self._store.exists(self._objects.keys(digests))
        parts = len(self._objects.suffixes)
        return [all(there[at : at + parts]) for at in range(0, len(there), parts)]

    # ---- the store as a whole ----

    def _look_round(self, now_s: float) -> Replies:
        """Once in a while: does it answer, how full is it; tell all routers."""
        self._tell_s = now_s + TELL_S
        self.ledger.tick(now_s)
        silent = [r for r, s in self._routers.items() if now_s - s >= self._settings.silent_s]
        for router in silent:
            del self._routers[router]
        self._probe(now_s)
        room = self._ask_room() if self._up and self._routers else None
        if room is not None:
            self._room = room
            self.ledger.pressed(room.used_bytes, room.capacity_bytes, now_s)
        usage = self.usage()
        return [(router, usage) for router in self._routers]

    def usage(self) -> Usage:
        """As routers are told."""
        counts = self._counts
        return Usage(
            used_bytes=self._room.used_bytes if self._up else 0,
            capacity_bytes=self._room.capacity_bytes if self._up else 0,
            released_pages=counts.released,
            kept_pages=self.ledger.runs.held_pages,
            late_pages=counts.late,
            errors=self._failures + counts.given_up,
            up=self._up,
        )

    def _probe(self, now_s: float) -> None:
        try:
            if self._store is not None and not self._up and now_s - self._well_s >= RECONNECT_S:
                self._store.close()
                self._store = None
            if self._store is None:
                self._well_s = now_s  # give the new one its time
                self._store = self._connect()
            self._store.exists([_PROBE])
        except PoolUnreachable as error:
            self._fail(error)
            return
        self._well_s = now_s
        if not self._up:
            log.info("the KV pool answers")
        self._up = True

    def _fail(self, error: SeerError) -> None:
        self._failures += 1
        if self._up:
            log.warning("%s. Until it answers, nothing is removed from it", error)
        self._up = False


def _nobody_looked(router: bytes, asked: LookUp) -> tuple[bytes, Message]:
    return router, Found(asked.request, asked.tokens, None)


def _of_page(outcomes: Sequence[Outcome]) -> Outcome:
    """A page has gone when all of its objects have."""
    order = (Outcome.FAILED, Outcome.LEASED, Outcome.REMOVED)
    return next((each for each in order if each in outcomes), Outcome.ABSENT)
