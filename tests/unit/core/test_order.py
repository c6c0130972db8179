"""Which waiting request goes first, by policy."""

import pytest

from seer_sgl.errors import StartError
from seer_sgl.router.core import policy_named
from seer_sgl.router.core.actions import Action
from seer_sgl.router.core.context import estimated_tokens
from seer_sgl.router.core.events import Event
from seer_sgl.router.core.state import Group
from seer_sgl.types import GroupId
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    abort,
    all_submitted,
    cancelled,
    deliver,
    dispatch,
    engine,
    failed,
    finished,
    left,
    play,
    submitted,
)


def test_probes_of_requests_submitted_together_go_before_any_other(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=4)),
        [
            (
                all_submitted("g.0 g.1 g.2 h.0 h.1 k.0"),
                [
                    dispatch(1, "g.0", 50),
                    dispatch(2, "h.0", 50),
                    dispatch(3, "k.0", 50),
                    dispatch(4, "g.1", 50),
                ],
            ),
        ],
    )


def test_the_probe_with_fewest_generated_tokens_goes_first(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=1), chunk_tokens=10),
        [
            (all_submitted("g.0 g.1 h.0"), [dispatch(1, "g.0", 10)]),
            (finished(1, 10), [dispatch(2, "h.0", 10)]),
            (finished(2, 4), [dispatch(3, "h.0", 10)]),
            (finished(3, 10), [dispatch(4, "g.0", 10)]),
            (finished(4, 9, ended=True), [deliver("g.0"), dispatch(5, "h.0", 10)]),
            (finished(5, 1, ended=True), [deliver("h.0"), dispatch(6, "g.1", 10)]),
        ],
    )


def test_the_longest_estimate_goes_first_once_probes_are_in_flight(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=1), chunk_tokens=100),
        [
            (all_submitted("g.0 g.1 h.0 h.1 k.0 k.1"), [dispatch(1, "g.0", 100)]),
            (finished(1, 30, ended=True), [deliver("g.0"), dispatch(2, "h.0", 100)]),
            (finished(2, 60, ended=True), [deliver("h.0"), dispatch(3, "k.0", 100)]),
            (finished(3, 40, ended=True), [deliver("k.0"), dispatch(4, "h.1", 100)]),
            (finished(4, 1, ended=True), [deliver("h.1"), dispatch(5, "k.1", 100)]),
            (finished(5, 1, ended=True), [deliver("k.1"), dispatch(6, "g.1", 100)]),
        ],
    )


def test_a_group_without_a_finished_sample_counts_as_long(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1 h.0 h.1"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50)]),
            (finished(1, 50, ended=True), [deliver("g.0"), dispatch(3, "h.1", 50)]),
        ],
    )


def test_a_running_sibling_bounds_the_estimate_from_below(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1 g.2 h.0 h.1"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50)]),
            (finished(1, 30, ended=True), [deliver("g.0"), dispatch(3, "h.1", 50)]),
            (finished(2, 40, ended=True), [deliver("h.0"), dispatch(4, "g.1", 50)]),
            (finished(4, 50), [dispatch(5, "g.1", 50)]),
            # g finished one of 30 and h one of 40, but g.1 runs at 50 and h.1 at 45.
            (finished(3, 45), [dispatch(6, "g.2", 50)]),
        ],
    )


def test_a_longer_late_member_lifts_the_group_at_once(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=3)),
        [
            (
                all_submitted("g.0 g.1 k.0") + all_submitted("h.0 h.1", max_new=200),
                [dispatch(1, "g.0", 50), dispatch(2, "k.0", 50), dispatch(3, "h.0", 50)],
            ),
            (submitted("g.2", max_new=500), []),
            (finished(2, 9, ended=True), [deliver("k.0"), dispatch(4, "g.1", 50)]),
        ],
    )


@pytest.mark.parametrize(
    ("finished_tokens", "longest_tokens", "estimate"),
    [
        (0, 0, 100),
        (0, 70, 100),
        (30, 30, 30),
        (30, 50, 50),
        (100, 60, 100),
    ],
)
def test_estimate(finished_tokens: int, longest_tokens: int, estimate: int) -> None:
    group = Group(GroupId("g"), seq=0, max_new_tokens=100)
    group.finished_tokens, group.longest_tokens = finished_tokens, longest_tokens
    assert estimated_tokens(group) == estimate


