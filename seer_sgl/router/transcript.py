"""One request's chunks put together as the answer that a single SGLang server would have given.

Pure: it neither knows who ran a chunk nor when. Token ids are the truth. The text of the whole is made
of them once, at the end; while a request streams, chunks' own texts are joined, unless a character lies
across the edge (see `text_known`).
"""

from base64 import b64decode, b64encode
from typing import Any, NamedTuple

from seer_sgl.types import EngineId

PER_TOKEN = (
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
    "output_token_sampling_mask",
    "output_token_sampling_logprobs",
)
"""Lists with one entry per output token: joined end to end."""
_SUMMED = (
    "completion_tokens",
    "reasoning_tokens",
    "num_retractions",
    "output_token_logprobs_length",
    "output_token_sampling_mask_length",
    "spec_verify_ct",
    "spec_num_correct_drafts",
    "spec_num_proposed_drafts",
    "queue_time",
    "storage_prefetch_wait",
)
_FROM_FIRST = (
    "prompt_tokens",
    "cached_tokens",
    "cached_tokens_details",
    "input_token_logprobs",
    "input_top_logprobs",
    "input_token_ids_logprobs",
    "forward_entry_time",
    "prefill_finished_time",
)
"""The client's view: what its own prompt found and when it began, not what later chunks did."""
_UNFINISHED = "\ufffd"
"""What a tokenizer puts for a character of which bytes are missing."""
_ROUTED = "routed_experts"
_ANSWER = ("text", "output_ids", "meta_info")

Answer = dict[str, Any]


class _Span(NamedTuple):
    """Tokens of one version of the weights, `[start, end)`."""

    version: str
    epoch: int
    start: int
    end: int


