"""Rates of acceptance, learnt from drafts whose outcome is drawn by lot."""

from itertools import pairwise

import numpy as np
import pytest

from seer_sgl.spec.acceptance import EDGES, Acceptance, Floats32, IntArray, taken_nodes


def ints(*values: int) -> IntArray:
    return np.array(values, np.int32)


def chains(requests: int, depth: int) -> tuple[IntArray, IntArray]:
    """Starts and parents."""
    starts = np.arange(0, requests * depth + 1, depth, dtype=np.int32)
    return starts, np.tile(np.arange(-1, depth - 1, dtype=np.int32), requests)


def in_a_row(luck: np.random.Generator, rates: list[float], requests: int) -> np.ndarray:
    hits = luck.random((requests, len(rates))) < rates
    return np.cumprod(hits, axis=1).astype(np.uint8).ravel()


def test_rates_by_depth_are_found() -> None:
    acceptance, luck = Acceptance(4), np.random.default_rng(0)
    rates = [0.3, 0.6, 0.9]
    starts, parents = chains(64, 3)
    for _ in range(200):
        acceptance.observe(starts, parents, np.full(192, 0.5, np.float32), in_a_row(luck, rates, 64))
    assert acceptance.conditional[:4] == pytest.approx([1.0, *rates], abs=0.05)
    assert acceptance.reach[:4] == pytest.approx([1.0, 0.3, 0.18, 0.162], abs=0.05)


def test_what_changes_is_followed() -> None:
    acceptance, luck = Acceptance(4), np.random.default_rng(0)
    starts, parents = chains(1, 1)
    for rate in (0.9, 0.2):
        for _ in range(5000):
            acceptance.observe(starts, parents, np.ones(1, np.float32), in_a_row(luck, [rate], 1))
        assert acceptance.conditional[1] == pytest.approx(rate, abs=0.06)


def test_nothing_is_learnt_of_depths_that_were_not_reached() -> None:
    acceptance, untouched = Acceptance(8), Acceptance(8)
    starts, parents = chains(1, 5)
    for _ in range(300):
        acceptance.observe(starts, parents, np.ones(5, np.float32), np.zeros(5, np.uint8))
    assert acceptance.conditional[1] < 0.05
    assert acceptance.conditional[2:] == pytest.approx(untouched.conditional[2:])


def test_a_tree_tries_the_children_of_its_accepted_path() -> None:
    """Root -> a, b; a -> c; b -> d, which is accepted with b and has no child."""
    acceptance, before = Acceptance(8), Acceptance(8)
    parents, taken = ints(-1, -1, 0, 1), np.array([0, 1, 0, 1], np.uint8)
    acceptance.observe(ints(0, 4), parents, np.full(4, 0.5, np.float32), taken)
    assert acceptance.conditional[1] > before.conditional[1]
    assert acceptance.conditional[2] > before.conditional[2]
    assert acceptance.conditional[3] == before.conditional[3]


def test_the_rate_over_all_depths_lies_between_theirs() -> None:
    acceptance, luck = Acceptance(4), np.random.default_rng(0)
    starts, parents = chains(64, 2)
    for _ in range(100):
        acceptance.observe(starts, parents, np.ones(128, np.float32), in_a_row(luck, [0.2, 0.8], 64))
    assert 0.25 < acceptance.rate < 0.7


# ---- confidences ----


def boasting(luck: np.random.Generator, nodes: int) -> tuple[Floats32, np.ndarray]:
    """Confidences that are true when squared."""
    said = luck.random(nodes).astype(np.float32)
    return said, (luck.random(nodes) < said**2).astype(np.uint8)


def test_confidences_mean_what_has_come_of_them() -> None:
    acceptance, luck = Acceptance(), np.random.default_rng(0)
    starts, parents = np.arange(0, 513, dtype=np.int32), np.full(512, -1, np.int32)
    for _ in range(200):
        acceptance.observe(starts, parents, *boasting(luck, 512))
    said = np.linspace(0.05, 0.95, 19, dtype=np.float32)
    assert acceptance.calibrated(said, np.ones(19, np.int32)) == pytest.approx(said**2, abs=0.06)


