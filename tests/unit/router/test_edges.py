"""The table "Chunk edges" of docs/http.md, row by row: what it says of a field is what happens to it."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.router import sampling
from seer_sgl.testing.engine import continuation
from tests.unit.router.conftest import LONG, cluster, prompts, run, server

PAGE = Path(__file__).resolve().parents[3] / "docs/http.md"
CHUNK = 16
TOKENS = 80
VERDICTS = ("carried", "whole", "per chunk")

TRIED: dict[str, Any] = {
    # sampling parameters
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.05,
    "logit_bias": {"5": 1.5},
    "stop_token_ids": [250],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "sampling_seed": 11,
    "stream_interval": 2,
    "stop": ["x"],
    "stop_regex": "x+",
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "beam_width": 2,
    "json_schema": '{"type": "object"}',
    "regex": "a+",
    "ebnf": 'root ::= "a"',
    "structural_tag": "{}",
    "spaces_between_special_tokens": False,
    "no_stop_trim": True,
    "custom_params": {"a": 1},
    "watermark": {"a": 1},
    # top level
    "return_logprob": True,
    "top_logprobs_num": 2,
    "token_ids_logprob": [5],
    "logprob_start_len": 0,
    "lora_path": "adapter",
    "lora_id": "1",
    "extra_key": "k",
    "priority": 3,
    "custom_labels": {"a": "b"},
    "routing_key": "r",
    "log_metrics": False,
    "routed_dp_rank": 1,
    "data_parallel_rank": 1,
    "disagg_prefill_dp_rank": 1,
    "bootstrap_host": "h",
    "bootstrap_port": 1,
    "bootstrap_room": 1,
    "decode_tp_size": 1,
    "image_data": ["x"],
    "session_params": {"id": "s"},
    "session_id": "s",
    "max_thinking_tokens": 5,
    "input_embeds": [[0.5]],
}
"""Where `True` is no good example of a value that says something."""


@cache
def table() -> dict[str, dict[str, str]]:
    """What the page says of each field, by the part of it: `sampling_params` and the top level."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## Chunk edges\n")[2].partition("\n## ")[0]
    found: dict[str, dict[str, str]] = {}
    for part, rows in re.findall(r"\n### (.*?)\n(.*?)(?=\n### |\Z)", text, re.DOTALL):
        known = found.setdefault(part, {})
        for names, verdict in re.findall(r"^\| (`.*?) \| (.*?) \|", rows, re.MULTILINE):
            for name in re.findall(r"`(\w+)`", names):
                assert name not in known, f"{name} has two rows"
                assert verdict in VERDICTS, f"{name}: {verdict}"
                known[name] = verdict
    return found


def fields_of(module: str, name: str) -> set[str]:
    """A class's annotated fields, read from the installed SGLang's source without running it."""
    package = find_spec("sglang")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no SGLang is installed here")
    path = Path(package.submodule_search_locations[0]) / module
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            return {field.id for field in fields if isinstance(field, ast.Name)}
    raise AssertionError(f"{name} is not in {path}")


MADE_BY_SGLANG = set(
    "stop_strs stop_regex_strs stop_str_max_len stop_regex_max_len is_normalized "
    "ebnf_full_assistant http_worker_ipc external_trace_header received_time "
    "need_wait_for_mm_inputs num_items_assigned".split()
)
"""Fields that SGLang fills in itself."""


def test_every_parameter_of_the_code_has_a_row() -> None:
    assert set(table()["Sampling parameters"]) == sampling.KNOWN


def test_every_parameter_of_sglang_has_a_row() -> None:
    theirs = fields_of("srt/sampling/sampling_params.py", "SamplingParams") - MADE_BY_SGLANG
    assert theirs == set(table()["Sampling parameters"])


def test_every_field_of_sglang_has_a_row() -> None:
    theirs = fields_of("srt/managers/io_struct.py", "GenerateReqInput") - MADE_BY_SGLANG
    assert set(table()["Fields beside them"]) == theirs | {"group_id"}


def rows(part: str, verdict: str) -> list[str]:
    return [name for name, said in table()[part].items() if said == verdict]


def bodies_of(body: dict[str, Any]) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """The chunks' bodies as the engine got them, the answer's tokens, and those of a plain server."""
    (prompt,) = prompts(1, LONG)
    engine = server()
    answered: list[int] = []

    async def scenario() -> None:
        async with cluster(engine, chunk_tokens=CHUNK, chunk_plan="constant") as it:
            params = {"max_new_tokens": TOKENS, **body.pop("sampling_params", {})}
            answer = await it.generate(prompt, sampling_params=params, **body)
            answered.extend(answer["output_ids"])

    run(scenario())
    return engine.bodies, answered, continuation(prompt, TOKENS)