@pytest.mark.parametrize(
    ("loss", "end"),
    [
        ([failed(1, retryable=False)], [deliver("g.0", "failed", "broken")]),
        ([cancelled("g.0"), failed(1)], [abort(1), deliver("g.0", "cancelled")]),
        ([cancelled("g.0"), finished(1, 9, ended=True)], [abort(1), deliver("g.0", "cancelled")]),
    ],
)
def test_a_lost_probe_is_replaced(make_core: MakeCore, loss: list[Event], end: list[Action]) -> None:
    play(
        make_core("seer", engine("a", slots=1)),
        [
            (all_submitted("g.0 g.1 g.2 h.0 h.1"), [dispatch(1, "g.0", 50)]),
            (loss, [*end, dispatch(2, "g.1", 50)]),
            (finished(2, 3), [dispatch(3, "h.0", 50)]),
            (finished(3, 3, ended=True), [deliver("h.0"), dispatch(4, "g.1", 50)]),
        ],
    )


def test_the_next_sibling_to_wait_replaces_a_probe_lost_while_none_waits(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1"), [dispatch(1, "g.0", 50), dispatch(2, "g.1", 50)]),
            (failed(1, retryable=False), [deliver("g.0", "failed", "broken")]),
            (all_submitted("h.0 h.1"), [dispatch(3, "h.0", 50)]),
            # g.1 has 50 tokens and a smaller group estimate than h's, and still goes before h.1.
            (finished(2, 50), [dispatch(4, "g.1", 50)]),
        ],
    )


def test_no_second_probe_once_a_sample_has_finished(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", slots=1))
    play(
        core,
        [
            (all_submitted("g.0 g.1"), [dispatch(1, "g.0", 50)]),
            (finished(1, 20, ended=True), [deliver("g.0"), dispatch(2, "g.1", 50)]),
            (finished(2, 50), [dispatch(3, "g.1", 50)]),
        ],
    )
    assert [group.probe for group in core.buffer.groups.values()] == [None]


def test_divided_goes_by_arrival_of_group_then_request(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a", slots=1), chunk_tokens=60),
        [
            (all_submitted("g.0 h.0 g.1"), [dispatch(1, "g.0", 60)]),
            (finished(1, 60), [dispatch(2, "g.0", 40)]),
            (finished(2, 40), [deliver("g.0"), dispatch(3, "g.1", 60)]),
            (finished(3, 1, ended=True), [deliver("g.1"), dispatch(4, "h.0", 60)]),
        ],
    )


def test_fifo_group_pins_a_whole_group_to_one_engine(make_core: MakeCore) -> None:
    core = make_core("fifo_group", engine("a", kv=1, slots=1), engine("b", kv=1, slots=1))
    play(
        core,
        [
            (
                all_submitted("g.0 g.1 h.0 g.2"),
                [
                    dispatch(1, "g.0", 100, on="a"),
                    dispatch(2, "g.1", 100, on="a"),
                    dispatch(3, "g.2", 100, on="a"),
                    dispatch(4, "h.0", 100, on="b"),
                ],
            ),
            (submitted("g.3"), [dispatch(5, "g.3", 100, on="a")]),
            (submitted("k.0"), [dispatch(6, "k.0", 100, on="b")]),
        ],
    )
    assert [e.reserved_tokens for e in core.engines.values()] == [0, 0], "fifo_group never reserves"


def test_fifo_group_moves_a_group_only_when_its_engine_is_gone(make_core: MakeCore) -> None:
    play(
        make_core("fifo_group", engine("a"), engine("b"), engine("c")),
        [
            (
                all_submitted("g.0 g.1"),
                [dispatch(1, "g.0", 100, on="a"), dispatch(2, "g.1", 100, on="a")],
            ),
            (left("a"), [dispatch(3, "g.0", 100, on="b"), dispatch(4, "g.1", 100, on="b")]),
        ],
    )


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(StartError, match=r"'fast'.*fifo_group, divided, seer"):
        policy_named("fast")
