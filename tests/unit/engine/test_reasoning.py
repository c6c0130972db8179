"""Reasoning tokens, counted where a request's chunks are put together."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from seer_sgl.engine.reasoning import ReasoningCount, counts_for
from tests.unit.engine.fronted import Asked, Manager, Marks, asked_of, events, outputs, router, sample


@pytest.mark.parametrize(
    ("begin", "end", "ids", "expected"),
    [
        ([], [9], [1, 2, 9, 4], 3),
        ([], [9], [1, 2, 3], 3),
        ([], [9], [9, 1, 9], 1),
        ([], [], [1, 2], 0),
        ([], [8, 9], [8, 8, 9, 8, 9], 3),
        ([], [8, 9], [8, 1, 9], 3),
        ([7], [9], [7, 1, 9, 2], 3),
        ([7], [9], [1, 7, 9], 0),
        ([7, 7], [9], [7, 1, 9], 0),
        ([7, 7], [9], [7, 7], 2),
        ([7, 7], [9], [7], 0),
        ([7, 9], [9], [7, 9, 1, 9], 4),
        ([], [9], [], 0),
    ],
)
def test_the_count_is_the_same_however_the_output_comes(
    begin: list[int], end: list[int], ids: list[int], expected: int
) -> None:
    assert ReasoningCount(begin, end).after(ids) == expected
    for step in (1, 2, 3):
        edges = [*range(0, len(ids), step), len(ids)]
        grown, added = ReasoningCount(begin, end), ReasoningCount(begin, end)
        counts = [(grown.after(ids[:b]), added.after_more(ids[a:b])) for a, b in pairwise(edges)]
        assert all(one == other for one, other in counts)
        assert not counts or counts[-1][0] == expected


@pytest.mark.parametrize(
    ("marks", "asked", "counted"),
    [
        (([], [9]), {}, True),
        (([], []), {"require_reasoning": True}, True),
        (None, {"require_reasoning": True}, False),
        (([], [9]), {"sampling_params": {"json_schema": "{}"}}, False),
        (([], [9]), {"sampling_params": {"custom_params": {"own": 1}}}, False),
        (([], [9]), {"sampling_params": [{}]}, False),
    ],
)
def test_the_engines_count_where_it_is_more_than_a_count(
    marks: Marks, asked: dict[str, Any], counted: bool
) -> None:
    assert (counts_for(Manager(marks=marks), Asked(**asked)) is not None) is counted


@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize(
    ("marks", "required", "counts"),
    [(([], [9]), True, [1, 2]), (([], [9]), False, [0, 0]), (([5], [9]), False, [1, 2])],
)
def test_a_request_that_reasons_is_divided_and_counted(
    marks: Marks, required: bool, counts: list[int], deltas: bool
) -> None:
    bodies: list[Any] = []

    async def answered(request: web.BaseRequest) -> web.StreamResponse:
        bodies.append(json.loads(await request.read()))
        first, last = sample(), sample()
        last["output_ids"] = [9, 2] if deltas else [5, 9, 2]
        parts = events(first, last) + b"data: [DONE]\n\n"
        return web.Response(body=parts, content_type="text/event-stream")

    async def scenario() -> None:
        async with router(answered) as url:
            obj = Asked(input_ids=[1], stream=True, require_reasoning=required)
            got = await outputs(obj, asked_of(url), Manager(deltas, marks))
        assert [out["meta_info"]["reasoning_tokens"] for out in got] == counts

    asyncio.run(scenario())
    assert "require_reasoning" not in bodies[0]
