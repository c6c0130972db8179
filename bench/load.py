"""A cheap HTTP load generator for `/generate`: closed loop, open loop, open streams.

    python -m bench.load '{"kind":"closed","port":30000,"concurrency":64,"seconds":10}'

One process, one loop. Prints `begin` when its warm-up is over, then a line of JSON (`Seen`). In the open
loop a request's latency counts from when it was due, so that a router that stalls is charged for all the
requests that it kept from being sent.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools
import msgspec
import uvloop

from bench.load_checks import Bodies, Schedule, StreamCheck, percentile


class Plan(msgspec.Struct, omit_defaults=True):
    """One run."""

    kind: str
    """`closed`, `open` or `streams`."""
    port: int
    concurrency: int = 1
    """Requests of the closed loop, or streams, that are under way at once."""
    rate: float = 0.0
    """Requests a second of the open loop."""
    seconds: float = 10.0
    """How long is measured; how long all streams are open at once."""
    warm_s: float = 1.0
    ramp_s: float = 8.0
    """Streams are opened evenly over this time."""
    event_s: float = 4.0
    """Seconds between the tokens of a stream, as the mock server has it."""
    prompt_tokens: int = 64
    new_tokens: int = 16


class Seen(msgspec.Struct):
    """What one run saw; times in ms."""

    requests: int = 0
    seconds: float = 0.0
    failed: int = 0
    """Requests without the answer that they should have had."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    late_p99_ms: float = 0.0
    """How long after it was due a request of the open loop was sent."""
    cpu_s: float = 0.0
    """Of this process, while it measured."""
    streams: int = 0
    streams_lost: int = 0
    """Streams that were not whole."""
    most_open: int = 0
    events: int = 0
    tokens_lost: int = 0
    tokens_merged: int = 0
    events_duplicated: int = 0
    events_disordered: int = 0
    events_wrong: int = 0


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time.

    `on_end(self, status, body)` is called with each answer, with status 0 where the connection broke;
    `on_part(data)`, where set, gets the body instead, as it comes.
    """

    def __init__(self) -> None:
        self.on_end: Callable[[Connection, int, bytes], None]
        self.on_part: Callable[[bytes], None] | None = None
        self.is_open = False
        self.number = -1
        """Of the request that it has."""
        self.due_s = 0.0
        self._busy = False
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._busy:
            self._busy = False
            self.on_end(self, 0, b"")

    def send(self, number: int, due_s: float, request: bytes) -> None:
        """Send a request that was due then."""
        self.number, self.due_s, self._busy = number, due_s, True
        self._parts.clear()
        self._transport.write(request)

    def close(self) -> None:
        """Hang up, without a word to `on_end`."""
        self._busy = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    # ---- called by the parser ----

    def on_body(self, body: bytes) -> None:
        if self.on_part is None:
            self._parts.append(body)
        else:
            self.on_part(body)

    def on_message_complete(self) -> None:
        self._busy = False
        self.on_end(self, self._parser.get_status_code(), b"".join(self._parts))


class Meter:
    """Latencies of the requests that ended while it measures."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.measures = False
        self.failed = 0
        self._latencies: list[float] = []
        self._late: list[float] = []
        self._began_s = self._cpu_s = 0.0

    def begin(self) -> None:
        """Measure from now on; whoever reads our output does, too."""
        print("begin", flush=True)
        self.measures = True
        self._began_s, self._cpu_s = time.monotonic(), time.process_time()

    def note(self, connection: Connection, status: int, body: bytes, now_s: float) -> None:
        """An answer came."""
        if not self.measures:
            return
        if self.bodies.is_answer(connection.number, status, body):
            self._latencies.append(now_s - connection.due_s)
        else:
            self.failed += 1

    def note_late(self, seconds: float) -> None:
        """A request was sent this long after it was due."""
        if self.measures:
            self._late.append(seconds)

    def end(self) -> Seen:
        """What was measured."""
        cpu_s, seconds = time.process_time() - self._cpu_s, time.monotonic() - self._began_s
        self.measures = False
        values, late = sorted(self._latencies), sorted(self._late)
        return Seen(
            requests=len(values),
            seconds=seconds,
            failed=self.failed,
            p50_ms=percentile(values, 0.5) * 1000,
            p99_ms=percentile(values, 0.99) * 1000,
            max_ms=percentile(values, 1.0) * 1000,
            late_p99_ms=percentile(late, 0.99) * 1000,
            cpu_s=cpu_s,
        )


