"""Lines of input, output and error files: taken apart, checked, built, read back. Pure."""

import hashlib
from collections.abc import Container, Iterator
from typing import Any

import msgspec

from seer_sgl.router.batch.objects import LineError, Tokens

MAX_LINES = 50_000
MAX_ERRORS = 100
"""Errors that a batch tells of."""
CUSTOM_ID_CHARACTERS = 512

Numbered = tuple[int, bytes]
"""A line's number, from 1, and its bytes without the end."""


class LineTooLong(ValueError):
    """A line is longer than what may be in memory.

    Args:
        line: its number.
    """

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} is too long")
        self.line = line


class Splitter:
    """Blocks of a file put back together as lines; blank ones are left out, but counted.

    Args:
        line_bytes: longest line.
    """

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._number = 0

    def feed(self, block: bytes) -> list[Numbered]:
        """The lines that end in this block.

        Raises:
            LineTooLong: nothing may be fed after.
        """
        *whole, rest = block.split(b"\n")
        if not whole:
            self._keep(rest)
            return []
        self._keep(whole[0])
        whole[0] = b"".join(self._rest)
        self._rest, self._rest_bytes = [], 0
        self._keep(rest)
        found = []
        for line in whole:
            self._number += 1
            if line and not line.isspace():
                found.append((self._number, line))
        return found

    def end(self) -> list[Numbered]:
        """The last line, where the file does not end with a newline."""
        line = b"".join(self._rest)
        return [(self._number + 1, line)] if line and not line.isspace() else []

    def _keep(self, part: bytes) -> None:
        self._rest.append(part)
        self._rest_bytes += len(part)
        if self._rest_bytes > self._line_bytes:
            raise LineTooLong(self._number + 1)


# ---- input ----


class InputLine(msgspec.Struct, frozen=True):
    """What of a line is needed to run it."""

    custom_id: str
    body: msgspec.Raw


class _CheckedBody(msgspec.Struct, frozen=True):
    model: Any = None
    stream: Any = None


class _CheckedLine(msgspec.Struct, frozen=True):
    custom_id: str
    method: str
    url: str
    body: _CheckedBody


_input = msgspec.json.Decoder(InputLine)
_checked = msgspec.json.Decoder(_CheckedLine)
_MISSING = "Object missing required field `"


def decode_line(line: bytes) -> InputLine:
    """A line that was checked before."""
    return _input.decode(line)


class Checker:
    """Looks through the lines of an input in their order.

    Args:
        endpoint: the batch's; every line must be for it.
        models: names that are served; None where the endpoint needs none.
    """

    def __init__(self, endpoint: str, models: Container[str] | None) -> None:
        self.total = 0
        self.errors: list[LineError] = []
        """The first `MAX_ERRORS`."""
        self.model: str | None = None
        self._endpoint = endpoint
        self._models = models
        self._seen: set[bytes] = set()

    def take(self, number: int, line: bytes) -> None:
        """Look at the next line. It is never kept: of its id a hash stays."""
        self.total += 1
        if self.total == MAX_LINES + 1:
            self.fail("too_many_lines", f"there are more than {MAX_LINES} lines", number)
        if not self.full and (error := self._objection(number, line)) is not None:
            self.errors.append(error)

    def end(self) -> None:
        """All lines were taken."""
        if not self.total:
            self.fail("empty_file", "the file has no line")

    def fail(self, code: str, message: str, number: int | None = None) -> None:
        """Note what is wrong with the file, beyond any line's content."""
        self.errors = [*self.errors[: MAX_ERRORS - 1], LineError(code, message, number)]

    @property
    def full(self) -> bool:
        """No line can change the result any more."""
        return len(self.errors) >= MAX_ERRORS or self.total > MAX_LINES

    def _objection(self, number: int, line: bytes) -> LineError | None:
        try:
            if not line.isascii():
                line.decode()
            checked = _checked.decode(line)
        except UnicodeDecodeError as error:
            return LineError("invalid_encoding", f"the line is not UTF-8: {error}", number)
        except msgspec.ValidationError as error:
            return _misfit(str(error), number)
        except (msgspec.DecodeError, RecursionError) as error:
            return LineError("invalid_json_line", f"the line is not JSON: {error}", number)
        for code, param, message in self._problems(checked):
            return LineError(code, message, number, param)
        self._seen.add(_hash(checked.custom_id))
        if self.model is None and isinstance(checked.body.model, str):
            self.model = checked.body.model
        return None

    def _problems(self, line: _CheckedLine) -> Iterator[tuple[str, str, str]]:
        """Code, field and message of each thing that is wrong with a line."""
        custom_id, model = line.custom_id, line.body.model
        if not 0 < len(custom_id) <= CUSTOM_ID_CHARACTERS:
            yield "invalid_custom_id", "custom_id", f"must have 1 to {CUSTOM_ID_CHARACTERS} characters"
        if _hash(custom_id) in self._seen:
            yield "duplicate_custom_id", "custom_id", f"{custom_id!r} is given twice"
        if line.method != "POST":
            yield "invalid_method", "method", f"must be 'POST', got {line.method[:80]!r}"
        if line.url != self._endpoint:
            yield "invalid_url", "url", f"must be the batch's {self._endpoint!r}, got {line.url[:80]!r}"
        if line.body.stream is not None and line.body.stream is not False:
            yield "stream_not_supported", "body.stream", "a batch does not stream"
        if self._models is None or model is None:
            return
        if not isinstance(model, str) or model not in self._models:
            yield "model_not_found", "body.model", f"no model is called {str(model)[:80]!r}"


