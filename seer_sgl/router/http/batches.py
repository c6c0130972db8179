"""`/v1/batches`: OpenAI's batches, with `/generate` as one more endpoint for their lines."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.batch.flight import AnswerLine, Models
from seer_sgl.router.batch.objects import Batch, BatchList, BatchRequest
from seer_sgl.router.batch.service import BatchService
from seer_sgl.router.http.bodies import decoded, decoded_as, json_response, read_body
from seer_sgl.router.http.errors import error_response
from seer_sgl.router.http.files import batches_of, limit_of
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.generate import BACKGROUND_HEADER, answer_of
from seer_sgl.router.http.openai import complete
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.router.requests import parse_generate

MOST_BATCHES = 100
_PAGE = 20
_REQUEST_BYTES = 1 << 20
_NOT_AGAIN = "false"
"""Value of `x-should-retry`: a client that asks again would have a second batch."""
_ID = Parameter("id", "path", {"type": "string"}, "A batch's id.")


def operations(front: Front) -> list[Operation]:
    """Routes of batches."""
    routes = _Batches(front)
    return [
        Operation(
            path="/v1/batches",
            methods=["POST"],
            handler=routes.create,
            text="Have every line of a file answered.",
            tag="batches",
            request=BatchRequest,
            answers={200: Answer("The batch.", Batch)},
            errors=[404, 503, 507],
        ),
        Operation(
            path="/v1/batches",
            methods=["GET"],
            handler=routes.page,
            text="A page of batches, newest first.",
            tag="batches",
            answers={200: Answer("Batches.", BatchList)},
            errors=[400, 503],
            parameters=[
                Parameter("after", "query", {"type": "string"}, "The id that the last page ended with."),
                Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST_BATCHES}),
            ],
        ),
        Operation(
            path="/v1/batches/{id}",
            methods=["GET"],
            handler=routes.retrieve,
            text="One batch as it is now.",
            tag="batches",
            answers={200: Answer("The batch.", Batch)},
            errors=[404, 503],
            parameters=[_ID],
        ),
        Operation(
            path="/v1/batches/{id}/cancel",
            methods=["POST"],
            handler=routes.cancel,
            text="Run no more lines of a batch; what has finished stays.",
            tag="batches",
            answers={200: Answer("The batch.", Batch)},
            errors=[404, 409, 503, 507],
            parameters=[_ID],
        ),
    ]


class _Batches:
    def __init__(self, front: Front) -> None:
        self._front = front

    @property
    def _service(self) -> BatchService:
        return batches_of(self._front)

    async def create(self, request: Request) -> Response:
        asked = decoded_as(await read_body(request, _REQUEST_BYTES), BatchRequest)
        return json_response(await self._service.create(asked), x_should_retry=_NOT_AGAIN)

    async def page(self, request: Request) -> Response:
        after = request.query_params.get("after", "")
        limit = limit_of(request, MOST_BATCHES, _PAGE)
        return json_response(await self._service.batches(after, limit))

    async def retrieve(self, request: Request) -> Response:
        return json_response(await self._service.batch(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        return json_response(await self._service.cancel(request.path_params["id"]))


# ---- lines ----


def line_answerer(front: Front) -> AnswerLine:
    """Answers lines as the front answers requests."""

    async def answer(path: str, body: bytes, rid: str) -> tuple[int, bytes]:
        if path != "/generate":
            return await complete(front, path, body, {BACKGROUND_HEADER: "1"})
        try:
            return await _generated(front, body, rid)
        except RequestError as error:
            answered = error_response(error.status, str(error), error.field, error.code)
        except SeerError as error:
            answered = error_response(503, str(error))
        return answered.status_code, bytes(answered.body)

    return answer


async def _generated(front: Front, body: bytes, rid: str) -> tuple[int, bytes]:
    call = parse_generate(decoded(body), rid)
    call.in_background()
    answers = await front.dispatcher.generate(call.samples)
    for sample, answer in zip(call.samples, answers, strict=True):
        finish = answer["meta_info"]["finish_reason"]
        # Who called it back meant everything that ran, or an engine failed: the line is still to do.
        # Only where its author has named it, somebody may have meant it: then what exists stands.
        if finish["type"] == "abort" and sample.rid.startswith(rid):
            status = finish.get("status_code") or 503
            return status, bytes(error_response(status, finish.get("message") or "aborted").body)
    answered = answer_of(call, answers)
    return answered.status_code, bytes(answered.body)


class ServedModels:
    """The names that a request may ask for.

    Args:
        names: of the models that the engines serve.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    def __contains__(self, model: object) -> bool:
        """As for any request: also with an adapter after a colon, and SGLang's own default."""
        if not isinstance(model, str) or model in ("", "default") or model in self._names:
            return isinstance(model, str)
        return any(model.startswith(f"{name}:") for name in self._names)


def served_models(front: Front) -> Models:
    """What the engines serve that are here; None while none is."""

    async def models() -> ServedModels | None:
        members = front.roster.members.values()
        return ServedModels(member.card.model for member in members) if members else None

    return models
