"""Updates without the flush that SGLang makes too early."""

import msgspec
import pytest

from seer_sgl.engine.flushing import unflushed, with_note

DISK = "/update_weights_from_disk"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model_path":"/new"}', {"flush_cache": False, "model_path": "/new"}),
        (b' { "model_path": "/new" }\n', {"flush_cache": False, "model_path": "/new"}),
        (b'{"flush_cache":true,"x":1}', {"flush_cache": False, "x": 1}),
        (b'{"x":"\\"flush_cache\\""}', {"flush_cache": False, "x": '"flush_cache"'}),
    ],
)
def test_the_flush_is_taken_out(body: bytes, expected: object) -> None:
    for target in (DISK, f"{DISK}?x=1", "/update_weights_from_tensor"):
        told = unflushed(target, body)
        assert told is not None
        assert msgspec.json.decode(told) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b" { }",
        b"[1]",
        b"no",
        b'{"flush_cache":false}',
        b'{"flush_cache":',
        b'["flush_cache"]',
    ],
)
def test_where_there_is_none_or_no_body_nothing_changes(body: bytes) -> None:
    assert unflushed(DISK, body) is None


def test_other_calls_stay_as_they_are() -> None:
    assert unflushed("/generate", b'{"text":"x"}') is None


def test_a_flush_that_fails_is_a_note() -> None:
    told = with_note(b'{"success":true,"message":"Done."}', "2 requests run")
    expected = {"success": True, "message": "Done. The cache was not flushed: 2 requests run."}
    assert msgspec.json.decode(told) == expected
    for other in (b"text", b"[]", b'{"success":true}'):
        assert with_note(other, "x") == other
