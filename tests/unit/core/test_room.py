"""KV in whole pages, request slots, and who waits when a request fits nowhere."""

import pytest

from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    Step,
    all_submitted,
    deliver,
    dispatch,
    engine,
    finished,
    joined,
    play,
    submitted,
)


@pytest.mark.parametrize("policy", ["divided", "seer"])
@pytest.mark.parametrize(
    ("kv", "page", "slots", "draft", "fit"),
    [  # five requests that each need 10 prompt + 10 chunk + draft tokens
        (100, 1, 8, 0, 5),
        (99, 1, 8, 0, 4),
        (100, 1, 2, 0, 2),
        (100, 1, 8, 5, 4),
        (128, 64, 8, 0, 2),
        (127, 64, 8, 0, 1),
        (255, 64, 8, 60, 1),
        (128, 16, 8, 0, 4),
        (19, 1, 8, 0, 0),
        (63, 64, 8, 0, 0),
    ],
)
def test_an_engine_takes_what_its_pages_and_slots_hold(
    make_core: MakeCore, policy: str, kv: int, page: int, slots: int, draft: int, fit: int
) -> None:
    core = make_core(policy, engine("a", kv, page, slots), chunk_tokens=10, draft_tokens=draft)
    names = ["g.0", "h.0", "k.0", "l.0", "m.0"]
    expected = [dispatch(i + 1, name, 10) for i, name in enumerate(names[:fit])]
    play(core, [(all_submitted(" ".join(names)), [*expected])])
    (only,) = core.engines.values()
    need = -(-(20 + draft) // page) * page
    assert only.reserved_tokens == fit * need <= kv


def test_the_reservation_grows_with_the_request_and_ends_with_the_chunk(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", kv=640, page=64))
    reserved = []
    for event in (submitted("g.0"), finished(1, 50), finished(2, 50)):
        core.handle(event, 0.0)
        reserved.append(core.engines[engine("a").engine_id].reserved_tokens)
    assert reserved == [64, 128, 0]


BIG = submitted("big.0", prompt=80, max_new=10)
"""Needs 90 tokens; the others, submitted below, 20 each."""


def test_a_request_that_fits_nowhere_holds_the_only_engine_that_can_take_it(make_core: MakeCore) -> None:
    steps: list[Step] = [
        (submitted("s.0", max_new=10), [dispatch(1, "s.0", 10, on="a")]),
        (BIG, []),
        (submitted("t.0", max_new=10), [dispatch(2, "t.0", 10, on="b")]),
        (submitted("u.0", max_new=10), [dispatch(3, "u.0", 10, on="b")]),
        (submitted("v.0", max_new=10), []),  # a has 80 free, and waits for big.0
        (finished(2, 10), [deliver("t.0"), dispatch(4, "v.0", 10, on="b")]),
        (finished(1, 10), [deliver("s.0"), dispatch(5, "big.0", 10, on="a")]),
    ]
    play(make_core("divided", engine("a", kv=100), engine("b", kv=40)), steps)


def test_the_engine_with_most_free_kv_is_held(make_core: MakeCore) -> None:
    steps: list[Step] = [
        (
            all_submitted("s.0 t.0 u.0", max_new=10),
            [
                dispatch(1, "s.0", 10, on="a"),
                dispatch(2, "t.0", 10, on="b"),
                dispatch(3, "u.0", 10, on="a"),
            ],
        ),
        (BIG, []),
        (submitted("v.0", max_new=10), [dispatch(4, "v.0", 10, on="a")]),
        (finished(2, 10), [deliver("t.0"), dispatch(5, "big.0", 10, on="b")]),
    ]
    play(make_core("divided", engine("a", kv=100), engine("b", kv=100)), steps)


def test_a_request_waits_for_an_engine_that_is_large_enough(make_core: MakeCore) -> None:
    steps: list[Step] = [
        (BIG, []),
        (submitted("s.0", max_new=10), [dispatch(1, "s.0", 10, on="a")]),
        (joined(engine("b", kv=90)), [dispatch(2, "big.0", 10, on="b")]),
    ]
    play(make_core("divided", engine("a", kv=80)), steps)


@pytest.mark.parametrize(("look_ahead", "tried"), [(1, False), (2, False), (3, True)])
def test_look_ahead_bounds_how_many_are_tried(make_core: MakeCore, look_ahead: int, tried: bool) -> None:
    also_big = submitted("huge.0", prompt=80, max_new=10)
    small_runs = [dispatch(2, "t.0", 10, on="b")] if tried else []
    steps: list[Step] = [
        (submitted("s.0", max_new=10), [dispatch(1, "s.0", 10, on="a")]),
        ([BIG, also_big, submitted("t.0", max_new=10)], [*small_runs]),
    ]
    play(make_core("divided", engine("a", kv=100), engine("b", kv=40), look_ahead=look_ahead), steps)
