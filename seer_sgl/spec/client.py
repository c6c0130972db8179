"""The engine's end of the draft servers: a thread that owns the sockets, and methods that never wait.

What the engine generates goes into logs, from where the thread sends it; what other engines generated
comes to the sink, in batches. A server that is slow, gone or started afresh shows in the counters alone.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import zmq

from seer_sgl.spec.sharing.blocks import IntArray
from seer_sgl.spec.sharing.exchange import warm_up
from seer_sgl.spec.sharing.heads import AnswerHead, Frames, MessageError, Rejected, head_of
from seer_sgl.spec.sharing.logs import Batch
from seer_sgl.spec.sharing.messages import MAX_FRAME_BYTES, answer_of, frames_of
from seer_sgl.spec.sharing.reading import Records
from seer_sgl.spec.sharing.session import Session

log = logging.getLogger(__name__)


RECONNECT_MS = 50
LONGEST_RECONNECT_MS = 500
"""A server that is away is dialled ever more rarely, at last so often."""


AWAY_S = 5.0
"""A server that cannot be reached for longer is told of. Being started afresh takes less."""


class Sink(Protocol):
    """Where other engines' tokens go. Called from the client's thread."""

    def receive(self, records: Records) -> None: ...


class ClientSettings(NamedTuple):
    """How a client talks to its servers."""

    period_s: float = 0.05
    """Between two calls to a server. A token is seen elsewhere after one to two of these."""
    answer_timeout_s: float = 0.5
    """A call without an answer for so long is given up; doubled up to the longest, until one comes."""
    longest_timeout_s: float = 8.0
    ttl_s: float = 600.0
    """How long a server keeps a group that no engine reads: its requests may all wait meanwhile."""
    budget_bytes: int = 128 << 20
    """For the tokens that this engine keeps, to send them again, until their groups are released."""
    vocab_size: int = 0
    """Token ids are below this; 0: not known."""


class DraftClient:
    """Shares what one engine generates. All methods may be called from any thread.

    Args:
        servers: ZeroMQ addresses of the draft servers, the same list and order for every engine.
        engine: its name, for the log.
        sink: gets what other engines generated.
        settings: how it talks.
    """

    def __init__(
        self,
        servers: Sequence[str],
        engine: str,
        sink: Sink,
        settings: ClientSettings = ClientSettings(),  # noqa: B008 - immutable
    ) -> None:
        warm_up()
        self._servers = list(servers)
        self._engine = engine
        self._sink = sink
        self._settings = settings
        # Without a server nothing is ever sent, and need not be kept.
        budget_bytes = settings.budget_bytes if self._servers else 0
        self._session = Session(
            max(1, len(self._servers)), budget_bytes, settings.vocab_size, settings.ttl_s
        )
        self._lock = threading.Lock()
        """Held for microseconds: the engine's step waits for nothing else."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sink_errors = self._bad_answers = 0
        self._away: set[int] = set()
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin to talk. Sockets are made here, so that a fork before this does no harm."""
        if self._servers and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="seer-drafts", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; what was not sent is not sent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # ---- the engine's step ----

    def register(self, group_id: str) -> None:
        """Read this group until it is released, and send what its requests here generate."""
        with self._lock:
            self._session.register(group_id)

    def release(self, group_id: str) -> None:
        """No request of this group runs here any more. Its tokens are forgotten."""
        with self._lock:
            self._session.release(group_id, time.monotonic())

    def open(self, group_id: str, request_id: int) -> int:
        """A number for a request, for `update_many`; good until its group is released.

        -1, for which updates are left out, where the request's own number is negative, or 2**31 or more.
        """
        with self._lock:
            return self._session.open(group_id, request_id)

    def resume(self, group_id: str, request_id: int, tokens: Sequence[int] | IntArray) -> None:
        """Tell what a request's earlier chunks generated: it has been sent, and is kept all the same."""
        with self._lock:
            self._session.resume(group_id, request_id, tokens)

    def update(
        self, group_id: str, request_id: int, prev_token_count: int, tokens: Sequence[int] | IntArray
    ) -> None:
        """Tell new tokens of one request."""
        with self._lock:
            self._session.append_one(group_id, request_id, prev_token_count, tokens)

    def update_many(
        self, numbers: IntArray, prevs: IntArray, starts: IntArray, tokens: IntArray
    ) -> None:
        """Tell new tokens of many requests, by the numbers that `open` gave.

        Those of request i are `tokens[starts[i]:starts[i + 1]]`, after `prevs[i]` that it had before.

        Raises:
            ValueError: the arrays do not fit together.
        """
        with self._lock:
            self._session.append(Batch(numbers, prevs, starts, tokens))

    def finished(self, group_id: str, request_id: int) -> None:
        """The request generates nothing more here; its tokens are the first to go if memory is short."""
        with self._lock:
            self._session.ended(group_id, request_id)

    def counters(self) -> dict[str, float]:
        """Counts since the start."""
        with self._lock:
            counts = self._session.counters()
        return {
            **counts,
            "sink_errors": self._sink_errors,
            "bad_answers": self._bad_answers,
            "servers_away": len(self._away),
        }

    # ---- the thread ----

    def _run(self) -> None:
        context, poller = zmq.Context(), zmq.Poller()
        lines = self.lines(context, poller)
        try:
            while not self._stop.is_set():
                for server, line in enumerate(lines):
                    if line.due_s <= time.monotonic():
                        self.tend(server, line)
                wait_s = min(line.due_s for line in lines) - time.monotonic()
                # Never for longer than a period, so that `close` waits no longer.
                wait_s = min(max(0.0, wait_s), self._settings.period_s)
                ready = dict(poller.poll(math.ceil(wait_s * 1000)))
                for server, line in enumerate(lines):
                    if line.socket in ready:
                        self.hear(server, line)
        except Exception:
            log.exception("a bug: %s shares no drafts any more", self._engine)
        finally:
            for line in lines:
                line.hang_up()
            context.term()

    def lines(self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller) -> list["Line"]:
        """A line to each server; for the thread, or for one loop that stands for many engines."""
        return [Line(context, poller, address, self._settings) for address in self._servers]

    def tend(self, server: int, line: "Line") -> None:
        """What is due: give up the call under way, which takes too long, or make the next."""
        if line.is_waiting:
            self._give_up(server, line)
            self._tell_away(server, line)
        line.due_s = time.monotonic() + self._settings.period_s
        if not line.is_connected():
            if time.monotonic() > line.heard_s + AWAY_S:
                self._tell_away(server, line)
            return
        with self._lock:
            call = self._session.call(server, time.monotonic())
        if call is not None and not line.send(frames_of(call)):
            self._give_up(server, line)

    def _give_up(self, server: int, line: "Line") -> None:
        with self._lock:
            self._session.lost(server)
        line.dial_again()

    def hear(self, server: int, line: "Line") -> None:
        """Take the answer that is there."""
        try:
            frames = line.socket.recv_multipart(zmq.NOBLOCK)
            head = head_of(frames)
            if not isinstance(head, AnswerHead):
                raise MessageError(head.reason if isinstance(head, Rejected) else f"got {head}")
            answer = answer_of(head, frames)
            with self._lock:
                records = self._session.answered(server, answer, time.monotonic())
                is_hungry = self._session.hungry[server]
        except zmq.Again:
            return
        except ValueError as error:
            self._bad_answers += 1
            self._tell_once("answer", f"the draft server at {line.address} is of no use: {error}")
            self._give_up(server, line)
            return
        line.heard(at_once=is_hungry)
        self._away.discard(server)
        if records is not None:
            self._hand_on(records)

    def _hand_on(self, records: Records) -> None:
        try:
            self._sink.receive(records)
        except Exception as error:
            # Whatever is wrong with the trees, the engine's other work goes on.
            self._sink_errors += 1
            self._tell_once("sink", f"other engines' tokens could not be taken in: {error!r}")

    def _tell_away(self, server: int, line: "Line") -> None:
        self._away.add(server)
        self._tell_once(
            "away",
            f"the draft server at {line.address} does not answer; {self._engine} drafts from what it "
            "has, and tries again",
        )

    def _tell_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s", message)


