"""SGLang's streamed events of one chunk, put together again. Pure.

By default an event of SGLang's `/generate` says everything so far; under
`--incremental-streaming-output` it says what is new, except in one case (see `_of_late_abort`). Either
way out come what is new, and at the end the whole answer as if it had not been streamed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

PER_TOKEN = (
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
    "output_token_sampling_mask",
    "output_token_sampling_logprobs",
)
"""Lists in `meta_info` with an entry per output token (0.5.23: tokenizer_manager)."""
_DATA = b"data:"
_DONE = b"[DONE]"


class Delta(NamedTuple):
    """What is new: see `ChunkProgress`."""

    keep_chars: int
    text: str
    new_ids: list[int]
    meta: dict[str, Any]


class EventError(Exception):
    """An event that is an error, or none of SGLang's."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class Events:
    """Server-sent events out of bytes that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that are whole now, less the one that marks the end."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        payloads = (b[len(_DATA) :].strip() for b in blocks if b.startswith(_DATA))
        return [payload for payload in payloads if payload != _DONE]


class Increments:
    """What one chunk has said so far.

    Args:
        incremental: the server runs with `--incremental-streaming-output`.
    """

    def __init__(self, incremental: bool) -> None:
        self._incremental = incremental
        self._first: dict[str, Any] = {}
        self._last: dict[str, Any] | None = None
        self._text = ""
        self._ids: list[int] = []
        self._lists: dict[str, list[Any]] = {}

    def take(self, payloads: Sequence[bytes]) -> Delta:
        """What is new in these events, of which there is at least one.

        Raises:
            EventError: SGLang tells of an error, or an event is not what it should be.
        """
        if not self._incremental:
            payloads = payloads[-1:]
        deltas = [self._one(_decoded(payload)) for payload in payloads]
        if len(deltas) == 1:
            return deltas[0]
        keep_chars, text = min(delta.keep_chars for delta in deltas), self._text
        lists = {
            key: [entry for delta in deltas for entry in delta.meta.get(key, ())] for key in self._lists
        }
        new_ids = [token for delta in deltas for token in delta.new_ids]
        return Delta(keep_chars, text[keep_chars:], new_ids, {**deltas[-1].meta, **lists})

    @property
    def finish_reason(self) -> dict[str, Any] | None:
        """SGLang's, None while the chunk runs."""
        reason: dict[str, Any] | None = self._last and self._last["meta_info"].get("finish_reason")
        return reason

    def answer(self) -> dict[str, Any]:
        """Everything so far, in the shape of an answer that was not streamed."""
        assert self._last is not None, "nothing has come yet"
        # When the first byte left is said only once.
        meta = {**self._first, **self._last["meta_info"], **self._lists}
        return {**self._last, "text": self._text, "output_ids": self._ids, "meta_info": meta}

    def _one(self, event: dict[str, Any]) -> Delta:
        meta, finish = event["meta_info"], event["meta_info"].get("finish_reason")
        self._first = self._first or meta
        self._last = event
        if not self._incremental:
            return self._of_whole(event)
        if finish and finish.get("type") == "abort" and "prompt_tokens" not in meta:
            event = self._of_late_abort(event)
        text, new_ids = event.get("text") or "", event["output_ids"]
        keep_chars = len(self._text)
        self._text += text
        self._ids += new_ids
        new_lists = {key: event["meta_info"][key] for key in PER_TOKEN if key in meta}
        for key, entries in new_lists.items():
            self._lists.setdefault(key, []).extend(entries)
        return Delta(keep_chars, text, new_ids, event["meta_info"])

    def _of_whole(self, event: dict[str, Any]) -> Delta:
        meta, ids, text = event["meta_info"], event["output_ids"], event.get("text") or ""
        keep_chars = len(self._text)
        if not text.startswith(self._text):
            pairs = zip(self._text, text, strict=False)
            keep_chars = next((i for i, (old, new) in enumerate(pairs) if old != new), len(text))
        new_ids = ids[len(self._ids) :]
        cut = {key: meta[key][len(self._lists.get(key, ())) :] for key in PER_TOKEN if key in meta}
        self._text, self._ids = text, ids
        self._lists.update((key, meta[key]) for key in cut)
        return Delta(keep_chars, text[keep_chars:], new_ids, {**meta, **cut})

    def _of_late_abort(self, event: dict[str, Any]) -> dict[str, Any]:
        """A chunk that is aborted while it waits in SGLang's queue, where it may be back after a
        retraction, says its whole text and whole lists, and its last token again (0.5.23). What it had
        not told before may stand in front of them."""
        meta = event["meta_info"]
        tokens, known = meta.get("completion_tokens", len(self._ids)), len(self._ids)
        text = event.get("text") or ""
        new_chars = max(0, len(text) - len(self._text)) // 2
        lists = {
            key: (meta[key][-tokens:] if tokens else [])[known:] for key in PER_TOKEN if key in meta
        }
        return {
            **event,
            "text": text[:new_chars],
            "output_ids": event["output_ids"][: max(0, tokens - known)],
            "meta_info": {**meta, **lists},
        }


def _decoded(payload: bytes) -> dict[str, Any]:
    try:
        event = msgspec.json.decode(payload)
    except msgspec.DecodeError as error:
        raise EventError(f"an event that is no JSON: {error}", None) from None
    if isinstance(event, dict) and "meta_info" in event and "output_ids" in event:
        return event
    told = event.get("error") if isinstance(event, dict) else None
    if not isinstance(told, dict):
        raise EventError(f"an event of an unknown shape: {payload[:200]!r}", None)
    code = told.get("code")
    raise EventError(str(told.get("message", told)), code if isinstance(code, int) else None)
