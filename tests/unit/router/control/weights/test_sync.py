"""Which engines are in step with a weight change, whatever order its calls come in."""

import pytest

from seer_sgl.router.control.weights.sync import BEHIND, HALF, LATE, Sync
from seer_sgl.types import EngineId

A, B, C = EngineId("a"), EngineId("b"), EngineId("c")
ALL = [A, B, C]
DISK, PART = ("/from_disk", "/new"), ("/from_tensor", "")
SEVEN, EIGHT = ("version", "7"), ("version", "8")


def three() -> Sync:
    sync = Sync()
    for engine in ALL:
        sync.joined(engine, "default")
    return sync


def out(sync: Sync) -> set[EngineId]:
    return set(sync.out_of_step())


# ---- whole sets of weights ----


def test_what_is_refused_everywhere_puts_nobody_out() -> None:
    sync = three()
    sync.refused(ALL, b"1")
    assert out(sync) == set()
    sync.whole(ALL, DISK)
    assert out(sync) == set()


def test_one_that_has_missed_an_update_is_behind_until_it_has_had_it() -> None:
    sync = three()
    sync.whole([A, C], DISK)
    assert sync.out_of_step() == {B: BEHIND}
    sync.part(ALL, PART)
    assert out(sync) == {B}, "a part of the weights is not all of them"
    sync.whole(ALL, DISK)
    assert out(sync) == set()


@pytest.mark.parametrize("key", [DISK, SEVEN])
def test_engines_that_are_updated_one_by_one_come_back_one_by_one(key: tuple[str, str]) -> None:
    sync = three()
    for done, rest in ([A], {B, C}), ([B], {C}), ([C], set()):
        sync.whole(done, key)
        assert out(sync) == rest


def test_the_newest_of_two_updates_is_wanted() -> None:
    sync = three()
    sync.whole([A], SEVEN)
    sync.whole([B], EIGHT)
    assert out(sync) == {A, C}
    sync.whole([C], SEVEN)
    assert out(sync) == {A, C}, "what is older does not become wanted again"
    sync.whole([A, C], EIGHT)
    assert out(sync) == set()


def test_the_same_call_again_is_a_new_update_for_those_that_have_had_it() -> None:
    """The same folder may hold other weights by now."""
    sync = three()
    sync.whole(ALL, DISK)
    sync.whole([A], DISK)
    assert out(sync) == {B, C}
    sync.whole([B], DISK)
    sync.whole([C], DISK)
    assert out(sync) == set()


def test_a_call_that_some_have_had_and_others_not_brings_all_to_the_same() -> None:
    sync = three()
    sync.whole([A], DISK)
    sync.whole(ALL, DISK)
    assert out(sync) == set()


def test_doubt_ends_with_a_whole_set_only() -> None:
    sync = three()
    sync.doubted(B, "it failed")
    assert sync.out_of_step() == sync.doubtful() == {B: "it failed"}
    sync.part(ALL, PART)
    assert out(sync) == {B}
    sync.whole([B], SEVEN)
    assert out(sync) == {A, C}, "and then it is ahead"
    sync.whole([A, C], SEVEN)
    assert out(sync) == set()


def test_all_of_them_in_doubt() -> None:
    sync = three()
    for engine in ALL:
        sync.doubted(engine, "x")
    sync.joined(A, "default")
    assert out(sync) == {B, C}, "one that starts again has what all had"
    sync.whole(ALL, DISK)
    assert out(sync) == set()


# ---- parts ----


def test_parts_one_by_one() -> None:
    sync = three()
    sync.part([A], PART)
    sync.part([A], PART)
    assert out(sync) == {B, C}
    sync.part([B], PART)
    assert out(sync) == {B, C}, "it has had one of two"
    sync.part([B], PART)
    sync.part([C], PART)
    sync.part([C], PART)
    assert out(sync) == set()


def test_a_part_of_another_version_is_another_part() -> None:
    sync = three()
    sync.part([A], SEVEN)
    sync.part([B], EIGHT)
    assert out(sync) == {B, C}


def test_an_engine_that_is_behind_does_not_make_what_it_gets_wanted() -> None:
    sync = three()
    sync.part([A, B], PART)
    sync.part([C], SEVEN)
    assert out(sync) == {C}
    sync.part(ALL, EIGHT)
    assert out(sync) == {C}


@pytest.mark.parametrize("doubtful", ALL)
@pytest.mark.parametrize("together", [True, False])
def test_a_doubtful_engine_does_not_lead_the_others_away(doubtful: EngineId, together: bool) -> None:
    sync = three()
    sync.doubted(doubtful, "it failed")
    if not together:
        sync.part([doubtful], PART)
    sync.part([engine for engine in ALL if together or engine != doubtful], PART)
    assert out(sync) == {doubtful}


# ---- series ----


def series(sync: Sync, *engines: EngineId) -> dict[EngineId, bool]:
    """End a series; who may have all weights by it, and whether nothing speaks against that."""
    return {each.engine: each.clean for each in sync.series_ends(engines)}


def test_an_engine_may_come_back_with_a_series_that_it_saw_whole() -> None:
    sync = three()
    sync.whole(ALL, DISK)
    sync.joined(C, "default")
    assert sync.out_of_step() == {C: LATE}
    sync.series_begins(ALL)
    for _ in range(3):
        sync.part(ALL, PART)
    assert sync.loaded_in_series(ALL) == ALL
    unproven = {each.engine: each for each in sync.series_ends(ALL)}
    assert out(sync) == {C}, "it may have been meant as a change to what only the others had"
    assert unproven[C].clean
    assert sync.is_still(unproven[C])
    sync.proven([C])
    assert out(sync) == set()
    assert not sync.is_still(unproven[C])


