"""Other drafters behind the interface of `bench.replay`, each only where it can be had.

Arctic's C++ suffix trees are the module that `csrc/suffix_decoding` of `arctic-inference` builds; its
Python package needs vLLM and is not used. SGLang's corpus is the one of its NGRAM worker, fed as that
worker feeds it. Prompt lookup follows the last place where the longest of a few n-grams occurred.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.replay import IntArray, Nodes, Shape, Task

ARCTIC_DEPTH = 64
"""Its default."""
ARCTIC_CONTEXT = 32
NO_LIMIT = 1_000.0
"""Drafts as long as asked for, however short the match."""
SGLANG_DEPTH = 18
SGLANG_BREADTHS = (1, 10)
"""Its defaults."""
LOOKUP_SIZES = (8, 4, 2, 1)


def find_arctic(folder: Path | None) -> Any:
    """The compiled module, from a folder or installed; None where there is none."""
    try:
        if folder is None:
            return importlib.import_module("arctic_inference.suffix_decoding._C")
        path = next(folder.glob("_C*.so"))
        spec = importlib.util.spec_from_file_location("_C", path)
    except (ImportError, StopIteration):
        return None
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_sglang() -> Any:
    """SGLang's corpus class; None where SGLang, or a compiler for its C++, is missing."""
    try:
        module = importlib.import_module("sglang.srt.speculative.cpp_ngram.ngram_corpus")
        corpus_class = module.NgramCorpus
        corpus_class(draft_token_num=2, capacity=1_000)
    except Exception:  # whatever a compiler's failure raises
        return None
    return corpus_class


class Histories:
    """What has been revealed of each target, in one growing row each."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.rows = [np.empty(task.target.size, np.int32) for task in tasks]
        self.sizes = [0] * len(tasks)

    def add(self, target: int, tokens: IntArray) -> None:
        """Tokens after those that are there."""
        size = self.sizes[target]
        self.rows[target][size : size + tokens.size] = tokens
        self.sizes[target] = size + tokens.size

    def tail(self, target: int, tokens: int) -> IntArray:
        """At most so many of the last tokens."""
        size = self.sizes[target]
        return self.rows[target][max(0, size - tokens) : size]


class Collected:
    """Drafts of single requests, put together."""

    def __init__(self) -> None:
        self.starts = [0]
        self.tokens: list[int] = []
        self.parents: list[int] = []

    def add(self, tokens: Sequence[int], parents: Sequence[int]) -> None:
        """The next request's."""
        self.tokens += tokens
        self.parents += parents
        self.starts.append(len(self.tokens))

    def nodes(self) -> Nodes:
        """As arrays."""
        return Nodes(
            *(np.array(values, np.int32) for values in (self.starts, self.tokens, self.parents))
        )


class Arctic:
    """As its cache drafts: one tree of the own answer, one of all, whichever draft scores higher."""

    lockstep = 16

    def __init__(self, module: Any) -> None:
        self.module = module
        self.shape = Shape(8, True)
        self.own = True
        self.histories = Histories([])
        self.trees: list[Any] = []
        self.own_trees: list[Any] = []

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        self.shape, self.own, self.histories = shape, own, Histories(tasks)
        self.trees = [self.module.SuffixTree(ARCTIC_DEPTH) for _ in tasks]
        self.own_trees = [self.module.SuffixTree(ARCTIC_DEPTH) for _ in tasks]
        for tree, task in zip(self.trees, tasks, strict=True):
            for number, sample in enumerate(task.references):
                tree.extend_ndarray(number + 1, sample)

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        for place, target in enumerate(targets.tolist()):
            new = tokens[starts[place] : starts[place + 1]]
            self.histories.add(target, new)
            if self.own:
                self.trees[target].extend_ndarray(0, new)
                self.own_trees[target].extend_ndarray(0, new)

    def draft(self, targets: IntArray) -> Nodes:
        collected = Collected()
        tree = not self.shape.chain
        for target in targets.tolist():
            context = self.histories.tail(target, ARCTIC_CONTEXT)
            limits = (self.shape.nodes, NO_LIMIT, 0.0, 0.0, tree)
            best = self.trees[target].speculate_ndarray(context, *limits)
            if self.own:
                local = self.own_trees[target].speculate_ndarray(context, *limits)
                best = local if local.score >= best.score else best
            collected.add(best.token_ids, best.parents)
        return collected.nodes()


