"""The keeper's answers and deeds on a made-up store and a made-up clock."""

from collections.abc import Sequence

import pytest

from seer_sgl.kv.client import PoolUnreachable, Room
from seer_sgl.kv.keeping import RECONNECT_S, TELL_S, Keeping
from seer_sgl.kv.keys import Objects, namespace_seed, packed, page_digests
from seer_sgl.kv.ledger import LedgerSettings, Outcome
from seer_sgl.kv.messages import (
    Beat,
    Closed,
    EpochChanged,
    Found,
    FromRouter,
    Grew,
    GroupOver,
    Layout,
    LookUp,
    Message,
    Opened,
    Unknown,
    Usage,
)

PAGE = 2
ROUTER = b"router"
LAYOUT = Layout("model", ["_0_k", "_0_v"], PAGE)
OBJECTS = Objects("model", ("_0_k", "_0_v"))
SETTINGS = LedgerSettings(
    sweeps_s=(1.0, 2.0),
    more_sweeps=2,
    more_s=1.0,
    linger_s=3.0,
    kept_s=50.0,
    silent_s=20.0,
    live_s=30.0,
)


class FakeStore:
    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.leased: set[str] = set()
        self.down = False
        self.asked = 0
        self.closed = False

    def exists(self, keys: Sequence[str]) -> list[bool]:
        if self.down:
            raise PoolUnreachable("down")
        self.asked += len(keys)
        return [key in self.keys for key in keys]

    def release(self, keys: Sequence[str]) -> list[Outcome]:
        return [self._remove(key) for key in keys]

    def _remove(self, key: str) -> Outcome:
        if self.down:
            return Outcome.FAILED
        if key in self.leased:
            return Outcome.LEASED
        if key not in self.keys:
            return Outcome.ABSENT
        self.keys.remove(key)
        return Outcome.REMOVED

    def close(self) -> None:
        self.closed = True


class Bench:
    """A keeper, its store, its clock, and what it has said."""

    def __init__(self, up: bool = True) -> None:
        self.store = FakeStore()
        self.connects = 0
        self.reachable = up
        self.room: Room | None = None
        self.now_s = 100.0
        self.said: list[tuple[bytes, Message]] = []
        self.keeping = Keeping(self.connect, lambda: self.room, SETTINGS, self.now_s)
        self.keeping.work(self.now_s)

    def connect(self) -> FakeStore:
        self.connects += 1
        if not self.reachable:
            raise PoolUnreachable("no master")
        self.store.closed = False
        return self.store

    def tell(self, *messages: FromRouter, router: bytes = ROUTER) -> list[Message]:
        """What is answered at once."""
        replies: list[tuple[bytes, Message]] = []
        for message in messages:
            replies += self.keeping.take(router, message, self.now_s)
        assert {peer for peer, _ in replies} <= {router}
        return [message for _, message in replies]

    def wait(self, seconds: float) -> list[Message]:
        """Let time pass as the process would; what is said meanwhile, without usage."""
        until_s = self.now_s + seconds
        said: list[tuple[bytes, Message]] = []
        while (step_s := self.keeping.wait_s(self.now_s)) + self.now_s <= until_s:
            self.now_s += step_s + 1e-6
            said += self.keeping.work(self.now_s)
        self.now_s = until_s
        self.said += said
        return [message for _, message in said if not isinstance(message, Usage)]

    def write(self, ids: list[int]) -> set[str]:
        keys = set(OBJECTS.keys(page_digests(packed(ids), PAGE, namespace_seed(None, "s"))))
        self.store.keys |= keys
        return keys


def opened(name: str, ids: list[int], group: str = "g") -> Opened:
    return Opened(name, group, None, "s", packed(ids))


def closed(name: str, done: int, finished: bool = True) -> Closed:
    return Closed(name, done, b"", finished)


def found(bench: Bench, name: str, tokens: int, patience_s: float = 5.0) -> list[Message]:
    return bench.tell(LookUp(name, tokens, patience_s))


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


def test_leased_and_late_pages_go_later() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3, 4, 5]), opened("b", [9, 9]))
    early, late = bench.write([1, 2]), bench.write([1, 2, 3, 4])
    late -= early
    bench.store.keys -= late
    bench.store.leased = set(early)
    bench.tell(closed("a", 5))
    bench.wait(1.1)
    assert bench.store.keys == early
    bench.store.keys |= late
    bench.store.leased.clear()
    bench.wait(1.1)
    assert not bench.store.keys
    usage = bench.keeping.usage()
    assert (usage.released_pages, usage.late_pages, usage.errors) == (2, 1, 0)


