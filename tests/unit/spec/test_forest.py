"""The trees of an engine: budget, gaps, growth, groups that go."""

import threading

import numpy as np
import pytest

from seer_sgl.spec.automaton import UNIT, IntArray
from seer_sgl.spec.forest import LEAST_BUDGET_BYTES, Forest, GapError


def array(*tokens: int) -> IntArray:
    return np.array(tokens, np.int32)


def random_text(length: int, seed: int, vocabulary: int = 50) -> IntArray:
    return np.random.default_rng(seed).integers(0, vocabulary, length).astype(np.int32)


def chain(forest: Forest, path: int, length: int = 4) -> list[int]:
    tokens: list[int] = forest.draft_chains(array(path), array(length)).tokens.tolist()
    return tokens


def test_a_sibling_shows_what_comes_next() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    forest.append(forest.open("g", 1), 0, array(1, 2, 3, 4, 5, 6, 7))
    own = forest.open("g", 2)
    forest.append(own, 0, array(9, 3, 4))
    assert chain(forest, own) == [5, 6, 7]


def test_groups_share_nothing() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    forest.append(forest.open("g", 1), 0, array(1, 2, 3, 4))
    other = forest.open("h", 1)
    forest.append(other, 0, array(2, 3))
    assert chain(forest, other) == []


def test_the_prompt_is_context_for_all_and_counts_for_none() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    first = forest.open("g", 0, array(7, 8, 9))
    forest.append(first, 0, array(1, 2, 3))
    second = forest.open("g", 1, array(7, 8, 9))
    assert forest.length(second) == 0
    assert chain(forest, second) == [1, 2, 3]


def test_what_the_request_said_itself_wins_over_a_sibling() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    own = forest.open("g", 0)
    forest.append(own, 0, array(5, 6, 1, 5, 6, 2, 8, 5, 6))
    for request, start in ((3, 11), (4, 12)):
        forest.append(forest.open("g", request), 0, array(start, 5, 6, 3))
    assert chain(forest, own, 1) in ([1], [2])
    other = forest.open("g", 2)
    forest.append(other, 0, array(5, 6))
    assert len(chain(forest, other, 1)) == 1


def test_a_last_epoch_counts_less_than_this_one() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    forest.append(forest.open("g", 100, weight=1), 0, array(1, 2, 3))
    forest.append(forest.open("g", 101, weight=1), 0, array(9, 1, 2, 3))
    forest.append(forest.open("g", 1, weight=UNIT), 0, array(8, 1, 2, 4))
    own = forest.open("g", 2)
    forest.append(own, 0, array(6, 1, 2))
    assert chain(forest, own, 1) == [4]


def test_after_a_word_that_differs_a_siblings_text_goes_on() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    for request, odd in ((1, 20), (2, 21)):
        forest.append(forest.open("g", request), 0, array(1, 2, 3, odd, 5, 6))
    forest.append(forest.open("g", 3), 0, array(30, 5, 7, 30, 5, 7))
    own = forest.open("g", 4)
    forest.append(own, 0, array(1, 2, 3))
    guess = chain(forest, own, 1)[0]
    forest.append(own, 3, array(30 if guess != 30 else 31))
    assert chain(forest, own, 1) == [5]


def test_what_came_already_is_left_out_and_a_gap_is_refused() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    path = forest.open("g", 0)
    forest.append(path, 0, array(1, 2, 3))
    forest.append(path, 1, array(2, 3, 4))
    forest.append(path, 0, array(1))
    assert forest.length(path) == forest.stored_tokens == 4
    with pytest.raises(GapError, match="holds 4 tokens, and the next that came is number 6"):
        forest.append(path, 6, array(7))
    assert forest.length(path) == 4


def test_held_bytes_are_those_of_the_arrays() -> None:
    forest = Forest(64 << 20)
    for request in range(8):
        forest.append(forest.open(f"g{request % 3}", request), 0, random_text(20_000, request))
        trees = forest._trees.values()
        assert forest.held_bytes == sum(tree.held_bytes for tree in trees)
        assert all(array.nbytes for tree in trees for array in tree.arrays())
    forest.drop_group("g1")
    assert forest.held_bytes == sum(tree.held_bytes for tree in forest._trees.values())
    assert forest.group_count == 2