def test_what_was_loaded_before_an_engine_came_is_not_in_its_series() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.part(ALL, PART)
    sync.joined(C, "default")
    sync.part(ALL, PART)
    assert series(sync, *ALL) == {A: True, B: True}
    assert out(sync) == {C}


def test_a_pause_alone_brings_nobody_back() -> None:
    sync = three()
    sync.whole(ALL, DISK)
    sync.joined(C, "default")
    sync.series_begins(ALL)
    assert series(sync, *ALL) == {}


def test_a_series_with_a_part_that_was_refused_leaves_half_of_everything() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.part(ALL, PART, b"1")
    sync.refused(ALL, b"2")
    assert out(sync) == set(), "it may be sent again"
    assert series(sync, *ALL) == {}
    assert sync.out_of_step() == dict.fromkeys(ALL, HALF)


def test_a_part_that_is_sent_again_with_success_is_no_failure() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.part([A, B], PART, b"1")
    sync.refused([C], b"1")
    sync.part([C], PART, b"1")
    assert series(sync, *ALL) == dict.fromkeys(ALL, True)
    assert out(sync) == set()


def test_a_series_of_which_nothing_was_taken_changes_nothing() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.refused(ALL, b"1")
    assert series(sync, *ALL) == {}
    assert out(sync) == set()


def test_doubt_in_a_series_outlasts_it() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.part(ALL, PART)
    sync.doubted(B, "it hung")
    sync.part(ALL, PART)
    assert series(sync, *ALL) == {A: True, B: False, C: True}
    assert sync.out_of_step() == {B: "it hung"}


def test_doubt_from_before_a_series_may_end_with_it_and_new_doubt_may_not() -> None:
    sync = three()
    sync.doubted(B, "it hung")
    sync.series_begins(ALL)
    sync.part(ALL, PART)
    (unproven,) = [each for each in sync.series_ends(ALL) if each.engine == B]
    assert unproven.clean
    assert sync.is_still(unproven)
    sync.doubted(B, "it broke")
    assert not sync.is_still(unproven)


def test_a_whole_set_in_a_series_ends_all_doubt() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.doubted(B, "it hung")
    sync.whole(ALL, SEVEN)
    assert series(sync, *ALL) == {}
    assert out(sync) == set()


def test_parts_after_a_whole_set_are_a_change_to_that() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.whole([A, B], DISK)
    sync.part(ALL, PART)
    sync.series_ends(ALL)
    assert sync.out_of_step() == {C: BEHIND}


def test_a_begin_inside_a_pause_is_the_same_series() -> None:
    sync = three()
    sync.series_begins(ALL)
    sync.part(ALL, PART)
    sync.series_begins(ALL)
    assert series(sync, *ALL) == dict.fromkeys(ALL, True)
    assert series(sync, *ALL) == {}


def test_a_series_with_fewer_parts_is_behind_until_it_is_proven() -> None:
    sync = three()
    sync.series_begins(ALL)
    for engine, parts in (A, 3), (B, 1):
        for _ in range(parts):
            sync.part([engine], SEVEN)
    unproven = {each.engine: each for each in sync.series_ends([A, B])}
    assert sync.out_of_step() == {B: BEHIND, C: BEHIND}
    assert sync.is_still(unproven[B])
    sync.proven([B])
    assert out(sync) == {C}


# ---- coming and going ----


def test_one_that_has_left_is_not_in_the_way() -> None:
    sync = three()
    sync.whole([A, C], DISK)
    sync.left(B)
    assert out(sync) == set()
    sync.joined(B, "default")
    assert out(sync) == {B}


def test_one_that_starts_with_another_version_is_behind_even_before_any_change() -> None:
    sync = three()
    sync.joined(C, "5")
    assert sync.out_of_step() == {C: LATE}
    assert not sync.has_first_weights(C)


def test_one_that_caught_up_alone_is_not_ahead_of_the_others() -> None:
    sync = three()
    sync.whole(ALL, DISK)
    sync.joined(C, "default")
    assert sync.has_first_weights(C)
    sync.has_caught_up(C, sync.wanted)
    assert out(sync) == set()


def test_those_that_are_gone_are_still_ahead() -> None:
    sync = three()
    sync.whole([A], DISK)
    sync.left(A)
    assert out(sync) == {B, C}, "the new weights were asked for"


def test_a_fleet_that_is_wholly_new_may_come_with_other_weights() -> None:
    sync = three()
    for engine in ALL:
        sync.left(engine)
    sync.joined(A, "5")
    sync.joined(B, "5")
    assert out(sync) == set()


def test_what_nobody_has_any_more_is_not_waited_for() -> None:
    sync = three()
    sync.whole(ALL, SEVEN)
    sync.part(ALL, EIGHT)
    for engine in ALL:
        sync.joined(engine, "default")
    assert out(sync) == set(ALL)
    sync.whole([A], SEVEN)
    assert out(sync) == {B, C}, "the older weights were asked for again"
    sync.whole([B, C], SEVEN)
    assert out(sync) == set()


def test_the_first_whose_word_can_be_taken_says_what_all_should_have() -> None:
    sync = Sync()
    sync.joined(A, "default 1", why="it failed")
    sync.joined(B, "default 2")
    sync.joined(C, "default 1")
    assert sync.out_of_step() == {A: "it failed", C: LATE}
    sync.joined(A, "default 2", why="it failed")
    assert not sync.has_first_weights(A), "the same name proves nothing"
    sync.whole(ALL, DISK)
    assert out(sync) == set()


def test_memory_does_not_grow_with_updates() -> None:
    sync = three()
    for number in range(5000):
        sync.part(ALL, ("version", str(number)))
        sync.whole(ALL, ("version", str(number)))
    assert len(sync._next) + len(sync._whole) < 2100
    assert out(sync) == set()
