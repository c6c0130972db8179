"""Which engines have the adapters that they should have."""

from seer_sgl.router.control.weights.sync import Sync
from tests.unit.router.control.weights.test_sync import ALL, DISK, A, B, C, out, three


def test_adapters_are_followed_by_name() -> None:
    sync = three()
    sync.loaded([A, B], "l", "/l")
    assert sync.out_of_step() == {C: "it lacks what was last done to these adapters: l"}
    assert sync.odd_adapters(C) == ([], ["l"])
    sync.loaded([C], "l", "/l")
    assert out(sync) == set()
    sync.unloaded([A], "l")
    assert out(sync) == {B, C}
    assert sync.odd_adapters(C) == (["l"], [])
    sync.unloaded([B, C], "l")
    assert out(sync) == set()


def test_an_adapter_that_is_loaded_again_is_another_one() -> None:
    sync = three()
    sync.loaded(ALL, "l", "/l")
    sync.unloaded([A], "l")
    sync.loaded([A], "l", "/l")
    assert out(sync) == {B, C}
    sync.unloaded([B], "l")
    assert out(sync) == {B, C}, "and A keeps what it has"
    sync.loaded([B], "l", "/l")
    assert out(sync) == {C}


def test_an_adapter_that_nobody_has_any_more_is_not_waited_for() -> None:
    sync = three()
    sync.loaded(ALL, "l", "/l1")
    sync.loaded(ALL, "l", "/l2")
    for engine in ALL:
        sync.joined(engine, "default")
    sync.loaded(ALL, "l", "/l1")
    assert out(sync) == set()
    sync.joined(C, "default")
    sync.loaded([C], "l", "/l2")
    assert out(sync) == {C}, "others have what is wanted"


def test_adapters_and_weights_are_two_things() -> None:
    sync = three()
    sync.loaded(ALL, "l", "/l")
    sync.whole(ALL, DISK)
    assert out(sync) == set()
    sync.joined(C, "default")
    sync.whole(ALL, DISK)
    assert sync.has_wanted_weights(C)
    assert out(sync) == {C}
    sync.has_got_adapter(C, "l", sync.wanted_adapter("l"))
    assert out(sync) == set()


def test_before_any_adapter_was_loaded_all_have_to_say_the_same_of_theirs() -> None:
    sync = Sync()
    sync.joined(A, "default", "1", ["l"])
    sync.joined(B, "default", "1", ["l"])
    sync.joined(C, "default")
    assert out(sync) == {C}
