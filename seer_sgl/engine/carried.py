"""Which of a request's fields travel from SGLang's front to the router, as JSON. Pure."""

import dataclasses
import json
from typing import Any

_LOCAL = frozenset(
    """received_time http_worker_ipc external_trace_header background need_wait_for_mm_inputs
    conversation_id""".split()
)
"""Of use only inside the process that took the request in, or set with no other effect."""

_NEUTRAL: dict[str, Any] = {"logprob_start_len": -1, "top_logprobs_num": 0}
"""Values that SGLang sets itself where a field is None."""

_ONLY_WITH_LOGPROBS = ("return_text_in_logprobs", "top_logprobs_num", "logprob_start_len")

_NEUTRAL_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "n": 1,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "no_stop_trim": False,
}
"""SGLang 0.5.23's `SamplingParams`; what it takes for None travels as absent, too."""

_PRIVATE_SAMPLING = frozenset(["ebnf_full_assistant"])
"""Parameters that SGLang's chat sets, and its `/generate` refuses."""


def body_of(obj: Any) -> dict[str, Any]:
    """A `/generate` body that means the same as this `GenerateReqInput`, before SGLang normalizes it.

    Fields at their defaults stay behind: the router runs a request whole when it meets a field that it
    does not know.
    """
    body = {
        field.name: value
        for field in dataclasses.fields(obj)
        if not _is_default(field, value := getattr(obj, field.name)) and field.name not in _LOCAL
    }
    if not body.get("return_logprob"):
        for name in _ONLY_WITH_LOGPROBS:
            body.pop(name, None)
    params = body.get("sampling_params")
    if isinstance(params, dict):
        body["sampling_params"] = _sampling(params)
    return body


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:
    if value is None:
        return True
    if field.name in _NEUTRAL:
        return type(value) is int and value == _NEUTRAL[field.name]
    if field.default is None or field.default is False:
        # SGLang makes the same of a flag that is off, or of nothing in a list, as of None.
        return value is False or (isinstance(value, str | list | dict) and not value)
    return type(value) is type(field.default) and bool(value == field.default)


def _sampling(params: dict[str, Any]) -> dict[str, Any]:
    """`max_new_tokens` stays as it is: None is without limit there, absent is 128."""
    return {
        name: value
        for name, value in params.items()
        if name == "max_new_tokens"
        or not (value is None or value in ([], "", {}) or value == _NEUTRAL_SAMPLING.get(name))
    }


def encoded(body: dict[str, Any]) -> bytes | None:
    """As JSON; None where something in it is none, as images are, or is only between SGLang's layers."""
    params = body.get("sampling_params")
    if isinstance(body.get("return_hidden_states"), str):
        return None
    if isinstance(params, dict) and not _PRIVATE_SAMPLING.isdisjoint(params):
        return None
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        return None