def test_a_page_that_is_leased_for_ever_is_left() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3], group="other"))
    bench.store.leased = bench.write([1, 2])
    bench.tell(closed("a", 3))
    bench.wait(30)
    assert bench.keeping.usage().errors == 1
    assert bench.keeping.ledger.runs.pages == 0


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


def test_a_full_pool_gives_up_what_is_kept() -> None:
    bench = Bench()
    bench.tell(LAYOUT)
    for name in "abcd":
        bench.tell(opened(name, [ord(name)] * 8, group=name), closed(name, 8, finished=False))
        bench.tell(GroupOver(name))
    bench.tell(opened("live", [1] * 8))
    bench.wait(5)
    assert bench.keeping.usage().kept_pages == 20
    bench.room = Room(80, 100)
    bench.wait(2)
    assert bench.keeping.usage().kept_pages == 20
    bench.room = Room(100, 100)
    bench.wait(TELL_S)
    assert bench.keeping.usage().kept_pages == 12, "down to three quarters, in whole requests"
    bench.wait(5)
    assert bench.keeping.usage().kept_pages == 4, "what is live stays"


def test_what_comes_back_is_kept_no_longer_than_it_runs() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3, 4, 5]))
    pages = bench.write([1, 2, 3, 4, 5])
    bench.tell(closed("a", 5, finished=False))
    bench.wait(10)
    assert bench.store.keys == pages
    bench.tell(GroupOver("g"), opened("again", [1, 2, 3, 4, 5, 6], group="another"))
    bench.wait(10)
    assert bench.store.keys == pages
    bench.tell(closed("again", 6), GroupOver("another"))
    bench.wait(6)
    assert not bench.store.keys


@pytest.mark.parametrize("finished", [True, False])
def test_an_epoch_ends_what_is_kept(finished: bool) -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]), opened("b", [1, 2, 4, 4, 5]))
    bench.write([1, 2, 4, 4])
    bench.tell(closed("a", 3, finished=False), EpochChanged(), closed("b", 5, finished=finished))
    bench.wait(10)
    assert not bench.store.keys


def test_requests_beyond_the_bound_are_not_looked_after() -> None:
    bench = Bench()
    small = LedgerSettings(most_pages=3)
    bench.keeping = Keeping(bench.connect, lambda: None, small, bench.now_s)
    bench.keeping.work(bench.now_s)
    bench.tell(LAYOUT, opened("a", [1] * 6), opened("b", [2] * 6))
    assert bench.keeping.usage().kept_pages == 3
    assert bench.tell(LookUp("b", 4, 1.0)) == [Found("b", 4, 0)]
    assert bench.tell(Grew("b", 6, packed([1])), Grew("a", 6, packed([1]))) == []
    assert bench.tell(closed("b", 7), closed("a", 7)) == []
    bench.wait(200)
    assert bench.keeping.ledger.runs.pages == 0


def test_a_prompt_stays_until_its_group_is_over() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("probe", [1, 2, 3]))
    prompt = bench.write([1, 2])
    bench.write([1, 2, 3, 4])
    bench.tell(Grew("probe", 3, packed([4])), closed("probe", 4))
    bench.wait(SETTINGS.live_s - 10)
    assert prompt == bench.store.keys, "its siblings wait for their turn"
    bench.tell(opened("sibling", [1, 2, 3]), closed("sibling", 3))
    bench.wait(SETTINGS.linger_s + 10)
    assert prompt == bench.store.keys
    bench.tell(GroupOver("g"), GroupOver("nobody's"))
    bench.wait(SETTINGS.linger_s - 1)
    assert prompt == bench.store.keys
    bench.wait(5)
    assert not bench.store.keys


def test_a_group_whose_end_was_lost_ends_one_day() -> None:
    bench = Bench()
    bench.tell(LAYOUT, opened("a", [1, 2, 3]))
    bench.write([1, 2])
    bench.tell(closed("a", 3))
    for _ in range(20):
        bench.wait(SETTINGS.live_s / 19)
        bench.tell(Beat())
    bench.wait(10)
    assert not bench.store.keys
    assert bench.keeping.ledger.runs.pages == 0


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


def test_questions_that_are_void_do_not_pile_up() -> None:
    bench = Bench()
    bench.tell(LAYOUT)
    bench.store.down = True
    for _ in range(500):
        bench.tell(opened("a", [1] * 9), EpochChanged(), closed("a", 9))
    assert len(bench.keeping.ledger._due) < 20
