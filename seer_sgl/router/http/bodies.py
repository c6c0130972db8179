"""Bodies in and out: read up to a limit and not for ever, decoded, checked; answers as JSON."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from seer_sgl.errors import RequestError

T = TypeVar("T")

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises. A `ValidationError` is a `DecodeError`, too."""

PART_PATIENCE_S = 30.0
"""How long a client may take for the next part of its body."""
SLOWEST_BYTES_PER_S = 1024
"""What a client has to send on average once that time is over."""


async def body_parts(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes; the time that the caller takes for a part does not count.

    Raises:
        RequestError: 408 where its sender pauses, or dawdles.
        ClientDisconnect: its sender hung up.
    """
    clock = asyncio.get_running_loop().time
    left_s = PART_PATIENCE_S
    more = True
    while more:
        began_s = clock()
        try:
            async with asyncio.timeout(min(left_s, PART_PATIENCE_S)):
                message = await request.receive()
        except TimeoutError:
            raise RequestError("", "the body comes too slowly", status=408) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        left_s += len(part) / SLOWEST_BYTES_PER_S - (clock() - began_s)
        yield part


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        RequestError: 413 where it is larger than the limit, 408 where it does not come.
    """
    too_large = RequestError("", f"the body is larger than the limit of {limit_bytes} bytes", status=413)
    if int(request.headers.get("content-length") or 0) > limit_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in body_parts(request):
        size += len(part)
        if size > limit_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def decoded(body: bytes) -> Any:
    """Raises RequestError where it is not JSON."""
    try:
        return msgspec.json.decode(body)
    except NOT_JSON as error:
        raise RequestError("", f"the body is not JSON: {error}") from None


def decoded_as(body: bytes, kind: type[T]) -> T:
    """Raises RequestError naming the field that is missing or of another type."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        raise RequestError(path.strip("`.").rstrip("`"), message) from None
    except NOT_JSON as error:
        raise RequestError("", f"the body is not JSON: {error}") from None


def json_response(content: Any, status: int = 200, **headers: str) -> Response:
    """Names of headers with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(msgspec.json.encode(content), status, named, media_type="application/json")
