"""Which engines are in step with a weight change, whatever order its calls come in."""

from seer_sgl.router.control.sync import Sync
from seer_sgl.types import EngineId

A, B, C = EngineId("a"), EngineId("b"), EngineId("c")


def three() -> Sync:
    sync = Sync()
    for engine in (A, B, C):
        sync.joined(engine, stale=False)
    return sync


def test_what_fails_everywhere_puts_nobody_out() -> None:
    sync = three()
    sync.updated({A: False, B: False, C: False}, full=True)
    assert sync.out_of_step() == set()
    sync.updated({A: True, B: True, C: True}, full=False)
    assert sync.out_of_step() == set()


def test_one_that_fails_where_others_do_not_is_out_until_it_has_all_weights() -> None:
    sync = three()
    sync.updated({A: True, B: False, C: True}, full=True)
    assert sync.out_of_step() == {B}
    sync.updated({A: True, B: True, C: True}, full=False)
    assert sync.out_of_step() == {B}, "a part of the weights is not all of them"
    sync.updated({A: True, B: True, C: True}, full=True)
    assert sync.out_of_step() == set()


def test_one_by_one_the_order_makes_no_difference() -> None:
    for order in ([A, B], [B, A]):
        sync = Sync()
        sync.joined(A, stale=False)
        sync.joined(B, stale=False)
        for engine in order:
            sync.updated({engine: engine == A}, full=True)
        assert sync.out_of_step() == {B}, order


def test_one_that_is_merely_called_later_is_not_out() -> None:
    sync = three()
    sync.updated({A: True}, full=False)
    sync.updated({A: True}, full=False)
    assert sync.out_of_step() == set()
    sync.updated({B: True}, full=False)
    assert sync.out_of_step() == set()


def test_a_late_one_comes_back_with_a_series_that_it_saw_whole() -> None:
    sync = three()
    sync.joined(C, stale=True)
    assert sync.out_of_step() == {C}
    sync.series_begins([A, B, C])
    for _ in range(3):
        sync.updated({A: True, B: True, C: True}, full=False)
    assert sync.out_of_step() == {C}, "the series goes on"
    sync.series_ends([A, B, C])
    assert sync.out_of_step() == set()


def test_a_series_that_began_without_it_does_not_bring_it_back() -> None:
    sync = three()
    sync.series_begins([A, B, C])
    sync.updated({A: True, B: True, C: True}, full=False)
    sync.joined(C, stale=True)
    sync.updated({A: True, B: True, C: True}, full=False)
    sync.series_ends([A, B, C])
    assert sync.out_of_step() == {C}


def test_a_series_with_a_failure_or_without_weights_does_not_bring_it_back() -> None:
    sync = three()
    sync.joined(C, stale=True)
    sync.series_begins([C])
    sync.series_ends([C])
    assert sync.out_of_step() == {C}, "a pause alone"
    sync.series_begins([A, B, C])
    sync.updated({A: True, B: True, C: True}, full=False)
    sync.updated({A: True, B: True, C: False}, full=False)
    sync.series_ends([A, B, C])
    assert sync.out_of_step() == {C}


def test_a_begin_inside_a_pause_is_the_same_series() -> None:
    sync = three()
    sync.joined(C, stale=True)
    sync.series_begins([A, B, C])
    sync.updated({A: True, B: True, C: True}, full=False)
    sync.series_begins([A, B, C])
    sync.series_ends([A, B, C])
    assert sync.out_of_step() == set()


def test_one_that_has_left_is_not_in_the_way() -> None:
    sync = three()
    sync.updated({A: True, B: False, C: True}, full=True)
    sync.left(B)
    assert sync.out_of_step() == set()
    sync.joined(B, stale=True)
    assert sync.out_of_step() == {B}


def test_one_that_caught_up_alone_is_not_ahead_of_the_others() -> None:
    sync = three()
    sync.joined(C, stale=True)
    sync.updated({C: True}, full=True)
    assert sync.out_of_step() == set()
    sync.updated({A: False, B: False, C: False}, full=True)
    assert sync.out_of_step() == set()


def test_all_of_them_late() -> None:
    sync = Sync()
    for engine in (A, B):
        sync.joined(engine, stale=True)
    sync.updated({A: True, B: False}, full=True)
    assert sync.out_of_step() == {B}
