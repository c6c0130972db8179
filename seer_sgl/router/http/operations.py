"""What the front serves, as data: routes and the OpenAPI document are both made from these."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
Schema = type | dict[str, Any]
"""A msgspec struct, or a JSON schema as it is."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a path, query or header."""

    name: str
    place: str
    """`path`, `query` or `header`."""
    schema: dict[str, Any]
    text: str = ""
    required: bool = False


@dataclass(frozen=True)
class Answer:
    """One status that an operation may answer with."""

    text: str
    schema: Schema | None = None
    """None where nothing is promised of the content."""
    media: str = "application/json"
    """Empty where the body is."""
    streams: bool = False
    """Also as `text/event-stream`."""


@dataclass(frozen=True)
class Operation:
    """One path and what it answers.

    Args:
        answers: by status. Errors in the common shape only need their status in `errors`; those that
            every body can lead to (400, 408, 413) need not be there.
        request: schema of the body; None where there is none.
    """

    path: str
    methods: Sequence[str]
    handler: Handler
    text: str
    tag: str
    answers: dict[int, Answer]
    errors: Sequence[int] = ()
    request: Schema | None = None
    request_media: str = "application/json"
    request_required: bool = True
    parameters: Sequence[Parameter] = ()
    hidden: bool = False
    """An older name for another one: served, and marked as deprecated in the document."""
