"""Chunks put together read like one answer."""

from base64 import b64decode, b64encode
from typing import Any

import pytest

from seer_sgl.router.transcript import Transcript, routed_start
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
        "pool_wait_s": 0.0,
        "pulled_tokens": 0,
        "epoch": 0,
        "last_epoch": 0,
    }


def test_a_change_of_weights_that_nobody_named_still_shows_in_the_spans() -> None:
    transcript = Transcript("mine", [1])
    for transcript.epoch in (0, 0, 1):
        transcript.add(answer([7, 8], LENGTH), A, None)
    spans = transcript.answer(0.0, ["", ""])["meta_info"]["weight_versions"]
    assert spans == [{"version": "v1", "start": 0, "end": 4}, {"version": "v1", "start": 4, "end": 6}]


def test_a_chunk_during_which_weights_changed_without_a_name_is_marked() -> None:
    """SGLang tells one version for all of it."""
    transcript = Transcript("mine", [1])
    transcript.add(answer([7], LENGTH), A, None)
    transcript.weights_changed(1)
    transcript.weights_changed(2)
    transcript.add(answer([7, 8], LENGTH), A, None)
    transcript.epoch = 2
    transcript.add(answer([9], LENGTH), A, None)
    meta = transcript.answer(0.0, ["", ""])["meta_info"]
    epochs = [(chunk["epoch"], chunk["last_epoch"]) for chunk in meta["seer"]["chunks"]]
    assert epochs == [(0, 0), (0, 2), (2, 2)]
    assert [(span["start"], span["end"]) for span in meta["weight_versions"]] == [(0, 3), (3, 4)]


def test_what_a_lost_engine_has_shown_is_marked_like_an_answer() -> None:
    transcript = Transcript("mine", [1])
    transcript.progress(0, "a", [7], answer([7], LENGTH)["meta_info"])
    transcript.weights_changed(1)
    transcript.keep_progress(A, None)
    (chunk,) = transcript.answer(0.0, ["", ""])["meta_info"]["seer"]["chunks"]
    assert (chunk["epoch"], chunk["last_epoch"]) == (0, 1)


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


def test_drafts_are_told_by_both_names_and_over_all_chunks() -> None:
    transcript = Transcript("mine", [1, 2, 3])
    first = {"spec_verify_ct": 2, "spec_num_correct_drafts": 2, "spec_num_proposed_drafts": 8}
    second = {"spec_verify_ct": 3, "spec_num_correct_drafts": 0, "spec_num_proposed_drafts": 12}
    rates = {"spec_accept_rate": 0.25, "spec_accept_length": 2.0}
    transcript.add(answer([7, 8, 7, 8], LENGTH, **first, **rates), A, None)
    transcript.add(answer([9, 9], LENGTH, **second), A, None)
    meta = transcript.answer(0.0, ["", ""])["meta_info"]
    assert (meta["spec_num_correct_drafts"], meta["spec_num_proposed_drafts"]) == (2, 20)
    assert (meta["spec_accept_token_num"], meta["spec_draft_token_num"]) == (2, 20)
    assert (meta["spec_accept_rate"], meta["spec_accept_length"]) == (0.1, 6 / 5)

    plain = Transcript("mine", [1])
    plain.add(answer([7], LENGTH), A, None)
    assert not [key for key in plain.answer(0.0)["meta_info"] if key.startswith("spec_")]


ROW_BYTES = 2 * 3 * 4
"""Two layers, three experts a token, an int32 each."""


def rows(start: int, total: int) -> str:
    """What SGLang tells of tokens `start` to `total - 2`: of the last one nothing is known yet."""
    raw = b"".join(bytes([token % 256]) * ROW_BYTES for token in range(start, total - 1))
    return b64encode(raw).decode()


@pytest.mark.parametrize("wanted", [None, 0, 3, 10])
@pytest.mark.parametrize("chunks", [[4], [4, 3], [4, 1, 1, 5], [1, 0]])
def test_routed_experts_of_chunks_are_those_of_the_whole(wanted: int | None, chunks: list[int]) -> None:
    prompt = list(range(10))
    transcript = Transcript("mine", prompt, wanted or 0)
    for number, tokens in enumerate(chunks):
        held = len(transcript.held_ids)
        start = routed_start(wanted, held, len(prompt))
        if not number:
            assert start == (wanted or 0)
        told = rows(start, held + tokens)
        transcript.add(answer([5] * tokens, LENGTH, routed_experts=told), A, None)
    total = len(prompt) + sum(chunks)
    whole = transcript.answer(0.0, ["", ""])["meta_info"]["routed_experts"]
    assert whole == rows(wanted or 0, total)
    assert len(b64decode(whole)) == (total - 1 - (wanted or 0)) * ROW_BYTES