def placed(part: str, name: str) -> dict[str, Any]:
    field = {name: TRIED.get(name, True)}
    return {"sampling_params": field} if part == "Sampling parameters" else field


def got(part: str, name: str, body: dict[str, Any]) -> Any:
    return body["sampling_params"].get(name) if part == "Sampling parameters" else body.get(name)


PARTS = ("Sampling parameters", "Fields beside them")


@pytest.mark.parametrize(("part", "name"), [(p, n) for p in PARTS for n in rows(p, "carried")])
def test_carried(part: str, name: str) -> None:
    bodies, tokens, expected = bodies_of(placed(part, name))
    assert len(bodies) == TOKENS // CHUNK
    assert tokens == expected
    for body in bodies:
        assert got(part, name, body) == TRIED.get(name, True), "as it came, with every chunk"


def seen_whole(part: str, name: str, body: dict[str, Any]) -> Any:
    """A request that runs whole may have its tag for the drafter beside what the client sent."""
    value = got(part, name, body)
    return {k: v for k, v in value.items() if k != "seer"} if name == "custom_params" else value


@pytest.mark.parametrize(("part", "name"), [(p, n) for p in PARTS for n in rows(p, "whole")])
def test_whole(part: str, name: str) -> None:
    bodies, tokens, expected = bodies_of(placed(part, name))
    (body,) = bodies
    assert tokens == expected
    assert body["sampling_params"]["max_new_tokens"] == TOKENS
    assert seen_whole(part, name, body) == TRIED.get(name, True)


@pytest.mark.parametrize("name", rows("Sampling parameters", "whole"))
def test_a_value_that_says_nothing_is_no_reason(name: str) -> None:
    for value in (None, *NEUTRAL.get(name, ())):
        bodies, tokens, expected = bodies_of({"sampling_params": {name: value}})
        assert len(bodies) == TOKENS // CHUNK, (name, value)
        assert tokens == expected


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stop": ("", []),
    "stop_regex": ("", []),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "beam_width": (1,),
    "custom_params": ({},),
}


def test_max_new_tokens_is_each_chunks_own() -> None:
    bodies, _, _ = bodies_of({})
    assert [body["sampling_params"]["max_new_tokens"] for body in bodies] == [CHUNK] * (TOKENS // CHUNK)
    lengths = [len(body["input_ids"]) for body in bodies]
    assert [length - lengths[0] for length in lengths] == list(range(0, TOKENS, CHUNK))


@pytest.mark.parametrize(("least", "seen"), [(16, [16, 0, 0, 0, 0]), (40, [16, 16, 8, 0, 0])])
def test_min_new_tokens_is_what_is_left(least: int, seen: list[int]) -> None:
    """A chunk is never longer than what it has to give: the least is cut to the chunk, too."""
    bodies, tokens, expected = bodies_of({"sampling_params": {"min_new_tokens": least}})
    told = [body["sampling_params"].get("min_new_tokens") or 0 for body in bodies]
    left = [max(0, least - CHUNK * index) for index in range(len(bodies))]
    assert told in (seen, left)
    assert tokens == expected


def test_routed_experts_go_on_where_the_last_chunk_ended() -> None:
    bodies, _, _ = bodies_of({"return_routed_experts": True})
    starts = [body.get("routed_experts_start_len") or 0 for body in bodies]
    assert starts == [0, *(len(body["input_ids"]) - 1 for body in bodies[1:])]


def test_ids_of_chunks_differ_and_none_is_grouped_or_multiplied_again() -> None:
    bodies, _, _ = bodies_of({"rid": "mine", "group_id": "g", "sampling_params": {"n": 1}})
    assert len({body["rid"] for body in bodies}) == TOKENS // CHUNK
    for body in bodies:
        assert "group_id" not in body
        assert "n" not in body["sampling_params"]


def test_salts_are_one_for_all_chunks_and_differ_as_the_clients_do() -> None:
    salts = [
        {chunk["cache_salt"] for chunk in bodies_of(body)[0]}
        for body in ({}, {"cache_salt": "s"}, {"cache_salt": "t"})
    ]
    assert all(len(each) == 1 for each in salts)
    assert len(set.union(*salts)) == 3
