"""Bodies of control calls: JSON objects, with the fields that the router itself needs. Pure."""

from typing import Any, TypeVar

import msgspec

from seer_sgl.errors import RequestError

T = TypeVar("T")


def as_object(body: bytes) -> bytes:
    """A body that is a JSON object; `{}` where there is none, as SGLang wants one even then.

    Raises:
        RequestError: it is something else.
    """
    if not body:
        return b"{}"
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("", f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("", "the body must be a JSON object")
    return body


def decoded(body: bytes, kind: type[T]) -> T:
    """The fields of a body that is a JSON object. Raises RequestError naming the one at fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise RequestError(path.strip("`."), message) from None


def seconds(text: str | None) -> float | None:
    """`timeout` of a query. Raises RequestError."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise RequestError("timeout", f"must be seconds from 0, not {text[:20]!r}")
    return value


def rank(text: str | None) -> int | None:
    """`dp_rank` of a query. Raises RequestError."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise RequestError("dp_rank", f"must be a whole number, not {text[:20]!r}")
    return int(text)
