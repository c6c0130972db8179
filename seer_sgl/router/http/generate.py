"""`/generate`: SGLang's own request and answer."""

import asyncio
import uuid
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from seer_sgl.errors import SeerError
from seer_sgl.router.http.bodies import decoded, json_response, read_body
from seer_sgl.router.http.errors import CLIENT_GONE, error_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation
from seer_sgl.router.requests import parse_generate


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
            request={"type": "object"},
            answers={200: Answer("The sample, or a list of them.", {})},
            errors=[400, 408, 409, 413, 503],
        )
    ]


class _Generate:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def generate(self, request: Request) -> Response:
        dispatcher = self._front.dispatcher
        body = decoded(await read_body(request, self._front.config.max_body_bytes))
        call = parse_generate(body, uuid.uuid4().hex, request.headers.get("x-seer-group"))
        answers = await unless_over(request, dispatcher.generate(call.samples), dispatcher.stopping)
        if answers is None:
            return Response(status_code=CLIENT_GONE)
        if call.is_list:
            return json_response(answers)
        finish = answers[0]["meta_info"]["finish_reason"]
        if finish["type"] == "abort" and not answers[0]["output_ids"]:
            return error_response(finish["status_code"], finish["message"])
        return json_response(answers[0])


async def unless_over(request: Request, work: Any, stopping: asyncio.Event) -> Any:
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
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except ClientDisconnect:
        return