class SglangCorpus:
    """A corpus of its own for every target, or the targets would see each other."""

    lockstep = 4

    def __init__(self, corpus_class: Any) -> None:
        self.corpus_class = corpus_class
        self.shape = Shape(8, False)
        self.own = True
        self.histories = Histories([])
        self.corpora: list[Any] = []

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        self.shape, self.own, self.histories = shape, own, Histories(tasks)
        self.corpora = [self._corpus(task) for task in tasks]

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        for place, target in enumerate(targets.tolist()):
            self.histories.add(target, tokens[starts[place] : starts[place + 1]])
            if self.own:
                self.corpora[target].batch_put([self.histories.tail(target, SGLANG_DEPTH).tolist()])

    def draft(self, targets: IntArray) -> Nodes:
        collected = Collected()
        for target in targets.tolist():
            corpus = self.corpora[target]
            corpus.synchronize()
            tail = self.histories.tail(target, SGLANG_DEPTH).tolist()
            tokens, mask = corpus.batch_get(["target"], [tail], [self.histories.sizes[target]])
            collected.add(tokens[1:].tolist(), parents_of(mask.reshape(tokens.size, tokens.size)))
        return collected.nodes()

    def _corpus(self, task: Task) -> Any:
        known = sum(sample.size for sample in task.references) + task.target.size
        corpus = sglang_corpus(self.corpus_class, self.shape, known * SGLANG_DEPTH)
        corpus.batch_put([sample.tolist() for sample in task.references])
        return corpus


def sglang_corpus(corpus_class: Any, shape: Shape, nodes: int) -> Any:
    """One with room for so many nodes: one for each n-gram. A chain is a tree of breadth 1."""
    low, high = (1, 1) if shape.chain else SGLANG_BREADTHS
    return corpus_class(
        max_trie_depth=SGLANG_DEPTH,
        min_bfs_breadth=low,
        max_bfs_breadth=high,
        draft_token_num=shape.nodes + 1,  # it counts the last verified token
        match_type="BFS",
        capacity=nodes + SGLANG_DEPTH + 1,
    )


def parents_of(mask: IntArray) -> list[int]:
    """Parents among the drafted nodes, from who sees whom; row 0 is the last verified token."""
    before = np.tril(mask, -1)
    nearest = before.shape[1] - 1 - np.argmax(before[:, ::-1], axis=1)
    return (np.where(before.any(axis=1), nearest, 0)[1:] - 1).tolist()  # type: ignore[no-any-return]


class Index:
    """Where each n-gram of some samples occurred last, and what came after it."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def add(self, sample: list[int], tokens: Sequence[int]) -> None:
        """Tokens after those that the sample has."""
        for token in tokens:
            end = len(sample)
            for size in LOOKUP_SIZES:
                if size <= end:
                    self._places[tuple(sample[end - size :])] = sample, end
            sample.append(token)

    def follow(self, tail: Sequence[int], tokens: int) -> list[int]:
        """What came after the longest n-gram at the end of `tail`."""
        for size in LOOKUP_SIZES:
            if size <= len(tail) and (found := self._places.get(tuple(tail[-size:]))):
                sample, end = found
                return sample[end : end + tokens]
        return []


class PromptLookup:
    """Chains from an index of the group."""

    lockstep = 16

    def __init__(self) -> None:
        self.shape = Shape(8, True)
        self.own = True
        self.histories = Histories([])
        self.indexes: list[Index] = []
        self.samples: list[list[int]] = []

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        self.shape, self.own, self.histories = shape, own, Histories(tasks)
        self.indexes = [Index() for _ in tasks]
        self.samples = [[] for _ in tasks]
        for index, task in zip(self.indexes, tasks, strict=True):
            for sample in task.references:
                index.add([], sample.tolist())

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        for place, target in enumerate(targets.tolist()):
            new = tokens[starts[place] : starts[place + 1]]
            self.histories.add(target, new)
            if self.own:
                self.indexes[target].add(self.samples[target], new.tolist())

    def draft(self, targets: IntArray) -> Nodes:
        collected = Collected()
        for target in targets.tolist():
            tail = self.histories.tail(target, LOOKUP_SIZES[0]).tolist()
            tokens = self.indexes[target].follow(tail, self.shape.nodes)
            collected.add(tokens, range(-1, len(tokens) - 1))
        return collected.nodes()
