"""Lines of batches: bytes of any kind never crash, and what is written is read back."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_sgl.router.batch.lines import (
    MAX_ERRORS,
    Checker,
    LineTooLong,
    Splitter,
    answered_line,
    read_back,
    tokens_of,
    unrun_line,
)
from seer_sgl.router.batch.objects import Tokens

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["custom_id", "method", "url", "body"]
ALMOST = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": st.sampled_from(["a", "b", ""]) | JSON,
        "method": st.sampled_from(["POST", "GET"]) | JSON,
        "url": st.sampled_from(["/generate", "/v1/completions"]) | JSON,
        "body": st.dictionaries(st.sampled_from(["model", "stream", "x"]), JSON) | JSON,
    },
)
BATCH = "batch_18ea1b39469c4d02000077f6d2119ae6"
CUSTOM_ID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=20))
def test_blocks_of_any_size_give_the_same_lines(content: bytes, sizes: list[int]) -> None:
    splitter = Splitter(line_bytes=1000)
    found = []
    rest = content
    for size in sizes:
        found += splitter.feed(rest[:size]) if rest else []
        rest = rest[size:]
    found += splitter.feed(rest) if rest else []
    found += splitter.end()
    expected = enumerate(content.split(b"\n"), 1)
    assert found == [(number, line) for number, line in expected if line.strip()]


@given(st.integers(0, 30), st.integers(1, 9))
def test_no_line_grows_beyond_its_limit(before: int, size: int) -> None:
    splitter = Splitter(line_bytes=40)
    splitter.feed(b"x\n" * before)
    for _ in range(40 // size):
        splitter.feed(b"y" * size)
    with pytest.raises(LineTooLong) as caught:
        splitter.feed(b"y" * size)
    assert caught.value.line == before + 1


@given(st.lists(st.binary(max_size=80) | ALMOST.map(msgspec.json.encode), max_size=12))
def test_any_input_is_judged(lines: list[bytes]) -> None:
    checker = Checker("/generate", ["served"])
    for number, line in enumerate(lines, 1):
        checker.take(number, line)
    checker.end()
    assert len(checker.errors) <= MAX_ERRORS
    wrong = {error.line for error in checker.errors}
    for number, line in enumerate(lines, 1):
        assert (number in wrong) or _is_good(line)
    ids = [msgspec.json.decode(line)["custom_id"] for n, line in enumerate(lines, 1) if n not in wrong]
    assert len(set(ids)) == len(ids)


def _is_good(line: bytes) -> bool:
    decoded = msgspec.json.decode(line)
    return (
        all(isinstance(decoded[key], str) for key in KEYS[:3])
        and (decoded["method"], decoded["url"]) == ("POST", "/generate")
        and decoded["custom_id"] != ""
        and decoded["body"].get("stream") in (None, False)
        and decoded["body"].get("model") in (None, "served")
    )


@given(st.integers(1, 10**8), CUSTOM_ID, st.integers(100, 599), st.binary(max_size=60) | JSON)
def test_what_is_written_is_read_back(number: int, custom_id: str, status: int, body: Any) -> None:
    sent = body if isinstance(body, bytes) else msgspec.json.encode(body)
    line = answered_line(BATCH, number, custom_id, status, sent)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert read_back(line)[0] == number
    decoded = msgspec.json.decode(line)
    assert (decoded["custom_id"], decoded["error"]) == (custom_id, None)
    assert decoded["response"]["status_code"] == status
    if not isinstance(body, bytes):
        assert decoded["response"]["body"] == body


@given(st.integers(1, 10**8), CUSTOM_ID, st.sampled_from(["batch_expired", "batch_cancelled"]))
def test_unrun_lines_are_read_back(number: int, custom_id: str, code: str) -> None:
    line = unrun_line(BATCH, number, custom_id, code)
    assert read_back(line) == (number, Tokens())
    decoded = msgspec.json.decode(line)
    assert (decoded["response"], decoded["error"]["code"]) == (None, code)


@given(st.data())
def test_a_torn_line_is_none(data: st.DataObject) -> None:
    line = answered_line(BATCH, 3, "a", 200, b'{"a":1}')
    cut = data.draw(st.integers(0, len(line) - 2))
    with pytest.raises(ValueError):  # noqa: PT011 - any kind
        read_back(line[:cut])


@given(st.binary(max_size=80) | JSON.map(msgspec.json.encode))
def test_tokens_of_anything(body: bytes) -> None:
    assert isinstance(tokens_of(body), Tokens)


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=3))
def test_tokens_of_samples_add_up(samples: list[tuple[int, int, int, int]]) -> None:
    names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
    answers = [{"meta_info": dict(zip(names, sample, strict=True))} for sample in samples]
    assert tokens_of(msgspec.json.encode(answers)) == Tokens(*map(sum, zip(*samples, strict=True)))
    assert tokens_of(msgspec.json.encode(answers[0])) == Tokens(*samples[0])
