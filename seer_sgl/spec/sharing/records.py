"""What the draft server keeps of a group: an append-only log of records; and how it is written and read.

A record is `writer << 10 | n, request, prev_token_count, tokens...` and lies within one block. `n` is 0
where the rest of a block is empty. The writer stands for the engine that sent the record: a reader names
its own, and is spared what it knows. Whatever the arguments hold, kernels stay within their arrays.
"""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.compiled import inlined, kernel
from seer_sgl.spec.sharing.blocks import (
    BLOCK_WORDS,
    NONE,
    Chains,
    IntArray,
    LongArray,
    add_block,
    block_at,
)
from seer_sgl.spec.sharing.ledger import USED, Ledger, find_or_add, list_group

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


@inlined
def is_alive(groups: Groups, slot: int, generation: int) -> bool:
    """Whether this is a group, and the one that is meant."""
    in_range = 0 <= slot < len(groups.generations)
    return bool(in_range and generation > 0 and groups.generations[slot] == generation)


@inlined
def _room_at(chains: Chains, slot: int) -> int:
    """Where the group's next record goes, in a new block if need be; NONE where memory is out."""
    offset = chains.lengths[slot] % BLOCK_WORDS
    if offset and BLOCK_WORDS - offset <= HEADER_WORDS:
        chains.words[chains.tails[slot] * BLOCK_WORDS + offset] = 0
        chains.lengths[slot] += BLOCK_WORDS - offset
        offset = 0
    block = chains.tails[slot] if offset else add_block(chains, slot)
    return block * BLOCK_WORDS + offset if block != NONE else NONE


@inlined
def _objection(groups: Groups, update: IntArray, tokens: IntArray, start: int, end: int) -> int:
    slot, what = update[SLOT], OK
    if not is_alive(groups, slot, update[GENERATION]):
        what = UNKNOWN_GROUP
    elif min(update[REQUEST], update[PREV], update[WRITER]) < 0 or (
        update[WRITER] > MAX_WRITER or update[PREV] > 0x7FFFFFFF - (end - start)
    ):
        what = BAD_REQUEST
    else:
        vocabulary = groups.vocabularies[slot]
        limit = np.uint32(vocabulary) if vocabulary > 0 else np.uint32(0x7FFFFFFF)
        for position in range(start, end):
            if np.uint32(tokens[position]) >= limit:
                what = BAD_TOKEN
    return what


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
        what, known, entry = _objection(groups, update, tokens, start, end), 0, NONE
        if what == OK:
            entry = find_or_add(ledger, update[SLOT], update[REQUEST])
            known = ledger.known[entry]
        if what != OK or update[PREV] > known:
            trouble = totals[TROUBLES]
            troubles[trouble, 0], troubles[trouble, 1] = row, what if what != OK else GAP
            troubles[trouble, 2] = known
            totals[TROUBLES] += 1
            continue
        skipped = min(known - update[PREV], end - start)
        totals[DUPLICATES] += skipped
        start += skipped
        while start < end:
            at = _room_at(chains, update[SLOT])
            if at == NONE:
                return row
            count = min(BLOCK_WORDS - at % BLOCK_WORDS - HEADER_WORDS, end - start)
            chains.words[at] = update[WRITER] << COUNT_BITS | count
            chains.words[at + 1], chains.words[at + 2] = update[REQUEST], known
            for index in range(count):
                chains.words[at + HEADER_WORDS + index] = tokens[start + index]
            chains.lengths[update[SLOT]] += HEADER_WORDS + count
            start, known = start + count, known + count
            ledger.known[entry] = known
            totals[ACCEPTED] += count
    return len(updates)


@inlined
def _known_of(known: IntArray, request: int) -> int:
    """Tokens that the reader says it has of a request."""
    tokens = 0
    for index in range(len(known)):
        if known[index, 0] == request:
            tokens = known[index, 1]
            break
    return tokens


@inlined
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
            writer, request, prev = (
                chains.words[at] >> COUNT_BITS,
                chains.words[at + 1],
                chains.words[at + 2],
            )
            skipped = 0
            if writer == fetch[WRITER]:
                skipped = count
            elif len(known):
                skipped = max(0, min(_known_of(known, request) - prev, count))
            if skipped < count:
                if used + size - skipped > len(out):
                    break
                out[used] = writer << COUNT_BITS | (count - skipped)
                out[used + 1], out[used + 2] = request, prev + skipped
                for index in range(HEADER_WORDS + skipped, size):
                    out[used - skipped + index] = chains.words[at + index]
                used += size - skipped
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


NEW_RECORDS, NEW_TOKENS, READ_GAPS, UNREADABLE, AT_ROW, AT_WORD = 0, 1, 2, 3, 4, 5
"""Places of the totals of `take_records`; the last two are where it goes on."""


LISTED = 64
"""Requests of a group that are looked for one after the other; others in the ledger's hash table."""


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
def _take_group(
    ledger: Ledger,
    owner: int,
    row: int,
    words: IntArray,
    end: int,
    limit: np.uint32,
    taken: Taken,
    totals: LongArray,
) -> bool:
    """Unpack one fetch. In one loop: to call anything for a record costs more than the record."""
    siblings, entries = np.empty(LISTED, np.int32), np.empty(LISTED, np.int32)
    listed = list_group(ledger, owner, siblings, entries)
    index, at = totals[NEW_RECORDS], totals[NEW_TOKENS]
    while totals[AT_WORD] < end:
        begin = totals[AT_WORD]
        count, request, prev = words[begin] & COUNT_MASK, words[begin + 1], words[begin + 2]
        after = begin + HEADER_WORDS + count
        if not count or after > end or request < 0 or prev < 0:
            totals[UNREADABLE] += 1
            break
        place = 0
        while place < listed and siblings[place] != request:
            place += 1
        if place == listed:
            if ledger.state[USED] == len(ledger.known):
                return False
            entry = find_or_add(ledger, owner, request)
            if listed < LISTED:
                siblings[listed], entries[listed] = request, entry
                listed += 1
        else:
            entry = entries[place]
        known, there, outside = ledger.known[entry], at, np.int64(0)
        totals[AT_WORD] = after
        totals[READ_GAPS] += prev > known
        skipped = max(0, min(known - prev, count))
        taken.overlaps[row] += skipped
        for position in range(begin + HEADER_WORDS + skipped, after):
            outside += np.uint32(words[position]) >= limit
            taken.tokens[there] = words[position]
            there += 1
        totals[UNREADABLE] += outside > 0
        if prev <= known and not outside and there > at:
            taken.rows[index], taken.starts[index] = row, at
            taken.requests[index], taken.prevs[index] = request, known
            ledger.known[entry] = prev + count
            index, at = index + 1, there
            totals[NEW_RECORDS], totals[NEW_TOKENS] = index, at
    return True


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
    limit = np.uint32(vocabulary) if vocabulary > 0 else np.uint32(0x7FFFFFFF)
    for row in range(totals[AT_ROW], len(results)):
        totals[AT_ROW] = row
        begin = totals[AT_WORD]
        end = min(begin + max(results[row, 2], 0), len(words))
        owner, is_read = owners[row], owners[row] != NONE and begin < end
        if is_read and not _take_group(ledger, owner, row, words, end, limit, taken, totals):
            results[row, 2] = end - totals[AT_WORD]
            return False
        totals[AT_WORD] = end
    totals[AT_ROW] = len(results)
    return True
