"""The ledger's hash table against a dictionary: it grows, forgets groups, and finds what is left."""

import random

import numpy as np
import pytest

from seer_sgl.spec.sharing.blocks import NONE
from seer_sgl.spec.sharing.ledger import (
    Ledger,
    drop_group,
    find,
    find_or_add,
    list_group,
    new_ledger,
    with_room,
)

GROUPS, REQUESTS = 40, 30


def assert_equal(ledger: Ledger, model: dict[tuple[int, int], int]) -> None:
    assert ledger.used == len(model)
    for group in range(GROUPS):
        for request in range(REQUESTS):
            entry = find(ledger, group, request)
            assert (entry != NONE) == ((group, request) in model)
            if entry != NONE:
                assert ledger.known[entry] == model[group, request]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_a_dictionary(seed: int) -> None:
    rng, model = random.Random(seed), dict[tuple[int, int], int]()
    ledger = with_room(new_ledger(1, 1), 0, GROUPS)
    for step in range(4000):
        group, request = rng.randrange(GROUPS), rng.randrange(REQUESTS)
        if rng.random() < 0.03:
            gone = [key for key in model if key[0] == group]
            assert drop_group(ledger, group) == len(gone)
            for key in gone:
                del model[key]
        else:
            ledger = with_room(ledger, 1, 0)
            entry = find_or_add(ledger, group, request)
            ledger.known[entry] += 1
            model[group, request] = model.get((group, request), 0) + 1
        if step % 400 == 0:
            assert_equal(ledger, model)
    assert_equal(ledger, model)


def test_a_group_is_listed_as_far_as_there_is_room() -> None:
    ledger = with_room(new_ledger(8, 2), 0, 2)
    for request in range(5):
        find_or_add(ledger, 1, request)
    requests, entries = np.zeros(3, np.int32), np.zeros(3, np.int32)
    assert list_group(ledger, 1, requests, entries) == 3
    assert all(find(ledger, 1, int(r)) == e for r, e in zip(requests, entries, strict=True))
    assert list_group(ledger, 0, requests, entries) == 0
