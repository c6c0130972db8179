"""The wire between engines and draft servers: what comes back is what went, and nothing else passes."""

from typing import Any

import msgspec
import numpy as np
import pytest

from seer_sgl.spec.sharing.heads import (
    PROTOCOL,
    AnswerHead,
    AskStatistics,
    CallHead,
    Frames,
    MessageError,
    Rejected,
    Statistics,
    encode,
    head_of,
)
from seer_sgl.spec.sharing.messages import MAX_NAME_BYTES, Answer, Call, answer_of, call_of, frames_of


def table(*rows: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(rows, np.int32)


def head(**changes: Any) -> CallHead:
    return CallHead(**{"instance": "i", "ttl_s": 1.0, "vocab_size": 9, "names": ["g"], **changes})


CALL = Call(
    head(),
    table((0, 1, 2, 3, 4, 2), (0, 1, 2, 5, 0, 1)),
    np.array([7, 8, 9], np.int32),
    table((0, 1, 2, 30, 1)),
    table((6, 7)),
)


def wire(message: Call | Answer) -> list[bytes]:
    return [bytes(frame) for frame in frames_of(message)]


def test_a_call_comes_back_as_it_went() -> None:
    frames = wire(CALL)
    got_head = head_of(frames)
    assert isinstance(got_head, CallHead)
    got = call_of(got_head, frames)
    assert got.head == CALL.head
    for ours, theirs in zip(CALL[1:], got[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_answer_comes_back_as_it_went() -> None:
    rows = table((1, 2, 3))
    sent = Answer(AnswerHead(instance="x"), rows, rows[:0], rows, np.arange(5, dtype=np.int32))
    frames = wire(sent)
    got_head = head_of(frames)
    assert isinstance(got_head, AnswerHead)
    for ours, theirs in zip(sent[1:], answer_of(got_head, frames)[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "message", [AskStatistics(), Statistics(counters={"a": 1.0}), Rejected(reason="no")]
)
def test_messages_of_a_head_alone(message: AskStatistics | Statistics | Rejected) -> None:
    assert head_of([encode(message)]) == message


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([], "without frames"),
        ([b""], "not a head of protocol"),
        ([b"\xc1 nonsense"], "not a head of protocol"),
        ([msgspec.msgpack.encode({"protocol": PROTOCOL, "type": "Other"})], "Invalid value 'Other'"),
        ([msgspec.msgpack.encode({"protocol": PROTOCOL + 1})], "speaks protocol 2, this side 1: update"),
        ([msgspec.msgpack.encode({"protocol": "one"})], "Expected `int`"),
    ],
)
def test_what_is_no_head(frames: Frames, complaint: str) -> None:
    with pytest.raises(MessageError, match=complaint):
        head_of(frames)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({1: b"123"}, "updates: 3 bytes are no rows of 6 int32"),
        ({2: b"123"}, "tokens: 3 bytes"),
        ({2: b""}, "the updates do not count the 0 rows that follow"),
        ({1: b""}, "the updates do not count the 3 rows"),
        ({4: b""}, "the fetches do not count"),
        ({1: table((0, 1, 2, 3, 4, 4), (0, 1, 2, 3, 4, -1)).tobytes()}, "updates do not count"),
        ({3: np.zeros((2**16 + 1, 5), np.int32).tobytes(), 4: b""}, "65537 fetches; at most 65536"),
    ],
)
def test_arrays_that_do_not_agree(changed: dict[int, bytes], complaint: str) -> None:
    frames = [changed.get(index, frame) for index, frame in enumerate(wire(CALL))]
    with pytest.raises(MessageError, match=complaint):
        call_of(head(), frames)


@pytest.mark.parametrize(
    "changes",
    [
        {"ttl_s": 0.0},
        {"ttl_s": float("nan")},
        {"ttl_s": float("inf")},
        {"vocab_size": -1},
        {"vocab_size": 2**31},
        {"names": ["x" * (MAX_NAME_BYTES + 1)]},
    ],
)
def test_heads_that_ask_for_too_much(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        call_of(head(**changes), wire(CALL))


def test_frames_are_missing_or_too_many() -> None:
    for frames in (wire(CALL)[:4], [*wire(CALL), b""]):
        with pytest.raises(MessageError, match="5 expected"):
            call_of(head(), frames)
        with pytest.raises(MessageError, match="5 expected"):
            answer_of(AnswerHead(instance=""), frames)
