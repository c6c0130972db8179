"""Answers as server-sent events: SGLang's format, one ASGI call, no task of its own."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.http.watch import Watched
from seer_sgl.router.stopping import Stopping
from seer_sgl.router.transcript import PER_TOKEN

DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


def event(content: Any) -> bytes:
    """One event."""
    return b"data: %b\n\n" % _encoder.encode(content)


def error_event(error: Exception) -> bytes:
    """An error in the middle of a stream, as SGLang tells it."""
    status = error.status if isinstance(error, RequestError) else 503
    kind = "invalid_request_error" if status < 500 else "server_error"
    told = {"message": str(error), "type": kind, "code": status, "retryable": status >= 500}
    return event({"error": told})


class EventStream(Response):
    """Sends events as they come.

    Args:
        events: whole events; closed when the client hangs up or the router stops. A `SeerError` that it
            raises is told in the stream.
        end: what follows when there are no more.
    """

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, events: AsyncIterator[bytes], stopping: Stopping, end: bytes = DONE
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache"}, self.media_type)
        # Its length is not known.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._request, self._events, self._stopping = request, events, stopping
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def part(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            with Watched(self._request, self._stopping):
                await send(start)
                await part(b"")
                async for data in self._events:
                    await part(data)
                await part(self._end, more=False)
        except ClientDisconnect:
            return
        except SeerError as error:
            await part(error_event(error) + DONE, more=False)
        finally:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()


class Deltas:
    """Cumulative answers turned into what is new in each."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[str, int]] = {}

    def of(self, index: int, answer: dict[str, Any]) -> dict[str, Any]:
        """What sample `index` has not said yet."""
        text, tokens = self._sent.get(index, ("", 0))
        new_text = answer["text"]
        meta = dict(answer["meta_info"])
        for key in PER_TOKEN:
            if key in meta:
                meta[key] = meta[key][tokens:]
        ids = answer["output_ids"]
        self._sent[index] = new_text, len(ids)
        new = new_text[len(text) :]  # what was sent cannot be taken back
        return {**answer, "text": new, "output_ids": ids[tokens:], "meta_info": meta}
