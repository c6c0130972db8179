"""Chat and completions: SGLang's own, over all engines.

The router knows no templates. It passes the request, as it is, to the server of one engine; there our
plugin sends what is to be generated back to this router's `/generate` (`engine/front.py`), and SGLang
makes choices, tool calls and usage of it. A server without the plugin generates the request itself.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Container, Iterator, Mapping
from itertools import count
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.calls import NO_ANSWER, CallError, EngineAnswer, EngineStream
from seer_sgl.router.choice import KEY_BYTES, chosen
from seer_sgl.router.http.bodies import decoded_as, read_body
from seer_sgl.router.http.errors import CLIENT_GONE, error_response, request_error, seer_error
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.generate import BACKGROUND_HEADER, unless_over
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from seer_sgl.router.roster import Member
from seer_sgl.types import UNKNOWN_MODEL, EngineId

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

ATTEMPTS = 3
"""Engines that are asked, where one after the other goes away or fails before it has answered."""
BROKEN = (500, 502, 503, 504)
BY_LOAD = "least_loaded"
"""The policy that looks at no request."""
ROUTING_KEY = "x-smg-routing-key"
"""The stock router's header for requests of one session."""
_POLL_S = 0.1

_OURS = re.compile(
    r"x-seer-.*|host|content-length|transfer-encoding|connection|keep-alive|te|trailers?|upgrade"
    r"|expect|proxy-.*|accept-encoding|cookie"
)
"""Headers that are between a client and the router; all others are the server's business."""

_KEPT = ("x-seer-group", BACKGROUND_HEADER)
"""Headers of ours that the server sends back to us."""

_SERVERS_OWN = re.compile(r"x-(?!seer-)")
"""Headers of a server's answer that go to the client."""

_EVENTS = "text/event-stream"

_turn = count()


class Asked(msgspec.Struct):
    """What the router itself reads of a request; SGLang reads, and checks, the rest."""

    model: Any = None
    stream: Any = False
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()


def operations(front: Front) -> list[Operation]:
    """Routes of OpenAI's API that generate."""
    routes = _OpenAI(front)
    group = Parameter("x-seer-group", "header", {"type": "string"}, "Group of all its samples.")
    model = {"type": "string", "description": "A served model, or `model:adapter`."}
    return [
        Operation(
            path=path,
            methods=["POST"],
            handler=routes.answer,
            text=text,
            tag="openai",
            request={"type": "object", "properties": {"model": model}},
            answers={200: Answer(answer, {"type": "object"}, streams=True)},
            errors=[404, 422, 503],
            parameters=[group],
        )
        for path, text, answer in (
            (CHAT, "Answer a chat, as SGLang does.", "A `chat.completion`, or its chunks."),
            (COMPLETIONS, "Complete a prompt, as SGLang does.", "A `text_completion`, or its chunks."),
        )
    ]


