"""A request moves only once its KV is in the pool; one that no engine can hold is out of the way."""

import pytest

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.actions import LookUp, Wake
from seer_sgl.router.core.costs import ANSWER_S
from seer_sgl.router.core.events import PoolState, Ticked
from seer_sgl.router.core.placement import PlacementSettings
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    all_submitted,
    cancelled,
    deliver,
    dispatch,
    engine,
    finished,
    found,
    joined,
    left,
    look_up,
    play,
    submitted,
)

ALWAYS_PULL = PlacementSettings(pull_margin_tokens=0)


def test_a_move_waits_until_the_kv_has_settled(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=4), settle_s=0.5, placement=ALWAYS_PULL)
    play(
        core,
        [
            (all_submitted("g.0 h.0 k.0"), [dispatch(n, f"{g}.0", 50) for n, g in enumerate("ghk", 1)]),
            (joined(engine("b", slots=4)), []),
            (finished(1, 50), [look_up("g.0", 59), Wake(10.5)]),
        ],
        now_s=10.0,
    )
    play(core, [(Ticked(), [])], now_s=10.4)
    play(core, [(Ticked(), [dispatch(4, "g.0", 50, "b", "a", pulled=60)])], now_s=10.5)


def test_one_wake_up_serves_all_and_the_settled_do_not_wait(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=4), settle_s=0.5, placement=ALWAYS_PULL)
    names = "g.0 h.0 k.0 l.0"
    play(
        core,
        [
            (all_submitted(names), [dispatch(n, r, 50) for n, r in enumerate(names.split(), 1)]),
            (joined(engine("b", slots=4)), []),
            (finished(1, 50), [look_up("g.0", 59), Wake(10.5)]),
            (submitted("new.0"), [dispatch(5, "new.0", 50, "b")]),
            (finished(2, 50, ended=True), [deliver("h.0"), dispatch(6, "g.0", 50)]),
        ],
        now_s=10.0,
    )


@pytest.mark.parametrize(("margin", "waits"), [(59, True), (60, False)])
def test_a_move_that_pulls_nothing_does_not_wait(make_core: MakeCore, margin: int, waits: bool) -> None:
    settings = PlacementSettings(pull_margin_tokens=margin)
    core = make_core("divided", engine("a", slots=4), settle_s=0.5, placement=settings)
    names = "g.0 h.0 k.0"
    moved = dispatch(4, "g.0", 50, "b", "a")
    play(
        core,
        [
            (all_submitted(names), [dispatch(n, r, 50) for n, r in enumerate(names.split(), 1)]),
            (joined(engine("b", slots=4)), []),
            (finished(1, 50), [look_up("g.0", 59), Wake(10.5)] if waits else [moved]),
        ],
        now_s=10.0,
    )


def test_a_request_that_waits_to_move_may_be_cancelled(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=4), settle_s=0.5, placement=ALWAYS_PULL)
    names = "g.0 h.0 k.0"
    play(
        core,
        [
            (all_submitted(names), [dispatch(n, r, 50) for n, r in enumerate(names.split(), 1)]),
            (joined(engine("b", slots=4)), []),
            (finished(1, 50), [look_up("g.0", 59), Wake(10.5)]),
            (cancelled("g.0"), [deliver("g.0", "cancelled")]),
        ],
        now_s=10.0,
    )
    play(core, [(Ticked(), [])], now_s=10.5)


def test_a_new_sample_pulls_a_long_prompt_that_a_sibling_has_computed(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a", slots=4), settle_s=0.5),
        [
            (submitted("g.0", prompt=600), [dispatch(1, "g.0", 50)]),
            (submitted("h.0"), [dispatch(2, "h.0", 50)]),
            (submitted("h.1"), [dispatch(3, "h.1", 50)]),
            (finished(1, 9), [dispatch(4, "g.0", 50)]),
            (joined(engine("b", slots=4)), []),
            (submitted("g.1", prompt=600), [dispatch(5, "g.1", 50, on="b", pulled=600)]),
        ],
        now_s=10.0,
    )


def test_an_engine_that_is_gone_is_not_waited_for(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=2), settle_s=0.5, placement=ALWAYS_PULL)
    play(
        core,
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (finished(1, 50), [dispatch(2, "g.0", 50)]),
            (left("a"), []),
            (joined(engine("b")), [dispatch(3, "g.0", 50, "b", "a", pulled=60)]),
        ],
        now_s=10.0,
    )


def test_what_no_engine_can_hold_waits_apart_until_one_joins(make_core: MakeCore) -> None:
    core = make_core("divided", engine("small", kv=40), look_ahead=1)
    large = [submitted(f"large{n}.0", prompt=100) for n in range(3)]
    play(
        core,
        [
            ([*large], []),
            (submitted("g.0", max_new=20), [dispatch(1, "g.0", 20, "small")]),
            (cancelled("large1.0"), [deliver("large1.0", "cancelled")]),
            (
                joined(engine("large", kv=300)),
                [dispatch(2, "large0.0", 50, "large"), dispatch(3, "large2.0", 50, "large")],
            ),
        ],
    )
    assert core.statistics().waiting == 0


@pytest.mark.parametrize(("kv", "page", "draft"), [(1000, 64, 0), (1024, 64, 16), (100, 1, 3)])
def test_what_fills_an_engine_to_the_brim_runs(
    make_core: MakeCore, kv: int, page: int, draft: int
) -> None:
    spec = engine("a", kv=kv, page=page)
    budget = spec.longest_request_tokens - 10
    core = make_core("divided", spec, chunk_tokens=10_000, draft_tokens=draft)
    play(core, [(submitted("g.0", max_new=budget), [dispatch(1, "g.0", budget)])])


def test_an_illegal_event_takes_nothing_from_those_beside_it(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"))
    with pytest.raises(IllegalEventError, match="prompt tokens") as caught:
        core.handle_all([submitted("g.0"), submitted("h.0", prompt=0), submitted("k.0")], 0.0)
    assert list(caught.value.actions) == [dispatch(1, "g.0", 50), dispatch(2, "k.0", 50)]


def test_who_has_less_time_is_woken_sooner(make_core: MakeCore) -> None:
    """The first waits for as long as was assumed, the third for as long as the second has shown."""
    core = make_core("divided", engine("a", slots=8), settle_s=0.5, placement=ALWAYS_PULL)
    names = [f"{group}.0" for group in "ghklmnop"]
    play(core, [([*map(submitted, names)], [dispatch(n, r, 50) for n, r in enumerate(names, 1)])])
    play(core, [(joined(engine("b", slots=8)), []), (PoolState(True), [])], now_s=9.0)
    until_s = 10.5 + ANSWER_S
    play(core, [(finished(1, 50), [look_up("g.0", 59), Wake(until_s)])], now_s=10.0)
    play(core, [(finished(2, 50), [look_up("h.0", 59)])], now_s=10.0)
    play(core, [(found("h.0", 59), [dispatch(9, "h.0", 50, "b", "a", pulled=60)])], now_s=10.125)
    asked, woken = core.handle(finished(3, 50), 10.125)
    assert isinstance(asked, LookUp)
    assert isinstance(woken, Wake)
    assert asked.patience_s == pytest.approx(0.125 + ANSWER_S)
    assert woken.at_s == pytest.approx(10.25 + 2 * ANSWER_S)
    play(core, [(Ticked(), [dispatch(10, "k.0", 50, "b", "a"), Wake(until_s)])], now_s=woken.at_s)
    play(core, [(Ticked(), [dispatch(11, "g.0", 50, "b", "a")]), (Ticked(), [])], now_s=until_s)
