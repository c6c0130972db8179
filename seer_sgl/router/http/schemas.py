"""What `/generate` takes and gives, for the document: what the router itself checks and promises."""

from typing import Any

from seer_sgl.router import sampling

_WHOLE = {"type": ["integer", "null"]}


_SPECIAL: dict[str, dict[str, Any]] = {
    "top_k": {"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1}, {"type": "null"}]},
    "min_new_tokens": {**_WHOLE, "minimum": 0},
    "custom_params": {"type": ["object", "null"]},
    **{name: {**_WHOLE, "minimum": 1} for name in sampling.AT_LEAST_ONE},
}


def _parameter(name: str) -> dict[str, Any]:
    """One sampling parameter. What is not told here is the engines' to judge."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name in sampling.INTEGERS:
        return _WHOLE
    if name in sampling.RANGES:
        return {"type": ["number", "null"], "description": f"Must be {sampling.RANGES[name][0]}."}
    return {}


_SAMPLING = {
    "type": "object",
    "properties": {name: _parameter(name) for name in sorted(sampling.KNOWN)},
    "additionalProperties": False,
}
_TEXT = {"type": "string", "minLength": 1}
_IDS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "minItems": 1,
}


def _or_a_list(one: dict[str, Any], text: str) -> dict[str, Any]:
    many = {"type": "array", "items": one, "minItems": 1}
    return {"anyOf": [one, many, {"type": "null"}], "description": text}


GENERATE: dict[str, Any] = {
    "type": "object",
    "description": "SGLang's `GenerateReqInput`. Fields that are not listed are passed on as they are.",
    "properties": {
        "text": _or_a_list(_TEXT, "A prompt, or several."),
        "input_ids": _or_a_list(_IDS, "The same as token ids."),
        "sampling_params": _or_a_list(_SAMPLING, "SGLang's; a list has one for each prompt."),
        "stream": {"type": ["boolean", "null"], "description": "Answer with server-sent events."},
        "rid": _or_a_list({"type": "string"}, "Id of the request. A retry gets the same answer."),
        "group_id": {"description": "Group that the samples belong to; a hint for drafts."},
        "return_logprob": {"description": "Log probabilities of the output."},
    },
    "anyOf": [{"required": ["text"]}, {"required": ["input_ids"]}],
}
_SAMPLE = {
    "type": "object",
    "required": ["text", "output_ids", "meta_info"],
    "properties": {
        "text": {"type": "string"},
        "output_ids": {"type": "array", "items": {"type": "integer"}},
        "meta_info": {
            "type": "object",
            "required": ["id", "finish_reason", "prompt_tokens", "completion_tokens", "weight_versions"],
            "properties": {
                "id": {"type": "string"},
                "finish_reason": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"enum": ["stop", "length", "abort"]}},
                },
                "prompt_tokens": {"type": "integer"},
                "completion_tokens": {"type": "integer"},
                "output_token_logprobs": {"type": "array"},
                "seer": {"type": "object", "description": "The chunks that it was made of."},
            },
        },
    },
}
GENERATED: dict[str, Any] = {"anyOf": [_SAMPLE, {"type": "array", "items": _SAMPLE}]}