async def complete(
    front: Front, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    """The status and body of one request that does not stream; errors have the common shape."""
    try:
        asked = decoded_as(body, Asked)
        if asked.stream:
            raise RequestError("stream", "cannot be streamed here; leave it out or send false")
        answer = _response(await _whole(front, path, body, asked, _passed_on(headers)))
    except RequestError as error:
        answer = request_error(Request({"type": "http"}), error)
    except SeerError as error:
        answer = seer_error(Request({"type": "http"}), error)
    return answer.status_code, bytes(answer.body)


class _OpenAI:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(self, request: Request) -> Response:
        front = self._front
        body = await read_body(request, front.config.max_body_bytes)
        asked = decoded_as(body, Asked)
        headers = _passed_on(request.headers)
        path = request.url.path
        if asked.stream:
            return await self._streamed(request, path, body, asked, headers)
        work = _whole(front, path, body, asked, headers)
        answer = await unless_over(request, work, front.dispatcher.stopping)
        return Response(status_code=CLIENT_GONE) if answer is None else _response(answer)

    async def _streamed(
        self, request: Request, path: str, body: bytes, asked: Asked, headers: dict[str, str]
    ) -> Response:
        async with contextlib.AsyncExitStack() as stack:
            work = _begun(self._front, stack, path, body, asked, headers)
            begun = await unless_over(request, work, self._front.dispatcher.stopping)
            if begun is None:
                return Response(status_code=CLIENT_GONE)
            stream, first = begun
            if not stream.headers.get("content-type", "").startswith(_EVENTS):
                rest = b"".join([part async for part in stream])
                return _response(EngineAnswer(stream.status, stream.headers, first + rest))
            parts = _parts(stack.pop_all(), stream, first)
            return StreamingResponse(parts, stream.status, {"cache-control": "no-cache"}, _EVENTS)


async def _whole(
    front: Front, path: str, body: bytes, asked: Asked, headers: dict[str, str]
) -> EngineAnswer:
    """The answer of one engine; of another one where the first goes away.

    Raises:
        RequestError: the model is not served.
    """
    tried: set[EngineId] = set()
    for attempt in range(1, ATTEMPTS + 1):
        member = await _member(front, asked, headers, tried)
        tried.add(member.engine_id)
        with _body_for(front, member, body) as own:
            answer = await front.calls.ask(member.engine_id, "POST", path, own, headers)
        gone = NO_ANSWER in answer.headers
        broken = answer.status in BROKEN and len(front.roster) > 1
        if attempt == ATTEMPTS or not (gone or broken):
            return answer
    raise AssertionError("the last attempt returns")


async def _begun(
    front: Front,
    stack: contextlib.AsyncExitStack,
    path: str,
    body: bytes,
    asked: Asked,
    headers: dict[str, str],
) -> tuple[EngineStream, bytes]:
    """A stream and its first part, of the first engine that stays so long. The stack holds it open.

    Raises:
        RequestError: the model is not served.
        CallError: no engine stayed.
    """
    tried: set[EngineId] = set()
    for attempt in range(1, ATTEMPTS + 1):
        member = await _member(front, asked, headers, tried)
        tried.add(member.engine_id)
        async with contextlib.AsyncExitStack() as trial:
            own = trial.enter_context(_body_for(front, member, body))
            opened = front.calls.stream(member.engine_id, "POST", path, own, headers)
            stream = await trial.enter_async_context(opened)
            try:
                first = await anext(stream, b"")
            except CallError:
                if attempt == ATTEMPTS:
                    raise
                continue
            answer = EngineAnswer(stream.status, stream.headers, first)
            if attempt == ATTEMPTS or NO_ANSWER not in answer.headers:
                stack.push_async_exit(trial.pop_all())
                return stream, first
    raise AssertionError("the last attempt returns")


async def _parts(
    stack: contextlib.AsyncExitStack, stream: EngineStream, first: bytes
) -> AsyncIterator[bytes]:
    """Byte for byte; an engine that goes away in the middle becomes an error in the stream."""
    async with stack:
        yield first
        try:
            async for part in stream:
                yield part
        except CallError as error:
            content = bytes(error_response(503, str(error)).body)
            yield b"data: " + content + b"\n\ndata: [DONE]\n\n"


async def _member(
    front: Front, asked: Asked, headers: Mapping[str, str], tried: Container[EngineId]
) -> Member:
    """An engine whose server divides, by turns; where none does, the one that fits best. Others than
    those that were tried, where there are any. Waits while no engine is here.

    Raises:
        RequestError: the model is not served.
    """
    while not (members := _usable(front)):  # noqa: ASYNC110 - rare, and soon over
        await asyncio.sleep(_POLL_S)
    _check_model(asked.model, {member.card.model for member in members})
    members = [m for m in members if m.engine_id not in tried] or members
    turn = next(_turn)
    if dividing := [member for member in members if member.card.facts.get("front")]:
        return dividing[turn % len(dividing)]
    key = b"" if front.dispatcher.core.policy.name == BY_LOAD else _key(asked, headers)
    loads = [(m.engine_id, front.calls.in_flight[m.engine_id]) for m in members]
    return front.roster.members[chosen(loads, turn, key)]


@contextlib.contextmanager
def _body_for(front: Front, member: Member, body: bytes) -> Iterator[bytes]:
    """A server without our plugin generates the request itself: it gets the salt with it, and weights
    do not change meanwhile."""
    if member.card.facts.get("front"):
        yield body
        return
    with front.dispatcher.passing_on() as epoch:
        yield epoch.salted(body)


def _usable(front: Front) -> list[Member]:
    """Engines that a request may go to now. What a server generates by itself begins when any other
    request may."""
    members = [member for member in front.roster.members.values() if not member.quarantine]
    return [m for m in members if m.card.facts.get("front") or not front.dispatcher.holds]


def _key(asked: Asked, headers: Mapping[str, str]) -> bytes:
    """What requests that should meet on one server have in common."""
    given = headers.get(ROUTING_KEY, "")
    return given.encode() or bytes(asked.prompt or asked.messages)[:KEY_BYTES]


def _check_model(model: Any, served: set[str]) -> None:
    """Raise RequestError for a model that is not served, which SGLang would answer for all the same.

    None and `default` are SGLang's own default; what is no string is SGLang's to refuse.
    """
    if not isinstance(model, str) or model in ("", "default") or model in served:
        return
    if UNKNOWN_MODEL in served:  # a server that does not say what it serves
        return
    if any(model.startswith(f"{name}:") for name in served):  # with an adapter
        return
    message = f"the model {model!r} does not exist; served: {', '.join(sorted(served))}"
    raise RequestError("model", message, 404, "model_not_found")


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers for the server: the client's, and ours."""
    passed = {name.lower(): value for name, value in headers.items()}
    ours = {name: passed[name] for name in _KEPT if passed.get(name)}
    passed = {name: value for name, value in passed.items() if not _OURS.fullmatch(name)}
    passed.setdefault("content-type", "application/json")
    passed["x-seer-rid"] = uuid.uuid4().hex
    return passed | ours


def _response(answer: EngineAnswer) -> Response:
    """As it is, or as an error in the common shape."""
    own = {name: value for name, value in answer.headers.items() if _SERVERS_OWN.match(name)}
    if answer.status < 400:
        return Response(answer.body, answer.status, own, media_type="application/json")
    message, param, code = _error_of(answer.body)
    said = message or f"SGLang answered {answer.status}"
    return error_response(answer.status, said, param, code, **own)


def _error_of(body: bytes) -> tuple[str, str, str | None]:
    """Message, field and code of SGLang's errors, which have several shapes."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body.decode(errors="replace"), "", None
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return str(error), "", None
    message = error.get("message") or error.get("detail") or ""
    code = error.get("code")
    named = code if isinstance(code, str) and not code.isdecimal() else None
    return str(message), str(error.get("param") or ""), named
