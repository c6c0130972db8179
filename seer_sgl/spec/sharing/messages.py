"""What travels between engines and draft servers: a MessagePack head, then int32 arrays, one per frame.

An engine sends one `Call` per server and waits for its `Answer` before the next, so what is under way is
bounded by the number of engines. It holds the paper's three calls: `register_group` for new groups,
`update_cst` with new tokens, `fetch_cst` with cursors to read from. Heads are in `heads`.
"""

from typing import NamedTuple

import numpy as np

from seer_sgl.spec.sharing.blocks import IntArray
from seer_sgl.spec.sharing.heads import AnswerHead, CallHead, Frames, MessageError, encode
from seer_sgl.spec.sharing.records import COUNT, FETCH_COLUMNS, KNOWN_ROWS, UPDATE_COLUMNS

MAX_ROWS = 1 << 16
"""Updates, groups to register or groups to read, in one call."""
MAX_NAME_BYTES = 1024
MAX_FRAME_BYTES = 64 << 20


class Call(NamedTuple):
    """An engine's call with its arrays."""

    head: CallHead
    updates: IntArray
    """Rows of `records.UPDATE_COLUMNS`."""
    tokens: IntArray
    """Of all updates, one after the other."""
    fetches: IntArray
    """Rows of `records.FETCH_COLUMNS`."""
    known: IntArray
    """(request, tokens): what the reader has of a group; as many rows as each fetch says."""


class Answer(NamedTuple):
    """A server's answer with its arrays."""

    head: AnswerHead
    registered: IntArray
    """(slot, generation, writer) of each name; slot -1 where it was refused."""
    troubles: IntArray
    """(row, what, known tokens) of each update that was not taken."""
    results: IntArray
    """(what, new cursor, words) of each fetch."""
    words: IntArray
    """Records of all fetches."""


def frames_of(message: Call | Answer) -> list[bytes | memoryview]:
    """What to send. Arrays are not copied."""
    head, *arrays = message
    return [
        encode(head),
        *(np.ascontiguousarray(array).data.cast("B") if array.size else b"" for array in arrays),
    ]


def call_of(head: CallHead, frames: Frames) -> Call:
    """The call that a head and its frames make.

    Raises:
        MessageError: what does not agree.
    """
    _check_count(frames, 5)
    if len(head.names) > MAX_ROWS or any(len(name) > MAX_NAME_BYTES for name in head.names):
        raise MessageError(f"at most {MAX_ROWS} names of at most {MAX_NAME_BYTES} characters")
    if not 0 < head.ttl_s < float("inf") or not 0 <= head.vocab_size < 2**31:
        raise MessageError(f"ttl_s {head.ttl_s} or vocab_size {head.vocab_size} is out of range")
    updates = _table(frames[1], UPDATE_COLUMNS, "updates")
    tokens = _table(frames[2], 1, "tokens").ravel()
    fetches = _table(frames[3], FETCH_COLUMNS, "fetches")
    known = _table(frames[4], 2, "known counts")
    for name, counts, total in (
        ("updates", updates[:, COUNT], len(tokens)),
        ("fetches", fetches[:, KNOWN_ROWS], len(known)),
    ):
        if len(counts) > MAX_ROWS:
            raise MessageError(f"{len(counts)} {name}; at most {MAX_ROWS}")
        if (len(counts) and int(counts.min()) < 0) or int(counts.sum(dtype=np.int64)) != total:
            raise MessageError(f"the {name} do not count the {total} rows that follow")
    return Call(head, updates, tokens, fetches, known)


def answer_of(head: AnswerHead, frames: Frames) -> Answer:
    """The answer that a head and its frames make.

    Raises:
        MessageError: what does not agree.
    """
    _check_count(frames, 5)
    registered = _table(frames[1], 3, "registered groups")
    troubles = _table(frames[2], 3, "troubles")
    # Read with a cursor of its own, so it has to be writable.
    results = _table(frames[3], 3, "results").copy()
    words = _table(frames[4], 1, "words").ravel()
    return Answer(head, registered, troubles, results, words)


def _check_count(frames: Frames, count: int) -> None:
    if len(frames) != count:
        raise MessageError(f"{len(frames)} frames; {count} expected")


def _table(frame: bytes | memoryview, columns: int, what: str) -> IntArray:
    view = memoryview(frame)
    if view.nbytes % (4 * columns):
        raise MessageError(f"{what}: {view.nbytes} bytes are no rows of {columns} int32")
    return np.frombuffer(view, np.int32).reshape(-1, columns)