class Transcript:
    """What a request has produced so far.

    Args:
        rid: the id that the client knows it by.
        prompt_ids: token ids of the prompt.
        routed_from: first token whose routed experts the client wants.
        shows_end: the text has the token that ended it, too (SGLang's `no_stop_trim`).
    """

    def __init__(
        self, rid: str, prompt_ids: list[int], routed_from: int = 0, shows_end: bool = False
    ) -> None:
        self.rid = rid
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        """Of ended chunks, and what the running one has shown."""
        self.epoch = 0
        """Of the weights under which the running chunk was dispatched."""
        self._latest_epoch = 0
        self.pulled_tokens = 0
        """Prefix that the running chunk is to find in the pool, rather than compute."""
        self.text_known = True
        """False where a chunk's own text does not follow on the text before, as an edge runs through a
        character, or as nobody kept the text: see `text_request`."""
        self._ended_tokens = 0
        self._lists: dict[str, list[Any]] = {}
        self._meta: dict[str, Any] = {}
        """Of ended chunks, put together."""
        self._running_meta: dict[str, Any] = {}
        self._spans: list[_Span] = []
        self._chunks: list[dict[str, Any]] = []
        self._base, self._own, self._own_from = "", "", 0
        self._text_lost = False
        self._besides: dict[str, Any] = {}
        self._last_engine: EngineId | None = None
        self._routed = _RoutedExperts(routed_from)
        self._shows_end = shows_end

    @property
    def held_ids(self) -> list[int]:
        """Prompt and output of ended chunks: what the next chunk starts from."""
        return self.prompt_ids + self.output_ids[: self._ended_tokens]

    @property
    def ended_tokens(self) -> int:
        """Output tokens of ended chunks."""
        return self._ended_tokens

    @property
    def text_is_whole(self) -> bool:
        """True where SGLang's own text stands, as no chunk edge runs through it."""
        return len(self._chunks) < 2 and not self._text_lost

    @property
    def last_engine(self) -> EngineId | None:
        """Of the last chunk that brought anything."""
        return self._last_engine

    @property
    def finish_reason(self) -> dict[str, Any]:
        """Of the last chunk that ended."""
        return self._meta.get("finish_reason") or {}

    # ---- what comes in ----

    def weights_changed(self, epoch: int) -> None:
        """Note that an epoch begins while a chunk runs: the rest of it may come of other weights.

        Where the change has no name, SGLang does not tell from which token on: the chunk's record has
        both epochs, its span only the one of its dispatch.
        """
        self._latest_epoch = epoch

    def progress(self, keep_chars: int, text: str, new_ids: list[int], meta: dict[str, Any]) -> None:
        """Note what the running chunk has brought since the last such note.

        Args:
            keep_chars: its text so far is the old one up to here, and `text`.
            meta: SGLang's, its lists with an entry per token cut to the new ones.
        """
        self._own = self._own[:keep_chars] + text
        self.output_ids += new_ids
        for key in PER_TOKEN:
            if key in meta:
                self._lists.setdefault(key, []).extend(meta[key])
        self._running_meta = meta

    def keep_progress(self, engine_id: EngineId, came_from: EngineId | None) -> int:
        """Take what a chunk has shown as all of it: its engine is lost. Returns how many tokens."""
        meta, start = self._running_meta, self._ended_tokens
        lists = {key: entries[start:] for key, entries in self._lists.items() if key in meta}
        answer = {"output_ids": self.output_ids[start:], "meta_info": {**meta, **lists}}
        self.add(answer, engine_id, came_from)
        self.text_known, self._text_lost = False, True
        return len(answer["output_ids"])

    def drop_progress(self) -> None:
        """Forget what the running chunk has shown."""
        del self.output_ids[self._ended_tokens :]
        for entries in self._lists.values():
            del entries[self._ended_tokens :]
        self._running_meta, self._own = {}, ""

    @property
    def shown_tokens(self) -> int:
        """What the running chunk has shown so far."""
        return len(self.output_ids) - self._ended_tokens

    def add(self, answer: Answer, engine_id: EngineId, came_from: EngineId | None) -> None:
        """Append one chunk's answer."""
        self.drop_progress()
        meta = dict(answer["meta_info"])
        offset = self._ended_tokens
        input_tokens = len(self.prompt_ids) + offset
        ids = answer["output_ids"]
        if ids:
            self._last_engine = engine_id
        record = _chunk_record(answer, engine_id, came_from, input_tokens)
        epochs = {"epoch": self.epoch, "last_epoch": max(self.epoch, self._latest_epoch)}
        self._chunks.append({**record, "pulled_tokens": self.pulled_tokens, **epochs})
        self._spans += self._own_spans(meta.pop("weight_versions", None) or [])
        if len(self._chunks) == 1:
            self._besides = {k: v for k, v in answer.items() if k not in _ANSWER}
        self._routed.add(meta.pop(_ROUTED, None), input_tokens, len(ids))
        self.output_ids += ids
        self._ended_tokens += len(ids)
        for key in PER_TOKEN:
            if key in meta:
                self._lists.setdefault(key, []).extend(meta.pop(key) or [])
        self._meta = _joined_meta(self._meta, meta)
        text = answer.get("text") or ""
        self._base += text[self._own_from :]
        self._own_from = 0
        if self._base.endswith(_UNFINISHED):
            self.text_known = False

    def _own_spans(self, spans: list[dict[str, Any]]) -> list[_Span]:
        """A chunk's spans as of the whole output, while the chunk runs or is just being added."""
        at = self._ended_tokens
        return [_Span(s["version"], self.epoch, s["start"] + at, s["end"] + at) for s in spans]

    # ---- text ----

    def text_request(self) -> list[list[int]]:
        """Two lists of ids whose texts differ by the output's text (see `answer`).

        As in SGLang's detokenizer, the prompt's last ids go first, so that a tokenizer which treats
        the start of a text in its own way treats the output as the middle that it is.
        """
        ids = self.output_ids
        ended = not self.shown_tokens and isinstance(self.finish_reason.get("matched"), int)
        if ended and not self._shows_end:
            ids = ids[:-1]
        tail = self.prompt_ids[-5:]
        return [tail + ids, tail]

    @property
    def text_mark(self) -> tuple[int, int]:
        """Where the text is now: to be taken with `text_request`, and handed to `take_text`."""
        return len(self._chunks), len(self._own)

    def take_text(self, texts: list[str], mark: tuple[int, int]) -> None:
        """Go on from the text that a `text_request` brought; it may end within a character still."""
        if mark[0] != len(self._chunks):
            return  # a chunk has ended meanwhile; the next request will tell
        text = texts[0][len(texts[1]) :]
        self._base, self._own_from = text, mark[1]
        self.text_known = not text.endswith(_UNFINISHED)

    @property
    def text_so_far(self) -> str:
        """Never ends within a character, and nothing of it is ever taken back."""
        text = self._base + self._own[self._own_from :] if self.text_known else self._base
        return text.rstrip(_UNFINISHED)

    # ---- what goes out ----

    def so_far(self) -> Answer:
        """What exists while a chunk runs, in the shape of SGLang's streamed events.

        Its lists are the transcript's own and grow: to be used before anything else comes in.
        """
        meta, spans = self._running_meta, self._spans
        if new_spans := meta.get("weight_versions"):
            spans = spans + self._own_spans(new_spans)
        meta = {**_joined_meta(self._meta, meta), **self._lists, "id": self.rid, "finish_reason": None}
        meta["weight_versions"] = _joined_spans(spans)
        meta["completion_tokens"] = len(self.output_ids)
        return {"text": self.text_so_far, "output_ids": self.output_ids, "meta_info": meta}

    def answer(self, latency_s: float, texts: list[str] | None = None) -> Answer:
        """The whole, in the shape of SGLang's `/generate`.

        Args:
            latency_s: from arrival to now.
            texts: of `text_request()`, needed unless `text_is_whole`.
        """
        text = self._base if texts is None else texts[0][len(texts[1]) :]
        meta = {**self._meta, **self._lists, "id": self.rid, "e2e_latency": latency_s}
        finish = meta.get("finish_reason") or {"type": "abort", "message": "Abort before prefill"}
        if finish.get("type") == "length":
            finish = {**finish, "length": len(self.output_ids)}
        meta["finish_reason"] = finish
        meta.setdefault("prompt_tokens", len(self.prompt_ids))
        meta.setdefault("completion_tokens", len(self.output_ids))
        meta.setdefault("cached_tokens", 0)
        if not self._chunks or finish["type"] == "abort":
            meta.setdefault("output_token_logprobs", [])
        meta["weight_versions"] = _joined_spans(self._spans)
        if (routed := self._routed.joined()) is not None:
            meta[_ROUTED] = routed
        _tell_drafts(meta)
        meta["seer"] = {"chunks": self._chunks}
        told = {"text": text, "output_ids": self.output_ids, "meta_info": meta}
        return {**self._besides, **told}


