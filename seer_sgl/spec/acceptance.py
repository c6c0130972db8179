"""How often drafts are accepted, learnt from the verified ones. Pure; numpy arrays in and out.

Two things are kept, both with exponential forgetting:

* by depth, the chance that a drafted token is accepted, given that all before it were (conditional).
  `reach` is its running product: the chance that a draft gets so far.
* by depth and by what the drafts say of themselves (a node's confidence: the chance that it is reached
  and accepted), what comes of it. `calibrated` maps one to the other, and keeps the order of a depth's.
  Depth matters: what is said of four tokens in a row is exaggerated four times.

A depth is tried where its parent was accepted and something was drafted there; what lies behind a
rejected node says nothing.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from seer_sgl.spec.compiled import inlined, kernel

Floats: TypeAlias = npt.NDArray[np.float64]
Floats32: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int32]

EDGES = np.array(
    [0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.975, 0.99, 0.996, 0.999, 1.0]
)
"""Of the buckets of confidences. Finer towards 1, where loops are told from lucky guesses."""
DEPTHS = np.array([1, 2, 4, 8])
"""Depths up to these are counted together; deeper ones, too."""
MEMORY_TRIALS = 1024.0
"""A rate is an average over about so many tries: 16 steps of 64 requests, a lone one's last minute."""
PRIOR_TRIALS = 16.0
"""What is assumed counts as so many tries."""
PRIOR_NODES = 8.0
"""The same for a depth's bucket of confidences, which are believed at first."""
PRIOR_FIRST, PRIOR_NEXT = 0.4, 0.7
"""Assumed chance of the first drafted token, and of one after accepted ones: it gets easier."""


class Acceptance:
    """Rates by depth and by confidence.

    Args:
        depths: the deepest draft.
    """

    def __init__(self, depths: int = 32) -> None:
        self._tries = np.full(depths + 1, PRIOR_TRIALS)
        self._hits = np.full(depths + 1, PRIOR_TRIALS * PRIOR_NEXT)
        self._hits[1] = PRIOR_TRIALS * PRIOR_FIRST
        shape = DEPTHS.size + 1, EDGES.size - 1
        self._nodes = np.full(shape, PRIOR_NODES)
        self._said = np.full(shape, PRIOR_NODES) * (EDGES[:-1] + EDGES[1:]) / 2
        self._taken = self._said.copy()
        self._from = np.tile(np.append(EDGES, 1.0), (shape[0], 1))
        self._to = self._from.copy()
        self._stale = True

    def observe(
        self, starts: IntArray, parents: IntArray, confidences: Floats32, taken: npt.NDArray[np.uint8]
    ) -> None:
        """Verified drafts, as in `Drafts`, and for each node whether it was accepted (`taken_nodes`)."""
        if parents.size:
            _count_depths(starts, parents, taken, self._tries, self._hits)
            _count_buckets(starts, parents, confidences, taken, self._nodes, self._said, self._taken)
            self._stale = True

    @property
    def conditional(self) -> Floats:
        """By depth, from 1 on: the chance of a token whose parent was accepted; at 0 it is 1."""
        rates: Floats = self._hits / self._tries
        rates[0] = 1.0
        return rates

    @property
    def reach(self) -> Floats:
        """By depth: the chance that a chain gets so far; at 0 it is 1."""
        return np.asarray(np.cumprod(self.conditional), np.float64)

    @property
    def rate(self) -> float:
        """Chance of a drafted token whose parent was accepted, over all depths that were tried."""
        return float(self._hits[1:].sum() / self._tries[1:].sum())

    def calibrated(self, confidences: Floats32, depths: IntArray) -> Floats32:
        """What confidences have turned out to mean; at the same depth, a higher one never means less."""
        if self._stale:
            for depth in range(DEPTHS.size + 1):
                _calibrate(
                    *(self._nodes[depth], self._said[depth], self._taken[depth]),
                    *(self._from[depth], self._to[depth]),
                )
            self._stale = False
        return _read_off(confidences, depths, self._from, self._to)


def taken_nodes(
    starts: IntArray, tokens: IntArray, parents: IntArray, given_starts: IntArray, given: IntArray
) -> npt.NDArray[np.uint8]:
    """1 for each node on the path that the step's tokens follow, request by request.

    Args:
        starts, tokens, parents: the verified drafts, as in `Drafts`.
        given_starts: request i got given[given_starts[i]:given_starts[i + 1]], the bonus token included.
    """
    return _taken_nodes(starts, tokens, parents, given_starts, given)