class Line:
    """The socket to one server, and what it waits for."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        address: str,
        settings: ClientSettings,
    ) -> None:
        self.address = address
        self.due_s = 0.0
        """When something is to be done: the next call, or giving up the one under way."""
        self.is_waiting = False
        self.heard_s = time.monotonic()
        self._context = context
        self._poller = poller
        self._settings = settings
        self._called_s = 0.0
        self._timeout_s = settings.answer_timeout_s
        self.socket = self._dial()

    def is_connected(self) -> bool:
        """Whether the server is there to take a call."""
        return bool(self.socket.poll(0, zmq.POLLOUT))

    def send(self, frames: Frames) -> bool:
        """Make a call; False where the server has just gone."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            return False
        self._called_s = time.monotonic()
        self.due_s = self._called_s + self._timeout_s
        self.is_waiting = True
        return True

    def heard(self, at_once: bool) -> None:
        """The answer came; the next call is due a period after the last, or now."""
        self.is_waiting = False
        self.heard_s = time.monotonic()
        self._timeout_s = self._settings.answer_timeout_s
        self.due_s = 0.0 if at_once else self._called_s + self._settings.period_s

    def dial_again(self) -> None:
        """Forget the call under way: on a new socket its answer cannot come any more."""
        self.hang_up()
        self.is_waiting = False
        self.due_s = time.monotonic() + self._timeout_s
        self._timeout_s = min(2 * self._timeout_s, self._settings.longest_timeout_s)
        self.socket = self._dial()

    def hang_up(self) -> None:
        self._poller.unregister(self.socket)
        self.socket.close()

    def _dial(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 2)
        socket.setsockopt(zmq.RCVHWM, 2)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        # A call to a server that is away would be queued otherwise, and come late.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, LONGEST_RECONNECT_MS)
        socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            log.warning(
                "%r is no address of a draft server (%s); nothing is shared", self.address, error
            )
        self._poller.register(socket, zmq.POLLIN)
        return socket
