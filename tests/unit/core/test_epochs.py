"""After the weights have changed, no KV of before is counted on: not on an engine, not in the pool."""

import msgspec

from seer_sgl.router.core.actions import Wake
from seer_sgl.router.core.events import EpochChanged, Paused, Resumed, Ticked
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.types import EngineId, RequestId
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import (
    all_submitted,
    deliver,
    dispatch,
    engine,
    finished,
    joined,
    look_up,
    play,
    submitted,
)

ALWAYS_PULL = PlacementSettings(pull_margin_tokens=0)


def test_a_chunk_after_the_change_came_from_nowhere_and_pulls_nothing(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=1), placement=ALWAYS_PULL)
    play(
        core,
        [
            (submitted("h.0"), [dispatch(1, "h.0", 50)]),
            (submitted("g.0"), []),
            (finished(1, 9, ended=True), [deliver("h.0"), dispatch(2, "g.0", 50)]),
            ([Paused(), finished(2, 50)], []),
            ([EpochChanged(), joined(engine("b", slots=1)), submitted("k.0")], []),
            (Resumed(), [dispatch(3, "g.0", 50), dispatch(4, "k.0", 50, "b")]),
        ],
    )
    assert core.statistics().moved_chunks == 0


def test_no_engine_is_preferred_for_what_it_held_before(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), engine("b"), placement=ALWAYS_PULL)
    held = msgspec.structs.replace(submitted("k.0"), held_tokens=9, held_on=EngineId("a"))
    play(
        core,
        [
            (all_submitted("g.0 h.0"), [dispatch(1, "g.0", 50), dispatch(2, "h.0", 50, "b")]),
            ([Paused(), finished(2, 50), held, submitted("h.1")], []),
            # By what they held h.1 would go to b, and k.0 to a.
            (
                [EpochChanged(), Resumed()],
                [dispatch(3, "h.0", 50, "b"), dispatch(4, "h.1", 50, "a"), dispatch(5, "k.0", 50, "b")],
            ),
        ],
    )


def test_a_chunk_that_began_before_the_change_leaves_tokens_and_no_kv(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), placement=ALWAYS_PULL)
    play(
        core,
        [
            (submitted("g.0", max_new=150), [dispatch(1, "g.0", 50)]),
            ([EpochChanged(), Paused(), finished(1, 50)], []),
        ],
    )
    request = core.buffer.requests[RequestId("g.0")]
    assert (request.generated_tokens, request.pooled_tokens) == (50, 0)
    assert not request.group.prompt_on
    play(core, [(Resumed(), [dispatch(2, "g.0", 50)]), (finished(2, 50), [dispatch(3, "g.0", 50)])])
    assert request.pooled_tokens == 110, "what is computed under the new weights counts"


def test_who_waits_for_kv_of_before_waits_no_longer(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a", slots=4), settle_s=0.5, placement=ALWAYS_PULL)
    names = "g.0 h.0 k.0"
    play(
        core,
        [
            (all_submitted(names), [dispatch(n, r, 50) for n, r in enumerate(names.split(), 1)]),
            (joined(engine("b", slots=4)), []),
            (finished(1, 50), [look_up("g.0", 59), Wake(10.5)]),
            (EpochChanged(), [dispatch(4, "g.0", 50, "b")]),
        ],
        now_s=10.0,
    )
    play(core, [(Ticked(), [])], now_s=10.5)


def test_what_is_known_of_lengths_stays(make_core: MakeCore) -> None:
    core = make_core("seer", engine("a"))
    play(core, [(all_submitted("g.0 g.1"), [dispatch(1, "g.0", 50), dispatch(2, "g.1", 50)])])
    play(core, [(finished(1, 40, ended=True), [deliver("g.0")]), (EpochChanged(), [])])
    group = core.buffer.requests[RequestId("g.1")].group
    assert (group.finished_count, group.finished_tokens) == (1, 40)
