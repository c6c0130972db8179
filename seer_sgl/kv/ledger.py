"""Who needs which page of the pool, and which pages go when. Pure: events and times in, decisions out.

A page is held by every live request that begins with it, by its group as far as the group's requests
have it in common, until the last of them is over, and by requests that were aborted and may come back.
Once nobody holds it, it is removed, several times at growing distances: SGLang writes pages after it has
answered, and a page that is being read cannot be removed. Whoever comes back to it meanwhile holds it
again.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import takewhile
from typing import TypeVar

from seer_sgl.kv.keys import PageChain
from seer_sgl.kv.runs import Run, Runs, common

T = TypeVar("T")
Name = tuple[bytes, str]
"""A router, and its name for a request or a group."""
MOST_VOID = 4
"""Entries of the heap for each run, most of them void, before those are left out."""


class Outcome(Enum):
    """What came of removing one page."""

    REMOVED = "removed"
    ABSENT = "absent"
    LEASED = "leased"
    """Somebody may be reading it."""
    FAILED = "failed"
    """The store could not be asked."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How long things stay. Seconds, and pages."""

    sweeps_s: tuple[float, ...] = (0.5, 2.0, 6.0, 12.0, 30.0)
    """Times after the last holder let go at which pages are removed."""
    more_sweeps: int = 6
    """Added while pages are leased, or still come."""
    more_s: float = 10.0
    """Between these."""
    failed_s: float = 5.0
    """After a sweep that failed. It does not count."""
    linger_s: float = 10.0
    """A group's common pages stay for so long after its end."""
    kept_s: float = 900.0
    """So do those of an aborted request."""
    silent_s: float = 120.0
    """A router that says nothing for so long is gone, with all its requests."""
    live_s: float = 6 * 3600.0
    """A request that its router says nothing about for so long is over; so is a group that nothing has
    begun in for so long."""
    high: float = 0.85
    low: float = 0.75
    """A pool fuller than `high` gives up what is kept, oldest first, until it would be at `low`."""
    most_pages: int = 8_000_000
    """Known at the same time, 32 bytes each; requests beyond it are not looked after."""


@dataclass(slots=True)
class _Live:
    group: str
    chain: PageChain
    last: Run | None
    """Where it ends: held, unless it is stale; then pinned."""
    heard_s: float
    stale: bool = False
    """Of an epoch that is over: whatever it still writes goes at once."""
    unseen: bool = False
    """There was no memory for its pages."""


@dataclass(slots=True)
class _Group:
    live: int = 0
    begun: bool = False
    shared: Run | None = None
    """Where the beginning ends that its requests have in common."""


@dataclass(slots=True)
class Counts:
    """Since the beginning, in pages."""

    released: int = 0
    late: int = 0
    """Of those, the ones that were there only after an earlier removal."""
    given_up: int = 0
    """Could not be removed, and are left to the store."""
    unseen: int = 0
    """Requests that were not looked after."""


