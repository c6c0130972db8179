"""The peers of `bench.peers` as subjects of `bench.draft_costs`.

Here Arctic has one tree for a group, which holds the requests' own tokens, too; its cache keeps and asks
two. SGLang's corpus is one for all groups, as in its worker, and does not take drafts of another width:
there is a corpus for each.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.draft_costs import CALL_REQUESTS, SHAPES, Load, Subject, heap_bytes
from bench.peers import (
    ARCTIC_CONTEXT,
    ARCTIC_DEPTH,
    LOOKUP_SIZES,
    NO_LIMIT,
    SGLANG_DEPTH,
    Index,
    sglang_corpus,
)
from bench.replay import IntArray, Shape


class Growing:
    """The last tokens of each request, for drafters that are told them with every draft."""

    def __init__(self, load: Load, tokens: int) -> None:
        self.tokens = tokens
        self.tails = [said[-tokens:] for said in load.said]
        self.sizes = [said.size for said in load.said]

    def add(self, request: int, row: IntArray) -> IntArray:
        """What the request says next; its tail then."""
        self.tails[request] = np.concatenate([self.tails[request], row])[-self.tokens :]
        self.sizes[request] += row.size
        return self.tails[request]


class ArcticCost:
    """Drafts read back to Python: tokens of a chain, parents too of a tree.

    Without `own` its trees hold finished samples only; it then appends nothing else.
    """

    shapes: Sequence[Shape] = SHAPES
    together = False
    own_thread = False

    def __init__(self, module: Any, own: bool = True) -> None:
        self.module = module
        self.own = own
        self.name = "arctic" if own else "arctic, finished only"

    def open(self, load: Load) -> None:
        self.heap_bytes = heap_bytes()
        self.tokens = load.tokens
        self.trees = [self.module.SuffixTree(ARCTIC_DEPTH) for _ in load.finished]

    def take(self, group: int, samples: Sequence[IntArray]) -> None:
        extend = self.trees[group].extend_ndarray
        for number, sample in enumerate(samples):
            extend(number, sample)

    def join(self, load: Load) -> None:
        self.growing = Growing(load, ARCTIC_CONTEXT)
        self.live = load.live
        for request, said in enumerate(load.said if self.own else ()):
            self.trees[request // self.live].extend_ndarray(1_000 + request, said)

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        self.appends, self.drafts = [], []
        for request, row in zip(requests, rows, strict=True):
            tree = self.trees[request // self.live]
            self.appends.append((tree.extend_ndarray, 1_000 + request, row))
            self.drafts.append((tree.speculate_ndarray, self.growing.add(request, row)))

    def grow(self, together: bool) -> None:
        for extend, number, row in self.appends if self.own else ():
            extend(number, row)

    def draft(self, shape: Shape, together: bool) -> None:
        nodes, tree = shape.nodes, not shape.chain
        for speculate, tail in self.drafts:
            draft = speculate(tail, nodes, NO_LIMIT, 0.0, 0.0, tree)
            _ = (draft.token_ids, draft.parents) if tree else draft.token_ids

    def bytes_per_token(self) -> float | None:
        return grown_since(self.heap_bytes, self.tokens) if self.own else None


class SglangCost:
    """As its worker calls it: lists of tokens in, arrays of tokens and masks out, tails put in again."""

    name = "sglang"
    together = True
    own_thread = True

    def __init__(self, corpus_class: Any, shape: Shape, nodes: int) -> None:
        self.corpus_class = corpus_class
        self.nodes = nodes
        self.shapes: Sequence[Shape] = [shape]

    def open(self, load: Load) -> None:
        self.heap_bytes = heap_bytes()
        self.tokens = load.tokens
        self.corpus = sglang_corpus(self.corpus_class, self.shapes[0], self.nodes)

    def take(self, group: int, samples: Sequence[IntArray]) -> None:
        for sample in samples:
            self.corpus.batch_put([sample.tolist()])
            self.corpus.synchronize()

    def join(self, load: Load) -> None:
        self.growing = Growing(load, SGLANG_DEPTH)
        self.corpus.batch_put([said.tolist() for said in load.said])
        self.corpus.synchronize()

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        self.names = [str(request) for request in requests]
        self.tails = [self.growing.add(*said).tolist() for said in zip(requests, rows, strict=True)]
        self.sizes = [self.growing.sizes[request] for request in requests]

    def grow(self, together: bool) -> None:
        for part in parts(len(self.names), together):
            self.corpus.batch_put(self.tails[part])
            self.corpus.synchronize()

    def draft(self, shape: Shape, together: bool) -> None:
        for part in parts(len(self.names), together):
            self.corpus.batch_get(self.names[part], self.tails[part], self.sizes[part])

    def bytes_per_token(self) -> float | None:
        return grown_since(self.heap_bytes, self.tokens)


class LookupCost:
    """An index for each group; lists of tokens in and out."""

    name = "prompt lookup"
    shapes: Sequence[Shape] = [shape for shape in SHAPES if shape.chain]
    together = False
    own_thread = False

    def open(self, load: Load) -> None:
        self.indexes = [Index() for _ in load.finished]

    def take(self, group: int, samples: Sequence[IntArray]) -> None:
        index = self.indexes[group]
        for sample in samples:
            index.add([], sample.tolist())

    def join(self, load: Load) -> None:
        self.live = load.live
        self.samples: list[list[int]] = [[] for _ in load.said]
        for request, said in enumerate(load.said):
            self.indexes[request // self.live].add(self.samples[request], said.tolist())

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        self.calls = [
            (self.indexes[request // self.live], self.samples[request], row.tolist())
            for request, row in zip(requests, rows, strict=True)
        ]

    def grow(self, together: bool) -> None:
        for index, sample, row in self.calls:
            index.add(sample, row)

    def draft(self, shape: Shape, together: bool) -> None:
        for index, sample, _ in self.calls:
            index.follow(sample[-LOOKUP_SIZES[0] :], shape.nodes)

    def bytes_per_token(self) -> float | None:
        return None


def parts(requests: int, together: bool) -> list[slice]:
    """Which requests share a call."""
    size = CALL_REQUESTS if together else 1
    return [slice(first, first + size) for first in range(0, requests, size)]


def grown_since(before_bytes: int | None, tokens: int) -> float | None:
    """By how much the heap is larger, per token."""
    now_bytes = heap_bytes()
    return None if now_bytes is None or before_bytes is None else (now_bytes - before_bytes) / tokens


def ngrams(load: Load, longest: int) -> int:
    """Different n-grams of up to that length in all that a load comes to say: a trie's nodes."""
    said = [
        np.concatenate([begun, *rows])
        for begun, rows in zip(load.said, zip(*load.steps, strict=True), strict=True)
    ]
    samples = [sample for group in load.finished for sample in group] + said
    tokens = np.concatenate(samples).astype(np.int64)
    left = np.concatenate([np.arange(sample.size, 0, -1) for sample in samples])
    number, found = np.zeros(tokens.size, np.int64), 0
    starts = np.arange(tokens.size)
    for size in range(1, longest + 1):
        starts = starts[left[starts] >= size]
        keys = number[starts] << 32 | tokens[starts + size - 1]
        different, number[starts] = np.unique(keys, return_inverse=True)
        found += different.size
    return found


def peer_subjects(arctic: Any, sglang: Any, load: Load) -> Iterator[Subject]:
    """Those that are installed."""
    if arctic is not None:
        yield ArcticCost(arctic)
        yield ArcticCost(arctic, own=False)
    if sglang is not None:
        nodes = ngrams(load, SGLANG_DEPTH)
        for shape in SHAPES:
            yield SglangCost(sglang, shape, nodes)
    yield LookupCost()