def test_before_anything_is_seen_they_are_believed() -> None:
    said = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    for depth in (1, 3, 20):
        depths = np.full(101, depth, np.int32)
        assert Acceptance().calibrated(said, depths) == pytest.approx(said, abs=1e-3)


def test_they_are_believed_less_the_deeper_they_are() -> None:
    """Each of four tokens in a row is half as likely as it is said to be."""
    acceptance, luck = Acceptance(), np.random.default_rng(0)
    starts, parents = chains(64, 4)
    said = np.tile(np.array([0.9, 0.81, 0.73, 0.66], np.float32), 64)
    for _ in range(100):
        acceptance.observe(starts, parents, said, in_a_row(luck, [0.45] * 4, 64))
    said = np.array([0.9, 0.81, 0.695], np.float32)
    found = acceptance.calibrated(said, np.arange(1, 4, dtype=np.int32))
    assert found == pytest.approx([0.45, 0.2, 0.065], abs=0.05)


def test_a_higher_confidence_never_means_less_at_the_same_depth() -> None:
    """Even where the higher buckets did worse."""
    acceptance, luck = Acceptance(), np.random.default_rng(0)
    starts, parents = np.arange(0, 257, dtype=np.int32), np.full(256, -1, np.int32)
    for _ in range(20):
        said = luck.random(256).astype(np.float32)
        taken = (luck.random(256) < 1 - said).astype(np.uint8)
        acceptance.observe(starts, parents, said, taken)
    said = np.linspace(0, 1, 1001, dtype=np.float32)
    values = acceptance.calibrated(said, np.ones(1001, np.int32))
    assert all(before <= after + 1e-6 for before, after in pairwise(values))
    assert values.min() >= 0.0
    assert values.max() <= 1.0


def test_confidences_on_edges_and_beyond_do_no_harm() -> None:
    acceptance = Acceptance()
    said = np.array([*EDGES, -1.0, 2.0], np.float32)
    for _ in range(50):
        acceptance.observe(
            ints(0, said.size), np.full(said.size, -1, np.int32), said, np.ones(said.size, np.uint8)
        )
    assert np.isfinite(acceptance.calibrated(said, np.ones(said.size, np.int32))).all()


def test_nothing_drafted_is_nothing_learnt() -> None:
    acceptance = Acceptance()
    before = acceptance.rate
    acceptance.observe(ints(0, 0), ints(), np.zeros(0, np.float32), np.zeros(0, np.uint8))
    assert acceptance.rate == before


# ---- which nodes were taken ----


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([9], [0, 0, 0, 0]),
        ([1], [0, 0, 0, 0]),
        ([1, 9], [1, 0, 0, 0]),
        ([2, 4, 9], [0, 1, 0, 1]),
        ([1, 3, 9], [1, 0, 1, 0]),
        ([3, 9], [0, 0, 0, 0]),
        ([], [0, 0, 0, 0]),
    ],
)
def test_the_accepted_path_is_found(given: list[int], taken: list[int]) -> None:
    """Root -> 1, 2; 1 -> 3; 2 -> 4. The last token of a step is the verifier's own."""
    found = taken_nodes(
        ints(0, 4), ints(1, 2, 3, 4), ints(-1, -1, 0, 1), ints(0, len(given)), ints(*given)
    )
    assert found.tolist() == taken


def test_each_request_has_its_own_path() -> None:
    found = taken_nodes(
        ints(0, 1, 1, 3), ints(5, 6, 7), ints(-1, -1, 0), ints(0, 2, 3, 6), ints(5, 8, 5, 6, 7, 8)
    )
    assert found.tolist() == [1, 1, 1]