def _hash(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def _misfit(message: str, number: int) -> LineError:
    """What msgspec says of a line that is JSON, but not of the form."""
    what, _, path = message.partition(" - at `$")
    param = path.strip("`.") or None
    if what.startswith(_MISSING):
        missing = what.removeprefix(_MISSING).rstrip("`")
        return LineError("missing_required_parameter", f"`{missing}` is missing", number, missing)
    return LineError("invalid_type", what, number, param)


# ---- output ----


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _OutputLine(msgspec.Struct, frozen=True):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


_encoder = msgspec.json.Encoder()
_output = msgspec.json.Decoder(_OutputLine)
_any = msgspec.json.Decoder(msgspec.Raw)
_OK = 200


def answered_line(batch_id: str, number: int, custom_id: str, status: int, body: bytes) -> bytes:
    """A line with the answer to one; of status 200 it belongs into the output, else among errors.

    Args:
        body: JSON; anything else is quoted.
    """
    line_id = _line_id(batch_id, number)
    response = _Response(status, line_id, msgspec.Raw(_one_line(body)))
    return _encoder.encode(_OutputLine(line_id, custom_id, response, None)) + b"\n"


def unrun_line(batch_id: str, number: int, custom_id: str, code: str) -> bytes:
    """An error line for one that never ran: `batch_cancelled` or `batch_expired`."""
    error = _Error(code, f"the batch ended before this line ran: {code.removeprefix('batch_')}")
    return _encoder.encode(_OutputLine(_line_id(batch_id, number), custom_id, None, error)) + b"\n"


def _line_id(batch_id: str, number: int) -> str:
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def _one_line(body: bytes) -> bytes:
    try:
        _any.decode(body)
        if not body.isascii():
            body.decode()
        return msgspec.json.format(body, indent=-1) if b"\n" in body else body
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _encoder.encode({"error": {"message": body.decode(errors="replace")}})


def read_back(line: bytes) -> tuple[int, Tokens]:
    """The number of the input line that a line of ours is about, and the answer's tokens.

    Raises:
        ValueError: it is no line of ours, or torn.
    """
    try:
        decoded = _output.decode(line)
        number = int(decoded.id.rpartition("_")[2])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    response = decoded.response
    if response is None or response.status_code != _OK:
        return number, Tokens()
    return number, tokens_of(bytes(response.body))


# ---- tokens ----


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _Meta(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    reasoning_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, frozen=True):
    meta_info: _Meta | None = None
    usage: _Counts | None = None


_answer = msgspec.json.Decoder(_Answer | list[_Answer])
_NO_DETAILS = _Details()


def tokens_of(body: bytes) -> Tokens:
    """Tokens of an answer of SGLang's or OpenAI's form; of a list, the sum of its samples'."""
    try:
        decoded = _answer.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return Tokens()
    if isinstance(decoded, _Answer):
        return _tokens(decoded)
    every = list(map(_tokens, decoded))
    return Tokens(
        sum(each.input for each in every),
        sum(each.output for each in every),
        sum(each.cached for each in every),
        sum(each.reasoning for each in every),
    )


def _tokens(answer: _Answer) -> Tokens:
    if (meta := answer.meta_info) is not None:
        return Tokens(
            meta.prompt_tokens or 0,
            meta.completion_tokens or 0,
            meta.cached_tokens or 0,
            meta.reasoning_tokens or 0,
        )
    if (usage := answer.usage) is None:
        return Tokens()
    details = usage.completion_tokens_details or _NO_DETAILS
    return Tokens(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (usage.prompt_tokens_details or _NO_DETAILS).cached_tokens or 0,
        details.reasoning_tokens or usage.reasoning_tokens or 0,
    )
