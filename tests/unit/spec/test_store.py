"""The draft server's store: what is kept, what is refused, what goes when."""

import numpy as np
import pytest

from seer_sgl.spec.sharing import records
from seer_sgl.spec.sharing.blocks import BLOCK_BYTES, BLOCK_WORDS, IntArray
from seer_sgl.spec.store import (
    GROUP_BYTES,
    MAX_BUDGET_BYTES,
    MIN_BUDGET_BYTES,
    REQUEST_BYTES,
    DraftStore,
)

Handle = tuple[int, int, int]


def table(*rows: tuple[int, ...], columns: int) -> IntArray:
    return np.array(rows, np.int32).reshape(-1, columns)


def update(
    store: DraftStore, *rows: tuple[Handle, int, int, list[int]], now_s: float = 0.0
) -> list[list[int]]:
    """Rows of (group, request, tokens before, tokens); what was refused."""
    updates = table(*((*h, request, prev, len(new)) for h, request, prev, new in rows), columns=6)
    tokens = np.array([token for *_, new in rows for token in new], np.int32)
    refused: list[list[int]] = store.update_cst(updates, tokens, now_s).tolist()
    store.check()
    return refused


def fetch(
    store: DraftStore,
    group: Handle,
    cursor: int = 0,
    known: dict[int, int] | None = None,
    answer_words: int = 1 << 16,
    now_s: float = 0.0,
) -> tuple[int, int, list[tuple[int, int, list[int]]]]:
    """What became of it, the new cursor, and (request, tokens before, tokens) of each record."""
    seen = table(*(known or {}).items(), columns=2)
    fetches = table((*group, cursor, len(seen)), columns=5)
    results, words = store.fetch_cst(fetches, seen, now_s, answer_words)
    found, at = [], 0
    while at < len(words):
        count = int(words[at]) & records.COUNT_MASK
        tokens = words[at + 3 : at + 3 + count].tolist()
        found.append((int(words[at + 1]), int(words[at + 2]), tokens))
        at += 3 + count
    what, position, size = results[0].tolist()
    assert size == len(words)
    return what, position, found


@pytest.fixture
def store() -> DraftStore:
    return DraftStore(1 << 24)


def register(store: DraftStore, name: str = "g", ttl_s: float = 60.0, now_s: float = 0.0) -> Handle:
    handle = store.register_group(name, ttl_s, 100, now_s)
    store.check()
    return handle


def test_a_reader_gets_what_others_wrote_and_then_only_what_is_new(store: DraftStore) -> None:
    a, b = register(store), register(store)
    assert a[:2] == b[:2]
    update(store, (a, 1, 0, [1, 2, 3]), (b, 2, 0, [7]))
    what, cursor, found = fetch(store, b)
    assert (what, found) == (records.OK, [(1, 0, [1, 2, 3])]), "not what it wrote itself"
    update(store, (a, 1, 3, [4]))
    assert fetch(store, b, cursor)[2] == [(1, 3, [4])]
    assert fetch(store, register(store))[2] == [(1, 0, [1, 2, 3]), (2, 0, [7]), (1, 3, [4])]


def test_what_is_known_is_skipped_and_what_leaves_a_gap_is_refused(store: DraftStore) -> None:
    a, reader = register(store), register(store)
    update(store, (a, 5, 0, [1, 2, 3]))
    assert update(store, (a, 5, 1, [2, 3, 4]), (a, 5, 0, [1, 2])) == []
    assert update(store, (a, 5, 6, [7]), (a, 6, 2, [9])) == [[0, records.GAP, 4], [1, records.GAP, 0]]
    assert fetch(store, reader)[2] == [(5, 0, [1, 2, 3]), (5, 3, [4])]
    statistics = store.statistics()
    assert (statistics.accepted_tokens, statistics.duplicate_tokens) == (4, 4)
    assert statistics.troubles["gap"] == 2


@pytest.mark.parametrize(
    ("request_id", "prev", "tokens", "reason"),
    [
        (1, 0, [5, -1], records.BAD_TOKEN),
        (1, 0, [100], records.BAD_TOKEN),
        (1, 0, [2**31 - 1], records.BAD_TOKEN),
        (-1, 0, [5], records.BAD_REQUEST),
        (1, -1, [5], records.BAD_REQUEST),
        (1, 2**31 - 1, [5], records.BAD_REQUEST),
    ],
)
def test_a_bad_update_changes_nothing(
    store: DraftStore, request_id: int, prev: int, tokens: list[int], reason: int
) -> None:
    a, reader = register(store), register(store)
    assert update(store, (a, request_id, prev, tokens), (a, 9, 0, [1])) == [[0, reason, 0]]
    assert fetch(store, reader)[2] == [(9, 0, [1])]


@pytest.mark.parametrize("handle", [(1, 1, 1), (0, 2, 1), (-1, 1, 1), (0, -1, 1), (2**31 - 1, 1, 1)])
def test_a_group_that_is_not_here(store: DraftStore, handle: Handle) -> None:
    register(store)
    assert update(store, (handle, 1, 0, [1])) == [[0, records.UNKNOWN_GROUP, 0]]
    assert fetch(store, handle, cursor=7)[:2] == (records.UNKNOWN_GROUP, 7)


