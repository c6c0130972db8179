"""Greedy requests whose parameters meet a chunk's edge: see "Chunk edges" in docs/http.md."""

from typing import Any

from seer_sgl.smallmodel.problems import prompts

DIGITS = [18 + digit for digit in range(10)]
"""Token ids of 0 to 9."""


def _row(max_new_tokens: int, fields: dict[str, Any] | None = None, **sampling: Any) -> dict[str, Any]:
    params = {"max_new_tokens": max_new_tokens, "temperature": 0, **sampling}
    return {
        "text": prompts(4, seed=11),
        "sampling_params": params,
        "return_logprob": True,
        **(fields or {}),
    }


CARRIED: dict[str, dict[str, Any]] = {
    "at least so many": _row(200, min_new_tokens=150),
    "to its end": _row(500),
    "to its end, which is shown": _row(
        500, no_stop_trim=True, skip_special_tokens=False, spaces_between_special_tokens=False
    ),
    "to a token": _row(300, ignore_eos=True, stop_token_ids=[23]),
    "bias": _row(150, ignore_eos=True, logit_bias={"20": 2.0, "21": -2.0}),
    "more logprobs": _row(150, {"top_logprobs_num": 2, "token_ids_logprob": [20, 21]}, ignore_eos=True),
}
WHOLE: dict[str, dict[str, Any]] = {
    "to a text": _row(400, stop=["left 003:", "Still 003"]),
    "to a text, which stays": _row(400, stop=["left 003:", "Still 003"], no_stop_trim=True),
    "to a pattern": _row(400, stop_regex="left 00[23]:"),
    "frequency penalty": _row(150, frequency_penalty=0.7),
    "presence penalty": _row(150, presence_penalty=0.7),
    "repetition penalty": _row(150, repetition_penalty=1.2),
    "pattern": _row(150, regex="[0-9]{90,120}"),
    "json": _row(150, json_schema='{"type": "array", "items": {"type": "integer"}, "minItems": 40}'),
    "input logprobs": _row(100, {"logprob_start_len": 0}),
}
ROWS = {**CARRIED, **WHOLE}
