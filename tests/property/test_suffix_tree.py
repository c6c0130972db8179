"""The compiled tree against a slow model of it, and what holds for every draft."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.spec import automaton
from seer_sgl.spec.forest import LEAST_BUDGET_BYTES, Drafts, Forest
from seer_sgl.spec.tree import GroupTree
from tests.property.suffix_model import SuffixModel

TOKENS = st.integers(0, 3)
PIECES = st.lists(st.tuples(st.integers(0, 3), st.lists(TOKENS, min_size=1, max_size=6)), max_size=14)


def array(tokens: list[int]) -> automaton.IntArray:
    return np.array(tokens, np.int32)


def build(prompt: list[int], pieces: list[tuple[int, list[int]]]) -> tuple[Forest, dict[int, int]]:
    """Pieces of several requests' texts, appended in turn."""
    forest = Forest(LEAST_BUDGET_BYTES)
    paths: dict[int, int] = {}
    for request, tokens in pieces:
        path = paths[request] = forest.open("g", request, array(prompt))
        forest.append(path, forest.length(path), array(tokens))
    return forest, paths


def tree_of(forest: Forest) -> GroupTree:
    return next(iter(forest._trees.values()))


def state_of(tree: GroupTree, context: tuple[int, ...]) -> int:
    states, edges, table, _ = tree.arrays()
    state = automaton.ROOT
    for token in context:
        edge = automaton.find(states, edges, table, state, token)
        assert edge >= 0, context
        state = int(automaton.target_of(states, edges, state, edge))
    return state


@given(st.lists(TOKENS, max_size=4), PIECES)
@settings(max_examples=200)
def test_it_holds_what_the_model_holds(prompt: list[int], pieces: list[tuple[int, list[int]]]) -> None:
    forest, paths = build(prompt, pieces)
    model = SuffixModel()
    model.begin(-1, [])
    if pieces:
        for token in prompt:
            model.append(-1, token, automaton.UNIT, 0)
    for request, tokens in pieces:
        if request not in model.texts:
            model.begin(request, prompt)
        number = list(paths).index(request) + 2  # the prompt was the first path
        for token in tokens:
            model.append(request, token, automaton.UNIT, number)

    for context, counts in model.counts.items():
        if not counts:
            continue
        tree = tree_of(forest)
        states, edges, table, _ = tree.arrays()
        state = state_of(tree, context)
        total, most = 0, 0
        for token in range(4):
            edge = automaton.find(states, edges, table, state, token)
            assert (edge >= 0) == (token in counts), (context, token)
            if edge >= 0:
                use = int(automaton.use_of(states, edges, state, edge))
                assert use >> automaton.PATH_BITS == counts[token], (context, token)
                assert use & automaton.PATH_MASK == model.last_path[context, token]
                total += counts[token]
                most = max(most, counts[token])
        assert states[state, automaton.TOTAL] == total
        best = int(automaton.use_of(states, edges, state, states[state, automaton.BEST]))
        assert best >> automaton.PATH_BITS == most


@given(st.lists(TOKENS, max_size=4), PIECES, st.integers(0, 40), st.integers(1, 6))
@settings(max_examples=200)
def test_drafts_are_trees_best_first(
    prompt: list[int], pieces: list[tuple[int, list[int]]], nodes: int, depth: int
) -> None:
    forest, paths = build(prompt, pieces)
    chosen = array(list(paths.values()))
    wanted = np.full(len(chosen), nodes, np.int32)
    drafts = forest.draft(chosen, wanted, depth)
    for at in range(len(chosen)):
        check_draft(drafts, at, nodes, depth)


def check_draft(drafts: Drafts, at: int, nodes: int, depth: int) -> None:
    low, high = drafts.starts[at], drafts.starts[at + 1]
    assert high - low <= nodes
    tokens, parents, depths, confidences = (column[low:high].tolist() for column in drafts[1:])
    assert sorted(confidences, reverse=True) == confidences
    assert all(0.0 < confidence <= 1.0 + 1e-6 for confidence in confidences)
    assert len(set(zip(parents, tokens, strict=True))) == len(tokens), "siblings differ"
    for node, parent in enumerate(parents):
        assert -1 <= parent < node
        assert depths[node] == (1 if parent < 0 else depths[parent] + 1) <= depth
        if parent >= 0:
            assert confidences[node] <= confidences[parent] + 1e-6
    assert sum(c for c, p in zip(confidences, parents, strict=True) if p < 0) <= 1.0 + 1e-5


@given(st.lists(TOKENS, min_size=2, max_size=8), st.integers(2, 12), st.integers(1, 10))
def test_a_loop_is_drafted_on(loop: list[int], rounds: int, length: int) -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    path = forest.open("g", 0)
    forest.append(path, 0, array(loop * rounds * 2))
    drafts = forest.draft_chains(array([path]), array([length]))
    assert drafts.tokens.tolist() == (loop * 12)[:length]
    assert drafts.parents.tolist() == list(range(-1, length - 1))


@given(PIECES)
def test_appending_in_pieces_or_whole_is_the_same(pieces: list[tuple[int, list[int]]]) -> None:
    """Also: overlaps are left out, whatever part of the text comes again."""
    forest, _ = build([], pieces)
    again = Forest(LEAST_BUDGET_BYTES)
    said: dict[int, list[int]] = {}
    for request, tokens in pieces:
        path = again.open("g", request, array([]))
        said.setdefault(request, []).extend(tokens)
        again.append(path, 0, array(said[request]))
    for one, other in zip(tree_arrays(forest), tree_arrays(again), strict=True):
        assert np.array_equal(one, other)


def tree_arrays(forest: Forest) -> list[automaton.IntArray]:
    if not forest.group_count:
        return []
    states, edges, _, sizes = tree_of(forest).arrays()
    return [states[: sizes[0]], edges[: sizes[1]], sizes]
