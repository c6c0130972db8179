"""What the router and its engines are and do: health, models, engines, metrics."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.router.http.bodies import json_response
from seer_sgl.router.http.errors import error_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation
from seer_sgl.router.roster import Member


def operations(front: Front) -> list[Operation]:
    """Routes that only look."""
    routes = _Status(front)
    anything = {"type": "object"}
    return [
        Operation(
            "/health",
            ["GET"],
            routes.health,
            "Whether requests can run now.",
            "status",
            {200: Answer("An engine is here.", anything)},
            [503],
        ),
        Operation(
            "/v1/models",
            ["GET"],
            routes.models,
            "The model served.",
            "status",
            {200: Answer("A list of one.", anything)},
        ),
        Operation(
            "/engines",
            ["GET"],
            routes.engines,
            "Every engine, with its load and memory.",
            "status",
            {200: Answer("Engines.", anything)},
        ),
        Operation(
            "/metrics",
            ["GET"],
            routes.metrics,
            "Counts for Prometheus.",
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
            return error_response(503, "no engine is registered; requests wait until one joins")
        return json_response({"status": "ok", "engines": engines})

    async def models(self, _request: Request) -> Response:
        found = {}
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
        return json_response({"object": "list", "data": list(found.values())})

    async def engines(self, _request: Request) -> Response:
        described = [self._described(member) for member in self._front.roster.members.values()]
        return json_response({"engines": described, "total": len(described)})

    def _described(self, member: Member) -> dict[str, Any]:
        engine = self._front.dispatcher.core.engines[member.engine_id]
        load = member.load
        return {
            "id": member.engine_id,
            "url": member.card.url,
            "model": member.card.model,
            "sglang_version": member.card.sglang_version,
            "weight_version": member.card.weight_version,
            "chunks": len(engine.chunks),
            "page_tokens": engine.spec.page_tokens,
            "kv_capacity_tokens": engine.spec.kv_capacity_tokens,
            "reserved_tokens": engine.reserved_tokens,
            "running_requests": load.running_requests if load else None,
            "waiting_requests": load.waiting_requests if load else None,
            "used_tokens": load.used_tokens if load else None,
        }

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._front.registry), media_type=CONTENT_TYPE_LATEST)
