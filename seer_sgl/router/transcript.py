"""One request's chunks put together as the answer that a single SGLang server would have given.

Pure: it neither knows who ran a chunk nor when. Token ids are the truth; text is made from them once.
"""

from typing import Any

from seer_sgl.types import EngineId

_PER_TOKEN = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
"""Lists with one entry per output token: joined end to end."""
_SUMMED = (
    "completion_tokens",
    "reasoning_tokens",
    "num_retractions",
    "output_token_logprobs_length",
    "spec_verify_ct",
    "spec_num_correct_drafts",
    "spec_num_proposed_drafts",
)
_FROM_FIRST = ("prompt_tokens", "cached_tokens", "cached_tokens_details", "input_token_logprobs")
"""The client's view: what its own prompt found, not what later chunks did."""


class Transcript:
    """What a request has produced so far.

    Args:
        rid: the id that the client knows it by.
        prompt_ids: token ids of the prompt.
    """

    def __init__(self, rid: str, prompt_ids: list[int]) -> None:
        self.rid = rid
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        self._meta: dict[str, Any] = {}
        self._spans: list[dict[str, Any]] = []
        self._chunks: list[dict[str, Any]] = []
        self._text = ""

    @property
    def held_ids(self) -> list[int]:
        """Prompt and output: what the next chunk starts from."""
        return self.prompt_ids + self.output_ids

    @property
    def text_is_whole(self) -> bool:
        """True where SGLang's own text stands, as no chunk edge runs through it."""
        return len(self._chunks) < 2

    def add(self, answer: dict[str, Any], engine_id: EngineId, came_from: EngineId | None) -> None:
        """Append one chunk's answer."""
        meta = dict(answer["meta_info"])
        offset = len(self.output_ids)
        input_tokens = len(self.prompt_ids) + offset
        self._chunks.append(_chunk_record(answer, engine_id, came_from, input_tokens))
        self._spans += _shifted(meta.pop("weight_versions", None) or [], offset)
        self.output_ids += answer["output_ids"]
        self._text = answer.get("text", "")
        if not self._meta:
            self._meta = meta
            return
        before, self._meta = self._meta, {**self._meta, **meta}
        for key in _SUMMED:
            if key in before:
                self._meta[key] = before[key] + meta.get(key, 0)
        for key in _PER_TOKEN:
            if key in before:
                self._meta[key] = before[key] + meta.get(key, [])
        for key in _FROM_FIRST:
            if key in before:
                self._meta[key] = before[key]

    def text_request(self) -> list[list[int]]:
        """Two lists of ids whose texts differ by the output's text (see `answer`).

        As in SGLang's detokenizer, the prompt's last ids go first, so that a tokenizer which treats
        the start of a text in its own way treats the output as the middle that it is.
        """
        ids = self.output_ids
        finish = self._meta.get("finish_reason") or {}
        if isinstance(finish.get("matched"), int) and ids:
            ids = ids[:-1]
        tail = self.prompt_ids[-5:]
        return [tail + ids, tail]

    def answer(self, latency_s: float, texts: list[str] | None = None) -> dict[str, Any]:
        """The whole, in the shape of SGLang's `/generate`.

        Args:
            latency_s: from arrival to now.
            texts: of `text_request()`, needed unless `text_is_whole`.
        """
        text = self._text if texts is None else texts[0][len(texts[1]) :]
        meta = {**self._meta, "id": self.rid, "e2e_latency": latency_s}
        finish = meta.get("finish_reason") or {"type": "abort", "message": "aborted before prefill"}
        if finish.get("type") == "length":
            finish = {**finish, "length": len(self.output_ids)}
        meta["finish_reason"] = finish
        meta.setdefault("prompt_tokens", len(self.prompt_ids))
        meta.setdefault("completion_tokens", len(self.output_ids))
        if not self._chunks:
            meta["output_token_logprobs"] = []
        meta["weight_versions"] = _joined(self._spans)
        meta["seer"] = {"chunks": self._chunks}
        return {"text": text, "output_ids": self.output_ids, "meta_info": meta}


def _chunk_record(
    answer: dict[str, Any], engine_id: EngineId, came_from: EngineId | None, input_tokens: int
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
    }


def _shifted(spans: list[dict[str, Any]], offset: int) -> list[dict[str, Any]]:
    return [{**s, "start": s["start"] + offset, "end": s["end"] + offset} for s in spans]


def _joined(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring spans of one version as one span."""
    joined: list[dict[str, Any]] = []
    for span in spans:
        if joined and joined[-1]["version"] == span["version"]:
            joined[-1] = {**joined[-1], "end": span["end"]}
        else:
            joined.append(span)
    return joined
