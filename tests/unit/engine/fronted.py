"""SGLang's side of its front, and the router's, made up."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from starlette.datastructures import Headers

from seer_sgl.engine import front, reasoning
from seer_sgl.engine.process import free_port

Marks = tuple[list[int], list[int]] | None
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    """`GenerateReqInput`, as far as matters."""

    rid: Any = field(default=None, kw_only=True)
    text: Any = None
    input_ids: Any = None
    image_data: Any = None
    sampling_params: Any = None
    return_logprob: Any = None
    logprob_start_len: Any = None
    top_logprobs_num: Any = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    log_metrics: bool = True
    return_hidden_states: Any = False
    routed_dp_rank: Any = None
    background: bool = False
    priority: Any = None
    return_prompt_token_ids: bool = False
    received_time: Any = None
    cache_salt: Any = None
    require_reasoning: bool = False

    def normalize_batch_and_arguments(self) -> None:
        if self.text is None and self.input_ids is None:
            raise ValueError("a prompt is missing")
        self.parallel_sample_num = (self.sampling_params or {}).get("n", 1)
        self.is_single = self.parallel_sample_num == 1


class Manager:
    """`TokenizerManager`."""

    tokenizer = object()
    mm_processor: Any = None

    def __init__(self, deltas: bool = False, marks: Marks = ([], [])) -> None:
        self.incremental_streaming_output = deltas
        reasoning._known[self] = marks  # as read from SGLang

    async def _tokenize_texts(self, texts: Any) -> tuple[Any, None]:
        if isinstance(texts, str):
            return list(texts.encode()), None
        return [list(text.encode()) for text in texts], None

    async def generate_request(self, obj: Any, _request: Any = None) -> AsyncGenerator[Any, None]:
        yield {"here": obj}


class Request:
    """What FastAPI gives SGLang's handlers."""

    def __init__(self, **headers: str) -> None:
        self.headers = Headers({name.replace("_", "-"): value for name, value in headers.items()})
        self.state = SimpleNamespace()
        self.gone = False

    async def is_disconnected(self) -> bool:
        return self.gone


@contextlib.asynccontextmanager
async def router(handler: Handler) -> AsyncIterator[str]:
    """Its URL."""
    runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await front._session().close()
        await runner.cleanup()


async def outputs(obj: Asked, request: Any, manager: Manager | None = None) -> list[Any]:
    """All that the hooked method yields."""
    original = Manager.generate_request
    answers = front.generate_request(original, manager or Manager(), obj, request)
    return [out async for out in answers]


def asked_of(url: str, **more: str) -> Request:
    return Request(x_seer_router=url, x_seer_rid="r", **more)


def sample(rid: str = "r", **meta: Any) -> dict[str, Any]:
    finish = {"type": "stop", "matched": 1}
    meta_info = {"id": rid, "finish_reason": finish, "reasoning_tokens": 0, **meta}
    return {"text": "x", "output_ids": [5], "meta_info": meta_info}


def events(*outs: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(out).encode() + b"\n\n" for out in outs)


def streamed(*parts: bytes, heads: list[Any] | None = None) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if heads is not None:
            heads.append(dict(request.headers))
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for part in parts:
            await answer.write(part)
            await asyncio.sleep(0.001)
        await answer.write_eof()
        return answer

    return handler
