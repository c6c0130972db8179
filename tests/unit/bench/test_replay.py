"""The rule that counts what drafts would have brought, on drafters whose answers are known."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench.peers import Index, PromptLookup, parents_of
from bench.replay import IntArray, Nodes, Shape, Task, Totals, matched, replay, revealed


def ints(*values: int) -> IntArray:
    return np.array(values, np.int32)


class Clairvoyant:
    """Drafts a chain of what comes, with a wrong token after `right` of them; notes what it is told."""

    def __init__(self, lockstep: int = 8, right: int = 100) -> None:
        self.lockstep = lockstep
        self.right = right
        self.told: list[list[int]] = []

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        self.shape = shape
        self.targets = [task.target for task in tasks]
        self.told = [[] for _ in tasks]

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        for place, target in enumerate(targets.tolist()):
            self.told[target] += tokens[starts[place] : starts[place + 1]].tolist()

    def draft(self, targets: IntArray) -> Nodes:
        rows = []
        for target in targets.tolist():
            known = len(self.told[target])
            rows.append(self.targets[target][known : known + self.shape.nodes].copy())
            rows[-1][self.right :] = -1
        sizes = [row.size for row in rows]
        parents = [node - 1 for size in sizes for node in range(size)]
        return Nodes(ints(0, *np.cumsum(sizes)), np.concatenate(rows), ints(*parents))


def test_a_perfect_chain_brings_one_token_more_than_it_has_nodes() -> None:
    target = np.arange(100, 119, dtype=np.int32)
    # 1 token is known; then 4 + 1 a step: 6, 11, 16; the last step may not count the last token.
    totals = replay(Clairvoyant(), [Task([], target)], Shape(4, True), own=True)
    assert totals == Totals(steps=4, accepted=4 + 4 + 4 + 2, drafted=4 + 4 + 4 + 3)
    assert totals.accept_length == pytest.approx(18 / 4)


def test_every_token_is_revealed_once_and_in_order() -> None:
    drafter = Clairvoyant(right=2)
    target = np.arange(50, dtype=np.int32)
    replay(drafter, [Task([], target)], Shape(5, True), own=True)
    assert drafter.told == [target.tolist()]


def test_without_drafts_each_step_brings_one_token() -> None:
    totals = replay(
        Clairvoyant(right=0), [Task([], np.arange(10, dtype=np.int32))], Shape(4, True), True
    )
    assert (totals.steps, totals.accepted) == (9, 0)
    assert totals.accept_length == 1.0


def test_targets_in_lockstep_are_counted_as_one_after_another() -> None:
    random = np.random.default_rng(3)
    tasks = [Task([], random.integers(0, 9, size, np.int32)) for size in (1, 40, 7, 2, 23)]
    found = {
        lockstep: replay(Clairvoyant(lockstep, right=3), tasks, Shape(8, True), own=True)
        for lockstep in (1, 2, 5)
    }
    assert len(set(found.values())) == 1


def test_nothing_to_replay_is_a_length_of_one() -> None:
    assert replay(Clairvoyant(), [], Shape(8, True), own=True).accept_length == 1.0
    alone = replay(Clairvoyant(), [Task([], ints(5))], Shape(8, True), own=True)
    assert alone == Totals(0, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "parents", "length"),
    [
        ((1, 2, 3), (-1, 0, 1), 3),
        ((9, 1, 2), (-1, -1, 1), 2),  # the second branch is right
        ((9, 1, 2), (-1, 0, 1), 0),  # right tokens after a wrong one
        ((1, 1, 2), (-1, 0, 0), 2),
        ((1, 2, 3, 4), (-1, 0, 1, 2), 3),  # 4 is the last token
        ((), (), 0),
    ],
)
def test_the_longest_right_path_from_the_root_counts(
    tokens: tuple[int, ...], parents: tuple[int, ...], length: int
) -> None:
    truth = ints(0, 1, 2, 3, 4)
    found = matched(
        *(ints(0, len(tokens)), ints(*tokens), ints(*parents), truth),
        *(np.array([1]), np.array([5])),
    )
    assert found.tolist() == [length]


def test_drafts_of_several_requests_are_told_apart() -> None:
    truth = ints(1, 2, 3, 4, 5, 6)
    starts, tokens, parents = ints(0, 2, 2, 3), ints(2, 9, 6), ints(-1, 0, -1)
    found = matched(starts, tokens, parents, truth, np.array([1, 3, 4]), np.array([3, 6, 6]))
    assert found.tolist() == [1, 0, 0]


def test_revealed_tokens_are_those_from_each_place() -> None:
    truth = np.arange(10, dtype=np.int32)
    starts, tokens = revealed(truth, np.array([7, 0, 3]), np.array([2, 0, 3]))
    assert starts.tolist() == [0, 2, 2, 5]
    assert tokens.tolist() == [7, 8, 3, 4, 5]


def test_parents_are_read_from_a_mask() -> None:
    parents = [-1, 0, 0, 2, -1]
    mask = np.eye(len(parents) + 1, dtype=np.int32)
    for node, parent in enumerate(parents, start=1):
        mask[node] |= mask[parent + 1]
    assert parents_of(mask) == parents


def test_lookup_follows_the_longest_and_then_the_latest_place() -> None:
    index = Index()
    index.add([], [1, 2, 3, 4])
    index.add([], [7, 2, 5, 6])
    assert index.follow([2], 2) == [5, 6]
    assert index.follow([1, 2], 5) == [3, 4]
    assert index.follow([8], 2) == []
    own: list[int] = []
    index.add(own, [2])
    index.add(own, [9])
    assert index.follow([2], 3) == [9]


@pytest.mark.parametrize(("own", "length"), [(True, (8 + 6) / 8), (False, 1.0)])
def test_own_tokens_are_copied_from_only_where_they_are_asked_for(own: bool, length: float) -> None:
    target = ints(1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 8)
    totals = replay(PromptLookup(), [Task([], target)], Shape(8, True), own)
    assert totals.accept_length == pytest.approx(length)
