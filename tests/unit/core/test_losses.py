"""Failures, engines that go, cancels, and messages that come late, twice or cannot be right."""

import pytest

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.events import Event
from seer_sgl.router.core.settings import Statistics
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    Step,
    abort,
    all_submitted,
    cancelled,
    deliver,
    dispatch,
    engine,
    failed,
    finished,
    joined,
    left,
    play,
    snapshot,
    submitted,
)


def test_a_failed_chunk_is_tried_again_until_it_failed_too_often_in_a_row(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a"), max_failures=3),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (failed(1), [dispatch(2, "g.0", 50)]),
            (failed(2), [dispatch(3, "g.0", 50)]),
            (finished(3, 5), [dispatch(4, "g.0", 50)]),  # progress: the count starts again
            (failed(4), [dispatch(5, "g.0", 50)]),
            (failed(5), [dispatch(6, "g.0", 50)]),
            (failed(6, "out of memory"), [deliver("g.0", "failed", "out of memory")]),
        ],
    )


def test_a_failure_that_no_retry_can_mend_is_delivered_at_once(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (failed(1, "bad token id", retryable=False), [deliver("g.0", "failed", "bad token id")]),
        ],
    )


def test_chunks_of_an_engine_that_left_go_on_elsewhere(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a"), engine("b")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50, on="a")]),
            (submitted("h.0"), [dispatch(2, "h.0", 50, on="b")]),
            (finished(1, 50), [dispatch(3, "g.0", 50, on="a")]),
            (left("a"), [dispatch(4, "g.0", 50, on="b", came_from="a")]),
            (finished(4, 50), [deliver("g.0")]),
            (finished(2, 9, ended=True), [deliver("h.0")]),
        ],
    )


def test_chunks_wait_while_no_engine_is_left(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a")),
        [
            (all_submitted("g.0 g.1"), [dispatch(1, "g.0", 50), dispatch(2, "g.1", 50)]),
            (left("a"), []),
            (joined(engine("b", slots=1)), [dispatch(3, "g.0", 50, on="b")]),
        ],
    )


def test_an_engine_under_the_same_id_is_another_engine(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (finished(1, 10), [dispatch(2, "g.0", 50)]),
            (joined(engine("a")), [dispatch(3, "g.0", 50, came_from="a")]),
            (finished(2, 50), []),  # the old engine's answer, late
            (finished(3, 10), [dispatch(4, "g.0", 50)]),
        ],
    )


def test_an_engine_that_keeps_leaving_uses_up_the_retries(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a"), max_failures=2),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (joined(engine("a")), [dispatch(2, "g.0", 50)]),
            (left("a"), [deliver("g.0", "failed", "a is gone")]),
        ],
    )


def test_a_waiting_request_is_cancelled_at_once(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", slots=1))
    play(
        core,
        [
            (all_submitted("g.0 g.1 g.2 h.0"), [dispatch(1, "g.0", 50)]),
            (cancelled("h.0"), [deliver("h.0", "cancelled")]),
            (cancelled("g.1"), [deliver("g.1", "cancelled")]),
            (finished(1, 1, ended=True), [deliver("g.0"), dispatch(2, "g.2", 50)]),
            (finished(2, 1, ended=True), [deliver("g.2")]),
        ],
    )
    assert not core.buffer.groups


@pytest.mark.parametrize(
    "end",
    [finished(1, 3, ended=True), finished(1, 50), finished(1, 0), failed(1, retryable=False), left("a")],
)
def test_a_request_in_flight_is_delivered_when_its_chunk_has_ended(
    make_core: MakeCore, end: Event
) -> None:
    play(
        make_core("seer", engine("a")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (cancelled("g.0"), [abort(1)]),
            (cancelled("g.0"), []),
            (end, [deliver("g.0", "cancelled")]),
            (end, []),
        ],
    )


def test_a_cancelled_chunk_keeps_its_room_until_it_has_ended(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=1)),
        [
            (all_submitted("g.0 h.0"), [dispatch(1, "g.0", 50)]),
            (cancelled("g.0"), [abort(1)]),
            (finished(1, 3, ended=True), [deliver("g.0", "cancelled"), dispatch(2, "h.0", 50)]),
        ],
    )


RUNNING: list[Step] = [
    (submitted("done.0"), [dispatch(1, "done.0", 50)]),
    (finished(1, 5, ended=True), [deliver("done.0")]),
    (all_submitted("g.0 g.1"), [dispatch(2, "g.0", 50)]),
]
"""One request is done, one in flight as chunk 2, one waits."""

LATE = [
    finished(1, 5, ended=True),
    finished(1, 5_000),
    failed(1),
    finished(77, 1),
    failed(77, retryable=False),
    cancelled("done.0"),
    cancelled("nobody.0"),
    left("z"),
]


@pytest.mark.parametrize("event", LATE, ids=repr)
def test_late_and_duplicate_messages_change_nothing(make_core: MakeCore, event: Event) -> None:
    core = make_core("seer", engine("a", slots=1))
    play(core, RUNNING)
    before = snapshot(core)
    assert core.handle(event, 0.0) == []
    assert snapshot(core) == before


ILLEGAL = [
    (submitted("g.0"), "'g.0' is already here"),
    (submitted("g.1"), "'g.1' is already here"),
    (submitted("new.0", prompt=0), "0 prompt tokens and asks for 100"),
    (submitted("new.0", max_new=0), "10 prompt tokens and asks for 0"),
    (finished(2, 51), "brought 51 tokens; it was given 50"),
    (finished(2, 51, ended=True), "brought 51 tokens; it was given 50"),
    (finished(2, -1), "brought -1 tokens"),
]


@pytest.mark.parametrize(("event", "message"), ILLEGAL)
def test_an_illegal_event_is_named_and_changes_nothing(
    make_core: MakeCore, event: Event, message: str
) -> None:
    core = make_core("seer", engine("a", slots=1))
    play(core, RUNNING)
    before = snapshot(core)
    with pytest.raises(IllegalEventError, match=message):
        core.handle(event, 0.0)
    assert snapshot(core) == before
    play(core, [(finished(2, 50, ended=True), [deliver("g.0"), dispatch(3, "g.1", 50)])])


def test_a_delivered_id_may_be_used_again(make_core: MakeCore) -> None:
    play(make_core("seer", engine("a", slots=1)), [*RUNNING, (submitted("done.0"), [])])


def test_statistics(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", slots=1))
    assert core.statistics() == Statistics(0, 0, 1, 0, 0, 0)
    play(
        core,
        [
            (all_submitted("g.0 g.1 h.0"), [dispatch(1, "g.0", 50)]),
            (finished(1, 50), [dispatch(2, "h.0", 50)]),
            (joined(engine("b", slots=1)), [dispatch(3, "g.0", 50, on="b", came_from="a")]),
            (finished(3, 50), [deliver("g.0"), dispatch(4, "g.1", 50, on="b")]),
        ],
    )
    assert core.statistics() == Statistics(
        waiting=0, in_flight=2, engines=2, chunks=4, moved_chunks=1, delivered=1
    )