async def connect(plan: Plan) -> Connection:
    """A new connection."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", plan.port)
    return connection


async def closed_loop(plan: Plan) -> Seen:
    """Every connection sends its next request when it has its answer."""
    loop = asyncio.get_running_loop()
    bodies = _bodies(plan)
    meter = Meter(bodies)
    numbers = iter(range(1 << 62))
    failure: asyncio.Future[None] = loop.create_future()

    def send_next(connection: Connection) -> None:
        number = next(numbers)
        connection.send(number, time.monotonic(), bodies.request(number))

    def on_end(connection: Connection, status: int, body: bytes) -> None:
        meter.note(connection, status, body, time.monotonic())
        unanswered.discard(connection)
        if connection.is_open:
            send_next(connection)
        elif not failure.done():
            failure.set_exception(ConnectionError("a connection of the closed loop broke"))

    connections = [await connect(plan) for _ in range(plan.concurrency)]
    unanswered = set(connections)
    for connection in connections:
        connection.on_end = on_end
        send_next(connection)
    await asyncio.wait([failure], timeout=plan.warm_s)
    # A crowd that comes at once is no steady state: everybody has had an answer before it begins.
    while unanswered and not failure.done():  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    meter.begin()
    await asyncio.wait([failure], timeout=plan.seconds)
    seen = meter.end()
    if failure.done():
        failure.result()
    for connection in connections:
        connection.close()
    return seen


async def open_loop(plan: Plan) -> Seen:
    """Requests go out when they are due, on a connection that is free or on another one."""
    bodies = _bodies(plan)
    meter = Meter(bodies)
    idle: deque[Connection] = deque()
    schedule = Schedule(time.monotonic() + 0.1, plan.rate)
    waiting: set[asyncio.Task[None]] = set()

    def on_end(connection: Connection, status: int, body: bytes) -> None:
        meter.note(connection, status, body, time.monotonic())
        if connection.is_open:
            idle.append(connection)

    def dispatch(connection: Connection, number: int) -> None:
        due_s = schedule.due_s(number)
        meter.note_late(time.monotonic() - due_s)
        connection.send(number, due_s, bodies.request(number))

    async def dispatch_new(number: int) -> None:
        connection = await connect(plan)
        connection.on_end = on_end
        dispatch(connection, number)

    def begin_one(number: int) -> None:
        while idle:
            connection = idle.pop()
            if connection.is_open:
                dispatch(connection, number)
                return
        task = asyncio.create_task(dispatch_new(number))
        waiting.add(task)
        task.add_done_callback(waiting.discard)

    sent, total = 0, round(plan.rate * (plan.warm_s + plan.seconds))
    warm = round(plan.rate * plan.warm_s)
    while sent < total:
        due = min(total, schedule.due_until(time.monotonic()))
        for number in range(sent, due):
            if number == warm:
                meter.begin()
            begin_one(number)
        sent = due
        await asyncio.sleep(schedule.due_s(sent) - time.monotonic())
    await asyncio.sleep(1.0)  # what is under way
    seen = meter.end()
    # The answers to warm-up requests that came after it count in the latencies, not here.
    seen.failed = max(seen.failed, total - warm - seen.requests)
    return seen


async def open_streams(plan: Plan) -> Seen:
    """Many streams at once; each is checked to the last token."""
    loop = asyncio.get_running_loop()
    plan.new_tokens = int(-(-(plan.seconds + plan.ramp_s) // plan.event_s))
    bodies = Bodies(f"127.0.0.1:{plan.port}", plan.prompt_tokens, plan.new_tokens, stream=True)
    numbers = range(plan.concurrency)
    checks = [StreamCheck(number, plan.prompt_tokens, plan.new_tokens) for number in numbers]
    ends: list[asyncio.Future[int]] = [loop.create_future() for _ in numbers]
    lags: list[float] = []
    most_open = 0

    def on_end(connection: Connection, status: int, body: bytes) -> None:
        ends[connection.number].set_result(status)

    async def begin_one(number: int) -> None:
        connection = await connect(plan)
        check = checks[number]

        def on_part(data: bytes) -> None:
            if check.feed(data):
                lags.append(time.monotonic() - connection.due_s - check.seen * plan.event_s)

        connection.on_end, connection.on_part = on_end, on_part
        connection.send(number, time.monotonic(), bodies.request(number))

    meter = Meter(bodies)
    meter.begin()
    for number in numbers:
        await begin_one(number)
        await asyncio.sleep(plan.ramp_s / plan.concurrency)
    most_open = sum(not end.done() for end in ends)
    await asyncio.wait(ends, timeout=plan.new_tokens * plan.event_s + 30.0)
    seen = meter.end()
    return _judged(seen, plan, checks, ends, sorted(lags), most_open)


def _judged(
    seen: Seen,
    plan: Plan,
    checks: list[StreamCheck],
    ends: list["asyncio.Future[int]"],
    lags: list[float],
    most_open: int,
) -> Seen:
    seen.streams, seen.most_open = plan.concurrency, most_open
    for check, end in zip(checks, ends, strict=True):
        is_well = check.is_whole and end.done() and end.result() == 200
        seen.streams_lost += not is_well
        seen.events += check.events
        seen.tokens_lost += check.lost
        seen.tokens_merged += check.merged
        seen.events_duplicated += check.duplicated
        seen.events_disordered += check.disordered
        seen.events_wrong += check.wrong
    seen.p50_ms, seen.p99_ms = percentile(lags, 0.5) * 1000, percentile(lags, 0.99) * 1000
    seen.max_ms = percentile(lags, 1.0) * 1000
    return seen


def _bodies(plan: Plan) -> Bodies:
    return Bodies(f"127.0.0.1:{plan.port}", plan.prompt_tokens, plan.new_tokens, stream=False)


KINDS = {"closed": closed_loop, "open": open_loop, "streams": open_streams}


def main() -> None:
    """Run the plan of the command line."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(KINDS[plan.kind](plan))
    print(msgspec.json.encode(seen).decode(), flush=True)


if __name__ == "__main__":
    main()
