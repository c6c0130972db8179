"""What the draft server keeps of a group: an append-only log of records; and how it is written and read.

A record is `writer << 10 | n, request, prev_token_count, tokens...` and lies within one block. `n` is 0
where the rest of a block is empty. The writer stands for the engine that sent the record: a reader names
its own, and is spared what it knows. Whatever the arguments hold, kernels stay within their arrays.
"""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.blocks import BLOCK_WORDS, NONE, Chains, IntArray, LongArray, add_block, block_at
from seer_sgl.spec.compiled import kernel
from seer_sgl.spec.ledger import USED, Ledger, find_or_add

COUNT_BITS = 10
COUNT_MASK = (1 << COUNT_BITS) - 1
HEADER_WORDS = 3
MAX_WRITER = (1 << 21) - 1

OK, UNKNOWN_GROUP, GAP, BAD_TOKEN, BAD_REQUEST, FULL, MORE = 0, 1, 2, 3, 4, 5, 6
"""What became of a row. MORE: the answer was full, ask again from the new cursor."""

SLOT, GENERATION, WRITER, REQUEST, PREV, COUNT = 0, 1, 2, 3, 4, 5
"""Columns of an update: where its group is, who writes, which request, its tokens before, tokens now."""
UPDATE_COLUMNS = 6
CURSOR, KNOWN_ROWS = 3, 4
"""Columns of a fetch after the first three: words read so far, rows of the table of known counts."""
FETCH_COLUMNS = 5

ACCEPTED, DUPLICATES, TROUBLES = 0, 1, 2
"""Places of the totals of `write_updates`: tokens stored, tokens known already, rows in `troubles`."""


class Groups(NamedTuple):
    """What kernels need to know of the server's groups."""

    generations: IntArray
    """By slot. Negative: no group is there."""
    vocabularies: IntArray
    """Token ids are below this; 0: not known."""


@kernel
def is_alive(groups: Groups, slot: int, generation: int) -> bool:
    """Whether this is a group, and the one that is meant."""
    in_range = 0 <= slot < len(groups.generations)
    return bool(in_range and generation > 0 and groups.generations[slot] == generation)


@kernel
def tokens_fit(tokens: IntArray, start: int, end: int, vocabulary: int) -> bool:
    """Whether all are token ids."""
    limit = vocabulary if vocabulary > 0 else 0x7FFFFFFF
    outside = 0
    for position in range(start, end):
        outside += tokens[position] < 0 or tokens[position] >= limit
    return outside == 0


@kernel
def write_record(chains: Chains, update: IntArray, prev: int, tokens: IntArray, start: int) -> int:
    """Append as much of `tokens[start:]` as one record holds; how many, 0 where memory is out."""
    slot = update[SLOT]
    offset = chains.lengths[slot] % BLOCK_WORDS
    if offset and BLOCK_WORDS - offset <= HEADER_WORDS:
        chains.words[chains.tails[slot] * BLOCK_WORDS + offset] = 0
        chains.lengths[slot] += BLOCK_WORDS - offset
        offset = 0
    block = chains.tails[slot] if offset else add_block(chains, slot)
    if block == NONE:
        return 0
    count = int(min(BLOCK_WORDS - offset - HEADER_WORDS, len(tokens) - start))
    at = block * BLOCK_WORDS + offset
    chains.words[at] = update[WRITER] << COUNT_BITS | count
    chains.words[at + 1] = update[REQUEST]
    chains.words[at + 2] = prev
    for index in range(count):
        chains.words[at + HEADER_WORDS + index] = tokens[start + index]
    chains.lengths[slot] += HEADER_WORDS + count
    return count


@kernel
def _objection(groups: Groups, update: IntArray, tokens: IntArray) -> int:
    if not is_alive(groups, update[SLOT], update[GENERATION]):
        return UNKNOWN_GROUP
    if update[REQUEST] < 0 or update[PREV] < 0 or not 0 <= update[WRITER] <= MAX_WRITER:
        return BAD_REQUEST
    if update[PREV] > 0x7FFFFFFF - len(tokens):
        return BAD_REQUEST
    if not tokens_fit(tokens, 0, len(tokens), groups.vocabularies[update[SLOT]]):
        return BAD_TOKEN
    return OK


@kernel
def write_updates(
    chains: Chains,
    ledger: Ledger,
    groups: Groups,
    updates: IntArray,
    tokens: IntArray,
    first: int,
    troubles: IntArray,
    totals: LongArray,
) -> int:
    """Store updates from row `first` on; the row at which memory was out, or how many rows there are.

    `troubles` gets (row, what, known tokens) of each update that was not taken.
    """
    end = 0
    for row in range(len(updates)):
        update = updates[row]
        start, end = end, end + update[COUNT]
        if row < first:
            continue
        new = tokens[start:end]
        what, known = _objection(groups, update, new), 0
        if what == OK:
            entry = find_or_add(ledger, update[SLOT], update[REQUEST])
            known = ledger.known[entry]
            if update[PREV] > known:
                what = GAP
        if what != OK:
            trouble = troubles[totals[TROUBLES]]
            trouble[0], trouble[1], trouble[2] = row, what, known
            totals[TROUBLES] += 1
            continue
        skipped = min(known - update[PREV], len(new))
        totals[DUPLICATES] += skipped
        while skipped < len(new):
            count = write_record(chains, update, update[PREV] + skipped, new, skipped)
            if not count:
                return row
            skipped += count
            ledger.known[entry] = update[PREV] + skipped
            totals[ACCEPTED] += count
    return len(updates)


