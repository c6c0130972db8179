"""Which waiting request goes first, by policy."""

import pytest

from seer_sgl.errors import StartError
from seer_sgl.router.core import policy_named
from seer_sgl.router.core.actions import Action
from seer_sgl.router.core.estimates import longest_finished, longest_sibling
from seer_sgl.router.core.events import Event
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
    submitted,
)

BY_LONGEST = policy_named("seer", longest_sibling)
"""The longest that a sibling has reached is the estimate: easy to follow in a table."""


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
        make_core(BY_LONGEST, engine("a", slots=1), chunk_tokens=100),
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
        make_core(BY_LONGEST, engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1 h.0 h.1"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50)]),
            (finished(1, 50, ended=True), [deliver("g.0"), dispatch(3, "h.1", 50)]),
        ],
    )


def test_a_running_sibling_bounds_the_estimate_from_below(make_core: MakeCore) -> None:
    play(
        make_core(BY_LONGEST, engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1 g.2 h.0 h.1"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50)]),
            (finished(1, 30, ended=True), [deliver("g.0"), dispatch(3, "h.1", 50)]),
            (finished(2, 40, ended=True), [deliver("h.0"), dispatch(4, "g.1", 50)]),
            (finished(4, 50), [dispatch(5, "g.2", 50)]),
            # g finished one of 30 and h one of 40, but g.1 has come to 50 and h.1 to 45.
            (finished(3, 45), [dispatch(6, "g.1", 50)]),
        ],
    )


def test_the_papers_rule_counts_finished_samples_only(make_core: MakeCore) -> None:
    play(
        make_core(policy_named("seer", longest_finished), engine("a", slots=2)),
        [
            (all_submitted("g.0 g.1 g.2 h.0 h.1"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50)]),
            (finished(1, 30, ended=True), [deliver("g.0"), dispatch(3, "h.1", 50)]),
            (finished(2, 40, ended=True), [deliver("h.0"), dispatch(4, "g.1", 50)]),
            (finished(4, 50), [dispatch(5, "g.2", 50)]),
            # As above, but what h.1 and g.1 have so far does not count: 40 is more than 30.
            (finished(3, 45), [dispatch(6, "h.1", 50)]),
        ],
    )


def test_a_longer_late_member_lifts_the_group_at_once(make_core: MakeCore) -> None:
    play(
        make_core(BY_LONGEST, engine("a", slots=3)),
        [
            (
                all_submitted("g.0 g.1 k.0") + all_submitted("h.0 h.1", max_new=200),
                [dispatch(1, "g.0", 50), dispatch(2, "k.0", 50), dispatch(3, "h.0", 50)],
            ),
            (submitted("g.2", max_new=500), []),
            (finished(2, 9, ended=True), [deliver("k.0"), dispatch(4, "g.1", 50)]),
        ],
    )


LONG = 100_000


def test_siblings_of_the_longest_sample_go_first(make_core: MakeCore) -> None:
    play(
        make_core("seer", engine("a", slots=1), chunk_tokens=LONG),
        [
            (all_submitted("g.0 g.1 h.0 h.1 k.0 k.1", LONG), [dispatch(1, "g.0", LONG)]),
            (finished(1, 300, ended=True), [deliver("g.0"), dispatch(2, "h.0", LONG)]),
            (finished(2, 6_000, ended=True), [deliver("h.0"), dispatch(3, "k.0", LONG)]),
            (finished(3, 1_000, ended=True), [deliver("k.0"), dispatch(4, "h.1", LONG)]),
            (finished(4, 5_000, ended=True), [deliver("h.1"), dispatch(5, "k.1", LONG)]),
            (finished(5, 1_000, ended=True), [deliver("k.1"), dispatch(6, "g.1", LONG)]),
        ],
    )


@pytest.mark.parametrize(("so_far", "next_up"), [(400, "g.2"), (9_000, "h.2")])
def test_a_sample_that_runs_on_lifts_its_siblings(
    make_core: MakeCore, so_far: int, next_up: str
) -> None:
    play(
        make_core("seer", engine("a", slots=2), chunk_tokens=LONG),
        [
            (
                all_submitted("g.0 g.1 g.2 h.0 h.1 h.2", LONG),
                [dispatch(1, "g.0", LONG), dispatch(2, "h.0", LONG)],
            ),
            (finished(1, 1_500, ended=True), [deliver("g.0"), dispatch(3, "h.1", LONG)]),
            (finished(2, 1_000, ended=True), [deliver("h.0"), dispatch(4, "g.1", LONG)]),
            (finished(3, so_far), [dispatch(5, next_up, LONG)]),
        ],
    )