@dataclass(slots=True)
class Ledger:
    """The pages of one layout."""

    page_tokens: int
    settings: LedgerSettings = field(default_factory=LedgerSettings)
    counts: Counts = field(default_factory=Counts)
    runs: Runs = field(default_factory=Runs)
    _live: dict[Name, _Live] = field(default_factory=dict)
    """The one heard of longest ago first."""
    _groups: dict[Name, _Group] = field(default_factory=dict)
    _ending: dict[Name, float] = field(default_factory=dict)
    """Groups that are over, and since when; the oldest first."""
    _open: dict[Name, float] = field(default_factory=dict)
    """Groups that are not, by when a request of theirs has begun; the longest ago first. The router may
    hold requests of theirs that have never run, which nobody tells of here."""
    _kept: dict[tuple[bytes, Run], float] = field(default_factory=dict)
    """Where aborted requests end, and since when; the oldest first."""
    _routers: dict[bytes, float] = field(default_factory=dict)
    _due: list[tuple[float, int, Run]] = field(default_factory=list)
    _number: int = 0

    # ---- what routers say ----

    def heard(self, router: bytes, now_s: float) -> None:
        """A router lives."""
        self._routers[router] = now_s

    def opened(
        self, router: bytes, request: str, group: str, seed: bytes, ids: bytes, now_s: float
    ) -> None:
        """A request begins, or begins anew. `seed`: of its namespace; `ids`: all tokens, packed."""
        self.heard(router, now_s)
        name = (router, request)
        older = self._live.pop(name, None)
        live = _Live(group, PageChain(seed, self.page_tokens), None, now_s)
        self._live[name] = live
        mine = self._groups.setdefault((router, group), _Group())
        mine.live += 1
        self._ending.pop((router, group), None)
        self._open.pop((router, group), None)
        self._open[router, group] = now_s
        if self.runs.pages < self.settings.most_pages:
            live.last = self.runs.extend(None, live.chain.extend(ids))
            self._share(mine, live.last, now_s)
            self._take_back(router, live.last, now_s)
        else:
            live.unseen = True
            self.counts.unseen += 1
        if older is not None:
            self._end(router, older, now_s)

    def grew(self, router: bytes, request: str, done: int, ids: bytes, now_s: float) -> bool:
        """A request has more tokens. False: it is not known, or something is missing in between."""
        self.heard(router, now_s)
        live = self._live.pop((router, request), None)
        if live is None:
            return False
        self._live[router, request] = live
        live.heard_s = now_s
        if self.runs.pages >= self.settings.most_pages:
            live.unseen = True
        if live.unseen:
            return True
        if live.chain.tokens != done:
            return False
        digests = live.chain.extend(ids)
        if live.stale:
            self._grow_stale(live, digests, now_s)
        else:
            live.last = self.runs.extend(live.last, digests)
        return True

    def closed(
        self, router: bytes, request: str, done: int, ids: bytes, finished: bool, now_s: float
    ) -> bool:
        """A request is over. False as with `grew`; what is known of it goes all the same."""
        whole = self.grew(router, request, done, ids, now_s)
        live = self._live.pop((router, request), None)
        if live is None:
            return whole
        if not finished and not live.stale and live.last is not None:
            self.runs.retain(live.last)
            self._give_up_kept([name for name in [(router, live.last)] if name in self._kept], now_s)
            self._kept[router, live.last] = now_s
        self._end(router, live, now_s)
        return whole

    def group_over(self, router: bytes, group: str, now_s: float) -> None:
        """No more requests of a group will begin."""
        self.heard(router, now_s)
        self._close_group((router, group), now_s)

    def epoch_changed(self, router: bytes, now_s: float) -> None:
        """All pages of a router's requests go, and its groups are over: they have other names now."""
        self.heard(router, now_s)
        self._close_groups_of(router, now_s)
        for (owner, _), live in self._live.items():
            if owner == router and not live.stale:
                live.stale = True
                self.runs.pin(live.last)
                self._free(live.last, now_s)
        for (owner, _), group in self._groups.items():
            if owner == router:
                self._free(group.shared, now_s)
                group.shared, group.begun = None, False
        self._give_up_kept([name for name in self._kept if name[0] == router], now_s)

    def wanted(self, router: bytes, request: str, tokens: int) -> list[bytes] | None:
        """Digests of a request's pages up to so many tokens; None: it is not known.

        The last token of a request has no KV yet.
        """
        live = self._live.get((router, request))
        if live is None:
            return None
        if live.stale:
            return []
        pages = min(tokens, live.chain.tokens - 1) // self.page_tokens
        path = [*live.last.path()] if live.last is not None else []
        digests: list[bytes] = []
        for run in reversed(path):
            if len(digests) >= pages:
                break
            digests += run.split_digests()
        return digests[: max(0, pages)]

    # ---- time, and the store ----

    def tick(self, now_s: float) -> None:
        """Let go of what is over by time."""
        settings = self.settings
        for router in [r for r, s in self._routers.items() if now_s - s >= settings.silent_s]:
            self._forget_router(router, now_s)
        for name in _older(self._open.items(), now_s - settings.live_s):
            self._close_group(name, now_s)
        for name in _older(self._ending.items(), now_s - settings.linger_s):
            self._end_group(name, now_s)
        self._give_up_kept(_older(self._kept.items(), now_s - settings.kept_s), now_s)
        silent = ((name, live.heard_s) for name, live in self._live.items())
        for name in _older(silent, now_s - settings.live_s):
            self._end(name[0], self._live.pop(name), now_s)

    def pressed(self, used_bytes: int, capacity_bytes: int, now_s: float) -> None:
        """The pool is so full: above the watermark, give up what is kept, oldest first. Groups that have
        ended go before: what they hold may be a beginning of what was aborted."""
        if used_bytes <= self.settings.high * capacity_bytes:
            return
        share = 1 - self.settings.low * capacity_bytes / used_bytes
        goal = self.runs.held_pages - int(share * self.runs.held_pages)
        for group in [*self._ending]:
            if self.runs.held_pages > goal:
                self._end_group(group, now_s)
        for name in [*self._kept]:
            if self.runs.held_pages > goal:
                self._give_up_kept([name], now_s)

    @property
    def next_due_s(self) -> float | None:
        """When `due` has something, at the earliest."""
        return self._due[0][0] if self._due else None

    def due(self, now_s: float, most_pages: int) -> list[Run]:
        """Runs whose pages are to be removed now; tell `swept` of each before anything else happens."""
        runs: list[Run] = []
        while self._due and self._due[0][0] <= now_s and most_pages > 0:
            due_s, _, run = heapq.heappop(self._due)
            if run.due_s == due_s:  # not taken back, nor put off
                run.due_s = None
                runs.append(run)
                most_pages -= run.pages
        return runs

    def swept(self, run: Run, outcomes: Sequence[Outcome], now_s: float) -> None:
        """What came of removing each page of a run."""
        removed = outcomes.count(Outcome.REMOVED)
        leased = outcomes.count(Outcome.LEASED)
        self.counts.released += removed
        if run.tries:
            self.counts.late += max(0, removed - run.leased)
        if Outcome.FAILED in outcomes:
            self._schedule(run, now_s + self.settings.failed_s)
            return
        run.tries += 1
        run.leased = leased
        waits = self.settings.sweeps_s
        most = len(waits) + self.settings.more_sweeps
        if run.tries < len(waits):
            self._schedule(run, now_s + waits[run.tries] - waits[run.tries - 1])
        elif (leased or removed) and run.tries < most:
            self._schedule(run, now_s + self.settings.more_s)
        else:
            self.counts.given_up += leased
            run.due_s, run.swept = None, True
            self.runs.forget(run)

    # ---- inside ----

    def _free(self, last: Run | None, now_s: float) -> None:
        for run in self.runs.drop(last):
            run.tries = 0
            self._schedule(run, now_s + self.settings.sweeps_s[0])

    def _schedule(self, run: Run, due_s: float) -> None:
        self._number += 1
        run.due_s = due_s
        heapq.heappush(self._due, (due_s, self._number, run))
        if len(self._due) > MOST_VOID * (len(self.runs) + 1):
            waits = (run for run in self.runs if run.due_s is not None)
            self._due = [(run.due_s or 0.0, number, run) for number, run in enumerate(waits)]
            heapq.heapify(self._due)

    def _share(self, group: _Group, last: Run | None, now_s: float) -> None:
        shared = common(group.shared, last) if group.begun else last
        if shared is group.shared and group.begun:
            return
        self.runs.retain(shared)
        self._free(group.shared, now_s)
        group.shared, group.begun = shared, True

    def _take_back(self, router: bytes, last: Run | None, now_s: float) -> None:
        """A request holds what an aborted one left: if it is over, so is that."""
        for run in last.path() if last is not None else ():
            if self._kept.pop((router, run), None) is not None:
                self._free(run, now_s)

    def _give_up_kept(self, names: Iterable[tuple[bytes, Run]], now_s: float) -> None:
        for name in names:
            del self._kept[name]
            self._free(name[1], now_s)

    def _end(self, router: bytes, live: _Live, now_s: float) -> None:
        if live.stale:
            self.runs.unpin(live.last)
        else:
            self._free(live.last, now_s)
        self._groups[router, live.group].live -= 1
        self._end_if_over((router, live.group), now_s)

    def _grow_stale(self, live: _Live, digests: list[bytes], now_s: float) -> None:
        older = live.last
        self.runs.retain(older)
        live.last = self.runs.extend(older, digests)
        self.runs.pin(live.last)
        self._free(live.last, now_s)
        self.runs.unpin(older)

    def _close_group(self, name: Name, now_s: float) -> None:
        if self._open.pop(name, None) is not None:
            self._end_if_over(name, now_s)

    def _close_groups_of(self, router: bytes, now_s: float) -> None:
        for name in [name for name in self._open if name[0] == router]:
            self._close_group(name, now_s)

    def _end_if_over(self, name: Name, now_s: float) -> None:
        if not self._groups[name].live and name not in self._open:
            self._ending[name] = now_s

    def _end_group(self, name: Name, now_s: float) -> None:
        del self._ending[name]
        self._free(self._groups.pop(name).shared, now_s)

    def _forget_router(self, router: bytes, now_s: float) -> None:
        del self._routers[router]
        self._close_groups_of(router, now_s)
        for name in [name for name in self._live if name[0] == router]:
            self._end(router, self._live.pop(name), now_s)
        for name in [name for name in self._ending if name[0] == router]:
            self._end_group(name, now_s)
        self._give_up_kept([name for name in self._kept if name[0] == router], now_s)


def _older(since_s: Iterable[tuple[T, float]], until_s: float) -> list[T]:
    """Those of a list in order of time that are not younger."""
    return [name for name, _ in takewhile(lambda entry: entry[1] <= until_s, since_s)]
