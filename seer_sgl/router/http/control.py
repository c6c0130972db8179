"""SGLang's control interface for all engines as one server; `router/control/table.py` has its rows."""

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.errors import SeerError
from seer_sgl.router.control.fields import seconds
from seer_sgl.router.control.merging import Reply
from seer_sgl.router.control.table import TABLE, Act, Merge, Row
from seer_sgl.router.http.bodies import read_body
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.types import EngineId

_OBJECT = {"type": "object"}
_CHANGES = (Act.BEGIN, Act.END, Act.UPDATE, Act.VERSION, Act.LORA, Act.CHECK)
"""What changes weights: refused beside another change, and given up where an engine takes too long."""
_ANSWERS = {
    Merge.PASS: Answer("What the engine says.", {}),
    Merge.NONE: Answer("Done; nothing to say.", None, ""),
    Merge.TEXT: Answer("Done by every engine.", None, "text/plain"),
    Merge.METRICS: Answer("Metrics with a label `worker_addr`.", None, "text/plain"),
    Merge.LOAD: Answer("One entry for each rank, and one for the router.", {"type": "array"}),
}
_PARAMETERS = {
    "/flush_cache": [
        Parameter("timeout", "query", {"type": "number", "minimum": 0}, "Seconds to wait until idle.")
    ],
    "/v1/loads": [
        Parameter("include", "query", {"type": "string"}, "Sections, with commas: core, memory, all"),
        Parameter("dp_rank", "query", {"type": "integer", "minimum": 0}, "Only this rank."),
    ],
}


def operations(front: Front) -> list[Operation]:
    """One for each row, and for each method that says something else."""
    routes = _Control(front)
    return [operation for row in TABLE for operation in _operations(row, routes)]


def _operations(row: Row, routes: "_Control") -> list[Operation]:
    writing = [method for method in row.methods if method != "GET"]
    split = row.request is not None and len(writing) not in (0, len(row.methods))
    both = [(writing, row.request), (["GET"], None)] if split else [(list(row.methods), row.request)]
    return [
        Operation(
            path=row.path,
            methods=methods,
            handler=routes.perform,
            text=row.text,
            tag="control",
            answers={200: _ANSWERS.get(row.merge, Answer("Done by every engine.", _OBJECT))},
            errors=[400, 401, 403, 404, 408, 413, 503, *([409, 504] if row.act in _CHANGES else [])],
            request=request,
            request_required=not _may_be_empty(request),
            parameters=_PARAMETERS.get(row.path, ()),
            # SGLang takes some commands by GET, too, and reads the body all the same.
            hidden=row.older or (split and methods == ["GET"]),
        )
        for methods, request in both
    ]


def _may_be_empty(request: type | None) -> bool:
    if request is None:
        return True
    try:
        msgspec.convert({}, request)
    except msgspec.ValidationError:
        return False
    return True


class _Control:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def perform(self, request: Request) -> Response:
        return await perform(self._front, request)


async def perform(front: Front, request: Request, only: EngineId | None = None) -> Response:
    """Answer a control call, to the router or to one engine's port."""
    body = await read_body(request, front.config.max_body_bytes)
    seconds(request.query_params.get("timeout"))  # SGLang's own to obey; wrong, it would ask them all
    method = "GET" if request.method == "HEAD" else request.method
    work = front.plane.perform(request.url.path, method, body, request.url.query, only)
    return response_of(await unless_stopping(front, work))


async def unless_stopping(front: Front, work: Any) -> Any:
    """The result of `work`. It goes on where the client hangs up: half a weight update is none.

    Raises:
        SeerError: the router stops.
    """
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(front.dispatcher.stopping.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise SeerError("the router is stopping")
    finally:
        for each in (task, stop):
            each.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


def response_of(reply: Reply) -> Response:
    """An answer of the plane as HTTP."""
    headers = {"content-type": reply.media} if reply.media else None
    return Response(reply.body, reply.status, headers)
