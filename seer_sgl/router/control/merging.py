"""Answers of several engines to one command, put together as one answer. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from seer_sgl.types import EngineId

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
_GOOD = (200, 201, 202)
OWN = (400, 401, 403, 404)
"""Statuses of engines that are passed on; what else goes wrong there is a 400."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of an engine, or of the router."""

    status: int
    body: bytes = b""
    media: str = JSON

    @property
    def good(self) -> bool:
        return self.status in _GOOD

    def json(self) -> Any:
        """The decoded body, None where it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None

    def said(self) -> str:
        """What an engine says went wrong, in any of SGLang's shapes of errors."""
        found = self.json()
        if isinstance(found, dict):
            found = found.get("error") or found.get("message") or found.get("error_message") or found
        if isinstance(found, dict):
            found = found.get("message", found)
        said = found if isinstance(found, str) else self.body.decode(errors="replace")
        return said.strip()[:500] or f"status {self.status}"


Replies = Mapping[EngineId, Reply]


def json_reply(content: Any, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(content))


def refused(message: str, status: int = 400, **more: Any) -> Reply:
    """A refusal for both kinds of readers: SGLang's `success`, and OpenAI's `error`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": _CODES.get(status, "refused")}
    return json_reply({"success": False, "message": message, "error": error, **more}, status)


_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    504: "timeout",
}


def failures(replies: Replies) -> dict[EngineId, str]:
    """What engines that did not do it say."""
    return {engine: reply.said() for engine, reply in replies.items() if not reply.good}


def refusal(replies: Replies, versions: Mapping[EngineId, str] | None = None) -> Reply | None:
    """The answer where an engine failed; it names every one of them.

    Args:
        versions: what the engines' weights are called, where that is of interest.
    """
    failed = failures(replies)
    if not failed:
        return None
    told = "; ".join(f"engine {engine}: {said}" for engine, said in failed.items())
    statuses = {replies[engine].status for engine in failed}
    only = statuses.pop() if len(statuses) == 1 else 400
    status = only if len(failed) == len(replies) and only in OWN else 400
    if len(replies) > len(failed):
        told = f"{len(failed)} of {len(replies)} engines failed: {told}"
    if 504 in statuses or only == 504:
        status = 504
    detail = {engine: _detail(engine, reply, versions) for engine, reply in replies.items()}
    return refused(told, status, failed_engines=list(failed), engines=detail)


def _detail(engine: EngineId, reply: Reply, versions: Mapping[EngineId, str] | None) -> dict[str, Any]:
    said = reply.json().get("message", "") if _is_object(reply) else ""
    found = {"success": reply.good, "message": said if reply.good else reply.said()}
    return found if versions is None else {**found, "weight_version": versions.get(engine)}


def _is_object(reply: Reply) -> bool:
    return isinstance(reply.json(), dict)


def passed(replies: Replies) -> Reply:
    """The first one's answer where all are good."""
    return refusal(replies) or next(iter(replies.values()))


def text(replies: Replies) -> Reply:
    """The first one's text, or a refusal. SGLang's own text answers carry no type."""
    return refusal(replies) or Reply(200, next(iter(replies.values())).body, TEXT)


def success(replies: Replies) -> Reply:
    """`{"success": true, "message"}` with different messages joined, and counts summed."""
    refusing = refusal(replies)
    if refusing is not None:
        return refusing
    bodies = [body for reply in replies.values() if isinstance(body := reply.json(), dict)]
    if not bodies:
        return next(iter(replies.values()))
    merged = dict(bodies[0])
    messages = dict.fromkeys(body["message"] for body in bodies if body.get("message"))
    if messages:
        merged["message"] = " | ".join(messages)
    for key, value in merged.items():
        if key.startswith("num_") and isinstance(value, int):
            merged[key] = sum(body.get(key) or 0 for body in bodies)
    return json_reply(merged)


COMPARED = ("per_engine_checksum", "checksum")


def same(replies: Replies) -> Reply:
    """All good, and with equal checksums where they tell some; otherwise the engines that differ."""
    refusing = refusal(replies)
    if refusing is not None:
        return refusing
    bodies = {engine: reply.json() for engine, reply in replies.items()}
    for key in COMPARED:
        found = {e: body[key] for e, body in bodies.items() if isinstance(body, dict) and key in body}
        if len(set(found.values())) > 1:
            told = ", ".join(f"{engine}: {value}" for engine, value in found.items())
            return refused(f"the weights of the engines differ: {told}", checksums=found)
    first = next(iter(replies.values()))
    if not isinstance(first.json(), dict) or len(replies) == 1:
        return first
    return json_reply({**first.json(), "engines": len(replies)})


_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?(.*)$")
_HEADER = re.compile(rb"^# (?:HELP|TYPE) ([^ ]+)")
_SERIES = (b"_bucket", b"_sum", b"_count", b"_created", b"_total")


def metrics(pages: Mapping[str, bytes]) -> Reply:
    """Prometheus pages of several servers as one: every sample gets a label `worker_addr`.

    Args:
        pages: by the server's URL.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for address, page in pages.items():
        label = b'worker_addr="' + address.encode() + b'"'
        for line in page.splitlines():
            header = _HEADER.match(line)
            if header is not None:
                lines = families.setdefault(header[1], ([], []))[0]
                if line not in lines and not _told(lines, line):
                    lines.append(line)
            elif (sample := _SAMPLE.match(line)) is not None:
                name, brace, rest = sample.groups()
                inside = label + (b"," if not rest.startswith(b"}") else b"") if brace else label + b"}"
                families.setdefault(_family(name, families), ([], []))[1].append(
                    name + b"{" + inside + rest
                )
    out = [line for headers, samples in families.values() for line in (*headers, *samples)]
    return Reply(200, b"\n".join(out) + (b"\n" if out else b""), "text/plain; version=0.0.4")


def _told(lines: list[bytes], line: bytes) -> bool:
    """Whether HELP or TYPE of the family is there already, perhaps in other words."""
    return any(known[:6] == line[:6] for known in lines)


def _family(name: bytes, families: Mapping[bytes, Any]) -> bytes:
    if name in families:
        return name
    for ending in _SERIES:
        if name.endswith(ending) and name.removesuffix(ending) in families:
            return name.removesuffix(ending)
    return name