def test_where_all_may_take_the_limit_the_one_with_fewest_tokens_goes_first(make_core: MakeCore) -> None:
    first = [dispatch(1, "g.0", 10), dispatch(2, "h.0", 10), dispatch(3, "g.1", 10)]
    play(
        make_core("seer", engine("a", slots=3), chunk_tokens=10),
        [
            (all_submitted("g.0 g.1 h.0 h.1"), [*first]),
            (finished(3, 7), [dispatch(4, "h.1", 10)]),
            (finished(4, 3), [dispatch(5, "h.1", 10)]),
            (finished(5, 10), [dispatch(6, "g.1", 10)]),
        ],
    )


def test_a_probe_that_runs_on_lifts_its_siblings_at_once(make_core: MakeCore) -> None:
    names = " ".join(f"{group}.{number}" for group in "gh" for number in range(4))
    probes = [dispatch(1, "g.0", 40_000), dispatch(2, "h.0", 40_000)]
    play(
        make_core("seer", engine("a", slots=3), chunk_tokens=40_000),
        [
            (all_submitted(names, LONG), [*probes, dispatch(3, "g.1", 40_000)]),
            (finished(3, 1_000, ended=True), [deliver("g.1"), dispatch(4, "h.1", 40_000)]),
            (finished(4, 1_500, ended=True), [deliver("h.1"), dispatch(5, "h.2", 40_000)]),
            (finished(1, 30_000), [dispatch(6, "g.0", 40_000)]),
            (finished(5, 6_000, ended=True), [deliver("h.2"), dispatch(7, "g.2", 40_000)]),
        ],
    )


def test_the_longest_waiting_goes_first_now_and_then(make_core: MakeCore) -> None:
    """g.0 has 50 tokens, so every new probe goes before it; each third dispatch is for the oldest."""
    core = make_core("seer", engine("a", slots=1), starvation_dispatches=3)
    play(
        core,
        [
            (all_submitted("g.0", LONG), [dispatch(1, "g.0", 50)]),
            (all_submitted("h.0 k.0 l.0 m.0"), []),
            (finished(1, 50), [dispatch(2, "h.0", 50)]),
            (finished(2, 9, ended=True), [deliver("h.0"), dispatch(3, "k.0", 50)]),
            (finished(3, 9, ended=True), [deliver("k.0"), dispatch(4, "l.0", 50)]),
            (submitted("n.0"), []),
            (finished(4, 9, ended=True), [deliver("l.0"), dispatch(5, "m.0", 50)]),
            (submitted("o.0"), []),
            (finished(5, 9, ended=True), [deliver("m.0"), dispatch(6, "g.0", 50)]),
        ],
    )


@pytest.mark.parametrize(("every", "last"), [(0, "h3.0"), (4, "g.0")])
def test_one_that_fits_nowhere_for_a_while_keeps_its_turn(
    make_core: MakeCore, every: int, last: str
) -> None:
    """The round that tries g.0 in vain dispatches two others, the second as the one that is due."""
    core = make_core("seer", engine("a", kv=100), chunk_tokens=10, starvation_dispatches=every)
    first = [submitted("g.0", 20, prompt=75), submitted("t.0", 5, prompt=5)]
    small: list[Event] = [submitted("g.1", 5, prompt=5), submitted("g.2", 5, prompt=5)]
    large = [submitted(f"h{number}.0", 5, prompt=90) for number in range(4)]
    again = dispatch(8, last, 10 if last == "g.0" else 5)
    steps: list[Step] = [
        ([*first], [dispatch(1, "g.0", 10), dispatch(2, "t.0", 5)]),
        (finished(1, 10), []),
        (joined(engine("b", kv=20)), []),
        (small, [dispatch(3, "g.1", 5, on="b"), dispatch(4, "g.2", 5, on="b")]),
        ([finished(2, 5), large[0]], [deliver("t.0"), dispatch(5, "h0.0", 5)]),
        ([finished(5, 5), large[1]], [deliver("h0.0"), dispatch(6, "h1.0", 5)]),
        ([finished(6, 5), large[2]], [deliver("h1.0"), dispatch(7, "h2.0", 5)]),
        ([finished(7, 5), large[3]], [deliver("h2.0"), again]),
    ]
    play(core, steps)


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
    with pytest.raises(StartError, match=r"'fast'.*: fifo_group, least_loaded, divided, seer$"):
        policy_named("fast")
