"""Whether a request's pages are in the pool yet: what to ask next, and when. Pure.

Pages are written in order, so the last one tells of all; only when it is there, or when there is no time
left, all are asked for. Asking for a page that is there keeps it there for a lease.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_S = 0.004
LONGEST_S = 0.1
GROWTH = 1.5
"""Between two questions: at first, at most, and by how much it grows."""


@dataclass(slots=True)
class Seeking:
    """One question.

    Args:
        asked_tokens: as the question says.
        digests: of the wanted pages, at least one.
        deadline_s: when it is answered at the latest.
        next_s: when to ask.
    """

    asked_tokens: int
    digests: list[bytes]
    deadline_s: float
    next_s: float
    target: int = -1
    """The page to ask for: the last one, or the first that was missing when all were asked for."""
    pause_s: float = FIRST_S

    @property
    def page(self) -> bytes:
        """What to ask for now."""
        return self.digests[self.target]

    def is_over(self, now_s: float) -> bool:
        return now_s >= self.deadline_s

    def put_off(self, now_s: float) -> None:
        """The page is not there yet."""
        self.next_s = min(now_s + self.pause_s, self.deadline_s)
        self.pause_s = min(GROWTH * self.pause_s, LONGEST_S)

    def counted(self, there: Sequence[bool], now_s: float) -> int | None:
        """All pages were asked for: how many are there from the first on; None: ask again."""
        pages = next((at for at, found in enumerate(there) if not found), len(there))
        if pages == len(self.digests) or self.is_over(now_s):
            return pages
        self.target = pages
        self.put_off(now_s)
        return None
