"""What `/generate` takes, what it refuses and how it says so."""

from typing import Any

import pytest

from seer_sgl.errors import RequestError
from seer_sgl.router.requests import (
    GenerateCall,
    Sample,
    check_against_engines,
    limits_of,
    parse_generate,
)
from seer_sgl.testing.engine import FAKE_SPEC


def parse(**body: Any) -> GenerateCall:
    return parse_generate(body, "new")


def test_one_text_is_one_sample_and_no_list() -> None:
    call = parse(text="hi", rid="mine", unknown=7, sampling_params={"top_p": 0.5})
    (sample,) = call.samples
    assert not call.is_list
    assert (sample.rid, sample.text, sample.max_new_tokens) == ("mine", "hi", 128)
    assert sample.body == {"unknown": 7, "sampling_params": {"top_p": 0.5}}


def test_n_is_expanded_prompt_by_prompt() -> None:
    call = parse(input_ids=[[5], [6]], rid=["a", "b"], sampling_params={"n": 2})
    assert call.is_list
    assert [(s.rid, s.prompt_ids) for s in call.samples] == [
        ("a_0", [5]),
        ("a_1", [5]),
        ("b_0", [6]),
        ("b_1", [6]),
    ]


def test_batch_fields_are_taken_apart() -> None:
    call = parse(text=["x", "y"], sampling_params=[{"top_k": 1}, {"top_k": 2}], return_logprob=True)
    assert [s.sampling for s in call.samples] == [{"top_k": 1}, {"top_k": 2}]
    assert all(s.body["return_logprob"] is True for s in call.samples)
    assert len({s.rid for s in call.samples}) == 2


def test_a_group_is_what_the_client_calls_it() -> None:
    assert parse(input_ids=[5]).samples[0].group_id is None
    assert parse(input_ids=[5], group_id="g").samples[0].group_id == "g"
    assert parse(input_ids=[[5], [6]], group_id=["g", 3]).samples[1].group_id == "3"
    assert parse_generate({"input_ids": [5]}, "new", "header").samples[0].group_id == "header"


def test_samples_know_the_requests_that_they_were_made_of() -> None:
    def named(**body: Any) -> list[tuple[str, ...]]:
        return [(s.rid, *s.names) for s in parse(**body).samples]

    two = {"n": 2}
    assert named(text="a", rid="r") == [("r",)]
    assert named(text="a", rid="r", sampling_params=two) == [("r_0", "r"), ("r_1", "r")]
    assert named(text=["a", "b"], rid="r") == [("r_0", "r"), ("r_1", "r")]
    assert named(text=["a"], rid=["x"], sampling_params=two) == [("x_0", "x"), ("x_1", "x")]
    assert named(text=["a"], rid="r", sampling_params=two)[1] == ("r_0_1", "r_0", "r")


def test_a_call_may_stream() -> None:
    assert parse(text="a", stream=True).streams
    assert not parse(text="a", stream=False).streams
    assert not parse(text="a").streams


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input_ids"),
        ({"text": "a", "input_ids": [1]}, "input_ids"),
        ({"text": ""}, "text"),
        ({"text": ["a", ""]}, "text"),
        ({"text": []}, "text"),
        ({"text": 5}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[1], []]}, "input_ids"),
        ({"input_ids": "abc"}, "input_ids"),
        ({"input_ids": [1, -1]}, "input_ids"),
        ({"input_ids": [1, 2.5]}, "input_ids"),
        ({"input_ids": [True]}, "input_ids"),
        ({"text": "a", "sampling_params": 3}, "sampling_params"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -4}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"max_new_tokens": "9"}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"n": 0}}, "sampling_params.n"),
        ({"text": "a", "sampling_params": {"n": 10**9}}, "n"),
        ({"text": "a", "sampling_params": {"heat": 1}}, "sampling_params.heat"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"top_p": 0}}, "sampling_params.top_p"),
        ({"text": "a", "sampling_params": {"top_p": "x"}}, "sampling_params.top_p"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 200}}, ""),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": "a", "rid": 5}, "rid"),
        ({"text": "a", "stream": "yes"}, "stream"),
    ],
)
def test_bad_bodies_name_their_field(body: dict[str, Any], field: str) -> None:
    if not field:
        body["sampling_params"]["max_new_tokens"] = 100
        field = "sampling_params.min_new_tokens"
    with pytest.raises(RequestError) as caught:
        parse_generate(body, "new")
    assert caught.value.field == field
    assert caught.value.status == 400
    assert str(caught.value).startswith(field)


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(RequestError, match="JSON object, got list"):
        parse_generate([1], "new")


