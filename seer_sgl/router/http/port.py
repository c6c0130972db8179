"""One engine behind a port of its own: control calls are for it alone, requests are the router's."""

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from seer_sgl.router.control.table import ROWS
from seer_sgl.router.http.bodies import json_response, read_body
from seer_sgl.router.http.control import perform, unless_stopping
from seer_sgl.router.http.errors import HANDLERS, error_response
from seer_sgl.router.http.front import Front
from seer_sgl.types import EngineId

OWN = ("/health", "/ping", "/health_generate", "/ready", "/readiness", "/liveness")
_SERVERS = ("/metrics", "/openapi.json")
"""What the server behind the port tells of itself, and the router tells of itself elsewhere."""
_HOP = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "upgrade", "te"}


def build_port_app(front: Front, engine_id: EngineId, router: Starlette) -> ASGIApp:
    """What an engine's port serves.

    Args:
        router: the router's own application, for what is not about one engine.
    """
    port = _Port(front, engine_id)
    every = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    routes = [Route(path, port.health, methods=["GET"]) for path in OWN]
    alone = Starlette(
        routes=[*routes, Route("/{path:path}", port.pass_on, methods=every)],
        exception_handlers=HANDLERS,
    )
    paths = {path for path, _ in ROWS}
    shared = [route for route in router.routes if isinstance(route, Route)]
    shared = [route for route in shared if route.path not in (*paths, *OWN, *_SERVERS)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["type"] == "http" and _matches(shared, scope)
        await (router if known else alone)(scope, receive, send)

    return app


def _matches(routes: Iterable[Route], scope: Scope) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


class _Port:
    def __init__(self, front: Front, engine_id: EngineId) -> None:
        self._front = front
        self._engine_id = engine_id

    async def health(self, request: Request) -> Response:
        """Of this engine alone. One in quarantine lives: it only gets no requests."""
        front, path = self._front, request.url.path
        member = front.roster.members.get(self._engine_id)
        if path == "/liveness":
            return json_response({"status": "alive"})
        if member is None:
            return error_response(503, f"engine {self._engine_id} is not here now")
        if path in ("/ready", "/readiness") and (front.plane.holds or member.quarantine):
            return error_response(503, member.quarantine or "generation is paused")
        if path == "/health_generate":
            generates = front.plane.generates(self._engine_id)
            if not await unless_stopping(front, generates):
                return error_response(503, f"engine {self._engine_id} does not generate")
        return json_response({"status": "ok", "engine": self._engine_id})

    async def pass_on(self, request: Request) -> Response:
        """A control call, or whatever else its server answers."""
        front, method = self._front, request.method
        if ("GET" if method == "HEAD" else method, request.url.path) in _KNOWN:
            return await perform(front, request, self._engine_id)
        body = await read_body(request, front.config.max_body_bytes)
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        answer = await unless_stopping(
            front, front.calls.ask(self._engine_id, method, target, body, headers)
        )
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
        kept.pop("content-encoding", None)  # the body is decoded by now
        return Response(answer.body, answer.status, kept)


_KNOWN = {(method, path) for path, method in ROWS}