@kernel
def _is_known(known: IntArray, request: int, end: int) -> bool:
    for index in range(len(known)):
        if known[index, 0] == request:
            return bool(known[index, 1] >= end)
    return False


@kernel
def _read_group(chains: Chains, fetch: IntArray, known: IntArray, out: IntArray, used: int) -> int:
    """Copy a group's records from the cursor on, which moves; the new end of `out`."""
    slot, position = fetch[SLOT], fetch[CURSOR]
    length = chains.lengths[slot]
    if not 0 <= position <= length:
        position = 0
    block = block_at(chains, slot, position) if position < length else NONE
    while position < length:
        offset = position % BLOCK_WORDS
        at = block * BLOCK_WORDS + offset
        count = chains.words[at] & COUNT_MASK
        size = HEADER_WORDS + count
        left = min(BLOCK_WORDS - offset, length - position)
        if count and size <= left:
            skip = chains.words[at] >> COUNT_BITS == fetch[WRITER] or (
                len(known)
                and _is_known(known, chains.words[at + 1], np.int64(chains.words[at + 2]) + count)
            )
            if not skip:
                if used + size > len(out):
                    break
                for index in range(size):
                    out[used + index] = chains.words[at + index]
                used += size
        else:
            # The block's empty end, or what a wrong cursor takes for a record.
            size = left
        position += size
        if position % BLOCK_WORDS == 0:
            block = chains.after[block]
    fetch[CURSOR] = position
    return used


@kernel
def read_fetches(
    chains: Chains, groups: Groups, fetches: IntArray, known: IntArray, out: IntArray, results: IntArray
) -> int:
    """Copy what is new for each fetch; how many words. `results` gets (what, new cursor, words)."""
    used, known_row = 0, 0
    for row in range(len(fetches)):
        fetch, result = fetches[row].copy(), results[row]
        theirs = known[known_row : known_row + fetch[KNOWN_ROWS]]
        known_row += fetch[KNOWN_ROWS]
        result[1], result[2] = fetch[CURSOR], 0
        if not is_alive(groups, fetch[SLOT], fetch[GENERATION]):
            result[0] = UNKNOWN_GROUP
            continue
        end = _read_group(chains, fetch, theirs, out, used)
        result[0] = OK if fetch[CURSOR] == chains.lengths[fetch[SLOT]] else MORE
        result[1], result[2] = fetch[CURSOR], end - used
        used = end
    return used


NEW_RECORDS, NEW_TOKENS, OVERLAPS, READ_GAPS, UNREADABLE, AT_ROW, AT_WORD = 0, 1, 2, 3, 4, 5, 6
"""Places of the totals of `take_records`; the last two are where it goes on."""


class Taken(NamedTuple):
    """What `take_records` fills."""

    rows: IntArray
    """Index of the fetch, by record."""
    requests: IntArray
    prevs: IntArray
    starts: IntArray
    tokens: IntArray
    overlaps: IntArray
    """Tokens that were known already, by fetch."""


@kernel
def take_records(
    ledger: Ledger,
    owners: IntArray,
    results: IntArray,
    words: IntArray,
    vocabulary: int,
    taken: Taken,
    totals: LongArray,
) -> bool:
    """Unpack what a fetch brought, less what is known. False where the ledger needs more room first.

    Args:
        ledger: what is known; counts what is taken.
        owners: the reader's own number of each fetched group; NONE where it is gone.
        results: as `read_fetches` gave them.
        words: as `read_fetches` gave them.
        vocabulary: token ids are below this; 0: not known.
        taken: gets the records.
        totals: all zero before the first call.
    """
    for row in range(totals[AT_ROW], len(results)):
        begin = totals[AT_WORD]
        end = min(begin + max(results[row, 2], 0), len(words))
        while begin < end:
            count = words[begin] & COUNT_MASK
            if not count or begin + HEADER_WORDS + count > end or words[begin + 1] < 0:
                totals[UNREADABLE] += 1
                break
            if owners[row] != NONE:
                if ledger.state[USED] == len(ledger.known):
                    totals[AT_ROW], totals[AT_WORD] = row, begin
                    results[row, 2] = end - begin
                    return False
                entry = find_or_add(ledger, owners[row], words[begin + 1])
                _take(
                    ledger,
                    entry,
                    row,
                    words[begin : begin + HEADER_WORDS + count],
                    vocabulary,
                    taken,
                    totals,
                )
            begin += HEADER_WORDS + count
        totals[AT_WORD] = end
    totals[AT_ROW] = len(results)
    return True


@kernel
def _take(
    ledger: Ledger,
    entry: int,
    row: int,
    record: IntArray,
    vocabulary: int,
    taken: Taken,
    totals: LongArray,
) -> None:
    prev, known, count = record[2], ledger.known[entry], len(record) - HEADER_WORDS
    if prev > known:
        totals[READ_GAPS] += 1
        return
    if prev < 0 or not tokens_fit(record, HEADER_WORDS, len(record), vocabulary):
        totals[UNREADABLE] += 1
        return
    skipped = min(known - prev, count)
    taken.overlaps[row] += skipped
    totals[OVERLAPS] += skipped
    if skipped == count:
        return
    index, at = totals[NEW_RECORDS], totals[NEW_TOKENS]
    taken.rows[index] = row
    taken.requests[index] = record[1]
    taken.prevs[index] = known
    taken.starts[index] = at
    for position in range(HEADER_WORDS + skipped, len(record)):
        taken.tokens[at] = record[position]
        at += 1
    ledger.known[entry] = prev + count
    totals[NEW_RECORDS] = index + 1
    totals[NEW_TOKENS] = at
