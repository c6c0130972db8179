"""What fetches brought, unpacked: other engines' tokens, each once."""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.sharing.blocks import NONE, IntArray, LongArray
from seer_sgl.spec.sharing.ledger import with_room
from seer_sgl.spec.sharing.logs import TokenLogs
from seer_sgl.spec.sharing.records import (
    AT_ROW,
    AT_WORD,
    HEADER_WORDS,
    NEW_RECORDS,
    NEW_TOKENS,
    READ_GAPS,
    UNREADABLE,
    Taken,
    take_records,
)


class Records(NamedTuple):
    """Tokens that other engines generated. Those of record i are `tokens[starts[i]:starts[i + 1]]`."""

    group_ids: list[str]
    group_of: IntArray
    """Index into `group_ids`, by record."""
    request_ids: LongArray
    prev_counts: IntArray
    """Tokens of the request before those of the record."""
    starts: IntArray
    tokens: IntArray


class Reader:
    """Unpacks against what an engine has seen, and counts that as seen.

    Args:
        seen: its ledger grows with what is read.
    """

    def __init__(self, seen: TokenLogs) -> None:
        self._seen = seen
        self._records = self._tokens = self._overlaps = 0
        self._totals: LongArray = np.zeros(6, np.int64)

    def unpack(
        self, names: list[str], owners: IntArray, results: IntArray, words: IntArray
    ) -> tuple[Records | None, IntArray]:
        """What is new, and the groups of which something came again.

        Args:
            names: of all groups, by number.
            owners: the number of each fetched group; NONE where it is gone.
            results: (what, new cursor, words) of each fetch.
            words: records of all fetches.
        """
        most = len(words) // (HEADER_WORDS + 1) + 1
        sizes = (most, most, most, most + 1, len(words))
        rows, requests, prevs, starts, tokens = (np.empty(size, np.int32) for size in sizes)
        taken = Taken(rows, requests, prevs, starts, tokens, np.zeros(len(owners), np.int32))
        totals, seen = self._totals, self._seen
        totals[[NEW_RECORDS, NEW_TOKENS, AT_ROW, AT_WORD]] = 0
        while not take_records(seen.ledger, owners, results, words, seen.vocab_size, taken, totals):
            seen.ledger = with_room(seen.ledger, 1, 0)
        repeated = owners[(taken.overlaps > 0) & (owners != NONE)]
        self._overlaps += int(taken.overlaps.sum())
        count, used = int(totals[NEW_RECORDS]), int(totals[NEW_TOKENS])
        if not count:
            return None, repeated
        self._records += count
        self._tokens += used
        starts[count] = used
        # The rows rise, so where they change another group begins.
        changes = np.flatnonzero(np.diff(rows[:count], prepend=-1))
        fetched = rows[changes]
        group_of = np.repeat(np.arange(len(changes), dtype=np.int32), np.diff(changes, append=count))
        records = Records(
            [names[group] for group in owners[fetched].tolist()],
            group_of,
            requests[:count].astype(np.int64),
            prevs[:count],
            starts[: count + 1],
            tokens[:used],
        )
        return records, repeated

    def counters(self) -> dict[str, float]:
        """Counts since the start."""
        return {
            "received_records": self._records,
            "received_tokens": self._tokens,
            "overlap_tokens": self._overlaps,
            "read_gaps": int(self._totals[READ_GAPS]),
            "unreadable_records": int(self._totals[UNREADABLE]),
        }
