"""SGLang's streamed events put together, in both of its forms, however they are cut."""

from typing import Any

import msgspec
import pytest

from seer_sgl.engine.increments import Delta, EventError, Events, Increments

FINISH = {"type": "length", "length": 3}


def event(text: str, ids: list[int], finish: Any = None, **meta: Any) -> dict[str, Any]:
    """One of a request that has a prompt of two tokens and wants log probabilities."""
    common = {"id": "r", "finish_reason": finish, "prompt_tokens": 2, "completion_tokens": len(ids)}
    lists = {"output_token_logprobs": [[-1.0, token, None] for token in ids]}
    return {"text": text, "output_ids": ids, "meta_info": {**common, **lists, **meta}}


WHOLE = [event("a", [1]), event("ab", [1, 2]), event("abc", [1, 2, 3], FINISH)]
NEW = [
    event("a", [1], completion_tokens=1),
    event("b", [2], completion_tokens=2),
    event("c", [3], FINISH, completion_tokens=3),
]


def payloads(events: list[dict[str, Any]]) -> list[bytes]:
    return [msgspec.json.encode(each) for each in events]


@pytest.mark.parametrize(("incremental", "events"), [(False, WHOLE), (True, NEW)])
def test_both_forms_say_the_same(incremental: bool, events: list[dict[str, Any]]) -> None:
    increments = Increments(incremental)
    deltas = []
    for payload in payloads(events):
        assert increments.finish_reason is None
        deltas.append(increments.take([payload]))
    assert [delta[:3] for delta in deltas] == [(0, "a", [1]), (1, "b", [2]), (2, "c", [3])]
    logprobs = [delta.meta["output_token_logprobs"] for delta in deltas]
    assert logprobs == [[[-1.0, token, None]] for token in (1, 2, 3)]
    assert increments.finish_reason == FINISH
    assert increments.answer() == WHOLE[-1]


@pytest.mark.parametrize(("incremental", "events"), [(False, WHOLE), (True, NEW)])
def test_events_that_come_together_are_one_step(incremental: bool, events: list[dict[str, Any]]) -> None:
    increments = Increments(incremental)
    first, *rest = payloads(events)
    increments.take([first])
    logprobs = [[-1.0, 2, None], [-1.0, 3, None]]
    meta = {**WHOLE[-1]["meta_info"], "output_token_logprobs": logprobs}
    assert increments.take(rest) == Delta(1, "bc", [2, 3], meta)
    assert increments.answer() == WHOLE[-1]


def test_text_that_is_taken_back() -> None:
    increments = Increments(False)
    told = ["a", "ax", "ab", "a"]
    deltas = [increments.take(payloads([event(text, [])])) for text in told]
    text = ""
    for whole, delta in zip(told, deltas, strict=True):
        text = text[: delta.keep_chars] + delta.text
        assert text == whole
    assert [delta.keep_chars for delta in deltas] == [0, 1, 1, 1]


def late_abort(text: str, ids: list[int], logprobs: list[int]) -> dict[str, Any]:
    """What 0.5.23 says of a request that it aborts in its queue: no word of the prompt."""
    finish = {"type": "abort", "message": "Abort in waiting queue"}
    lists = {"output_token_logprobs": [[-1.0, token, None] for token in logprobs]}
    meta = {"id": "r", "finish_reason": finish, "completion_tokens": 3, **lists}
    return {"text": text, "output_ids": ids, "meta_info": meta}


@pytest.mark.parametrize(
    ("told", "last"),
    [
        (NEW, late_abort("abc", [3], [1, 2, 3])),
        # SGLang joins what waits to be told: first what is new, then the whole once more.
        (NEW[:2], late_abort("cabc", [3, 3], [3, 1, 2, 3])),
        (NEW[:1], late_abort("bcabc", [2, 3, 3], [2, 3, 1, 2, 3])),
    ],
)
def test_a_retracted_request_that_is_aborted_keeps_what_it_had(
    told: list[dict[str, Any]], last: dict[str, Any]
) -> None:
    increments = Increments(True)
    for each in (*told, last):
        increments.take(payloads([each]))
    answer = increments.answer()
    assert (answer["text"], answer["output_ids"]) == ("abc", [1, 2, 3])
    assert [entry[1] for entry in answer["meta_info"]["output_token_logprobs"]] == [1, 2, 3]
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"


def test_an_abort_before_the_first_token() -> None:
    last = late_abort("", [], [])
    last["meta_info"]["completion_tokens"] = 0
    for incremental in (False, True):
        increments = Increments(incremental)
        assert increments.take(payloads([last]))[:3] == (0, "", [])
        assert increments.answer()["output_ids"] == []


def test_an_engine_without_a_tokenizer_sends_no_text() -> None:
    increments = Increments(True)
    increments.take([b'{"output_ids":[7],"meta_info":{"finish_reason":null}}'])
    assert increments.answer()["output_ids"] == [7]


@pytest.mark.parametrize(
    ("payload", "message", "status"),
    [
        (b'{"error":{"message":"too long","code":400,"retryable":false}}', "too long", 400),
        (b'{"error":{"message":"?","code":"bad"}}', r"\?", None),
        (b'{"error":"no"}', "unknown shape", None),
        (b"{", "no JSON", None),
        (b"[]", "unknown shape", None),
        (b'{"text":"a"}', "unknown shape", None),
    ],
)
def test_errors(payload: bytes, message: str, status: int | None) -> None:
    with pytest.raises(EventError, match=message) as caught:
        Increments(False).take([payload])
    assert caught.value.status == status


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_events_are_found_however_the_bytes_are_cut(step: int) -> None:
    stream = b'data: {"a":1}\n\n: a comment\n\ndata:{"b":"\xc3\xa9"}\n\ndata: [DONE]\n\n'
    events = Events()
    found = [p for at in range(0, len(stream), step) for p in events.feed(stream[at : at + step])]
    assert found == [b'{"a":1}', b'{"b":"\xc3\xa9"}']