def test_long_updates_come_back_whole(store: DraftStore) -> None:
    a, reader = register(store), register(store)
    tokens = [index % 100 for index in range(3 * BLOCK_WORDS)]
    for start in range(0, len(tokens), 170):
        update(store, (a, 1, start, tokens[start : start + 170]))
    update(store, (a, 2, 0, tokens))
    found = fetch(store, reader)[2]
    for request in (1, 2):
        assert [t for r, _, new in found if r == request for t in new] == tokens


def test_an_answer_has_a_limit_and_the_next_one_goes_on(store: DraftStore) -> None:
    a, reader = register(store), register(store)
    for index in range(40):
        update(store, (a, 1, index * 30, [index] * 30))
    cursor, seen, calls = 0, list[int](), 0
    while True:
        what, cursor, found = fetch(store, reader, cursor, answer_words=100)
        seen += [token for *_, new in found for token in new]
        calls += 1
        if what == records.OK:
            break
        assert what == records.MORE
    assert seen == [index for index in range(40) for _ in range(30)]
    assert calls == 14


def test_what_a_reader_says_it_has_is_left_out(store: DraftStore) -> None:
    a, reader = register(store), register(store)
    update(store, (a, 1, 0, [1, 2]), (a, 1, 2, [3, 4]), (a, 2, 0, [5]))
    assert fetch(store, reader, known={1: 3})[2] == [(1, 3, [4]), (2, 0, [5])]
    assert fetch(store, reader, known={1: 4, 2: 9})[2] == []


def test_any_cursor_is_survived(store: DraftStore) -> None:
    a, reader = register(store), register(store)
    update(store, (a, 1, 0, list(range(99)) * 20))
    length = fetch(store, reader)[1]
    for cursor in [*range(-2, length + 3), 2**31 - 1, -(2**31)]:
        assert fetch(store, reader, cursor)[1] == length


def test_a_group_goes_when_nobody_used_it_for_its_ttl(store: DraftStore) -> None:
    a = register(store, "a", ttl_s=10.0)
    register(store, "b", ttl_s=20.0)
    update(store, (a, 1, 0, [1]), now_s=5.0)
    fetch(store, a, now_s=8.0)
    assert (store.expire(17.9), store.expire(18.0), store.expire(19.9)) == (0, 1, 0)
    store.check()
    assert update(store, (a, 1, 1, [2])) == [[0, records.UNKNOWN_GROUP, 0]]
    again = register(store, "a")
    assert again[:2] != a[:2], "an old number never means a new group"
    assert store.statistics().requests == 0


def test_memory_is_counted_exactly_and_given_back(store: DraftStore) -> None:
    assert store.held_bytes == 0
    a = register(store, "name")
    update(store, (a, 1, 0, [1] * 600), (a, 2, 0, [1]))
    assert store.held_bytes == 2 * BLOCK_BYTES + 2 * REQUEST_BYTES + GROUP_BYTES + 4
    store.expire(1e9)
    assert store.held_bytes == 0


def test_the_group_that_was_left_alone_for_longest_goes_first() -> None:
    store = DraftStore(MIN_BUDGET_BYTES)
    a, b, c = (register(store, name) for name in "abc")
    for now_s, handle in ((1.0, a), (2.0, b)):
        update(store, (handle, 1, 0, [1] * 8000), now_s=now_s)
    fetch(store, a, now_s=50.0)
    update(store, (c, 1, 0, [1] * 20_000), now_s=51.0)
    assert fetch(store, b, now_s=51.0)[0] == records.UNKNOWN_GROUP
    assert fetch(store, a, now_s=51.0)[0] == records.OK
    statistics = store.statistics()
    assert (statistics.evicted_groups, statistics.evicted_in_use) == (1, 0)
    update(store, (c, 1, 20_000, [1] * 8_000), now_s=52.0)
    assert store.statistics().evicted_in_use == 1, "a was in use: the budget is too small"


def test_a_group_larger_than_all_memory_is_full() -> None:
    store = DraftStore(MIN_BUDGET_BYTES)
    a = register(store)
    ((row, reason, _),) = update(store, (a, 1, 0, [1] * 40_000))
    assert (row, reason) == (0, records.FULL)
    assert update(store, (a, 2, 0, [])) == []


def test_groups_alone_cannot_take_all_memory() -> None:
    store = DraftStore(MIN_BUDGET_BYTES)
    for index in range(1000):
        store.register_group(f"{index}" * 30, 60.0, 0, float(index))
    store.check()
    assert 0 < store.statistics().groups < 300


@pytest.mark.parametrize("budget_bytes", [0, -1, MIN_BUDGET_BYTES - 1, MAX_BUDGET_BYTES + 1])
def test_a_budget_that_cannot_be_kept(budget_bytes: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[.*got {budget_bytes}; for more, use more"):
        DraftStore(budget_bytes)