@pytest.mark.parametrize(
    "body",
    [
        {"logprob_start_len": 0},
        {"return_hidden_states": True},
        {"custom_logit_processor": "x"},
        {"a_field_of_tomorrow": 1},
        {"sampling_params": {"stop": "\n"}},
        {"sampling_params": {"stop_regex": ["a+"]}},
        {"sampling_params": {"frequency_penalty": 0.1}},
        {"sampling_params": {"presence_penalty": -1}},
        {"sampling_params": {"repetition_penalty": 1.1}},
        {"sampling_params": {"json_schema": "{}"}},
        {"sampling_params": {"regex": "a"}},
        {"sampling_params": {"ebnf": "a"}},
        {"sampling_params": {"structural_tag": "a"}},
        {"sampling_params": {"beam_width": 2}},
        {"sampling_params": {"custom_params": {"a": 1}}},
    ],
)
def test_what_looks_back_over_the_output_runs_whole(body: dict[str, Any]) -> None:
    assert not parse(text="a", **body).samples[0].divisible


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"logprob_start_len": -1, "return_logprob": True, "top_logprobs_num": 3},
        {"a_field_of_tomorrow": None, "return_hidden_states": False},
        {"sampling_params": {"stop": None, "frequency_penalty": 0.0, "repetition_penalty": 1}},
        {"sampling_params": {"stop_token_ids": [3], "logit_bias": {"5": 1.0}, "sampling_seed": 3}},
        {"extra_key": "k", "cache_salt": "s", "priority": 3, "lora_path": "x"},
        {"sampling_params": {"custom_params": {}}},
        {"sampling_params": {"min_new_tokens": 5}},
        {"return_routed_experts": True, "routed_experts_start_len": 3},
        {"return_prompt_token_ids": True},
    ],
)
def test_what_does_not_is_divided(body: dict[str, Any]) -> None:
    assert parse(text="a", **body).samples[0].divisible


@pytest.mark.parametrize(
    ("custom", "field"),
    [([1], "sampling_params.custom_params"), ({"seer": {}}, "sampling_params.custom_params.seer")],
)
def test_custom_parameters_that_are_not_the_clients_to_give(custom: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text="a", sampling_params={"custom_params": custom})
    assert caught.value.field == field


def sample(prompt_tokens: int, max_new_tokens: int | None, token: int = 3) -> Sample:
    return Sample("r", {"sampling_params": {}}, max_new_tokens, "g", True, None, [token] * prompt_tokens)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_new_tokens", "budget"),
    [
        (10, 100, 100),
        (48, 2000, 1998),  # all of the context is asked for; SGLang cuts two tokens as well
        (10, None, 2036),
        (2045, 1, 1),
        (10, 0, 1),
    ],
)
def test_budget_within_the_engines(prompt_tokens: int, max_new_tokens: int | None, budget: int) -> None:
    assert check_against_engines(sample(prompt_tokens, max_new_tokens), limits_of([FAKE_SPEC])) == budget


@pytest.mark.parametrize(
    ("bad", "field", "says"),
    [
        (sample(10, 2039), "sampling_params.max_new_tokens", r"\[0, 2038\]"),
        (sample(2046, 1), "input_ids", "at most 2045"),
        (sample(5, 5, token=256), "input_ids", r"\[0, 255\], got 256"),
    ],
)
def test_what_fits_no_engine(bad: Sample, field: str, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        check_against_engines(bad, limits_of([FAKE_SPEC]))
    assert caught.value.field == field
