"""One call that changes weights: what it is, and what speaks against it now. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from seer_sgl.errors import RequestError
from seer_sgl.router.control.table import Row
from seer_sgl.router.control.weights.sync import Key

ALLOW_OLDER = "allow_older_version"
"""A field for the router alone: the weights that come may be older than those that serve."""
ALL_MODELS = "all"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of weights that is to be made.

    Args:
        full: it replaces all weights.
        version: what the weights are called after it, if it says so.
        key: what tells it from other changes, see `Sync`.
        digest: tells the call itself from others.
        flushes: SGLang empties its cache by itself.
    """

    path: str
    body: bytes
    full: bool
    in_session: bool
    version: str | None
    key: Key
    digest: bytes
    flushes: bool
    allow_older: bool


def change_of(row: Row, body: bytes, fields: Mapping[str, Any]) -> Change:
    """A call to one of the update paths.

    Args:
        body: a JSON object, decoded in `fields`.

    Raises:
        RequestError: a field that is the router's concern is wrong.
    """
    allow_older = fields.get(ALLOW_OLDER, False)
    if not isinstance(allow_older, bool):
        raise RequestError(ALLOW_OLDER, f"must be true or false, not {allow_older!r}")
    version = fields.get("weight_version")
    source = str(fields.get("model_path") or "") if row.full else _bucket(fields)
    named: Key = () if version is None else ("version", str(version))
    if named and not row.full and source:
        named = (*named, source)
    return Change(
        path=row.target,
        body=without_permission(body, fields),
        full=row.full and fields.get("selector", ALL_MODELS) == ALL_MODELS,
        in_session=row.own_session,
        version=None if version is None else str(version),
        key=named or (row.target, source),
        digest=blake2b(body, digest_size=8).digest(),
        flushes=fields.get("flush_cache", True) is not False,
        allow_older=allow_older,
    )


def _bucket(fields: Mapping[str, Any]) -> str:
    """What tells one part of a series from the next, where a call says which weights it brings: engines
    at whose ports different ones arrive at once do not have the same then."""
    names = fields.get("names")
    return blake2b(str(names).encode(), digest_size=8).hexdigest() if names else ""


def without_permission(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """The body as SGLang may have it."""
    if ALLOW_OLDER not in fields:
        return body
    return msgspec.json.encode({key: value for key, value in fields.items() if key != ALLOW_OLDER})


def older_version(version: str | None, serving: Iterable[str]) -> str:
    """The version that serves and is newer than `version`; empty where none is, or where one of them is
    no whole number: then nobody knows an order."""
    number = _number(version)
    if number is None:
        return ""
    numbers = {found: value for found in serving if (value := _number(found)) is not None}
    newest = max(numbers, key=lambda found: numbers[found], default="")
    return newest if newest and numbers[newest] > number else ""


def _number(version: str | None) -> int | None:
    if version is None or not version.isascii() or len(version) > 18:
        return None
    return int(version) if version.removeprefix("-").isdecimal() else None


@dataclass(frozen=True, slots=True)
class Turn:
    """A call that changes weights and is on, or is about to be.

    Args:
        path: of the call.
        in_session: another one of its kind may wait behind it: they are parts of one series.
        waits: it changes nothing that another one would mix with; it only needs to come in order.
    """

    path: str
    engines: frozenset[str]
    in_session: bool = False
    version: str | None = None
    waits: bool = False

    def collides(self, other: "Turn") -> bool:
        """Whether the two are updates of two callers, or of one that has lost count."""
        if not self.engines & other.engines or self.waits or other.waits:
            return False
        if not (self.in_session and other.in_session and self.path == other.path):
            return True
        return None not in (self.version, other.version) and self.version != other.version


def in_the_way(turn: Turn, others: Collection[Turn]) -> str:
    """Why a call may not be made beside these; empty where it may."""
    for other in others:
        if turn.collides(other):
            here = ", ".join(sorted(turn.engines & other.engines))
            return f"{other.path} is being performed on {here}; wait for its answer, then try again"
    return ""
