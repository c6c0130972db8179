"""SGLang's sampling parameters: which there are, what they may be, and which survive a chunk edge."""

from collections.abc import Callable
from typing import Any

from seer_sgl.errors import RequestError

KNOWN = frozenset(
    """max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty
    presence_penalty repetition_penalty min_new_tokens n beam_width json_schema regex ebnf
    structural_tag ignore_eos skip_special_tokens spaces_between_special_tokens no_stop_trim
    stream_interval logit_bias sampling_seed custom_params watermark""".split()
)
"""SGLang 0.5.23 `SamplingParams`; it refuses any other name."""

GROUP_TAG = "seer"
"""Key in `custom_params`, which SGLang carries to its workers and reads only for logit processors."""

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("at least 0", lambda x: 0 <= x < float("inf")),
    "top_p": ("in (0, 1]", lambda x: 0 < x <= 1),
    "top_k": ("-1 (off) or at least 1", lambda x: x == -1 or x >= 1),
    "min_p": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "frequency_penalty": ("in [-2, 2]", lambda x: -2 <= x <= 2),
    "presence_penalty": ("in [-2, 2]", lambda x: -2 <= x <= 2),
    "repetition_penalty": ("in (0, 2]", lambda x: 0 < x <= 2),
}

INTEGERS = ("max_new_tokens", "n", "min_new_tokens", "top_k", "beam_width", "sampling_seed")
AT_LEAST_ONE = ("n", "beam_width")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stop": ("", []),
    "stop_regex": ("", []),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "beam_width": (1,),
    "json_schema": ("",),
    "regex": ("",),
    "ebnf": ("",),
    "structural_tag": ("",),
    "watermark": ({},),
    "custom_params": ({},),
}
"""Parameters that look back over a request's whole output, with the values at which they do not."""


def check_sampling(params: dict[str, Any]) -> None:
    """Raise RequestError for an unknown name, or a value that SGLang would refuse."""
    for name, value in params.items():
        field = f"sampling_params.{name}"
        if name not in KNOWN:
            raise RequestError(field, f"unknown parameter; there are: {', '.join(sorted(KNOWN))}")
        if value is None:
            continue
        if name in INTEGERS and type(value) is not int:
            raise RequestError(field, f"must be an integer, got {value!r}")
        if name in AT_LEAST_ONE and value < 1:
            raise RequestError(field, f"must be at least 1, got {value}")
        if name == "max_new_tokens" and value < 0:
            raise RequestError(field, f"must be at least 0, got {value}")
        if name in RANGES:
            _check_range(field, value, *RANGES[name])
    _check_min_new_tokens(params)
    _check_custom(params.get("custom_params"))


def _check_custom(custom: Any) -> None:
    field = "sampling_params.custom_params"
    if custom is not None and not isinstance(custom, dict):
        raise RequestError(field, f"must be an object, got {type(custom).__name__}")
    if custom and GROUP_TAG in custom:
        raise RequestError(f"{field}.{GROUP_TAG}", "is set by the router; choose another name")


def chunk_sampling(
    params: dict[str, Any], max_new_tokens: int, done_tokens: int, tag: dict[str, Any]
) -> dict[str, Any]:
    """The parameters of one chunk.

    Args:
        params: the request's.
        max_new_tokens: what the chunk may bring.
        done_tokens: output of earlier chunks.
        tag: what an engine's drafter is told of the request.
    """
    chunk = {**params, "max_new_tokens": max_new_tokens}
    chunk["custom_params"] = {**(params.get("custom_params") or {}), GROUP_TAG: tag}
    if least := params.get("min_new_tokens"):
        # Until then the model may not end; a chunk that ends sooner is not the last.
        chunk["min_new_tokens"] = min(max(0, least - done_tokens), max_new_tokens)
    return chunk


def _check_range(field: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(field, f"must be a number {allowed}, got {value!r}")
    if not holds(value):
        raise RequestError(field, f"must be {allowed}, got {value}")


def _check_min_new_tokens(params: dict[str, Any]) -> None:
    low, high = params.get("min_new_tokens") or 0, params.get("max_new_tokens")
    if low < 0 or (high is not None and low > high):
        allowed = "at least 0" if high is None else f"in [0, max_new_tokens ({high})]"
        raise RequestError("sampling_params.min_new_tokens", f"must be {allowed}, got {low}")


def divisible_sampling(params: dict[str, Any]) -> bool:
    """Whether a request with these parameters may be cut into chunks without a different result."""
    for name, value in params.items():
        if value is not None and name in _NEUTRAL and value not in _NEUTRAL[name]:
            return False
    return True
