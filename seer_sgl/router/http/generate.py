"""`/generate`: SGLang's own request and answer."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.router.answers import SampleStream
from seer_sgl.router.http.bodies import decoded, json_response, read_body
from seer_sgl.router.http.errors import error_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.router.http.schemas import GENERATE, GENERATED
from seer_sgl.router.http.sse import Deltas, EventStream, event
from seer_sgl.router.http.watch import Watched, unless_over
from seer_sgl.router.requests import GenerateCall, parse_generate
from seer_sgl.types import EngineId

__all__ = ["answer_of", "operations", "parsed", "unless_over"]

_GROUP = Parameter(
    "x-seer-group", "header", {"type": "string"}, "Group that the samples belong to; a hint for drafts."
)
_DELTAS = Parameter(
    "x-seer-deltas", "header", {"type": "string"}, "`1`: streamed events carry only what is new."
)
BACKGROUND_HEADER = "x-seer-background"
_BACKGROUND = Parameter(
    BACKGROUND_HEADER, "header", {"type": "string"}, "`1`: requests without it go first."
)

_JSON = {"content-type": "application/json"}


def operations(front: Front) -> list[Operation]:
    """Routes that generate."""
    routes = _Generate(front)
    return [
        Operation(
            path="/generate",
            methods=["POST", "PUT"],
            handler=routes.generate,
            text="Generate samples, with SGLang's request and answer.",
            tag="generate",
            request=GENERATE,
            answers={200: Answer("The sample, or a list of them.", GENERATED, streams=True)},
            errors=[400, 408, 409, 413, 503],
            parameters=[_GROUP, _DELTAS, _BACKGROUND],
        )
    ]


def parsed(body: bytes, group_id: str | None = None) -> GenerateCall:
    """A `/generate` body.

    Raises:
        RequestError: naming the field at fault.
    """
    return parse_generate(decoded(body), uuid.uuid4().hex, group_id)


def answer_of(call: GenerateCall, answers: list[dict[str, Any]]) -> Response:
    """What a client that does not stream gets.

    A sample that was aborted, or given up, is answered as such with what exists: clients would send a
    request again and again that ends in an error. What SGLang refuses is an error, as from SGLang.
    """
    for answer in answers:
        finish = answer["meta_info"]["finish_reason"]
        refused = finish.get("type") == "abort" and 400 <= (finish.get("status_code") or 0) < 500
        if not refused or answer["output_ids"]:
            break
    else:
        return error_response(finish["status_code"], finish["message"])
    return json_response(answers if call.is_list else answers[0])


class _Generate:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def generate(self, request: Request) -> Response:
        dispatcher = self._front.dispatcher
        body = await read_body(request, self._front.config.max_body_bytes)
        call = parsed(body, request.headers.get("x-seer-group"))
        if request.headers.get(BACKGROUND_HEADER) == "1":
            call.in_background()
        if (engine_id := self._session_engine(call)) is not None:
            return await self._passed_on(request, engine_id, body, call.streams)
        if call.streams:
            samples = dispatcher.stream(call.samples)
            deltas = Deltas() if request.headers.get("x-seer-deltas") == "1" else None
            events = _Events(samples, call.is_list, deltas)
            return EventStream(request, events, dispatcher.stopping)
        with Watched(request, dispatcher.stopping):
            answers = await dispatcher.generate(call.samples)
        return answer_of(call, answers)

    def _session_engine(self, call: GenerateCall) -> EngineId | None:
        """The engine that keeps the session of a call, if it has one."""
        params = call.samples[0].body.get("session_params")
        name = params.get("id") if isinstance(params, dict) else None
        return self._front.plane.session_engine(name) if isinstance(name, str) else None

    async def _passed_on(
        self, request: Request, engine_id: EngineId, body: bytes, streams: bool
    ) -> Response:
        """One engine's own answer: what a session holds is there and nowhere else."""
        stopping = self._front.dispatcher.stopping
        if streams:
            return EventStream(request, self._parts(engine_id, body), stopping, end=b"")
        with Watched(request, stopping):
            answer = await self._front.calls.ask(engine_id, "POST", "/generate", body, _JSON)
        return Response(answer.body, answer.status, media_type="application/json")

    async def _parts(self, engine_id: EngineId, body: bytes) -> AsyncIterator[bytes]:
        opened = self._front.calls.stream(engine_id, "POST", "/generate", body, _JSON)
        async with opened as answer:
            async for part in answer:
                yield part


class _Events(AsyncIterator[bytes]):
    """SGLang's events of samples that grow."""

    def __init__(self, samples: SampleStream, is_list: bool, deltas: Deltas | None) -> None:
        self._samples, self._is_list, self._deltas = samples, is_list, deltas

    async def __anext__(self) -> bytes:
        index, answer = await anext(self._samples)
        if self._deltas is not None:
            answer = self._deltas.of(index, answer)
        return event({**answer, "index": index} if self._is_list else answer)

    async def aclose(self) -> None:
        self._samples.close()
