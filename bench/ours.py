"""Our own drafter behind the interfaces of `bench.replay` and `bench.draft_costs`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.draft_costs import SHAPES, Load, joined
from bench.peer_costs import parts
from bench.replay import IntArray, Nodes, Shape, Task
from seer_sgl.spec.automaton import LINK, ROOT, find, target_of
from seer_sgl.spec.batch import GROUP, OTHER, STATE, _arrays
from seer_sgl.spec.compiled import kernel
from seer_sgl.spec.drafting import near_miss
from seer_sgl.spec.forest import Forest
from seer_sgl.spec.settings import DraftSettings

BUDGET_BYTES = 4 << 30
"""Nothing is evicted."""
MAX_DEPTH = DraftSettings().max_depth


@kernel
def follow_batch(groups: Any, paths: Any, chosen: Any, starts: Any, tokens: Any) -> None:
    """Move paths along in what their siblings said, and store nothing: no engine does so."""
    for i in range(chosen.size):
        path = chosen[i]
        states, edges, table, _ = _arrays(groups, paths[path, GROUP])
        state = np.int64(paths[path, STATE])
        other = np.int64(paths[path, OTHER])
        for at in range(starts[i], starts[i + 1]):
            other = near_miss(states, edges, table, state, other, tokens[at])
            edge = find(states, edges, table, state, tokens[at])
            while edge < 0 and state > ROOT:
                state = np.int64(states[state, LINK])
                edge = find(states, edges, table, state, tokens[at])
            if edge >= 0:
                state = np.int64(target_of(states, edges, state, edge))
        paths[path, STATE] = state
        paths[path, OTHER] = other


class Ours:
    """A group for every target, or the targets would see each other."""

    lockstep = 64

    def __init__(self) -> None:
        self.shape = Shape(8, True)
        self.own = True
        self.forest = Forest(BUDGET_BYTES)
        self.paths: IntArray = np.empty(0, np.int32)

    def begin(self, tasks: Sequence[Task], shape: Shape, own: bool) -> None:
        self.shape, self.own = shape, own
        self.forest = Forest(BUDGET_BYTES)
        paths, rows = [], []
        for target, task in enumerate(tasks):
            for number, sample in enumerate(task.references):
                paths.append(self.forest.open(str(target), number + 1, followed=False))
                rows.append(sample)
        if rows:
            self.forest.append_many(np.array(paths, np.int32), *joined(rows))
        self.paths = np.array(
            [self.forest.open(str(target), 0) for target in range(len(tasks))], np.int32
        )

    def reveal(self, targets: IntArray, starts: IntArray, tokens: IntArray) -> None:
        paths = self.paths[targets]
        if self.own:
            self.forest.append_many(paths, starts, tokens)
        else:
            follow_batch(self.forest._groups, self.forest._paths, paths, starts, tokens)

    def draft(self, targets: IntArray) -> Nodes:
        paths = self.paths[targets]
        nodes = np.full(paths.size, self.shape.nodes, np.int32)
        if self.shape.chain:
            drafts = self.forest.draft_chains(paths, nodes)
        else:
            drafts = self.forest.draft(paths, nodes, MAX_DEPTH)
        return Nodes(drafts.starts, drafts.tokens, drafts.parents)


class OursCost:
    """One forest for all groups, called as an engine's step calls it."""

    name = "ours"
    shapes: Sequence[Shape] = SHAPES
    together = True
    own_thread = False

    def open(self, load: Load) -> None:
        self.forest = Forest(BUDGET_BYTES)
        self.tokens = load.tokens

    def take(self, group: int, samples: Sequence[IntArray]) -> None:
        forest, name = self.forest, str(group)
        for number, sample in enumerate(samples):
            forest.append(forest.open(name, number, followed=False), 0, sample)

    def join(self, load: Load) -> None:
        self.paths = np.array(
            [
                self.forest.open(str(request // load.live), 1_000 + request)
                for request in range(len(load.said))
            ],
            np.int32,
        )
        self.forest.append_many(self.paths, *joined(load.said))

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        self.single = [
            (int(self.paths[request]), self.forest.length(int(self.paths[request])), row)
            for request, row in zip(requests, rows, strict=True)
        ]
        paths = self.paths[requests.start : requests.stop]
        self.many = [(paths[part], *joined(rows[part])) for part in parts(len(rows), True)]
        self.calls = {
            (shape, together): [
                (paths[part], np.full(paths[part].size, shape.nodes, np.int32))
                for part in parts(len(rows), together)
            ]
            for shape in SHAPES
            for together in (False, True)
        }

    def grow(self, together: bool) -> None:
        if together:
            for paths, starts, tokens in self.many:
                self.forest.append_many(paths, starts, tokens)
        else:
            for path, known, row in self.single:
                self.forest.append(path, known, row)

    def draft(self, shape: Shape, together: bool) -> None:
        if shape.chain:
            for paths, nodes in self.calls[shape, together]:
                self.forest.draft_chains(paths, nodes)
        else:
            for paths, nodes in self.calls[shape, together]:
                self.forest.draft(paths, nodes, MAX_DEPTH)

    def bytes_per_token(self) -> float | None:
        return self.forest.held_bytes / self.forest.stored_tokens
