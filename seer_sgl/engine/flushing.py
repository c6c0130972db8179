"""An update of weights and the flush that SGLang makes with it, taken apart. Pure.

SGLang 0.5.23 flushes right after it has loaded, and where pages are still being written to the pool, as
they are for a moment after every answer, it fails the update: with the new weights in place. A flush by
itself waits until they are written.
"""

from typing import Any

import msgspec

UPDATES = (
    "/update_weights_from_disk",
    "/update_weights_from_distributed",
    "/update_weights_from_tensor",
    "/update_weights_from_ipc",
)
FLUSH = "/flush_cache?timeout=2"
"""Seconds that SGLang waits at most until it is idle. While it is paused it may never be: what it has
written to the pool is not noted then. Flushing only makes room: no trainer has to wait for that."""
KEPT = "The cache was not flushed"
_FIELD = "flush_cache"


def unflushed(target: str, body: bytes) -> bytes | None:
    """The body of an update without its flush; None where it has none, or where it is no update."""
    if target.partition("?")[0] not in UPDATES:
        return None
    start = body.lstrip()
    if b'"' + _FIELD.encode() + b'"' not in body:
        fields = start[1:].lstrip()
        if not start.startswith(b"{") or fields.startswith(b"}"):
            return None  # SGLang has something to say of that
        return b'{"' + _FIELD.encode() + b'":false,' + fields
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    if not isinstance(found, dict) or found.get(_FIELD, True) is not True:
        return None
    return msgspec.json.encode({**found, _FIELD: False})


def with_note(content: bytes, why: str) -> bytes:
    """SGLang's answer to the update, with a word on why the cache is as it was."""
    try:
        answer: Any = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content
    if not isinstance(answer, dict) or not isinstance(answer.get("message"), str):
        return content
    return msgspec.json.encode({**answer, "message": f"{answer['message']} {KEPT}: {why}."})
