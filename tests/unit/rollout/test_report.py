"""Figures of a rollout, checked against sums done by hand."""

from typing import Any

import pytest

from seer_sgl.rollout.client import SampleResult
from seer_sgl.rollout.report import Report, report_on, tail_seconds


@pytest.mark.parametrize(
    ("finished_s", "tail_s"),
    [
        ([5.0], 0.0),
        ([1.0, 4.0], 0.0),
        ([float(second) for second in range(1, 11)], 1.0),
        ([*[1.0] * 9, 7.5], 6.5),
        ([7.5, *[1.0] * 9], 6.5),
        ([*[2.0] * 19, 9.0], 7.0),
        ([*[2.0] * 18, 8.0, 9.0], 7.0),
        ([float(second) for second in range(1, 12)], 1.0),
        ([float(second) for second in range(1, 101)], 10.0),
    ],
)
def test_tail_is_the_time_after_nine_tenths_of_requests(finished_s: list[float], tail_s: float) -> None:
    assert tail_seconds(finished_s) == tail_s


def chunk(came_from: str | None, input_tokens: int, cached: int = 0, pool: int = 0) -> dict[str, Any]:
    return {
        "engine": "a",
        "came_from": came_from,
        "input_tokens": input_tokens,
        "new_tokens": 1,
        "cached_tokens": cached,
        "pool_tokens": pool,
    }


def result(group: str, at_s: float, tokens: int, *chunks: dict[str, Any], **meta: Any) -> SampleResult:
    return SampleResult(
        group, 0, 200, at_s, output_ids=[7] * tokens, meta_info={"seer": {"chunks": chunks}, **meta}
    )


def test_sums() -> None:
    results = [
        # 40 tokens come along; of the 39 that can be found, 32 are in whole pages of 16.
        result(
            "g", 2.0, 30, chunk(None, 10, 5, 5), chunk("b", 40, cached=32, pool=16), num_retractions=2
        ),
        # 33 tokens come along: 32 can be found, 16 were. A chunk that stayed home does not count.
        result("g", 4.0, 50, chunk("b", 33, cached=16), chunk(None, 60, cached=48), num_retractions=1),
        result("h", 3.0, 0),
        SampleResult("k", 0, 400, 1.0, error="no"),
    ]
    assert report_on(results, page_tokens=16, rewards=[1.0, 0.0, 0.5]) == Report(
        groups=3,
        samples=4,
        failed=1,
        tokens=80,
        seconds=4.0,
        tokens_per_s=20.0,
        tail_s=0.0,
        chunks=4,
        moved_chunks=2,
        prefix_found_share=48 / 64,
        pool_share=16 / 64,
        moved_without_prefix=0,
        computed_again_tokens=0,
        pool_wait_s=0.0,
        retractions=3,
        reward=0.5,
    )


def test_what_has_no_answer_is_none() -> None:
    report = report_on([result("g", 0.0, 0, chunk("b", 16))], page_tokens=16)
    assert (report.prefix_found_share, report.pool_share, report.reward) == (None, None, None)
    assert report.tokens_per_s == 0.0


def test_what_the_pool_cost() -> None:
    late = chunk("b", 65, cached=0)
    partly = chunk("b", 65, cached=48, pool=16)
    home = chunk(None, 100, cached=80)
    results = [
        result("g", 1.0, 1, chunk(None, 20), late, partly, home),
        # The first chunk of a request computes what nobody had computed: a prompt.
        result("g", 1.0, 1, chunk(None, 500)),
        # Too short for a page: nothing could be found.
        result("h", 1.0, 1, chunk(None, 9), chunk("b", 16)),
    ]
    report = report_on(results, page_tokens=16)
    assert report.moved_without_prefix == 1
    assert report.computed_again_tokens == 64 + (64 - 48) + (96 - 80)
    assert report.prefix_found_share == 48 / 128


def test_chunks_under_other_weights_find_nothing_and_should_not() -> None:
    chunks = [
        chunk(None, 33) | {"epoch": 1},
        chunk("b", 65) | {"epoch": 2},
        chunk("b", 97, cached=64) | {"epoch": 2},
    ]
    report = report_on([result("g", 1.0, 1, *chunks)], page_tokens=16)
    assert (report.moved_chunks, report.moved_without_prefix) == (2, 0)
    assert report.computed_again_tokens == 96 - 64
    assert report.prefix_found_share == 64 / 96


def test_waits_for_the_pool_add_up() -> None:
    chunks = [chunk(None, 10) | {"pool_wait_s": wait_s} for wait_s in (0.25, 0.0, 0.5)]
    # Routers of before do not tell.
    report = report_on([result("g", 1.0, 1, *chunks, chunk(None, 10))], page_tokens=16)
    assert report.pool_wait_s == 0.75
