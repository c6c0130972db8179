"""What the load generator sends and how it judges what comes back. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bench.mock_answers import FIRST_TOKEN, tokens

DISTINCT = 900_000
"""First tokens with as many digits; after that many requests they come again."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of sorted `values` that this share of them does not exceed; 0.0 of none."""
    if not values:
        return 0.0
    rank = -(-len(values) * share // 1)  # rounded up
    return values[max(0, min(len(values), int(rank)) - 1)]


@dataclass(frozen=True)
class Schedule:
    """When the requests of an open loop are due, whatever became of earlier ones."""

    began_s: float
    rate: float
    """Requests a second."""

    def due_s(self, number: int) -> float:
        """Time at which this request is due, counted from 0."""
        return self.began_s + number / self.rate

    def due_until(self, now_s: float) -> int:
        """How many requests are due by then."""
        # The margin keeps a timer that fires just in time from being taken for early.
        return max(0, int((now_s - self.began_s) * self.rate + 1e-6) + 1)


class Bodies:
    """Requests that differ in their first token only, as bytes on the wire.

    Args:
        prompt_tokens, new_tokens: of each request, 2 or more.
        stream: ask for events.
    """

    def __init__(self, host: str, prompt_tokens: int, new_tokens: int, stream: bool) -> None:
        self.prompt_tokens, self.new_tokens = prompt_tokens, new_tokens
        rest = ",".join(map(str, range(1000, 1000 + prompt_tokens - 1))).encode()
        tail = b"]," + (
            b'"sampling_params":{"max_new_tokens":%d,"temperature":1.0,"top_p":1.0},'
            b'"return_logprob":%b,"stream":%b}'
        ) % (new_tokens, b"false" if stream else b"true", b"true" if stream else b"false")
        before = b'{"input_ids":['
        length = len(before) + len(str(FIRST_TOKEN)) + 1 + len(rest) + len(tail)
        self._before = (
            b"POST /generate HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\n"
            b"Accept: */*\r\nContent-Length: %d\r\n\r\n%b"
        ) % (host.encode(), length, before)
        self._after = b"," + rest + tail

    def request(self, number: int) -> bytes:
        """A request."""
        return b"%b%d%b" % (self._before, first_token(number), self._after)

    def is_answer(self, number: int, status: int, body: bytes) -> bool:
        """Whether this is the whole answer to that request, by its first and last token."""
        first = first_token(number) + self.prompt_tokens
        last = first + self.new_tokens - 1
        return status == 200 and b'"output_ids":[%d,' % first in body and b",%d]" % last in body


def first_token(number: int) -> int:
    """First prompt token of this request."""
    return FIRST_TOKEN + number % DISTINCT


class _Meta(msgspec.Struct):
    finish_reason: dict[str, object] | None = None


class _Event(msgspec.Struct):
    output_ids: list[int]
    meta_info: _Meta


_decode_event = msgspec.json.Decoder(_Event).decode


class StreamCheck:
    """Reads one stream of cumulative events and counts what is not as it was sent.

    Args:
        number: of the request.
        prompt_tokens, new_tokens: that it had, and asked for.
    """

    def __init__(self, number: int, prompt_tokens: int, new_tokens: int) -> None:
        self._expected = list(tokens(first_token(number), prompt_tokens, prompt_tokens + new_tokens))
        self._rest = b""
        self._finished = False
        self._is_done = False
        self.seen = 0
        """Tokens that came so far."""
        self.events = 0
        self.merged = 0
        """Tokens that came with another one in one event: late perhaps, not lost."""
        self.duplicated = 0
        self.disordered = 0
        """Events that took tokens back, or came after the end."""
        self.wrong = 0
        """Events that are no such JSON, or have other tokens."""

    def feed(self, data: bytes) -> int:
        """Read on; how many tokens came that were not there before."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        before = self.seen
        for block in blocks:
            self._take(block.strip())
        return self.seen - before

    @property
    def lost(self) -> int:
        """Tokens that never came."""
        return len(self._expected) - self.seen

    @property
    def is_whole(self) -> bool:
        """Every token came once, in order, then a reason to finish and the end."""
        faults = self.lost + self.duplicated + self.disordered + self.wrong
        return not faults and self._finished and self._is_done and not self._rest

    def _take(self, block: bytes) -> None:
        if not block or block.startswith(b":"):
            return
        if self._is_done:
            self.disordered += 1
        elif block == b"data: [DONE]":
            self._is_done = True
        else:
            self._take_event(block)

    def _take_event(self, block: bytes) -> None:
        self.events += 1
        try:
            event = _decode_event(block.removeprefix(b"data: "))
        except msgspec.MsgspecError:
            self.wrong += 1
            return
        count = len(event.output_ids)
        finishes = event.meta_info.finish_reason is not None
        if event.output_ids != self._expected[:count]:
            self.wrong += 1
        elif count < self.seen or self._finished:
            self.disordered += 1
        elif count == self.seen and not finishes:
            self.duplicated += 1
        else:
            self.merged += max(0, count - self.seen - 1)
            self.seen = count
        self._finished = self._finished or finishes