@kernel
def _taken_nodes(
    starts: IntArray, tokens: IntArray, parents: IntArray, given_starts: IntArray, given: IntArray
) -> npt.NDArray[np.uint8]:
    taken = np.zeros(tokens.size, np.uint8)
    depths = np.zeros(tokens.size, np.int32)
    for request in range(starts.size - 1):
        first, count = starts[request], given_starts[request + 1] - given_starts[request]
        for node in range(first, starts[request + 1]):
            parent = parents[node]
            if parent >= 0:
                if not taken[first + parent]:
                    continue
                depths[node] = depths[first + parent] + 1
            place = depths[node]
            # The last token is the verifier's own: a child that equals it would have been accepted.
            if place < count - 1 and tokens[node] == given[given_starts[request] + place]:
                taken[node] = 1
    return taken


@kernel
def _count_depths(
    starts: IntArray, parents: IntArray, taken: npt.NDArray[np.uint8], tries: Floats, hits: Floats
) -> None:
    keep = 1.0 - 1.0 / MEMORY_TRIALS
    for request in range(starts.size - 1):
        first = starts[request]
        deepest, last = 0, -1
        for node in range(first, starts[request + 1]):  # parents come before children
            if taken[node] and parents[node] == last:
                deepest, last = deepest + 1, node - first
        followed = False
        for node in range(first, starts[request + 1]):
            followed = followed or parents[node] == last
        for depth in range(1, min(deepest + followed, tries.size - 1) + 1):
            tries[depth] = tries[depth] * keep + 1.0
            hits[depth] = hits[depth] * keep + (1.0 if depth <= deepest else 0.0)


@inlined
def _bucket_of(values: Any, value: Any) -> Any:
    """How many of the rising values are below this one."""
    low, high = 0, values.size
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _count_buckets(
    starts: IntArray,
    parents: IntArray,
    confidences: Floats32,
    taken: npt.NDArray[np.uint8],
    nodes: Floats,
    said: Floats,
    hits: Floats,
) -> None:
    keep = 1.0 - 1.0 / MEMORY_TRIALS
    depths = np.ones(parents.size, np.int32)
    for request in range(starts.size - 1):
        first = starts[request]
        for node in range(first, starts[request + 1]):
            if parents[node] >= 0:
                depths[node] = depths[first + parents[node]] + 1
            confidence = min(1.0, max(0.0, float(confidences[node])))
            depth = _bucket_of(DEPTHS, depths[node])
            bucket = max(0, _bucket_of(EDGES, confidence) - 1)
            nodes[depth, bucket] = nodes[depth, bucket] * keep + 1.0
            said[depth, bucket] = said[depth, bucket] * keep + confidence
            hits[depth, bucket] = hits[depth, bucket] * keep + taken[node]


@kernel
def _read_off(confidences: Floats32, depths: IntArray, points: Floats, values: Floats) -> Floats32:
    """Each confidence on its depth's line."""
    found = np.empty(confidences.size, np.float32)
    for node in range(confidences.size):
        depth = _bucket_of(DEPTHS, depths[node])
        confidence = min(1.0, max(0.0, float(confidences[node])))
        high = min(points.shape[1] - 1, max(1, _bucket_of(points[depth], confidence)))
        low = high - 1
        span = points[depth, high] - points[depth, low]
        part = (confidence - points[depth, low]) / span if span > 0.0 else 1.0
        found[node] = values[depth, low] + part * (values[depth, high] - values[depth, low])
    return found


@kernel
def _calibrate(nodes: Floats, said: Floats, hits: Floats, points: Floats, values: Floats) -> None:
    """A line in pieces through the buckets' means, pooled where a higher bucket did worse."""
    buckets = nodes.size
    weights, sums, sizes = np.zeros(buckets), np.zeros(buckets), np.zeros(buckets, np.int64)
    blocks = 0
    for bucket in range(buckets):
        weights[blocks], sums[blocks], sizes[blocks] = nodes[bucket], hits[bucket], 1
        blocks += 1
        while blocks > 1:
            one, other = blocks - 2, blocks - 1
            if sums[one] * weights[other] < sums[other] * weights[one]:
                break
            weights[one] += weights[other]
            sums[one] += sums[other]
            sizes[one] += sizes[other]
            blocks -= 1
    bucket = 0
    points[0] = values[0] = 0.0
    for block in range(blocks):
        for _ in range(sizes[block]):
            points[bucket + 1] = said[bucket] / nodes[bucket]
            values[bucket + 1] = min(1.0, sums[block] / weights[block])
            bucket += 1
    points[buckets + 1], values[buckets + 1] = 1.0, values[buckets]
