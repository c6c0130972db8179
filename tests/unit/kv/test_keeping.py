"""The keeper's answers to what it is asked, and how it fares with its store."""

from collections.abc import Sequence

from seer_sgl.kv.client import PoolUnreachable, Room
from seer_sgl.kv.keeping import RECONNECT_S, TELL_S
from seer_sgl.kv.keys import namespace_seed, packed, page_digests
from seer_sgl.kv.ledger import Outcome
from seer_sgl.kv.messages import (
    Beat,
    Found,
    Grew,
    GroupOver,
    Layout,
    LookUp,
    Unknown,
    Usage,
)
from tests.unit.kv.bench import LAYOUT, OBJECTS, PAGE, ROUTER, Bench, closed, found, opened


def test_what_is_unknown_is_asked_for() -> None:
    bench = Bench()
    assert bench.tell(Grew("a", 2, packed([1, 2]))) == [], "without a layout there is nothing to know"
    assert bench.tell(LookUp("a", 2, 1.0)) == [Found("a", 2, None)]
    bench.tell(LAYOUT)
    assert bench.tell(Grew("a", 2, packed([1, 2]))) == [Unknown("a")]
    assert bench.tell(LookUp("a", 2, 1.0)) == [Unknown("a"), Found("a", 2, None)]
    bench.tell(opened("a", [1, 2]))
    assert bench.tell(Grew("a", 2, packed([3]))) == []
    assert bench.tell(Grew("a", 9, packed([3]))) == [Unknown("a")], "something is missing in between"


def test_another_layout_forgets_everything() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]))
    pages = bench.write([1, 2, 3])
    bench.tell(LookUp("a", 2, 9.0))
    assert bench.tell(LAYOUT) == []
    assert bench.keeping.usage().kept_pages == 1
    assert bench.tell(Layout("other", ["_k"], PAGE)) == [Found("a", 2, None)]
    assert bench.keeping.usage().kept_pages == 0
    assert bench.tell(closed("a", 3)) == []
    bench.wait(20)
    assert bench.store.keys == pages
    assert bench.tell(Layout("broken", [], PAGE), Layout("broken", ["_k"], 0)) == []


def test_a_look_up_waits_for_the_last_page_and_counts_all() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3, 4, 5]))
    assert found(bench, "a", 4) == []
    assert bench.wait(1) == []
    asked = bench.store.asked
    assert asked < 60, "it is asked ever more slowly"
    bench.write([1, 2, 3, 4])
    assert bench.wait(0.2) == [Found("a", 4, 4)]
    assert found(bench, "a", 2) == []
    assert bench.wait(0.01) == [Found("a", 2, 2)]


def test_a_hole_is_waited_for_until_patience_ends() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3, 4, 5, 6, 7]))
    pages = bench.write([1, 2, 3, 4, 5, 6])
    middle = set(OBJECTS.keys(page_digests(packed([1, 2, 3, 4]), PAGE, namespace_seed(None, "s"))[1:]))
    bench.store.keys -= middle
    assert found(bench, "a", 6, patience_s=2.0) == []
    assert bench.wait(1.9) == []
    assert bench.wait(0.2) == [Found("a", 6, 2)]
    found(bench, "a", 6, patience_s=2.0)
    bench.wait(1)
    bench.store.keys |= pages
    assert bench.wait(0.2) == [Found("a", 6, 6)]


def test_half_a_page_is_none() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]))
    bench.store.keys = {key for key in bench.write([1, 2]) if key.endswith("_k")}
    found(bench, "a", 2, patience_s=0.5)
    assert bench.wait(1) == [Found("a", 2, 0)]


def test_a_store_that_is_down_is_not_waited_for() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]))
    found(bench, "a", 2, patience_s=60)
    bench.store.down = True
    assert bench.wait(2 * TELL_S) == [Found("a", 2, None)]
    assert found(bench, "a", 2) == [Found("a", 2, None)]
    assert not bench.keeping.usage().up
    pages = bench.write([1, 2, 3])
    bench.tell(closed("a", 3), GroupOver("g"))
    bench.wait(5)
    assert bench.store.keys == pages
    bench.store.down = False
    bench.wait(8)
    assert bench.keeping.usage().up
    assert not bench.store.keys, "what was due meanwhile goes now"


def test_a_store_that_stays_down_is_connected_to_anew() -> None:
    bench = Bench()
    bench.store.down = True
    bench.wait(RECONNECT_S - 2 * TELL_S)
    assert bench.connects == 1
    bench.wait(4 * TELL_S)
    assert bench.connects == 2
    bench.reachable = False
    bench.wait(2 * RECONNECT_S)
    assert bench.connects > 3
    bench.reachable, bench.store.down = True, False
    bench.wait(2 * TELL_S)
    assert bench.keeping.usage().up


def test_it_starts_without_a_store() -> None:
    bench = Bench(up=False)
    assert bench.tell(LAYOUT, opened("a", [1, 2, 3]), LookUp("a", 2, 5.0)) == [Found("a", 2, None)]
    bench.reachable = True
    bench.wait(1.5)
    bench.write([1, 2, 3])
    found(bench, "a", 2)
    assert bench.wait(0.1) == [Found("a", 2, 2)]


def test_routers_are_told_and_silent_ones_forgotten() -> None:
    bench = Bench()
    bench.room = Room(50, 100)
    bench.tell(LAYOUT, opened("a", [1, 2, 3]))
    bench.tell(opened("a", [5, 5, 5]), router=b"other")
    bench.said.clear()
    bench.wait(1.5 * TELL_S)
    told = dict(bench.said)
    assert told == {name: Usage(50, 100, 0, 2, 0, 0, True) for name in (ROUTER, b"other")}
    for _ in range(15):
        bench.wait(2)
        bench.tell(Beat())
    assert bench.keeping.usage().kept_pages == 1, "the one that spoke is still there"


def test_what_was_found_is_told_though_the_store_fails_then() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]), opened("b", [5, 6, 7]))
    bench.write([1, 2])
    bench.write([5, 6])
    found(bench, "a", 2)
    found(bench, "b", 2)
    calls = iter([True, True, False])

    def failing(keys: Sequence[str]) -> list[bool]:
        if not next(calls):
            raise PoolUnreachable("down")
        return [key in bench.store.keys for key in keys]

    bench.store.exists = failing  # type: ignore[method-assign]
    said = [message for _, message in bench.keeping.work(bench.now_s)]
    assert said == [Found("a", 2, 2), Found("b", 2, None)]


def test_a_master_that_hangs_is_asked_once_for_all_that_is_due() -> None:
    bench = Bench()
    bench.tell(LAYOUT)
    for number in range(50):
        bench.tell(opened(str(number), [number] * 3, group="g"), closed(str(number), 3))
    asked: list[int] = []
    release = bench.store.release

    def noting(keys: Sequence[str]) -> list[Outcome]:
        asked.append(len(keys))
        return release(keys)

    bench.store.release = noting  # type: ignore[method-assign]
    bench.wait(1.01)
    assert asked == [100]
