"""A request is a chain of chunks until it ends or has all its tokens."""

import pytest

from seer_sgl.errors import StartError
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    all_submitted,
    deliver,
    dispatch,
    engine,
    failed,
    finished,
    play,
    submitted,
)


@pytest.mark.parametrize("policy", ["divided", "seer"])
def test_chunks_follow_each_other_until_max_new_tokens(make_core: MakeCore, policy: str) -> None:
    play(
        make_core(policy, engine("a"), chunk_tokens=40),
        [
            (submitted("g.0", max_new=100), [dispatch(1, "g.0", 40)]),
            (finished(1, 40), [dispatch(2, "g.0", 40)]),
            (finished(2, 40), [dispatch(3, "g.0", 20)]),
            (finished(3, 20), [deliver("g.0")]),
        ],
    )


@pytest.mark.parametrize("tokens", [0, 1, 39, 40])
def test_a_sample_that_ends_by_itself_gets_no_more_chunks(make_core: MakeCore, tokens: int) -> None:
    play(
        make_core("seer", engine("a"), chunk_tokens=40),
        [
            (submitted("g.0", max_new=100), [dispatch(1, "g.0", 40)]),
            (finished(1, 40), [dispatch(2, "g.0", 40)]),
            (finished(2, tokens, ended=True), [deliver("g.0")]),
        ],
    )


def test_a_chunk_cut_short_goes_on_where_it_stopped(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a"), chunk_tokens=60),
        [
            (submitted("g.0", max_new=100), [dispatch(1, "g.0", 60)]),
            (finished(1, 5), [dispatch(2, "g.0", 60)]),
            (finished(2, 60), [dispatch(3, "g.0", 35)]),
        ],
    )


def test_a_chunk_without_progress_counts_as_failed(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a"), max_failures=2),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (finished(1, 0), [dispatch(2, "g.0", 50)]),
            (finished(2, 0), [deliver("g.0", "failed", "made no progress")]),
        ],
    )


@pytest.mark.parametrize("policy", ["divided", "seer"])
def test_an_undivisible_request_runs_whole(make_core: MakeCore, policy: str) -> None:
    play(
        make_core(policy, engine("a"), chunk_tokens=40),
        [
            (submitted("g.0", max_new=100, divisible=False), [dispatch(1, "g.0", 100)]),
            (failed(1), [dispatch(2, "g.0", 100)]),
            (finished(2, 100), [deliver("g.0")]),
        ],
    )


def test_an_undivisible_request_reserves_its_whole_length(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", kv=110), chunk_tokens=40)
    play(core, [(submitted("g.0", max_new=100, divisible=False), [dispatch(1, "g.0", 100)])])
    assert [e.free_tokens for e in core.engines.values()] == [0]


def test_nothing_runs_without_an_engine(make_core: MakeCore) -> None:
    play(make_core("seer"), [(all_submitted("g.0 g.1 h.0"), [])])


def test_a_chunk_may_be_answered_together_with_arrivals(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=1)),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (
                [finished(1, 7, ended=True), *all_submitted("h.0")],
                [deliver("g.0"), dispatch(2, "h.0", 50)],
            ),
        ],
    )


@pytest.mark.parametrize(
    ("plan", "probe", "sibling"),
    [
        ("constant", [40, 40, 40], [40, 40]),
        ("short_probe", [10, 10, 10], [40, 40]),
        ("short_first", [10, 40, 40], [10, 40]),
        ("growing", [10, 10, 20], [10, 10]),
    ],
)
def test_the_plan_says_how_long_each_chunk_is(
    make_core: MakeCore, plan: str, probe: list[int], sibling: list[int]
) -> None:
    core = make_core("seer", engine("a", slots=2), chunk_tokens=40, chunk_plan=plan)
    first = [dispatch(1, "g.0", probe[0]), dispatch(2, "g.1", sibling[0])]
    play(
        core,
        [
            (all_submitted("g.0 g.1"), [*first]),
            (finished(1, probe[0]), [dispatch(3, "g.0", probe[1])]),
            (finished(2, sibling[0]), [dispatch(4, "g.1", sibling[1])]),
            (finished(3, probe[1]), [dispatch(5, "g.0", min(probe[2], 100 - sum(probe[:2])))]),
        ],
    )


def test_an_unknown_plan_names_those_there_are(make_core: MakeCore) -> None:
    with pytest.raises(StartError, match=r"'best'.*: constant, short_probe, short_first, growing$"):
        make_core("seer", chunk_plan="best")
