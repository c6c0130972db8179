"""Which pages are held, as a tree of runs of pages: 32 bytes a page, and counts by run. Pure.

A page's digest stands for all pages before it, so equal digests have equal beginnings: one look-up by
its first digest finds a run, and a path from the first page to the last is a chain of runs. Who holds a
path holds all of its runs. A run is cut in two where paths part.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from seer_sgl.kv.keys import DIGEST_BYTES


class Run:
    """Pages that follow one another, held by the same holders."""

    __slots__ = ("children", "digests", "due_s", "holders", "leased", "parent", "swept", "tries")

    def __init__(self, parent: "Run | None", digests: bytes | bytearray) -> None:
        self.parent = parent
        self.digests = bytearray(digests)
        self.holders = 0
        self.children = 0
        """Runs that follow, held or not, and pins."""
        self.due_s: float | None = None
        """When nobody holds it: the next time to remove its pages."""
        self.tries = 0
        """How often that has been done."""
        self.leased = 0
        """Pages that could not be removed the last time, as somebody might have been reading them."""
        self.swept = False
        """It has been done often enough."""

    @property
    def pages(self) -> int:
        return len(self.digests) // DIGEST_BYTES

    def split_digests(self) -> list[bytes]:
        """One by one."""
        whole = bytes(self.digests)
        return [whole[at : at + DIGEST_BYTES] for at in range(0, len(whole), DIGEST_BYTES)]

    def path(self) -> "Iterator[Run]":
        """Itself, and all runs before it, the first one last."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.parent


class Runs:
    """All known pages."""

    def __init__(self) -> None:
        self._by_first: dict[bytes, Run] = {}
        self.pages = 0
        """Held or not."""
        self.held_pages = 0

    def __len__(self) -> int:
        return len(self._by_first)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._by_first.values())

    def extend(self, last: Run | None, digests: Sequence[bytes]) -> Run | None:
        """Go on with a path, and hold what follows.

        Args:
            last: where the path ended, held by the caller; None: it begins here.
            digests: of the pages that follow.

        Returns: where it ends now; the caller's hold of `last` is a part of its hold of that.
        """
        at = 0
        while at < len(digests):
            run = self._by_first.get(digests[at])
            if run is None:
                return self._append(last, digests[at:])
            same = _same(run, digests, at)
            if same < run.pages:
                run = self._split(run, same)
            self._take(run)
            last, at = run, at + same
        return last

    def retain(self, run: Run | None) -> None:
        """Hold a path once more that somebody holds."""
        for each in run.path() if run is not None else ():
            self._take(each)

    def drop(self, run: Run | None) -> list[Run]:
        """Let go of a path. Those of its runs that nobody holds any more, the last one first."""
        freed = []
        for each in run.path() if run is not None else ():
            each.holders -= 1
            if not each.holders:
                self.held_pages -= each.pages
                freed.append(each)
        return freed

    def pin(self, run: Run | None) -> None:
        """Remember a path that the caller may go on with, without holding its pages."""
        if run is not None:
            run.children += 1

    def unpin(self, run: Run | None) -> None:
        """Take a `pin` back."""
        if run is not None:
            run.children -= 1
            self.forget(run)

    def forget(self, run: Run) -> None:
        """Leave out a run that is swept, once nothing follows it; so, too, those before it."""
        each: Run | None = run
        while each is not None and each.swept and not each.holders and not each.children:
            del self._by_first[_first(each)]
            self.pages -= each.pages
            each = each.parent
            if each is not None:
                each.children -= 1

    def _append(self, last: Run | None, digests: Sequence[bytes]) -> Run:
        more = b"".join(digests)
        self.pages += len(digests)
        self.held_pages += len(digests)
        if last is not None and last.holders == 1 and not last.children:
            last.digests += more
            return last
        run = Run(last, more)
        run.holders = 1
        if last is not None:
            last.children += 1
        self._by_first[digests[0]] = run
        return run

    def _take(self, run: Run) -> None:
        run.holders += 1
        if run.holders == 1:
            self.held_pages += run.pages
            run.due_s, run.tries, run.leased, run.swept = None, 0, 0, False

    def _split(self, run: Run, pages: int) -> Run:
        """Cut after so many pages. The later part stays the same object, as its holders end there."""
        cut = pages * DIGEST_BYTES
        upper = Run(run.parent, run.digests[:cut])
        upper.holders, upper.children = run.holders, 1
        upper.due_s, upper.tries, upper.swept = run.due_s, run.tries, run.swept
        upper.leased = run.leased
        run.parent, run.digests = upper, run.digests[cut:]
        self._by_first[_first(upper)] = upper
        self._by_first[_first(run)] = run
        return upper


def common(one: Run | None, other: Run | None) -> Run | None:
    """The last run that two paths share."""
    if one is None or other is None:
        return None
    ours = set(one.path())
    return next((run for run in other.path() if run in ours), None)


def _first(run: Run) -> bytes:
    return bytes(run.digests[:DIGEST_BYTES])


def _same(run: Run, digests: Sequence[bytes], at: int) -> int:
    """How many of a run's pages are those from `at` on; its first one is. Paths that part never meet."""

    def differs(page: int) -> bool:
        place = page * DIGEST_BYTES
        return run.digests[place : place + DIGEST_BYTES] != digests[at + page]

    return bisect_left(range(min(run.pages, len(digests) - at)), True, lo=1, key=differs)
