"""A request that is about to move: what it expects of the pool, and whether it waits for that.

Each test begins with three requests on engine a, of which g.0 has just ended a chunk of 50 tokens. It
holds 60, and engine b, which has nothing to do, has none of them.
"""

import pytest
from msgspec.structs import replace

from seer_sgl.router.core import RouterCore
from seer_sgl.router.core.actions import Action, Wake
from seer_sgl.router.core.costs import ANSWER_S
from seer_sgl.router.core.events import Event, PoolState, Ticked
from seer_sgl.router.core.placement import PlacementSettings
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    all_submitted,
    deliver,
    dispatch,
    engine,
    finished,
    found,
    joined,
    left,
    look_up,
    play,
)

ON_A = [dispatch(number, name, 50) for number, name in enumerate(("g.0", "h.0", "k.0"), 1)]
GO = dispatch(4, "g.0", 50, "b", "a", pulled=60)
GO_WITHOUT = dispatch(4, "g.0", 50, "b", "a")


def on_a(
    make_core: MakeCore, *first: Event, margin: int = 0, page: int = 1, max_new: int = 200
) -> RouterCore:
    core = make_core(
        "divided",
        engine("a", slots=4, page=page),
        settle_s=0.5,
        placement=PlacementSettings(pull_margin_tokens=margin),
    )
    play(core, [(all_submitted("g.0 h.0 k.0", max_new), [*ON_A])], now_s=0.0)
    play(core, [(joined(engine("b", slots=4, page=page)), []), ([*first], [])], now_s=9.0)
    return core


def waits(patience_s: float = 0.5, wake_s: float = 10.5) -> list[Action]:
    return [look_up("g.0", 59, patience_s), Wake(wake_s)]


@pytest.mark.parametrize(
    ("tokens", "page", "pulled"),
    [(59, 1, 60), (58, 1, 58), (0, 1, 0), (48, 16, 60), (32, 16, 32), (1_000, 1, 60)],
    ids=["all", "a part", "nothing", "all whole pages", "a page less", "more than asked for"],
)
def test_an_answer_ends_the_wait(make_core: MakeCore, tokens: int, page: int, pulled: int) -> None:
    core = on_a(make_core, page=page)
    play(core, [(finished(1, 50), waits())], now_s=10.0)
    moved: list[Action] = [replace(GO, pulled_tokens=pulled)]
    play(core, [(found("g.0", tokens), moved), (found("g.0", 59), [])], now_s=10.1)
    play(core, [(Ticked(), [])], now_s=10.5)


def test_a_part_that_is_too_small_is_not_pulled(make_core: MakeCore) -> None:
    core = on_a(make_core, margin=20)
    play(core, [(finished(1, 50), waits())], now_s=10.0)
    play(core, [(found("g.0", 20), [GO_WITHOUT])], now_s=10.1)


def test_an_answer_that_nobody_waits_for_changes_nothing(make_core: MakeCore) -> None:
    core = on_a(make_core)
    play(core, [(finished(1, 50), waits())], now_s=10.0)
    play(core, [(found("h.0", 59), []), (found("nobody", 59), [])], now_s=10.1)
    home: list[Action] = [deliver("h.0"), dispatch(4, "g.0", 50)]
    play(core, [(finished(2, 9, ended=True), home), (found("g.0", 59), [])], now_s=10.2)
    assert core.moves.costs.write.count == 1, "it was found, if too late"
    play(core, [(found("g.0", 59), [])], now_s=10.3)
    assert core.moves.costs.write.count == 1


@pytest.mark.parametrize("up", [True, None])
def test_without_an_answer_it_goes_when_its_time_is_over(make_core: MakeCore, up: bool | None) -> None:
    """A pool that answers has found nothing, then; of another one the KV is expected to be there."""
    core = on_a(make_core, PoolState(up))
    until_s = 10.5 + (ANSWER_S if up else 0.0)
    moved: list[Action] = [GO_WITHOUT if up else GO]
    play(core, [(finished(1, 50), waits(0.5, until_s))], now_s=10.0)
    play(core, [(Ticked(), [])], now_s=until_s - 0.01)
    play(core, [(Ticked(), moved)], now_s=until_s)


def test_nothing_is_expected_of_a_pool_that_is_down(make_core: MakeCore) -> None:
    core = on_a(make_core)
    play(core, [(finished(1, 50), waits()), (PoolState(False), [GO_WITHOUT])], now_s=10.0)
    play(core, [(finished(2, 50), [dispatch(5, "h.0", 50)]), (Ticked(), [])], now_s=10.5)


def test_what_a_pool_held_before_it_was_down_is_lost(make_core: MakeCore) -> None:
    core = on_a(make_core, PoolState(False), PoolState(True))
    again = dispatch(5, "g.0", 50, "b")
    back = dispatch(6, "g.0", 50, "a", "b", pulled=100)  # of 110 that b had written
    play(core, [(finished(1, 50), [GO_WITHOUT])], now_s=10.0)
    # All of it was computed on b since, and written.
    play(core, [(finished(4, 50), [again])], now_s=20.0)
    play(core, [([finished(5, 50), left("b")], [back])], now_s=30.0)


def test_what_was_begun_before_the_pool_was_down_is_not_in_it(make_core: MakeCore) -> None:
    core = on_a(make_core)
    play(core, [([PoolState(False), PoolState(True)], []), (finished(1, 50), [GO_WITHOUT])], now_s=10.0)
