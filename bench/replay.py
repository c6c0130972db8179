"""Replays real samples through a drafter and counts the tokens that each step would have brought.

One rule for every drafter: a target's first token is known; each step drafts, takes the longest path of
the draft that the target goes on with, and one token more, which the verifier always gives. A sample's
last token is never counted as accepted. Tokens become known to the drafter as they are revealed.
Accept length is tokens per step: (steps + accepted) / steps. With exact-match verification of sampled
tokens this is what decoding would have seen.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from seer_sgl.spec.compiled import kernel

IntArray = NDArray[np.int32]


class Shape(NamedTuple):
    """What is drafted for each request: `nodes` tokens in a row, or a tree of them."""

    nodes: int
    chain: bool

    @property
    def label(self) -> str:
        """As in tables."""
        return f"{'chain' if self.chain else 'tree'} {self.nodes}"


class Nodes(NamedTuple):
    """Drafts of several requests; a node's parent is an index within its request's, or -1."""

    starts: IntArray
    tokens: IntArray
    parents: IntArray


class Task(NamedTuple):
    """A sample to replay, and the finished samples of its group that the drafter has seen."""

    references: Sequence[IntArray]
    target: IntArray


class Totals(NamedTuple):
    """Sums over all steps of all targets."""

    steps: int
    accepted: int
    drafted: int

    @property
    def accept_length(self) -> float:
        """Tokens per step, the verifier's own included."""
        return (self.steps + self.accepted) / self.steps if self.steps else 1.0


class Drafter(Protocol):
    """What a replay drives. Each target has a history of its own; targets are numbered from 0."""

    lockstep: int
    """At most so many targets at once."""

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        """Forget everything; take in every task's references. Without `own` a target's tokens are
        context to match and not history to copy from."""

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        """The next tokens of some targets: those of the i-th are tokens[starts[i]:starts[i + 1]]."""

    def draft(self, targets: IntArray) -> Nodes:
        """Drafts of some targets, of the shape that was asked for at the beginning."""


def replay(drafter: Drafter, tasks: Sequence[Task], shape: Shape, own: bool) -> Totals:
    """All tasks, as many at a time as the drafter takes."""
    parts = [
        _lockstep(drafter, tasks[first : first + drafter.lockstep], shape, own)
        for first in range(0, len(tasks), drafter.lockstep)
    ]
    return Totals(*(sum(values) for values in zip(*parts, strict=True))) if parts else Totals(0, 0, 0)


def _lockstep(drafter: Drafter, tasks: Sequence[Task], shape: Shape, own: bool) -> Totals:
    drafter.begin(tasks, shape, own)
    sizes = np.array([task.target.size for task in tasks], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    truth = np.concatenate([task.target for task in tasks]).astype(np.int32)
    places, ends = offsets[:-1].copy(), offsets[1:]
    gained = np.zeros(len(tasks), np.int64)
    steps = accepted = drafted = 0
    running = np.flatnonzero(sizes > 0).astype(np.int32)
    while running.size:
        starts, tokens = revealed(truth, places[running], gained[running] + 1)
        drafter.reveal(running, starts, tokens)
        places[running] += np.diff(starts)
        running = running[places[running] < ends[running]]
        if not running.size:
            break
        nodes = drafter.draft(running)
        taken = matched(nodes.starts, nodes.tokens, nodes.parents, truth, places[running], ends[running])
        gained[running] = taken
        steps += running.size
        accepted += int(taken.sum())
        drafted += int(nodes.starts[-1])
    return Totals(steps, accepted, drafted)


def revealed(
    truth: IntArray, places: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[IntArray, IntArray]:
    """The `counts` tokens from each place, one after another, and where each place's start."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.repeat(places - starts[:-1], counts) + np.arange(starts[-1])
    return starts.astype(np.int32), truth[index]


@kernel
def matched(
    starts: IntArray,
    tokens: IntArray,
    parents: IntArray,
    truth: IntArray,
    places: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How far each draft agrees with `truth` from its place on, the token before its end left out."""
    found = np.zeros(places.size, np.int64)
    depths = np.zeros(tokens.size, np.int64)
    for request in range(places.size):
        first = starts[request]
        for node in range(first, starts[request + 1]):
            parent = parents[node]
            before = np.int64(0) if parent < 0 else depths[first + parent]
            if parent >= 0 and before == 0:
                continue
            place = places[request] + before
            if place < ends[request] - 1 and truth[place] == tokens[node]:
                depths[node] = before + 1
                found[request] = max(found[request], before + 1)
    return found
