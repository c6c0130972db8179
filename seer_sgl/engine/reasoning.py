"""Reasoning tokens of a request that other engines generate, counted as SGLang's scheduler counts them.

It counts within one request from its first token: a request in chunks would begin anew with each one.
Counted here, over all output, a request that reasons can be divided like any other.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")

_known: "weakref.WeakKeyDictionary[Any, tuple[list[int], list[int]] | None]" = (
    weakref.WeakKeyDictionary()
)


def counts_for(manager: Any, obj: Any) -> "Callable[[], ReasoningCount] | None":
    """What makes a count for each sample of a request; None where the engines have to count.

    With a grammar, the mark also says where the grammar begins, and a request may choose its own end of
    reasoning by a private parameter.
    """
    params = obj.sampling_params or {}
    if not isinstance(params, dict) or params.get("custom_params"):
        return None
    if any(params.get(name) for name in _GRAMMARS):
        return None
    if manager not in _known:
        _known[manager] = _read_marks(manager.tokenizer)
    marks = _known[manager]
    if marks is None:
        return None
    begin, end = marks
    if obj.require_reasoning:
        return lambda: ReasoningCount([], end)
    return lambda: ReasoningCount(begin, end if begin else [])


def _read_marks(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """The tokens that begin reasoning where a model opens it itself, and those that end it; both empty
    where the server has no reasoning parser, None where it has a grammar for reasoning."""
    from sglang.srt.parser.reasoning_parser import ReasoningParser
    from sglang.srt.runtime_context import get_serving

    serving = get_serving()
    if serving.enable_strict_thinking:
        return None
    if not serving.reasoning_parser or tokenizer is None:
        return [], []
    parser = ReasoningParser(
        model_type=serving.reasoning_parser, stream_reasoning=False, tokenizer=tokenizer
    )
    end = parser.detector.get_think_end_token_ids(tokenizer)
    begin = parser.detector.get_self_opened_think_start_token_ids(tokenizer) if end else None
    return list(begin or []), list(end or [])


class ReasoningCount:
    """The count of one sample, as its output grows.

    Args:
        begin: what output has to begin with for any of it to be reasoning; empty where all is, to `end`.
        end: what ends it.
    """

    def __init__(self, begin: Sequence[int], end: Sequence[int]) -> None:
        self._begin, self._end = list(begin), list(end)
        self._ids: list[int] = []
        self._final: int | None = None if self._end else 0

    def after(self, output_ids: Sequence[int]) -> int:
        """Reasoning tokens in an output so far, its end included. It begins as the last one did."""
        return self.after_more(output_ids[len(self._ids) :] if self._final is None else ())

    def after_more(self, new_ids: Sequence[int]) -> int:
        """The same, given what is new."""
        if self._final is None:
            searched = len(self._ids)
            self._ids.extend(new_ids)
            self._final = self._found(searched)
        if self._final is not None:
            return self._final
        return len(self._ids) if len(self._ids) >= len(self._begin) else 0

    def _found(self, searched: int) -> int | None:
        ids, opened, size = self._ids, len(self._begin), len(self._end)
        if ids[:opened] != self._begin[: len(ids)]:
            return 0
        for at in range(max(opened, searched - size + 1), len(ids) - size + 1):
            if ids[at : at + size] == self._end:
                return at + size
        return None
