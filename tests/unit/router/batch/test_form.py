"""Uploads taken apart, in parts of any size; what is no form is refused."""

import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.batch.form import FIELD_BYTES, UploadForm, shown_name

TYPE = "multipart/form-data; boundary=XX"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--XX--\r\n"


def fed(body: bytes, size: int = 1 << 20) -> tuple[UploadForm, bytes]:
    form = UploadForm(TYPE)
    found = [
        data for start in range(0, len(body), size) for data in form.feed(body[start : start + size])
    ]
    return form, b"".join(found)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_parts_of_any_size(size: int) -> None:
    content = b"line\r\n--X\r\n--XY\n" * 50
    body = part("purpose", b"batch") + part("file", content, "a.jsonl") + part("x[y]", b"1") + END
    form, found = fed(body, size)
    assert (found, form.filename, form.is_whole) == (content, "a.jsonl", True)
    assert form.fields == {"purpose": "batch", "x[y]": "1"}


def test_the_end_is_missed() -> None:
    form, _ = fed(part("file", b"abc", "a"))
    assert not form.is_whole


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 300],
)
def test_no_form(content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        UploadForm(content_type)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"nothing of the kind", 400),
        (b"--XX\r\nno colon\r\n\r\n", 400),
        (b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, 400),
        (part("purpose", b"a") + part("purpose", b"b") + END, 400),
        (part("file", b"a", "a") + part("file", b"b", "b") + END, 400),
        (b"".join(part(f"p{n}", b"") for n in range(17)) + END, 400),
        (part("purpose", b"x" * (FIELD_BYTES + 1)) + END, 413),
        (b"--XX\r\n" + b"A: b\r\n" * 50 + b"\r\n", 400),
        (b"--XX\r\nA: " + b"b" * 100_000, 400),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_is_refused(body: bytes, status: int, size: int) -> None:
    with pytest.raises(RequestError) as caught:
        fed(body, size)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\dir\\x.jsonl", "x.jsonl"),
        ("", "file"),
        ("..", ".."),
        ("a\0b\r\nc", "a_b__c"),
        ("é" * 300, "é" * 255),
    ],
)
def test_names_are_only_shown(name: str, shown: str) -> None:
    assert shown_name(name) == shown
