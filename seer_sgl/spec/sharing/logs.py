"""The tokens that one engine generates, by request, kept until their group is left.

A *log* is a small number that stands for one request that runs here. What its server has not got yet is
beyond `sent`, what may have been lost beyond `acked`. So there is no queue that could overflow: a server
that is slow or gone gets the same tokens later, and one that was started afresh gets all of them.
"""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.compiled import kernel
from seer_sgl.spec.sharing.blocks import (
    BLOCK_BYTES,
    BLOCK_WORDS,
    NONE,
    Chains,
    IntArray,
    LongArray,
    append_words,
    check_chains,
    clear_chain,
    copy_words,
    new_chains,
    with_more_chains,
)
from seer_sgl.spec.sharing.groups import BoolArray
from seer_sgl.spec.sharing.ledger import Ledger, drop_group, find_or_add, new_ledger, with_room
from seer_sgl.spec.sharing.records import (
    COUNT,
    GENERATION,
    PREV,
    REQUEST,
    SLOT,
    WRITER,
)

APPENDED, GAPS, BAD_TOKENS = 0, 1, 2
"""Places of the totals of `append_to_logs`: tokens, and requests that were muted, by reason."""

FREE, OPEN, MUTED = 0, 1, 2
"""States of a log. A muted one takes and sends nothing more: a server would refuse it."""

REMOTE_SLOT, REMOTE_GENERATION, REMOTE_WRITER, REMOTE_CURSOR = 0, 1, 2, 3
"""Columns of what a server said of a group."""


class Logs(NamedTuple):
    """What is known of each log beside its tokens."""

    states: IntArray
    groups: IntArray
    requests: IntArray
    entries: IntArray
    """In the ledger, which counts what this engine has, whoever generated it."""
    bases: IntArray
    """Tokens before the first that is kept."""
    sent: IntArray
    """Tokens that were sent, from the request's first on."""
    acked: IntArray
    """Tokens that the server has."""


def new_logs(count: int) -> Logs:
    """So many free ones."""
    return Logs(*(np.zeros(count, np.int32) for _ in Logs._fields))


class Batch(NamedTuple):
    """New tokens of some logs; those of log i are `tokens[starts[i]:starts[i + 1]]`."""

    logs: IntArray
    prevs: IntArray
    """Tokens of the request before the new ones."""
    starts: IntArray
    tokens: IntArray


@kernel
def append_to_logs(
    chains: Chains,
    ledger: Ledger,
    logs: Logs,
    batch: Batch,
    first: int,
    vocabulary: int,
    totals: LongArray,
) -> int:
    """Append from row `first` on; the row at which memory was out, or how many rows there are."""
    limit = np.uint32(vocabulary) if vocabulary > 0 else np.uint32(0x7FFFFFFF)
    for row in range(first, len(batch.logs)):
        log, start, end = batch.logs[row], batch.starts[row], batch.starts[row + 1]
        if log < 0 or log >= len(logs.states) or logs.states[log] != OPEN:
            continue
        prev, outside = batch.prevs[row], np.int64(0)
        for position in range(start, end):
            outside += np.uint32(batch.tokens[position]) >= limit
        length = logs.bases[log] + chains.lengths[log]
        if prev > length and not chains.lengths[log]:
            length = prev
            logs.bases[log] = logs.sent[log] = logs.acked[log] = prev
        if outside or prev > length:
            totals[BAD_TOKENS if outside else GAPS] += 1
            logs.states[log] = MUTED
            continue
        start += length - prev
        if start >= end:
            continue
        offset = chains.lengths[log] % BLOCK_WORDS
        count = end - start
        if offset and offset + count <= BLOCK_WORDS:
            # Nearly always: to call anything costs more than to copy a few tokens.
            at = chains.tails[log] * BLOCK_WORDS + offset - start
            for position in range(start, end):
                chains.words[at + position] = batch.tokens[position]
            chains.lengths[log] += count
        else:
            count = append_words(chains, log, batch.tokens, start, end)
        totals[APPENDED] += count
        entry = logs.entries[log]
        ledger.known[entry] = max(ledger.known[entry], length + count)
        if count < end - start:
            return row
    return len(batch.logs)


@kernel
def collect_updates(
    chains: Chains, logs: Logs, remotes: IntArray, wanted: BoolArray, updates: IntArray, tokens: IntArray
) -> tuple[int, int]:
    """Note what has not been sent, as updates; how many, and of how many tokens.

    Args:
        chains: the logs' tokens.
        logs: `sent` moves.
        remotes: where the server keeps each group.
        wanted: by group, whether the server that is asked keeps it.
        updates: gets them; the log's number is in the last column, after those of the wire.
        tokens: gets the tokens.
    """
    rows = used = 0
    for log in range(len(logs.states)):
        if logs.states[log] != OPEN or not wanted[logs.groups[log]]:
            continue
        sent, base = logs.sent[log], logs.bases[log]
        count = min(base + chains.lengths[log] - sent, len(tokens) - used)
        if count <= 0 or rows == len(updates):
            continue
        remote, update = remotes[logs.groups[log]], updates[rows]
        update[SLOT] = remote[REMOTE_SLOT]
        update[GENERATION] = remote[REMOTE_GENERATION]
        update[WRITER] = remote[REMOTE_WRITER]
        update[REQUEST] = logs.requests[log]
        update[PREV] = sent
        update[COUNT] = count
        update[COUNT + 1] = log
        copy_words(chains, log, sent - base, tokens[used : used + count])
        logs.sent[log] = sent + count
        rows += 1
        used += count
    return rows, used


