"""What the draft server's benchmark is made of: who runs what, and how its figures are taken."""

from collections import Counter

import numpy as np
import pytest

from bench import draft_server as bench


def test_every_group_is_on_sixteen_engines() -> None:
    seen = bench.Seen(np.zeros((1, bench.LAG_MS), np.int64))
    members: Counter[str] = Counter()
    for number in range(bench.ENGINES):
        engine = bench.Engine(number, "tcp://127.0.0.1:1", 0.0, seen)
        names = [engine._name(index) for index in range(bench.REQUESTS)]
        assert len(set(names)) == bench.REQUESTS
        members.update(names)
    assert len(members) == bench.ENGINES * bench.REQUESTS // bench.GROUP_SIZE
    assert set(members.values()) == {bench.GROUP_SIZE}


def test_a_request_goes_on_in_a_new_group_when_its_own_is_over() -> None:
    seen = bench.Seen(np.zeros((1, bench.LAG_MS), np.int64))
    engine = bench.Engine(0, "tcp://127.0.0.1:1", 0.0, seen)
    first = engine._name(0)
    for _ in range(int((bench.SETTLE_S + bench.LIFE_S) / bench.STEP_S) + 1):
        engine.step()
    assert engine._name(0) != first
    counters = engine.client.counters()
    assert counters["appended_tokens"] == seen.generated
    assert counters["gaps"] == 0


def test_quantiles_are_ages_that_are_not_exceeded() -> None:
    ages = np.array([0, 98, 0, 1, 0, 1])
    assert [bench._quantile(ages, share) for share in (0.5, 0.98, 0.985, 1.0)] == [1, 1, 3, 5]


def test_recovery_ends_with_the_last_window_that_was_late() -> None:
    ages = np.zeros((100, bench.LAG_MS), np.int64)
    ages[:, 50] = 1
    assert bench._recovered_s(ages, 3.0, 10.0) == 3.0
    ages[40, 900] = 1
    assert bench._recovered_s(ages, 3.0, 10.0) == pytest.approx(4.1)
    ages[55] = 0
    assert bench._recovered_s(ages, 3.0, 10.0) == pytest.approx(5.6)