@pytest.mark.parametrize("second", [None, rows(0, 18), rows(13, 17), rows(13, 19), "?"])
def test_routed_experts_with_a_gap_are_left_out(second: str | None) -> None:
    transcript = Transcript("mine", [1] * 10)
    transcript.add(answer([5] * 4, LENGTH, routed_experts=rows(0, 14)), A, None)
    told = {} if second is None else {"routed_experts": second}
    transcript.add(answer([5] * 4, LENGTH, **told), A, None)
    assert "routed_experts" not in transcript.answer(0.0, ["", ""])["meta_info"]


def progressed(transcript: Transcript, text: str, *ids: int, keep: int = 10_000) -> None:
    meta = answer(list(ids), {})["meta_info"]
    transcript.progress(keep, text, list(ids), {**meta, "finish_reason": None})


def test_progress_is_what_the_answer_says_in_the_end() -> None:
    transcript = Transcript("mine", [1, 2, 3])
    transcript.add(answer([7, 8], LENGTH), A, None)
    progressed(transcript, "xy", 9)
    told = transcript.so_far()
    assert (told["text"], told["output_ids"]) == ("text of [7, 8]xy", [7, 8, 9])
    meta = told["meta_info"]
    assert (meta["id"], meta["finish_reason"], meta["completion_tokens"]) == ("mine", None, 3)
    assert [row[1] for row in meta["output_token_logprobs"]] == [7, 8, 9]
    assert meta["weight_versions"] == [{"version": "v1", "start": 0, "end": 3}]
    assert transcript.held_ids == [1, 2, 3, 7, 8]

    transcript.add(answer([9, 6], {"type": "stop", "matched": 6}), B, A)
    whole = transcript.answer(0.0, ["abc", "a"])
    assert whole["output_ids"] == [7, 8, 9, 6]
    assert [row[1] for row in whole["meta_info"]["output_token_logprobs"]] == [7, 8, 9, 6]
    assert whole["text"] == "bc"


def test_text_that_sglang_takes_back() -> None:
    transcript = Transcript("mine", [1])
    progressed(transcript, "one two", 5)
    progressed(transcript, "ten", 6, keep=4)
    assert transcript.so_far()["text"] == "one ten"


def test_half_a_character_is_kept_back_until_its_rest_is_known() -> None:
    transcript = Transcript("mine", [1, 2])
    half = answer([7, 8], LENGTH)
    half["text"] = "a\ufffd"
    transcript.add(half, A, None)
    assert not transcript.text_known
    assert transcript.text_so_far == "a"
    progressed(transcript, "", 9)
    mark = transcript.text_mark
    assert transcript.text_request() == [[1, 2, 7, 8, 9], [1, 2]]
    transcript.take_text(["P" + "a\ufffd", "P"], mark)
    assert (transcript.text_known, transcript.text_so_far) == (False, "a")
    progressed(transcript, "", 10)
    transcript.take_text(["Paé", "P"], transcript.text_mark)
    progressed(transcript, "bc", 11)
    assert (transcript.text_known, transcript.text_so_far) == (True, "aébc")


def test_after_a_whole_character_a_chunks_own_text_goes_on() -> None:
    transcript = Transcript("mine", [1, 2])
    transcript.add({**answer([7], LENGTH), "text": "a\ufffd"}, A, None)
    progressed(transcript, "bc", 8, 9)
    transcript.take_text(["Paébc", "P"], transcript.text_mark)
    progressed(transcript, "d", 10)
    assert transcript.text_so_far == "aébcd"
    transcript.add({**answer([8, 9, 10], LENGTH), "text": "bcd"}, A, None)
    progressed(transcript, "e", 11)
    assert transcript.text_so_far == "aébcde"


def test_text_that_came_too_late_is_not_taken() -> None:
    transcript = Transcript("mine", [1, 2])
    half = answer([7], LENGTH)
    half["text"] = "\ufffd"
    transcript.add(half, A, None)
    progressed(transcript, "", 8)
    mark = transcript.text_mark
    transcript.add({**answer([8, 9], LENGTH), "text": "b"}, A, None)
    transcript.take_text(["Pé", "P"], mark)
    assert not transcript.text_known


def test_what_was_shown_may_stay_without_its_engine() -> None:
    transcript = Transcript("mine", [1, 2])
    progressed(transcript, "x", 7)
    progressed(transcript, "y", 8)
    assert transcript.shown_tokens == 2
    assert transcript.keep_progress(A, None) == 2
    assert transcript.held_ids == [1, 2, 7, 8]
    assert not transcript.text_known
    assert not transcript.text_is_whole
    meta = transcript.answer(0.0, ["Pxy", "P"])["meta_info"]
    assert [row[1] for row in meta["output_token_logprobs"]] == [7, 8]


def test_what_sglang_says_besides_is_passed_on() -> None:
    transcript = Transcript("mine", [1, 2])
    transcript.add({**answer([7], LENGTH), "prompt_token_ids": [1, 2], "new": 3}, A, None)
    transcript.add({**answer([8], LENGTH), "prompt_token_ids": [1, 2, 7], "new": 4}, A, None)
    whole = transcript.answer(0.0, ["", ""])
    assert (whole["prompt_token_ids"], whole["new"]) == ([1, 2], 3)