def test_text_like_a_models_is_held_in_80_bytes_a_token() -> None:
    """A sample repeats others with changes, as samples of one prompt do."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2000, 2000).astype(np.int32)
    forest = Forest(1 << 30)
    for request in range(16):
        text = base.copy()
        changed = rng.random(len(text)) < 0.1
        text[changed] = rng.integers(0, 2000, int(changed.sum()))
        forest.append(forest.open("g", request), 0, text)
    assert forest.held_bytes / forest.stored_tokens < 80


def test_the_least_used_group_goes_when_the_budget_is_spent() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    paths = [forest.open(f"g{number}", 0) for number in range(3)]
    for path in paths[:2]:
        forest.append(path, 0, random_text(15_000, path))
    forest.draft(array(paths[0]), array(4), 4)
    forest.append(paths[2], 0, random_text(30_000, 9))
    assert forest.evicted_groups >= 1
    assert not forest.alive(paths[1])
    assert forest.alive(paths[2])
    assert forest.held_bytes <= LEAST_BUDGET_BYTES
    forest.append(paths[1], 15_000, array(1, 2))  # dropped, not an error
    assert chain(forest, paths[1]) == []


def test_a_group_that_outgrows_the_budget_alone_is_dropped() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    path = forest.open("g", 0)
    forest.append(path, 0, random_text(200_000, 1))
    assert not forest.alive(path)
    assert forest.held_bytes == 0
    forest.close(path)
    assert forest.alive(forest.open("g", 0))


def test_a_budget_too_small_for_one_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="budget_bytes 1000"):
        Forest(1000)


@pytest.mark.parametrize("text", [[1] * 5000 + [2], [1, 2] * 3000 + [3], list(range(3000)) * 2])
def test_odd_texts_grow_every_array(text: list[int]) -> None:
    """Thousands of contexts that all need an edge for one token."""
    forest = Forest(64 << 20)
    for request in range(3):
        path = forest.open("g", request)
        forest.append(path, 0, array(*text))
        forest.append(path, len(text), array(7, 8, 9))
    assert forest.stored_tokens == 3 * (len(text) + 3)
    assert len(chain(forest, path)) >= 0


def test_many_groups_and_paths_in_one_call() -> None:
    forest = Forest(64 << 20)
    texts = [random_text(50 + number, number) for number in range(100)]
    paths = array(*(forest.open(f"g{number // 4}", number) for number in range(100)))
    starts = np.cumsum([0, *(len(text) for text in texts)]).astype(np.int32)
    forest.append_many(paths, starts, np.concatenate(texts))
    assert [forest.length(path) for path in paths.tolist()] == [len(text) for text in texts]
    assert forest.group_count == 25


def test_a_request_that_begins_again_gets_a_path_of_its_own() -> None:
    forest = Forest(LEAST_BUDGET_BYTES)
    path = forest.open("g", 0)
    forest.append(path, 0, array(1, 2, 3, 4))
    again = forest.reopen("g", 0)
    assert forest.length(again) == 0
    forest.append(again, 0, array(2))
    assert chain(forest, again) == [3, 4]
    assert forest.open("g", 0) == again


def test_threads_append_while_another_drafts() -> None:
    forest = Forest(64 << 20)
    own = forest.open("g", 0)
    forest.append(own, 0, random_text(100, 0))

    def tell(request: int) -> None:
        path = forest.open("g", request, followed=False)
        text = random_text(5_000, request)
        for at in range(0, len(text), 50):
            forest.append(path, at, text[at : at + 50])

    threads = [threading.Thread(target=tell, args=(request,)) for request in range(1, 5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        forest.draft(array(own), array(16), 8)
    for thread in threads:
        thread.join()
    assert forest.stored_tokens == 100 + 4 * 5_000
