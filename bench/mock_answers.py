"""What a mock SGLang server answers: tokens that count up, so that every reader can check them.

Token `p` of a sequence is its first prompt token plus `p`. A request that was cut, moved, mixed up with
another or answered twice shows in the ids. Pure: bytes in, bytes out.
"""

import json
from typing import Any

import httptools
import msgspec

FIRST_TOKEN = 100_000
"""Prompts begin with this or more, so that each has as many digits."""

KV_TOKENS = 1 << 30
CONTEXT_TOKENS = 1 << 20
MODEL = "mock"

END_OF_STREAM = b"data: [DONE]\n\n"


class Sampling(msgspec.Struct):
    """What of a request's `sampling_params` is read."""

    max_new_tokens: int | None = 128


class Ask(msgspec.Struct):
    """What of a `/generate` body is read."""

    input_ids: list[int] = msgspec.field(default_factory=lambda: [FIRST_TOKEN])
    sampling_params: Sampling = msgspec.field(default_factory=Sampling)
    rid: str | None = None
    stream: bool = False
    return_logprob: bool = False

    @property
    def new_tokens(self) -> int:
        """How many tokens it asks for."""
        return self.sampling_params.max_new_tokens or 0


decode_ask = msgspec.json.Decoder(Ask).decode


def tokens(first: int, start: int, stop: int) -> range:
    """Ids at places `start` to `stop` of the sequence that begins with `first`."""
    return range(first + start, first + stop)


def answer(ask: Ask, done: int) -> bytes:
    """SGLang's answer after `done` tokens; with a reason to finish where these are all."""
    prompt_tokens = len(ask.input_ids)
    ids = tokens(ask.input_ids[0], prompt_tokens, prompt_tokens + done)
    finish = b"null" if done < ask.new_tokens else b'{"type":"length","length":%d}' % done
    logprobs = b""
    if ask.return_logprob:
        logprobs = (
            b',"output_token_logprobs":[%b]'
            % ",".join([f"[-0.25,{token},null]" for token in ids]).encode()
        )
    return (
        b'{"text":"%b","output_ids":[%b],"meta_info":{"id":"%b","finish_reason":%b,"prompt_tokens":%d,'
        b'"weight_version":"default","weight_versions":[{"version":"default","start":0,"end":%d}],'
        b'"num_retractions":0,"completion_tokens":%d,"cached_tokens":0,"cached_tokens_details":null,'
        b'"e2e_latency":0.001%b}}'
    ) % (
        b"t" * done,
        ",".join(map(str, ids)).encode(),
        (ask.rid or "mock").encode(),
        finish,
        prompt_tokens,
        done,
        done,
        logprobs,
    )


def document(path: str, running: int, slots: int) -> Any:
    """What a GET of `path` answers; None where there is no such path.

    Args:
        running: requests that it has.
        slots: requests that it says it can run at once.
    """
    model = {
        "model_path": MODEL,
        "served_model_name": MODEL,
        "tokenizer_path": MODEL,
        "is_generation": True,
        "weight_version": "default",
    }
    load = {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": 0,
        "num_used_tokens": 0,
        "num_reqs": running,
        "num_tokens": 0,
    }
    state = {"effective_max_running_requests_per_dp": slots, "last_gen_throughput": 0.0}
    return {
        "/health": {"status": "ok"},
        "/health_generate": {"status": "ok"},
        "/model_info": model,
        "/get_model_info": model,
        "/server_info": _server_info(state),
        "/get_server_info": _server_info(state),
        "/v1/models": {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "max_model_len": CONTEXT_TOKENS}],
        },
        "/v1/loads": {"timestamp": "", "version": "0", "loads": [load]},
        "/get_load": [load],
    }.get(path)


def _server_info(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_path": MODEL,
        "served_model_name": MODEL,
        "tokenizer_path": MODEL,
        "version": "0.5.23",
        "max_total_num_tokens": KV_TOKENS,
        "page_size": 16,
        "tp_size": 1,
        "pp_size": 1,
        "dp_size": 1,
        "disaggregation_mode": "null",
        "enable_memory_saver": False,
        "incremental_streaming_output": False,
        "status": "ready",
        "internal_states": [state],
    }


def http_answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    """A whole HTTP/1.1 answer; the connection stays."""
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        b"OK" if status == 200 else b"Error",
        kind.encode(),
        len(body),
        body,
    )


def json_answer(content: Any, status: int = 200) -> bytes:
    """A whole HTTP/1.1 answer of JSON."""
    return http_answer(status, json.dumps(content).encode())


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
STREAM_TAIL = b"0\r\n\r\n"


def event(data: bytes) -> bytes:
    """One server-sent event as a piece of a chunked answer."""
    return piece(b"data: %b\n\n" % data)


def piece(data: bytes) -> bytes:
    """One piece of a chunked answer."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Requests:
    """Takes requests out of the bytes of one connection, however these were cut."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._found: list[tuple[str, str, bytes]] = []
        self._target = b""
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[str, str, bytes]]:
        """Method, target and body of each request that these bytes complete.

        Raises:
            httptools.HttpParserError: they are no HTTP.
        """
        self._parser.feed_data(data)
        found, self._found = self._found, []
        return found

    # ---- called by the parser ----

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._found.append((method, self._target.decode(), b"".join(self._parts)))
        self._target, self._parts = b"", []
