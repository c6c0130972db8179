"""Rows, acceptance and KV moves of a verify step, against slow and obvious versions of them."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from seer_sgl.engine import verify
from seer_sgl.engine.verify import NO_PARENT, PAD, Accepted, IntArray, Nodes, Rows
from tests.statistics import homogeneity_p

Tree = list[tuple[int, int]]
"""(token, place of the parent; -1: the root) of each node."""


def nodes_of(trees: Sequence[Tree]) -> Nodes:
    starts, tokens, parents, depths = [0], [], [], []
    for tree in trees:
        own: list[int] = []
        for token, parent in tree:
            own.append(1 if parent < 0 else own[parent] + 1)
            tokens.append(token)
            parents.append(parent)
        depths += own
        starts.append(len(tokens))
    return Nodes(*(np.array(part, np.int32) for part in (starts, tokens, parents, depths)))


def random_tree(dice: random.Random, size: int, vocabulary: int) -> Tree:
    return [(dice.randrange(vocabulary), dice.randrange(-1, place)) for place in range(size)]


def rows_of(trees: Sequence[Tree], roots: Sequence[int], lengths: Sequence[int], width: int = 0) -> Rows:
    return verify.lay_out(nodes_of(trees), np.array(roots, np.int32), np.array(lengths, np.int64), width)


def test_rows_hold_roots_nodes_and_their_positions() -> None:
    rows = rows_of([[(5, -1), (6, 0), (7, -1)], []], [3, 4], [10, 20])
    assert rows.starts.tolist() == [0, 4, 5]
    assert rows.tokens.tolist() == [3, 5, 6, 7, 4]
    assert rows.positions.tolist() == [10, 11, 12, 11, 20]
    assert rows.parents.tolist() == [NO_PARENT, 0, 1, 0, NO_PARENT]


def test_rows_that_fill_up_are_never_accepted() -> None:
    rows = rows_of([[(5, -1)], []], [3, 0], [10, 20], width=4)
    assert rows.widths.tolist() == [4, 4]
    accepted = verify.accept(rows, np.array([5, 0, 0, 0, 0, 0, 0, 0], np.int32))
    assert accepted.rows.tolist() == [[0, 1], [4, PAD]]
    assert accepted.counts.tolist() == [2, 1]


def slow_path(tree: Tree, first: int, sampled: Sequence[int]) -> list[int]:
    path, here = [first], -1
    while True:
        wanted = sampled[path[-1]]
        matching = [n for n, (token, parent) in enumerate(tree) if parent == here and token == wanted]
        if not matching:
            return path
        here = matching[0]
        path.append(first + 1 + here)


@pytest.mark.parametrize("seed", range(30))
def test_the_walk_takes_the_first_matching_child_until_none_matches(seed: int) -> None:
    dice = random.Random(seed)
    trees = [random_tree(dice, dice.randrange(20), 3) for _ in range(dice.randrange(1, 6))]
    rows = rows_of(trees, [0] * len(trees), [0] * len(trees))
    sampled = [dice.randrange(3) for _ in range(rows.starts[-1])]
    accepted = verify.accept(rows, np.array(sampled, np.int32))
    for place, tree in enumerate(trees):
        path = slow_path(tree, int(rows.starts[place]), sampled)
        assert accepted.rows[place, : accepted.counts[place]].tolist() == path
        assert (accepted.rows[place, accepted.counts[place] :] == PAD).all()


@pytest.mark.parametrize("seed", range(30))
def test_moved_kv_lies_behind_the_prefix_in_the_order_of_the_path(seed: int) -> None:
    dice = random.Random(seed)
    trees = [random_tree(dice, dice.randrange(20), 2) for _ in range(4)]
    rows = rows_of(trees, [0] * 4, [0] * 4)
    sampled = np.array([dice.randrange(2) for _ in range(rows.starts[-1])], np.int32)
    accepted = verify.accept(rows, sampled)
    sources, targets = verify.moves(rows.starts, accepted.rows, accepted.counts)
    kv = np.arange(rows.starts[-1])
    kv[targets] = kv[sources]
    for place in range(4):
        count, start = accepted.counts[place], rows.starts[place]
        assert kv[start : start + count].tolist() == accepted.rows[place, :count].tolist()
    assert (sources != targets).all()


@pytest.mark.parametrize("seed", range(10))
def test_a_row_sees_its_ancestors_and_itself(seed: int) -> None:
    dice = random.Random(seed)
    trees = [random_tree(dice, dice.randrange(1, 20), 3) for _ in range(3)]
    rows = rows_of(trees, [0] * 3, [0] * 3)
    seen = np.empty((rows.starts[-1], rows.widths.max()), np.bool_)
    verify.ancestor_mask(rows.starts, rows.parents, seen)
    for place in range(3):
        for row in range(rows.starts[place], rows.starts[place + 1]):
            expected, at = set(), row
            while at != NO_PARENT:
                expected.add(at - rows.starts[place])
                at = rows.parents[at]
            assert set(np.flatnonzero(seen[row]).tolist()) == expected


def test_links_lead_from_child_to_sibling_in_order() -> None:
    rows = rows_of([[(1, -1), (2, -1), (3, 0), (4, 0)]], [0], [0])
    children, siblings = verify.sibling_links(rows.starts, rows.parents)
    assert children.tolist() == [1, 3, PAD, PAD, PAD]
    assert siblings.tolist() == [PAD, 2, PAD, 4, PAD]


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_on_a_device_is_the_walk_on_the_host(seed: int) -> None:
    dice = random.Random(seed)
    trees = [random_tree(dice, dice.randrange(8), 2) for _ in range(5)]
    rows = rows_of(trees, [0] * 5, [0] * 5, width=8)
    sampled = np.array([dice.randrange(2) for _ in range(40)], np.int32)
    host = verify.accept(rows, sampled)
    device = verify.accept_on_device(
        torch.from_numpy(rows.tokens), torch.from_numpy(rows.parents), torch.from_numpy(sampled), 8, 8
    )
    assert device.counts.tolist() == host.counts.tolist()
    longest = host.rows.shape[1]
    assert device.rows[:, :longest].tolist() == host.rows.tolist()
    assert (device.rows[:, longest:] == PAD).all()


# A target whose next token depends on the last two, as a table of probabilities.
VOCABULARY, SAMPLES, LENGTH = 6, 20_000, 8
TARGET = torch.softmax(
    torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 1.5, -1
)


def plain_samples(seed: int) -> torch.Tensor:
    """`[SAMPLES, LENGTH]` tokens, one at a time."""
    torch.manual_seed(seed)
    tokens = torch.zeros(SAMPLES, 2 + LENGTH, dtype=torch.int64)
    for at in range(2, 2 + LENGTH):
        probs = TARGET[tokens[:, at - 2], tokens[:, at - 1]]
        tokens[:, at] = torch.multinomial(probs, 1).view(-1)
    return tokens[:, 2:]


def verified_samples(seed: int, accept: Callable[[Rows, IntArray], Accepted]) -> torch.Tensor:
    """The same through drafts, rows, sampling at every row, and acceptance."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    requests = np.arange(SAMPLES)
    tokens = np.zeros((SAMPLES, 2 + LENGTH + 8), np.int64)
    ends = np.full(SAMPLES, 2)
    while ends.min() < 2 + LENGTH:
        nodes = nodes_of([random_tree(dice, 7, VOCABULARY)] * SAMPLES)
        before, roots = tokens[requests, ends - 2], tokens[requests, ends - 1]
        rows = verify.lay_out(nodes, roots.astype(np.int32), ends - 1)
        parents = np.where(rows.parents < 0, np.repeat(before, rows.widths), rows.tokens[rows.parents])
        probs = TARGET[torch.from_numpy(parents), torch.from_numpy(rows.tokens)]
        sampled = torch.multinomial(probs, 1).view(-1).to(torch.int32).numpy()
        accepted = accept(rows, sampled)
        for place in range(accepted.rows.shape[1]):
            more = requests[(accepted.counts > place) & (ends < 2 + LENGTH)]
            tokens[more, ends[more]] = sampled[accepted.rows[more, place]]
            ends[more] += 1
    return torch.from_numpy(tokens[:, 2 : 2 + LENGTH])


def lenient(rows: Rows, sampled: IntArray) -> Accepted:
    """A broken verifier: one time in ten it takes a row's first child, whatever was sampled there."""
    first_child = np.full(len(sampled), -1)
    drafted = rows.parents >= 0
    first_child[rows.parents[drafted][::-1]] = rows.tokens[drafted][::-1]
    taken = (np.random.default_rng(0).random(len(sampled)) < 0.1) & (first_child >= 0)
    sampled[taken] = first_child[taken]
    return verify.accept(rows, sampled)


def test_verified_tokens_are_distributed_as_plain_ones() -> None:
    assert homogeneity_p(plain_samples(1), verified_samples(2, verify.accept)) > 0.01


def test_a_broken_verifier_is_found_out() -> None:
    assert homogeneity_p(plain_samples(1), verified_samples(2, lenient)) < 0.01
