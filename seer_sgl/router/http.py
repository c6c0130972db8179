"""The HTTP front: bodies to samples, answers to JSON, errors in SGLang's shape."""

import asyncio
import time
import uuid
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.dispatcher import Dispatcher
from seer_sgl.router.drafts import DraftWatch
from seer_sgl.router.metrics import registry_of
from seer_sgl.router.requests import parse_generate
from seer_sgl.router.roster import Member


def build_app(dispatcher: Dispatcher, drafts: DraftWatch, max_body_bytes: int) -> Starlette:
    """The ASGI application over a dispatcher."""
    front = _Front(dispatcher, registry_of(dispatcher.core, drafts), max_body_bytes)
    return Starlette(
        routes=[
            Route("/generate", front.generate, methods=["POST", "PUT"]),
            Route("/health", front.health),
            Route("/v1/models", front.models),
            Route("/workers", front.workers),
            Route("/metrics", front.metrics),
        ],
    )


class _Front:
    def __init__(self, dispatcher: Dispatcher, registry: CollectorRegistry, max_body_bytes: int) -> None:
        self._dispatcher = dispatcher
        self._max_body_bytes = max_body_bytes
        self._began_s = int(time.time())
        self._registry = registry

    async def generate(self, request: Request) -> Response:
        try:
            body = _decoded(await self._body_of(request))
            call = parse_generate(body, uuid.uuid4().hex, request.headers.get("x-seer-group"))
            work = self._dispatcher.generate(call.samples)
            answers = await _unless_over(request, work, self._dispatcher.stopping)
        except RequestError as error:
            return _error(error.status, str(error), error.field)
        except SeerError as error:
            return _error(503, str(error))
        except ClientDisconnect:
            answers = None
        if answers is None:
            return Response(status_code=499)
        if call.is_list:
            return _json(answers)
        finish = answers[0]["meta_info"]["finish_reason"]
        if finish["type"] == "abort" and not answers[0]["output_ids"]:
            return _error(finish["status_code"], finish["message"])
        return _json(answers[0])

    async def _body_of(self, request: Request) -> bytes:
        too_large = RequestError(
            "", f"the body is larger than the limit of {self._max_body_bytes} bytes", status=413
        )
        if int(request.headers.get("content-length") or 0) > self._max_body_bytes:
            raise too_large
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._max_body_bytes:
                raise too_large
            parts.append(part)
        return b"".join(parts)

    async def health(self, _request: Request) -> Response:
        engines = len(self._dispatcher.roster)
        if not engines:
            return _error(503, "no engine is registered; requests wait until one joins")
        return _json({"status": "ok", "engines": engines})

    async def models(self, _request: Request) -> Response:
        found = {}
        for member in self._dispatcher.roster.members.values():
            found[member.card.model] = {
                "id": member.card.model,
                "object": "model",
                "created": self._began_s,
                "owned_by": "sglang",
                "root": member.card.model,
                "parent": None,
                "max_model_len": member.card.spec.context_tokens,
            }
        return _json({"object": "list", "data": list(found.values())})

    async def workers(self, _request: Request) -> Response:
        members = list(self._dispatcher.roster.members.values())
        described = [self._described(member) for member in members]
        return _json({"workers": described, "total": len(described)})

    def _described(self, member: Member) -> dict[str, Any]:
        engine = self._dispatcher.core.engines[member.engine_id]
        load = member.load
        return {
            "id": member.engine_id,
            "url": member.card.url,
            "model_id": member.card.model,
            "worker_type": "regular",
            "is_healthy": True,
            "load": len(engine.chunks),
            "metadata": {
                "sglang_version": member.card.sglang_version,
                "weight_version": member.card.weight_version,
                "page_tokens": engine.spec.page_tokens,
                "kv_capacity_tokens": engine.spec.kv_capacity_tokens,
                "reserved_tokens": engine.reserved_tokens,
                "running_requests": load.running_requests if load else None,
                "waiting_requests": load.waiting_requests if load else None,
                "used_tokens": load.used_tokens if load else None,
            },
        }

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


async def _unless_over(request: Request, work: Any, stopping: asyncio.Event) -> Any:
    """The result of `work`, or None once the client hangs up; then the work is cancelled.

    Raises:
        SeerError: the router stops; the work is cancelled, too.
    """
    task, gone, stop = map(asyncio.ensure_future, (work, _disconnected(request), stopping.wait()))
    try:
        await asyncio.wait((task, gone, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if stop.done():
            raise SeerError("the router is stopping")
        return None
    finally:
        for waiting in (task, gone, stop):
            waiting.cancel()
        await asyncio.gather(task, gone, stop, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError("", f"the body is not JSON: {error}") from None


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _error(status: int, message: str, param: str = "") -> Response:
    """SGLang's `{"error": {"message"}}`, with the field at fault beside it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json(
        {"error": {"message": message, "type": kind, "param": param or None, "code": status}}, status
    )
