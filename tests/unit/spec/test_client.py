"""Clients on real sockets: a server that comes, goes, hangs, talks nonsense, or is not there at all."""

import threading
import time
from collections.abc import Callable, Iterator
from signal import SIGKILL, SIGTERM

import pytest
import zmq

from seer_sgl.engine.process import free_port
from seer_sgl.spec.client import ClientSettings, DraftClient
from seer_sgl.spec.server import bound_socket, serve
from seer_sgl.spec.sharing.heads import AnswerHead, Statistics, encode
from seer_sgl.spec.sharing.reading import Records
from tests.unit.spec.engines import Clock, Engine, server, truth
from tests.unit.spec.test_server import Process

PATIENCE_S = 10.0
QUICK = ClientSettings(period_s=0.005, answer_timeout_s=0.1, longest_timeout_s=0.2)


def until(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, "it never held"
        time.sleep(0.002)


class Peer:
    """A client whose sink checks what it gets."""

    def __init__(self, *addresses: str, settings: ClientSettings = QUICK) -> None:
        self.engine = Engine()
        self.client = DraftClient(addresses, "engine", self, settings)
        self.client.start()

    def receive(self, records: Records) -> None:
        self.engine.take(records)

    def generate(self, group: str, request: int, start: int, end: int) -> None:
        self.engine.has[group, request] = end
        self.client.update(group, request, start, truth(group, request, start, end))

    def counter(self, name: str) -> float:
        return self.client.counters()[name]


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*addresses: str, settings: ClientSettings = QUICK) -> Peer:
        made.append(Peer(*addresses, settings=settings))
        return made[-1]

    yield make
    for peer in made:
        peer.client.close()


@pytest.fixture
def address() -> Iterator[str]:
    """A server in a thread."""
    port, stop = free_port(), threading.Event()
    context = zmq.Context()
    socket = bound_socket(context, "127.0.0.1", port)
    drafts = server(Clock())
    drafts.expire = lambda: None  # type: ignore[method-assign]
    thread = threading.Thread(target=serve, args=(drafts, socket, lambda: not stop.is_set()))
    thread.start()
    yield f"tcp://127.0.0.1:{port}"
    stop.set()
    with context.socket(zmq.DEALER) as waker:
        waker.connect(f"tcp://127.0.0.1:{port}")
        waker.send(b"")
        thread.join()
    socket.close()
    context.term()


def test_a_sibling_on_another_engine_is_read(address: str, peers: Callable[..., Peer]) -> None:
    a, b = peers(address), peers(address)
    b.client.register("g")
    for step in range(20):
        a.generate("g", 1, step * 3, step * 3 + 3)
        time.sleep(0.002)
    until(lambda: b.engine.has == {("g", 1): 60})
    a.client.finished("g", 1)
    a.client.release("g")
    b.client.resume("g", 1, truth("g", 1, 0, 60))
    b.generate("g", 1, 60, 63)
    c = peers(address)
    c.client.register("g")
    until(lambda: c.engine.has == {("g", 1): 63})
    assert b.counter("lost_calls") == 0


def test_without_servers_nothing_happens(peers: Callable[..., Peer]) -> None:
    alone = peers()
    alone.generate("g", 1, 0, 3)
    alone.client.close()
    assert alone.counter("calls") == 0


@pytest.mark.parametrize("wrong", ["nonsense", "tcp://"])
def test_an_address_that_is_none(
    wrong: str, peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    a = peers(wrong)
    a.generate("g", 1, 0, 3)
    until(lambda: caplog.records)
    assert f"{wrong!r} is no address of a draft server" in caplog.text


def test_a_server_that_hangs_costs_the_engine_nothing(
    peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with zmq.Context() as context:
        deaf = bound_socket(context, "127.0.0.1", port)
        a = peers(f"tcp://127.0.0.1:{port}")
        began_s = time.monotonic()
        for step in range(1000):
            a.generate("g", 1, step, step + 1)
        assert time.monotonic() - began_s < PATIENCE_S
        until(lambda: a.counter("lost_calls") >= 2)
        deaf.close()
    assert caplog.text.count("does not answer") == 1


def test_a_server_that_cannot_be_reached_is_told_of(
    peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seer_sgl.spec.client.AWAY_S", 0.02)
    a = peers(f"tcp://127.0.0.1:{free_port()}")
    a.generate("g", 1, 0, 3)
    until(lambda: a.counter("servers_away") == 1)
    assert (a.counter("calls"), a.counter("appended_tokens")) == (0, 3)
    assert caplog.text.count("does not answer") == 1


def test_a_server_that_talks_nonsense_is_told_and_not_believed(
    peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    nonsense: list[list[bytes | memoryview]] = [
        [b"nonsense"],
        [encode(Statistics(counters={}))],
        [encode(AnswerHead(instance="x"))],
        [encode(AnswerHead(instance="x")), b"1234", b"", b"", b""],
        [encode(AnswerHead(instance="x")), b"", b"", b"", b""],
    ]
    with zmq.Context() as context, bound_socket(context, "127.0.0.1", port) as liar:
        a = peers(f"tcp://127.0.0.1:{port}", settings=QUICK._replace(answer_timeout_s=0.01))
        a.generate("g", 1, 0, 3)
        for answer in nonsense:
            assert liar.poll(int(PATIENCE_S * 1000))
            peer, *_ = liar.recv_multipart()
            liar.send_multipart([peer, *answer])
        until(lambda: a.counter("bad_answers") == len(nonsense))
    assert caplog.text.count("is of no use") == 1


def test_a_sink_that_fails_is_told_once(
    address: str, peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = peers(address), peers(address)
    b.engine.take = None  # type: ignore[assignment,method-assign]
    b.client.register("g")
    a.generate("g", 1, 0, 3)
    until(lambda: b.counter("sink_errors") == 1)
    a.generate("g", 1, 3, 6)
    until(lambda: b.counter("sink_errors") == 2)
    assert caplog.text.count("could not be taken in: TypeError") == 1


def test_a_server_killed_and_started_again(peers: Callable[..., Peer]) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    a, b = peers(address), peers(address)
    b.client.register("g")
    a.generate("g", 1, 0, 10)  # before there is a server at all
    first = Process(port)
    first.wait_ready()
    try:
        until(lambda: b.engine.has == {("g", 1): 10})
    finally:
        first.end(SIGKILL)
    a.generate("g", 1, 10, 20)
    second = Process(port)
    second.wait_ready()
    try:
        until(lambda: b.engine.has == {("g", 1): 20})
        c = peers(address)
        c.client.register("g")
        until(lambda: c.engine.has == {("g", 1): 20})
    finally:
        assert second.end(SIGTERM) == 0
    assert b.counter("server_restarts") == 1
    assert b.engine.read_tokens == 20
