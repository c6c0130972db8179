"""Errors as OpenAI's nested object, which SGLang's own clients read, too."""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from seer_sgl.errors import RequestError, SeerError

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""nginx's status for a client that hung up; nobody reads it."""


def error_response(
    status: int, message: str, param: str = "", code: str | None = None, **headers: str
) -> Response:
    """`{"error": {"message", "type", "param", "code"}}`.

    Args:
        param: the field at fault, dotted; empty where none is.
        code: a word for programs; the status's own name where None.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": message, "type": kind, "param": param or None, "code": code or _code(status)}
    content = msgspec.json.encode({"error": body})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(content, status, named, media_type="application/json")


def _code(status: int) -> str:
    try:
        return HTTPStatus(status).name.lower()
    except ValueError:
        return str(status)


def request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error.status, str(error), error.field, error.code)


def seer_error(_request: Request, error: Exception) -> Response:
    return error_response(503, str(error))


def http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and foreign methods."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, **(error.headers or {}))


def client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s met a bug", request.method, request.url.path, exc_info=error)
    return error_response(500, f"a bug in the router: {type(error).__name__}: {error}")


def _on_loop(
    answer: Callable[[Request, Exception], Response],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """As a coroutine: Starlette would run a plain function in a thread."""

    async def handler(request: Request, error: Exception) -> Response:
        return answer(request, error)

    return handler


HANDLERS = {
    RequestError: _on_loop(request_error),
    SeerError: _on_loop(seer_error),
    HTTPException: _on_loop(http_error),
    ClientDisconnect: _on_loop(client_gone),
    Exception: _on_loop(unexpected),
}
