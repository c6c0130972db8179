"""A `multipart/form-data` upload taken apart as it comes. Pure: bytes in, the file's bytes out."""

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from seer_sgl.errors import RequestError

FILE_PART = "file"
MOST_PARTS = 16
FIELD_BYTES = 4096
NAME_CHARACTERS = 255
_MULTIPART = b"multipart/form-data"


class UploadForm:
    """One upload: a part called `file`, and fields.

    Args:
        content_type: the request's header.

    Raises:
        RequestError: it is no form.
    """

    def __init__(self, content_type: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """None until the file's part begins."""
        self.is_whole = False
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != _MULTIPART or not boundary:
            raise RequestError("", "the body must be multipart/form-data with a boundary")
        callbacks: Any = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise RequestError("", f"the form cannot be read: {error}") from None
        self._file_data: list[bytes] = []
        self._parts = 0
        self._begin()

    def feed(self, data: bytes) -> list[bytes]:
        """The file's bytes among these.

        Raises:
            RequestError: it is no form, or beyond a limit.
        """
        self._file_data = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RequestError("", f"the form cannot be read: {error}") from None
        return self._file_data

    def _begin(self) -> None:
        self._name = ""
        self._disposition = b""
        self._header: list[bytes] = []
        self._value: list[bytes] = []
        self._field: list[bytes] = []
        self._field_bytes = 0

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise RequestError("", f"a form may have {MOST_PARTS} parts")
        self._begin()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header.append(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value.append(data[start:end])

    def _header_ends(self) -> None:
        if b"".join(self._header).lower() == b"content-disposition":
            self._disposition = b"".join(self._value)
        self._header, self._value = [], []

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if not self._name:
            raise RequestError("", "a part of the form has no name")
        if self._name == FILE_PART:
            if self.filename is not None:
                raise RequestError(FILE_PART, "is given twice")
            self.filename = shown_name(options.get(b"filename", b"").decode(errors="replace"))
        elif self._name in self.fields:
            raise RequestError(self._name[:80], "is given twice")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE_PART:
            self._file_data.append(data[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > FIELD_BYTES:
            raise RequestError(self._name[:80], f"is longer than {FIELD_BYTES} bytes", status=413)
        self._field.append(data[start:end])

    def _part_ends(self) -> None:
        if self._name != FILE_PART:
            self.fields[self._name] = b"".join(self._field).decode(errors="replace")

    def _ends(self) -> None:
        self.is_whole = True


def shown_name(name: str) -> str:
    """A file's name as it is told: the last part of a path, printable."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(c if c.isprintable() else "_" for c in last)[:NAME_CHARACTERS] or "file"