class _RoutedExperts:
    """Rows of int32, one for each token but the last; chunk after chunk (see `routed_start`)."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._parts: list[tuple[str | None, int]] = []
        """Of each chunk what SGLang sent, and how many rows that should be."""

    def add(self, encoded: str | None, input_tokens: int, new_tokens: int) -> None:
        """Rows of one chunk: from where the last one ended to its last token but one."""
        if self._parts:
            self._start = max(self._start, input_tokens - 1)
        self._parts.append((encoded, max(0, input_tokens + new_tokens - 1 - self._start)))

    def joined(self) -> str | None:
        """As SGLang encodes them; None where there are none, or not as many as there should be."""
        told = [part for part in self._parts if part[0] is not None]
        if len(self._parts) < 2 or not told:
            return told[0][0] if told else None
        try:
            raw = [b64decode(encoded or "", validate=True) for encoded, _ in self._parts]
        except ValueError:
            return None
        row_bytes = max(
            len(part) // max(1, rows) for part, (_, rows) in zip(raw, self._parts, strict=True)
        )
        if [len(part) for part in raw] != [rows * row_bytes for _, rows in self._parts]:
            return None
        return b64encode(b"".join(raw)).decode()


def routed_start(wanted: Any, held_tokens: int, prompt_tokens: int) -> Any:
    """From which token a chunk is to tell routed experts, so that chunks' rows join without a gap."""
    if held_tokens == prompt_tokens:
        return wanted or 0
    return max(wanted or 0, held_tokens - 1)


def _joined_meta(before: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    if not before:
        return meta
    joined = {**before, **meta}
    for key in _SUMMED:
        if key in before:
            joined[key] = before[key] + meta.get(key, 0)
    for key in _FROM_FIRST:
        if key in before:
            joined[key] = before[key]
    return joined


def _tell_drafts(meta: dict[str, Any]) -> None:
    """Rates over all chunks, and the counters by their names of before SGLang 0.5.23, too."""
    if not (steps := meta.get("spec_verify_ct")):
        return
    correct = meta.get("spec_num_correct_drafts", 0)
    proposed = meta.get("spec_num_proposed_drafts", 0)
    meta["spec_accept_rate"] = correct / proposed if proposed else 0.0
    meta["spec_accept_length"] = meta["completion_tokens"] / steps
    meta["spec_accept_token_num"], meta["spec_draft_token_num"] = correct, proposed


def _chunk_record(
    answer: Answer, engine_id: EngineId, came_from: EngineId | None, input_tokens: int
) -> dict[str, Any]:
    meta = answer["meta_info"]
    details = meta.get("cached_tokens_details") or {}
    return {
        "engine": engine_id,
        "came_from": came_from,
        "input_tokens": input_tokens,
        "new_tokens": len(answer["output_ids"]),
        "cached_tokens": meta.get("cached_tokens", 0),
        "pool_tokens": details.get("storage", 0),
        "pool_wait_s": meta.get("storage_prefetch_wait", 0.0),
    }


def _joined_spans(spans: list[_Span]) -> list[dict[str, Any]]:
    """In SGLang's shape, neighbours of the same weights as one.

    Where nobody names weights all have one version, and still they are others after a change.
    """
    joined: list[_Span] = []
    for span in spans:
        if joined and joined[-1][:2] == span[:2]:
            joined[-1] = joined[-1]._replace(end=span.end)
        else:
            joined.append(span)
    return [{"version": span.version, "start": span.start, "end": span.end} for span in joined]