@kernel
def known_counts(ledger: Ledger, groups: LongArray, counts: IntArray, out: IntArray) -> int:
    """(request, tokens) of the groups' requests, group by group; how many rows in all.

    `counts` gets the rows of each; of a group that would not fit `out`, none.
    """
    used = 0
    for index in range(len(groups)):
        began = used
        entry = ledger.firsts[groups[index]]
        while entry != NONE and used < len(out):
            out[used, 0] = ledger.requests[entry]
            out[used, 1] = ledger.known[entry]
            used += 1
            entry = ledger.after[entry]
        if entry != NONE:
            used = began
        counts[index] = used - began
    return used


class TokenLogs:
    """All logs of an engine, and the ledger of what it has seen.

    Args:
        budget_bytes: what the kept tokens may take. The oldest go first, those of ended requests before
            others; a request whose tokens are gone sends nothing more.
        vocab_size: token ids are below this; 0: not known.
    """

    def __init__(self, budget_bytes: int, vocab_size: int) -> None:
        self.ledger = new_ledger(256, 16)
        self.logs = new_logs(64)
        self.totals: LongArray = np.zeros(3, np.int64)
        self.serials: LongArray = np.zeros(64, np.int64)
        """Tells apart requests that had the same log one after the other."""
        self.dropped_tokens = 0
        """Tokens that went before a server had them."""
        self.chains = new_chains(max(1, budget_bytes // BLOCK_BYTES), 64)
        self.vocab_size = vocab_size
        self._numbers: dict[tuple[int, int], int] = {}
        self._ended = np.zeros(64, np.bool_)
        self._free = list(reversed(range(64)))
        self._serial = 0

    def open(self, group: int, request: int) -> int:
        """The request's log; a new one where there is none."""
        log = self._numbers.get((group, request))
        if log is not None:
            return log
        if not self._free:
            self._grow()
        log = self._numbers[group, request] = self._free.pop()
        self.ledger = with_room(self.ledger, 1, group + 1)
        self._serial += 1
        self.serials[log], self._ended[log] = self._serial, False
        entry = find_or_add(self.ledger, group, request)
        for array, value in zip(self.logs, (OPEN, group, request, entry, 0, 0, 0), strict=True):
            array[log] = value
        return log

    def append(self, batch: Batch) -> None:
        """Take new tokens. What is known is skipped; after a gap a request is left out."""
        row = 0
        while True:
            row = append_to_logs(
                self.chains, self.ledger, self.logs, batch, row, self.vocab_size, self.totals
            )
            if row == len(batch.logs):
                return
            if not self._evict_for(int(batch.logs[row])):
                self.logs.states[batch.logs[row]] = MUTED

    def ended(self, group: int, request: int) -> None:
        """The request generates nothing more here. Its tokens are kept while there is room."""
        log = self._numbers.get((group, request))
        if log is not None:
            self._ended[log] = True

    def rewind(self, groups: BoolArray) -> None:
        """A server knows nothing of these groups: everything kept is sent again."""
        ours = (self.logs.states != FREE) & groups[self.logs.groups]
        self.logs.sent[ours] = self.logs.acked[ours] = self.logs.bases[ours]

    def has_unacked(self, group: int) -> bool:
        """Whether the server may lack something that could still be sent."""
        ours = (self.logs.states == OPEN) & (self.logs.groups == group)
        return bool((self.logs.bases + self.chains.lengths > self.logs.acked)[ours].any())

    def drop_group(self, group: int) -> None:
        """Forget the group's requests, and what was seen of it."""
        for log in np.flatnonzero((self.logs.states != FREE) & (self.logs.groups == group)).tolist():
            self._clear(log)
            self.logs.states[log] = FREE
            del self._numbers[group, int(self.logs.requests[log])]
            self._free.append(log)
        if group < len(self.ledger.firsts):
            drop_group(self.ledger, group)

    def check(self) -> None:
        """Assert what must hold between calls."""
        check_chains(self.chains)
        for (group, request), log in self._numbers.items():
            assert (self.logs.groups[log], self.logs.requests[log]) == (group, request)
            assert self.logs.states[log] != FREE
            assert self.logs.bases[log] <= self.logs.acked[log] <= self.logs.sent[log]
        assert len(self._numbers) + len(self._free) == len(self._ended)

    def _evict_for(self, log: int) -> bool:
        """Give up the tokens of another request; False where none has any."""
        candidates = self.chains.lengths > 0
        candidates[log] = False
        if not candidates.any():
            return False
        age = np.where(candidates, self.serials - self._ended * (1 << 60), np.iinfo(np.int64).max)
        victim = int(age.argmin())
        self._clear(victim)
        self.logs.states[victim] = MUTED
        return True

    def _clear(self, log: int) -> None:
        length = int(self.logs.bases[log] + self.chains.lengths[log])
        self.dropped_tokens += length - int(self.logs.acked[log])
        clear_chain(self.chains, log)
        self.logs.sent[log] = self.logs.acked[log] = self.logs.bases[log] = length

    def _grow(self) -> None:
        size = len(self._ended)
        self.chains = with_more_chains(self.chains, 2 * size)
        self.logs = Logs(*(np.concatenate((old, np.zeros_like(old))) for old in self.logs))
        self.serials = np.concatenate((self.serials, np.zeros_like(self.serials)))
        self._ended = np.concatenate((self._ended, np.zeros_like(self._ended)))
        self._free += reversed(range(size, 2 * size))
