"""The ASGI application: every family's operations as routes, errors in one shape."""

from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from seer_sgl.router.http import batches, control, files, generate, openai, status, workers
from seer_sgl.router.http.errors import HANDLERS
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.openapi import document
from seer_sgl.router.http.operations import Answer, Handler, Operation

FAMILIES = (generate, openai, batches, control, files, status, workers)
"""The busiest first: a request's path is tried against one route after the other."""

METRICS_PATHS = ("/metrics", "/engine_metrics", "/health")
"""What a port for Prometheus alone serves."""


def operations(front: Front) -> list[Operation]:
    """Everything that is served."""
    served = [operation for family in FAMILIES for operation in family.operations(front)]
    served.append(_described(served))
    return served


def build_app(front: Front) -> Starlette:
    """The application over a router."""
    return Starlette(routes=routes(operations(front)), exception_handlers=HANDLERS)


def build_metrics_app(front: Front) -> Starlette:
    """Only what Prometheus reads."""
    served = [each for each in operations(front) if each.path in METRICS_PATHS]
    return Starlette(routes=routes(served), exception_handlers=HANDLERS)


def routes(served: Sequence[Operation]) -> list[Route]:
    """One route per path, so that a foreign method is told every method that there is."""
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in served:
        known = by_path.setdefault(operation.path, {})
        known.update(dict.fromkeys(operation.methods, operation.handler))
    return [Route(path, _by_method(known), methods=list(known)) for path, known in by_path.items()]


def _by_method(handlers: dict[str, Handler]) -> Handler:
    first, *others = set(handlers.values())
    if not others:
        return first

    async def handler(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return handler


def _described(served: list[Operation]) -> Operation:
    """`/openapi.json`, which tells of `served` as it is when somebody asks."""

    async def handler(_request: Request) -> Response:
        return Response(msgspec.json.encode(document(served)), media_type="application/json")

    return Operation(
        path="/openapi.json",
        methods=["GET"],
        handler=handler,
        text="This document.",
        tag="status",
        answers={200: Answer("OpenAPI 3.1.", {"type": "object"})},
    )
