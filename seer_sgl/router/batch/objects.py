"""Files and batches as clients see them, what they may ask for, and what is kept of a batch. Pure.

All times are Unix seconds.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from seer_sgl.errors import RequestError

FILE_BYTES = 200_000_000
"""A file that is uploaded, at most."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/generate")
PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"
LIVE = frozenset(("validating", "in_progress", "finalizing", "cancelling"))
"""Statuses that a batch does not end with."""

_WINDOW = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LIFETIME_S = (3600, 30 * 86_400)
_PAIRS, _KEY, _VALUE = 16, 64, 512
"""Limits of metadata: pairs, and characters of a key and of a value."""

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    """As its sender called it; no path of ours."""
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None


class FileDeleted(msgspec.Struct, frozen=True):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileList(msgspec.Struct, frozen=True):
    """A page of files."""

    data: list[FileObject]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: Literal["list"] = "list"


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with the input."""

    code: str
    """A word for programs."""
    message: str
    line: int | None = None
    """The number of the input's line, from 1."""
    param: str | None = None
    """The line's field at fault."""


class LineErrors(msgspec.Struct, frozen=True):
    """The first of the input's errors."""

    data: list[LineError]
    object: Literal["list"] = "list"


class RequestCounts(msgspec.Struct):
    """Lines of the input, of the output and of the error file."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct):
    """Of the input tokens."""

    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Of the output tokens."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of all answers in the output."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = msgspec.field(default_factory=InputDetails)
    output_tokens: int = 0
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)
    total_tokens: int = 0


class SeerState(msgspec.Struct):
    """What only this router tells."""

    paused: str | None = None
    """Why the batch waits, where it does: the disk is full."""


class Batch(msgspec.Struct, kw_only=True):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    """Of the first line that names one."""
    errors: LineErrors | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    usage: Usage = msgspec.field(default_factory=Usage)
    metadata: dict[str, str] | None = None
    seer: SeerState = msgspec.field(default_factory=SeerState)


class BatchList(msgspec.Struct, frozen=True):
    """A page of batches, newest first."""

    data: list[Batch]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: Literal["list"] = "list"


def _told(**schema: Any) -> msgspec.Meta:
    """What the OpenAPI document says of a field; `new_batch` checks it, and says more."""
    return msgspec.Meta(extra_json_schema=schema)


class ExpiresAfter(msgspec.Struct, frozen=True):
    """How long a file is kept."""

    seconds: Annotated[int, _told(minimum=_LIFETIME_S[0], maximum=_LIFETIME_S[1])]
    anchor: Literal["created_at"] = "created_at"


_METADATA = _told(
    maxProperties=_PAIRS,
    propertyNames={"maxLength": _KEY},
    additionalProperties={"type": "string", "maxLength": _VALUE},
)


class BatchRequest(msgspec.Struct, frozen=True):
    """What a client asks for."""

    input_file_id: str
    endpoint: Annotated[str, _told(enum=list(ENDPOINTS))]
    completion_window: Annotated[str, _told(pattern=f"^{_WINDOW.pattern}$")]
    metadata: Annotated[dict[str, str] | None, _METADATA] = None
    output_expires_after: ExpiresAfter | None = None


class Kept(msgspec.Struct, kw_only=True):
    """A batch, and what a restart has to know of it."""

    batch: Batch
    output_id: str
    error_id: str
    """Ids of the files to come."""
    output_lifetime_s: int | None = None
    overdue: bool = False
    """It ends as expired, whatever its status is still."""


def new_batch(request: BatchRequest, now_s: int, new_id: Callable[[str], str]) -> Kept:
    """The batch that a request asks for; `new_id` makes an id that begins with what it is given.

    Raises:
        RequestError: naming the field that is out of its limits.
    """
    if request.endpoint not in ENDPOINTS:
        raise RequestError("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    window = _WINDOW.fullmatch(request.completion_window)
    if window is None:
        raise RequestError("completion_window", "must be a number and one of s, m, h, d, as in 24h")
    _check_metadata(request.metadata or {})
    lifetime = request.output_expires_after
    if lifetime is not None:
        check_lifetime("output_expires_after.seconds", lifetime.seconds)
    batch = Batch(
        id=new_id("batch_"),
        endpoint=request.endpoint,
        input_file_id=request.input_file_id,
        completion_window=request.completion_window,
        created_at=now_s,
        expires_at=now_s + int(window[1]) * _SECONDS[window[2]],
        metadata=request.metadata,
    )
    return Kept(
        batch=batch,
        output_id=new_id("file-"),
        error_id=new_id("file-"),
        output_lifetime_s=lifetime.seconds if lifetime else None,
    )


def check_lifetime(field: str, seconds: int) -> None:
    """Raises RequestError."""
    least, most = _LIFETIME_S
    if not least <= seconds <= most:
        raise RequestError(field, f"must lie in [{least}, {most}], got {seconds}")


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _PAIRS:
        raise RequestError("metadata", f"may have {_PAIRS} pairs, got {len(metadata)}")
    for key, value in metadata.items():
        if len(key) > _KEY or len(value) > _VALUE:
            raise RequestError(
                "metadata", f"keys have at most {_KEY} and values {_VALUE} characters: {key[:_KEY]!r}"
            )


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of one answer."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0


def count_in(usage: Usage, more: Tokens) -> None:
    """Add one answer's tokens."""
    usage.input_tokens += more.input
    usage.input_tokens_details.cached_tokens += more.cached
    usage.output_tokens += more.output
    usage.output_tokens_details.reasoning_tokens += more.reasoning
    usage.total_tokens += more.input + more.output


def file_page(files: Sequence[FileObject], limit: int) -> FileList:
    """The first `limit` files; more tell that there is another page."""
    shown = list(files[:limit])
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return FileList(shown, len(files) > limit, first, last)


def batch_page(batches: Sequence[Batch], limit: int) -> BatchList:
    """As `file_page`."""
    shown = list(batches[:limit])
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return BatchList(shown, len(batches) > limit, first, last)
