"""The draft server: what it answers to nonsense, and that it is a process that comes and goes."""

import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from seer_sgl.engine.process import free_port
from seer_sgl.spec.sharing.heads import (
    AskStatistics,
    CallHead,
    Frames,
    MessageError,
    Rejected,
    Statistics,
    encode,
    head_of,
)
from seer_sgl.spec.sharing.messages import Call, frames_of
from tests.unit.spec.engines import Clock, Engine, server

PATIENCE_MS = 10_000


def plain(frames: Frames | None) -> list[bytes]:
    assert frames is not None
    return [bytes(frame) for frame in frames]


def a_call(instance: str, updates: list[list[int]], tokens: list[int]) -> list[bytes]:
    none = np.empty((0, 5), np.int32)
    head = CallHead(instance=instance, ttl_s=1.0, vocab_size=10, names=["g"])
    rows = np.array(updates, np.int32).reshape(-1, 6)
    return plain(frames_of(Call(head, rows, np.array(tokens, np.int32), none, none[:, :2])))


def test_nonsense_is_rejected_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    drafts = server(Clock())
    for frames in ([b"nonsense"], [], [encode(Rejected(reason="x"))], a_call("", [], [])[:2]):
        answer = head_of(plain(drafts.answer(frames)))
        assert isinstance(answer, Rejected)
        assert answer.reason
    assert drafts.counters()["malformed"] == 4
    assert len(caplog.records) == 1
    assert "a message was rejected: not a head" in caplog.text


def test_refused_updates_are_told_once_per_kind(caplog: pytest.LogCaptureFixture) -> None:
    drafts = server(Clock())
    for _ in range(2):
        updates = [[0, 1, 1, 1, 5, 1], [0, 1, 1, 1, 0, 1], [9, 1, 1, 1, 0, 1]]
        drafts.answer(a_call(drafts.instance, updates, [1, 99, 1]))
    counters = drafts.counters()
    assert [counters[f"refused_{kind}"] for kind in ("gap", "bad_token", "unknown_group")] == [2, 2, 2]
    assert len(caplog.records) == 3
    assert "a token id is negative or outside the vocabulary" in caplog.text


def test_calls_meant_for_an_earlier_server_change_nothing() -> None:
    drafts = server(Clock())
    drafts.answer(a_call("another", [[0, 1, 1, 1, 0, 1]], [1]))
    assert drafts.counters()["accepted_tokens"] == 0
    assert drafts.counters()["groups"] == 1, "but its groups are registered"


def test_a_bug_of_ours_costs_an_answer_and_not_the_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = server(Clock())
    monkeypatch.setattr(drafts.store, "fetch_cst", lambda *_: 1 / 0)
    assert drafts.answer(a_call(drafts.instance, [], [])) is None
    assert drafts.counters()["crashes"] == 1
    assert caplog.records[0].levelno == logging.ERROR


def test_groups_expire_by_the_servers_clock() -> None:
    clock, a = Clock(), Engine()
    drafts = server(clock)
    a.session.register("g")
    a.talk(drafts, clock)
    clock.now_s = 60.0
    drafts.expire()
    assert drafts.counters()["expired_groups"] == 1


class Process:
    """`python -m seer_sgl.spec.server`."""

    def __init__(self, port: int, *args: str) -> None:
        argv = [sys.executable, "-m", "seer_sgl.spec.server", "--port", str(port), *args]
        self.popen = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)

    def wait_ready(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            if "drafts on" in line:
                return
        raise AssertionError("it ended before")

    def end(self, number: signal.Signals) -> int:
        self.popen.send_signal(number)
        self.popen.communicate(timeout=5.0)
        return self.popen.returncode


@pytest.fixture
def peer() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        yield dealer


def test_the_process_answers_survives_nonsense_and_ends_by_a_signal(peer: zmq.Socket[bytes]) -> None:
    port = free_port()
    process = Process(port)
    try:
        process.wait_ready()
        peer.connect(f"tcp://127.0.0.1:{port}")
        for frames in ([b""], [b"x" * 9], a_call("", [], [])[:3], [encode(AskStatistics())]):
            peer.send_multipart(frames)
            assert peer.poll(PATIENCE_MS)
            answer = head_of(peer.recv_multipart())
        assert isinstance(answer, Statistics)
        assert answer.counters["malformed"] == 3
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        peer.send_multipart(a_call("", [], []))
        assert peer.poll(PATIENCE_MS)
    finally:
        assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--budget-bytes", "1"], "must lie in"),
        (["--host", "no.such.host.invalid"], "cannot serve drafts on no.such.host.invalid"),
    ],
)
def test_what_keeps_the_process_from_starting_is_said(args: list[str], complaint: str) -> None:
    argv = [sys.executable, "-m", "seer_sgl.spec.server", "--port", str(free_port()), *args]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert complaint in ran.stderr
    assert "Traceback" not in ran.stderr


def test_rejected_is_no_answer_that_a_call_may_have() -> None:
    with pytest.raises(MessageError):
        head_of([b"\x80"])
