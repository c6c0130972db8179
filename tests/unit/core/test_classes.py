"""Requests that somebody waits for, before those of batches."""

import msgspec
import pytest

from seer_sgl.router.core.events import Submitted
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import deliver, dispatch, engine, finished, play, submitted


def in_background(name: str, max_new: int = 100) -> Submitted:
    return msgspec.structs.replace(submitted(name, max_new), background=True)


@pytest.mark.parametrize("policy", ["seer", "divided"])
def test_who_waits_goes_before_batches(make_core: MakeCore, policy: str) -> None:
    batch = [in_background(f"b{n}.0", 10) for n in range(3)]
    play(
        make_core(policy, engine("a", slots=1), chunk_tokens=10, chunk_plan="constant"),
        [
            (list(batch), [dispatch(1, "b0.0", 10)]),
            ([submitted("g.0", 10), submitted("g.1", 10)], []),
            (finished(1, 9, ended=True), [deliver("b0.0"), dispatch(2, "g.0", 10)]),
            (finished(2, 9, ended=True), [deliver("g.0"), dispatch(3, "g.1", 10)]),
            (finished(3, 9, ended=True), [deliver("g.1"), dispatch(4, "b1.0", 10)]),
        ],
    )


def test_a_batch_does_not_starve(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a", slots=1), chunk_tokens=10, starvation_dispatches=4)
    core.handle_all([in_background("b.0", 10), *(submitted(f"g{n}.0", 10) for n in range(20))], 0.0)
    order = []
    for chunk in range(1, 21):
        (running,) = core.chunks.values()
        order.append(running.request.request_id)
        core.handle(finished(chunk, 10, ended=True), float(chunk))
        core.check()
    assert order[:3] == ["g0.0", "g1.0", "g2.0"]
    assert order[3] == "b.0", "it has waited longest"


def test_room_is_asked_of_those_that_wait(make_core: MakeCore) -> None:
    """What needs least may be of either class."""
    play(
        make_core("seer", engine("a", kv=200), chunk_tokens=100),
        [
            ([submitted("g.0"), in_background("b.0")], [dispatch(1, "g.0", 100)]),
            (submitted("h.0", 10), [dispatch(2, "h.0", 10)]),
            (finished(2, 9, ended=True), [deliver("h.0")]),
            (finished(1, 9, ended=True), [deliver("g.0"), dispatch(3, "b.0", 100)]),
            (in_background("c.0", 10), [dispatch(4, "c.0", 10)]),
        ],
    )
