"""What the keeper removes from its store, and when."""

import pytest

from seer_sgl.kv.client import Room
from seer_sgl.kv.keeping import TELL_S, Keeping
from seer_sgl.kv.keys import packed
from seer_sgl.kv.ledger import LedgerSettings
from seer_sgl.kv.messages import (
    Beat,
    EpochChanged,
    Found,
    Grew,
    GroupOver,
    LookUp,
)
from tests.unit.kv.bench import LAYOUT, SETTINGS, Bench, closed, opened


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


def test_questions_that_are_void_do_not_pile_up() -> None:
    bench = Bench()
    bench.tell(LAYOUT)
    bench.store.down = True
    for _ in range(500):
        bench.tell(opened("a", [1] * 9), EpochChanged(), closed("a", 9))
    assert len(bench.keeping.ledger._due) < 20
