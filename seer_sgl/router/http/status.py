"""What the router and its engines are and do: health, models, engines, metrics."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.errors import RequestError
from seer_sgl.router.http.bodies import json_response
from seer_sgl.router.http.control import unless_stopping
from seer_sgl.router.http.errors import error_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.router.roster import Member

_OBJECT: dict[str, Any] = {"type": "object"}
NOBODY = "no engine is registered; requests wait until one joins"


def operations(front: Front) -> list[Operation]:
    """Routes that only look."""
    routes = _Status(front)
    return [*_health(routes), *_models(routes), *_lists(routes)]


def _health(routes: "_Status") -> list[Operation]:
    ready = Answer("Requests are dispatched.", _OBJECT)
    return [
        Operation(
            "/health",
            ["GET"],
            routes.health,
            "Whether requests can run now.",
            "status",
            {200: Answer("An engine is here.", _OBJECT)},
            [503],
        ),
        Operation(
            "/health_generate",
            ["GET"],
            routes.health_generate,
            "Whether an engine generates a token when asked to; takes a second.",
            "status",
            {200: Answer("One does, or generation is paused.", _OBJECT)},
            [503],
        ),
        Operation("/ready", ["GET"], routes.ready, "As /readiness.", "status", {200: ready}, [503]),
        Operation(
            "/readiness",
            ["GET"],
            routes.ready,
            "Whether requests are dispatched: not while generation is paused.",
            "status",
            {200: ready},
            [503],
        ),
        Operation(
            "/liveness",
            ["GET"],
            routes.liveness,
            "Whether the router itself answers.",
            "status",
            {200: Answer("It does.", _OBJECT)},
        ),
        Operation(
            "/ping",
            ["GET"],
            routes.ping,
            "As /health, without a word.",
            "status",
            {200: Answer("An engine is here.", None, "")},
            [503],
        ),
    ]


def _models(routes: "_Status") -> list[Operation]:
    return [
        Operation(
            "/v1/models",
            ["GET"],
            routes.models,
            "The models served.",
            "status",
            {200: Answer("A list.", _OBJECT)},
        ),
        Operation(
            "/v1/models/{model:path}",
            ["GET"],
            routes.model,
            "One model.",
            "status",
            {200: Answer("The model.", _OBJECT)},
            [404],
            parameters=[Parameter("model", "path", {"type": "string"}, "Its id; may contain slashes.")],
        ),
    ]


def _lists(routes: "_Status") -> list[Operation]:
    return [
        Operation(
            "/engines",
            ["GET"],
            routes.engines,
            "Every engine, with its load and memory.",
            "status",
            {200: Answer("Engines.", _OBJECT)},
        ),
        Operation(
            "/metrics",
            ["GET"],
            routes.metrics,
            "Counts of the router for Prometheus.",
            "status",
            {200: Answer("Metrics.", None, "text/plain")},
        ),
    ]


class _Status:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def health(self, _request: Request) -> Response:
        engines = len(self._front.roster)
        if not engines:
            return error_response(503, self._nobody())
        return json_response({"status": "ok", "engines": engines})

    def _nobody(self) -> str:
        members = self._front.roster.members.values()
        reasons = [f"engine {m.engine_id}: {m.quarantine}" for m in members]
        return "; ".join(["no engine may get traffic", *reasons]) if reasons else NOBODY

    async def health_generate(self, _request: Request) -> Response:
        if not len(self._front.roster):
            return error_response(503, self._nobody())
        if not await unless_stopping(self._front, self._front.plane.generates()):
            return error_response(503, "no engine generates")
        return json_response({"status": "ok", "engines": len(self._front.roster)})

    async def ready(self, _request: Request) -> Response:
        healthy, total = len(self._front.roster), len(self._front.roster.members)
        if not healthy:
            return error_response(503, self._nobody())
        if self._front.plane.holds:
            return error_response(503, "generation is paused")
        return json_response({"status": "ready", "healthy_workers": healthy, "total_workers": total})

    async def liveness(self, _request: Request) -> Response:
        return json_response({"status": "alive"})

    async def ping(self, _request: Request) -> Response:
        if not len(self._front.roster):
            return error_response(503, self._nobody())
        return Response(status_code=200)

    # ---- models ----

    def _cards(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for member in self._front.roster.members.values():
            found[member.card.model] = {
                "id": member.card.model,
                "object": "model",
                "created": self._front.began_s,
                "owned_by": "sglang",
                "root": member.card.model,
                "parent": None,
                "max_model_len": member.card.spec.context_tokens,
            }
        return found

    async def models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": list(self._cards().values())})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        card = self._cards().get(name)
        if card is None:
            message = f"the model {name[:200]!r} does not exist"
            raise RequestError("", message, status=404, code="model_not_found")
        return json_response(card)

    # ---- engines ----

    async def engines(self, _request: Request) -> Response:
        described = [self._described(member) for member in self._front.roster.members.values()]
        return json_response({"engines": described, "total": len(described)})

    def _described(self, member: Member) -> dict[str, Any]:
        # The core does not know an engine in quarantine.
        engine = self._front.dispatcher.core.engines.get(member.engine_id)
        load, spec = member.load, member.card.spec
        return {
            "id": member.engine_id,
            "url": member.card.url,
            "model": member.card.model,
            "sglang_version": member.card.sglang_version,
            "weight_version": member.card.weight_version,
            "quarantine": member.quarantine or None,
            "chunks": len(engine.chunks) if engine else 0,
            "page_tokens": spec.page_tokens,
            "kv_capacity_tokens": engine.spec.kv_capacity_tokens if engine else spec.kv_capacity_tokens,
            "reserved_tokens": engine.reserved_tokens if engine else 0,
            "running_requests": load.running_requests if load else None,
            "waiting_requests": load.waiting_requests if load else None,
            "used_tokens": load.used_tokens if load else None,
        }

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._front.registry), media_type=CONTENT_TYPE_LATEST)
