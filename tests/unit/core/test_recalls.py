"""A recall: what runs comes back with what it has, nobody is answered, and it goes on later."""

from seer_sgl.router.core.events import EpochChanged, Paused, Recalled, Resumed
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.types import ChunkId, RequestId
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    abort,
    cancelled,
    deliver,
    dispatch,
    engine,
    failed,
    finished,
    play,
    submitted,
)


def test_what_runs_is_aborted_and_goes_on_after_the_pause(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), placement=PlacementSettings(pull_margin_tokens=0))
    play(
        core,
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (submitted("g.1"), [dispatch(2, "g.1", 50)]),
            ([Paused(), Recalled()], [abort(1), abort(2)]),
            (Recalled(), []),
            (finished(1, 30), []),
            (finished(2, 50), []),  # it ended before it was told to stop
            (EpochChanged(), []),
            (Resumed(), [dispatch(3, "g.0", 50), dispatch(4, "g.1", 50)]),
            (finished(4, 50), [deliver("g.1")]),
        ],
    )
    assert core.buffer.requests[RequestId("g.0")].generated_tokens == 30


def test_what_cannot_be_divided_begins_anew(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"))
    play(
        core,
        [
            (submitted("g.0", divisible=False), [dispatch(1, "g.0", 100)]),
            (submitted("g.1"), [dispatch(2, "g.1", 50)]),
            ([Paused(), Recalled()], [abort(1), abort(2)]),
            (finished(1, 0), []),
            (finished(2, 10, ended=True), [deliver("g.1")]),
            (Resumed(), [dispatch(3, "g.0", 100)]),
        ],
    )
    assert not core.is_recalled(ChunkId(3))


def test_coming_back_with_nothing_is_no_failure(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), max_failures=1)
    play(
        core,
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (Recalled(), [abort(1)]),
            (finished(1, 0), [dispatch(2, "g.0", 50)]),
            (Recalled(), [abort(2)]),
            (failed(2, "broken"), [deliver("g.0", "failed", "broken")]),
        ],
    )


def test_whoever_gives_up_meanwhile_is_answered(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a")),
        [
            (submitted("g.0"), [dispatch(1, "g.0", 50)]),
            (submitted("g.1"), [dispatch(2, "g.1", 50)]),
            (cancelled("g.1"), [abort(2)]),
            ([Paused(), Recalled()], [abort(1)]),
            (cancelled("g.0"), [abort(1)]),
            (finished(1, 0), [deliver("g.0", "cancelled")]),
            (finished(2, 5, ended=True), [deliver("g.1", "cancelled")]),
        ],
    )
