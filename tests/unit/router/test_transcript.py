"""Chunks put together read like one answer."""

from typing import Any

from seer_sgl.router.transcript import Transcript
from seer_sgl.types import EngineId

A, B = EngineId("a"), EngineId("b")


def answer(ids: list[int], finish: dict[str, Any], **meta: Any) -> dict[str, Any]:
    base = {
        "id": "chunk",
        "finish_reason": finish,
        "prompt_tokens": 3,
        "completion_tokens": len(ids),
        "cached_tokens": 0,
        "num_retractions": 0,
        "weight_versions": [{"version": "v1", "start": 0, "end": len(ids)}],
        "output_token_logprobs": [[-0.5, token, None] for token in ids],
    }
    return {"text": f"text of {ids}", "output_ids": ids, "meta_info": {**base, **meta}}


LENGTH = {"type": "length", "length": 2}


def test_one_chunk_is_passed_on_with_the_clients_id() -> None:
    transcript = Transcript("mine", [1, 2, 3])
    transcript.add(answer([7, 8], LENGTH), A, None)
    assert transcript.text_is_whole
    whole = transcript.answer(1.5)
    assert whole["text"] == "text of [7, 8]"
    assert whole["output_ids"] == [7, 8]
    assert whole["meta_info"]["id"] == "mine"
    assert whole["meta_info"]["e2e_latency"] == 1.5


def test_chunks_add_up() -> None:
    transcript = Transcript("mine", [1, 2, 3])
    transcript.add(answer([7, 8], LENGTH, spec_verify_ct=2), A, None)
    later = {"cached_tokens": 4, "cached_tokens_details": {"storage": 4}, "prompt_tokens": 5}
    later["num_retractions"] = 1
    later["weight_versions"] = [{"version": "v2", "start": 0, "end": 1}]
    stop = {"type": "stop", "matched": 99}
    transcript.add(answer([9], stop, spec_verify_ct=1, **later), B, A)

    assert not transcript.text_is_whole
    assert transcript.held_ids == [1, 2, 3, 7, 8, 9]
    meta = transcript.answer(0.0, ["abcdef", "abc"])["meta_info"]
    assert meta["finish_reason"] == stop
    assert (meta["completion_tokens"], meta["prompt_tokens"]) == (3, 3)
    assert (meta["cached_tokens"], meta["num_retractions"], meta["spec_verify_ct"]) == (0, 1, 3)
    assert [row[1] for row in meta["output_token_logprobs"]] == [7, 8, 9]
    assert meta["weight_versions"] == [
        {"version": "v1", "start": 0, "end": 2},
        {"version": "v2", "start": 2, "end": 3},
    ]
    assert meta["seer"]["chunks"][1] == {
        "engine": "b",
        "came_from": "a",
        "input_tokens": 5,
        "new_tokens": 1,
        "cached_tokens": 4,
        "pool_tokens": 4,
    }


def test_spans_of_one_version_are_one_span() -> None:
    transcript = Transcript("mine", [1])
    transcript.add(answer([7, 8], LENGTH), A, None)
    transcript.add(answer([9, 9], LENGTH), A, None)
    meta = transcript.answer(0.0, ["", ""])["meta_info"]
    assert meta["weight_versions"] == [{"version": "v1", "start": 0, "end": 4}]
    assert meta["finish_reason"] == {"type": "length", "length": 4}


def test_text_of_the_whole_leaves_out_the_prompt_and_a_matched_end_token() -> None:
    transcript = Transcript("mine", [1, 2, 3, 4, 5, 6, 7])
    transcript.add(answer([8], LENGTH), A, None)
    transcript.add(answer([9, 0], {"type": "stop", "matched": 0}), A, None)
    assert transcript.text_request() == [[3, 4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7]]
    assert transcript.answer(0.0, ["tail and more", "tail"])["text"] == " and more"


def test_the_end_token_is_shown_where_the_client_wants_it() -> None:
    transcript = Transcript("mine", [1, 2, 3, 4, 5, 6, 7], shows_end=True)
    transcript.add(answer([8], LENGTH), A, None)
    transcript.add(answer([9, 0], {"type": "stop", "matched": 0}), A, None)
    assert transcript.text_request() == [[3, 4, 5, 6, 7, 8, 9, 0], [3, 4, 5, 6, 7]]


def test_nothing_came() -> None:
    whole = Transcript("mine", [1, 2]).answer(0.1)
    assert whole["output_ids"] == []
    assert whole["text"] == ""
    meta = whole["meta_info"]
    assert meta["finish_reason"]["type"] == "abort"
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, 0)
    assert meta["output_token_logprobs"] == []
