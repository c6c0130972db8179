"""A mock SGLang server that costs next to nothing: what it answers is what routers are measured with.

    python -m bench.mock_engine --ports 31000 31001 [--event-s 4] [--slots 8192]

One process, one loop, any number of ports, each an SGLang server to whoever asks. `/generate` answers at
once; with `"stream": true` it sends a token every `--event-s` seconds, each event with all tokens so
far, as SGLang does.
"""

import argparse
import asyncio
from functools import partial
from typing import cast

import uvloop

from bench.mock_answers import (
    END_OF_STREAM,
    STREAM_HEAD,
    STREAM_TAIL,
    Ask,
    Requests,
    answer,
    decode_ask,
    document,
    event,
    http_answer,
    json_answer,
    piece,
)

DONE = {"success": True, "message": "", "text": ["", ""]}
"""The answer to any other POST: control calls, and ids of several chunks to be turned into text."""


class Mock:
    """What the connections of one port share."""

    def __init__(self, slots: int, event_s: float) -> None:
        self.slots = slots
        self.event_s = event_s
        self.loop = asyncio.get_running_loop()
        self.streams: dict[str, _Stream] = {}
        self._fixed: dict[str, bytes] = {}

    def get(self, path: str) -> bytes:
        """The answer to a GET."""
        if path in ("/v1/loads", "/get_load"):
            return json_answer(document(path, len(self.streams), self.slots))
        if path not in self._fixed:
            content = document(path, 0, self.slots)
            known = content is not None
            self._fixed[path] = json_answer(content if known else {"error": path}, 200 if known else 404)
        return self._fixed[path]

    def abort(self, rid: str) -> None:
        """End the stream of this id, if there is one."""
        if rid in self.streams:
            self.streams.pop(rid).stop()


class _Connection(asyncio.Protocol):
    def __init__(self, mock: Mock) -> None:
        self._mock = mock
        self._requests = Requests()
        self._stream: _Stream | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.stop()

    def data_received(self, data: bytes) -> None:
        for method, target, body in self._requests.feed(data):
            if target == "/generate":
                ask = decode_ask(body)
                if ask.stream:
                    self._stream = _Stream(self._mock, self._transport, ask)
                else:
                    self._transport.write(http_answer(200, answer(ask, ask.new_tokens)))
            elif target == "/abort_request":
                self._mock.abort(decode_ask(body).rid or "")
                self._transport.write(http_answer(200, b""))
            elif method == "POST":
                self._transport.write(json_answer(DONE))
            else:
                self._transport.write(self._mock.get(target.partition("?")[0]))


class _Stream:
    """One streaming answer: an event now and then, until it has all its tokens."""

    def __init__(self, mock: Mock, transport: asyncio.Transport, ask: Ask) -> None:
        self._mock, self._transport, self._ask = mock, transport, ask
        self._done = 0
        # Times are counted from the start, so that no lateness adds up.
        self._began_s = mock.loop.time()
        transport.write(STREAM_HEAD)
        mock.streams[ask.rid or ""] = self
        self._timer = mock.loop.call_later(mock.event_s, self._step)

    def _step(self) -> None:
        self._done += 1
        data = event(answer(self._ask, self._done))
        if self._done < self._ask.new_tokens:
            self._transport.write(data)
            due_s = self._began_s + self._mock.event_s * (self._done + 1)
            self._timer = self._mock.loop.call_at(due_s, self._step)
        else:
            self._transport.write(data + piece(END_OF_STREAM) + STREAM_TAIL)
            self._mock.streams.pop(self._ask.rid or "", None)

    def stop(self) -> None:
        """Send nothing more than the end."""
        self._timer.cancel()
        if not self._transport.is_closing():
            self._transport.write(piece(END_OF_STREAM) + STREAM_TAIL)


async def serve(ports: list[int], slots: int, event_s: float) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    for port in ports:
        mock = Mock(slots, event_s)
        await loop.create_server(partial(_Connection, mock), "127.0.0.1", port, backlog=8192)
    await loop.create_future()


def main() -> None:
    """Run the mock servers."""
    parser = argparse.ArgumentParser(description="Mock SGLang servers.")
    parser.add_argument("--ports", type=int, nargs="+", required=True)
    parser.add_argument("--slots", type=int, default=8192, help="requests that each says it can run")
    parser.add_argument("--event-s", type=float, default=4.0, help="seconds between a stream's tokens")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.ports, args.slots, args.event_s))


if __name__ == "__main__":
    main()
