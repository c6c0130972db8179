"""A pause: nothing is dispatched, everything else goes on."""

from seer_sgl.router.core.events import Paused, Resumed, Ticked
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    abort,
    cancelled,
    deliver,
    dispatch,
    engine,
    finished,
    joined,
    play,
    submitted,
)


def test_what_comes_and_what_ends_waits_until_it_is_over(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"))
    play(
        core,
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (Paused(), []),
            (submitted("g.1"), []),
            (finished(1, 50), []),
            (joined(engine("b")), []),
            (Ticked(), []),
            (Paused(), []),
        ],
    )
    assert core.statistics().paused
    assert core.statistics().waiting == 2
    play(core, [(Resumed(), [dispatch(2, "g.0", 50), dispatch(3, "g.1", 50)])])
    assert not core.statistics().paused


def test_whatever_waits_or_runs_can_be_cancelled(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a", slots=1)),
        [
            ([submitted("g.0"), submitted("g.1")], [dispatch(1, "g.0", 50)]),
            (Paused(), []),
            (cancelled("g.1"), [deliver("g.1", "cancelled")]),
            (cancelled("g.0"), [abort(1)]),
            (finished(1, 7, ended=True), [deliver("g.0", "cancelled")]),
            (Resumed(), []),
        ],
    )


def test_an_end_during_a_pause_is_delivered(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (Paused(), []),
            (finished(1, 7, ended=True), [deliver("g.0")]),
        ],
    )
