"""The suffix trees of one engine: one per group, within a byte budget, drafted from in batches."""

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from seer_sgl.spec.automaton import PATH_MASK, UNIT, IntArray
from seer_sgl.spec.batch import (
    COUNT,
    FOLLOWED,
    GROUP,
    NUMBER,
    PATH_FIELDS,
    STATE,
    append_batch,
    draft_batch,
)
from seer_sgl.spec.tree import FIRST_TOKENS, LAST_USED, VIEW_FIELDS, GroupTree

SLICE_TOKENS = 512
"""Tokens appended under one hold of the lock, so that a draft never waits longer than for these."""


LEAST_BUDGET_BYTES = 4 << 20
"""A long prompt and the first tokens of its group fit."""

LongArray = npt.NDArray[np.int64]


class GapError(Exception):
    """Tokens between what a path holds and what was given are missing."""

    def __init__(self, path: int, known: int, given: int) -> None:
        super().__init__(f"path {path} holds {known} tokens, and the next that came is number {given}")
        self.known = known
        self.given = given


class Drafts(NamedTuple):
    """Draft nodes of several requests; request i has those from `starts[i]` up to `starts[i + 1]`.

    They come best first, a parent before its children: the first n are a good draft of n nodes.
    """

    starts: IntArray
    tokens: IntArray
    parents: IntArray
    """Index within the request's own nodes, -1 for children of the root."""
    depths: IntArray
    """1 for children of the root."""
    confidences: npt.NDArray[np.float32]
    """Estimated probability that the node is accepted, all above it included."""


class Forest:
    """Trees by group. All methods may be called from any thread.

    Args:
        budget_bytes: memory that all trees together may hold; the group used least recently goes first.

    Raises:
        ValueError: the budget is below `LEAST_BUDGET_BYTES`.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < LEAST_BUDGET_BYTES:
            raise ValueError(f"budget_bytes {budget_bytes}: a tree needs {LEAST_BUDGET_BYTES} at least")
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._trees: dict[int, GroupTree] = {}
        self._names: dict[int, str] = {}
        self._slots: dict[str, int] = {}
        self._handles: dict[str, dict[int, int]] = {}
        self._groups = np.zeros((16, VIEW_FIELDS), np.int64)
        self._paths = np.full((64, PATH_FIELDS), -1, np.int32)
        self._free_slots: list[int] = []
        self._free_paths: list[int] = []
        self._now = 0
        self.held_bytes = 0
        self.evicted_groups = 0

    # -- paths

    def open(
        self,
        group_id: str,
        request_id: int,
        prompt: IntArray | None = None,
        weight: int = UNIT,
        followed: bool = True,
    ) -> int:
        """The handle of a request's path, made where it is new.

        Args:
            prompt: context of all of the group's paths; taken from whoever brings it first, and not
                counted in `length`.
            weight: what each token counts.
            followed: drafts will be asked for this path here.
        """
        with self._lock:
            slot = self._slot(group_id)
            tree = self._trees[slot]
            if prompt is not None and not tree.has_prompt:
                self._take_prompt(slot, tree, prompt)
            handles = self._handles[group_id]
            path = handles.get(request_id)
            if path is None:
                handles[request_id] = path = self._new_path(slot, weight)
            if followed:
                self._paths[path, FOLLOWED] = 1
            return path

    def reopen(self, group_id: str, request_id: int) -> int:
        """A fresh path for a request that begins again. What it said before stays a sibling's text."""
        with self._lock:
            self._handles.get(group_id, {}).pop(request_id, None)
        return self.open(group_id, request_id)

    def length(self, path: int) -> int:
        """Tokens that the path holds."""
        return int(self._paths[path, COUNT])

    def alive(self, path: int) -> bool:
        """Whether the path's group is still here; what is appended to a dead path is dropped."""
        return bool(self._paths[path, GROUP] >= 0)

    def append(self, path: int, prev_token_count: int, tokens: IntArray) -> None:
        """Append what of `tokens`, the first of which is number `prev_token_count`, is new.

        Raises:
            GapError: tokens before these are missing.
        """
        with self._lock:
            known = self.length(path)
            if prev_token_count > known:
                raise GapError(path, known, prev_token_count)
            fresh = np.ascontiguousarray(tokens[known - prev_token_count :], np.int32)
            starts = np.array([0, len(fresh)], np.int32)
            self._append(np.array([path], np.int32), starts, fresh, np.zeros(2, np.int64))

    def append_many(self, paths: IntArray, starts: IntArray, tokens: IntArray) -> None:
        """Append `tokens[starts[i]:starts[i + 1]]` to `paths[i]`, for each i; all of it is new."""
        progress = np.zeros(2, np.int64)
        tokens = np.ascontiguousarray(tokens, np.int32)
        first = 0
        while first < len(paths):
            last = int(np.searchsorted(starts, starts[first] + SLICE_TOKENS, "right")) - 1
            last = min(max(last, first + 1), len(paths))
            with self._lock:
                self._append(paths[first:last], starts[first : last + 1], tokens, progress)
            first = last

    def close(self, path: int) -> None:
        """No more drafts for this path; its tokens stay, for its siblings."""
        with self._lock:
            self._paths[path, FOLLOWED] = 0
            if not self.alive(path):
                self._release(path)

    def drop_group(self, group_id: str) -> None:
        """Forget a group and all its paths."""
        with self._lock:
            if group_id in self._slots:
                self._drop(self._slots[group_id])

    def clear(self) -> None:
        """Forget all groups."""
        with self._lock:
            for slot in list(self._trees):
                self._drop(slot)

    @property
    def group_count(self) -> int:
        return len(self._trees)

    @property
    def stored_tokens(self) -> int:
        """Tokens of all paths."""
        counts = self._paths[:, COUNT]
        return int(counts[self._paths[:, GROUP] >= 0].sum())

    # -- drafts

    def draft(self, paths: IntArray, nodes: IntArray, max_depth: int) -> Drafts:
        """A tree of up to `nodes[i]` nodes, at most `max_depth` deep, for each path."""
        return self._draft(paths, nodes, max_depth, False)

    def draft_chains(self, paths: IntArray, lengths: IntArray) -> Drafts:
        """A chain of up to `lengths[i]` tokens for each path."""
        return self._draft(paths, lengths, 1 << 30, True)

    def _draft(self, paths: IntArray, nodes: IntArray, max_depth: int, chains: bool) -> Drafts:
        room = int(nodes.sum())
        starts = np.empty(len(paths) + 1, np.int32)
        whole = np.empty((3, room), np.int32)
        confidences = np.empty(room, np.float32)
        with self._lock:
            self._now += 1
            draft_batch(
                *(self._groups, self._paths, paths, nodes, max_depth, chains, self._now),
                *(starts, whole[0], whole[1], whole[2], confidences),
            )
        used = int(starts[-1])
        return Drafts(starts, whole[0, :used], whole[1, :used], whole[2, :used], confidences[:used])

    # -- with the lock held

    def _append(self, paths: IntArray, starts: IntArray, tokens: IntArray, progress: LongArray) -> None:
        while True:
            slot = int(append_batch(self._groups, self._paths, paths, starts, tokens, progress))
            if slot < 0:
                return
            tree = self._trees[slot]
            before = tree.held_bytes
            if not tree.make_room(int(progress[1])):
                self._drop(slot)
                continue
            self.held_bytes += tree.held_bytes - before
            self._groups[slot] = tree.view
            self._groups[slot, LAST_USED] = self._now
            self._keep_budget(slot)

    def _keep_budget(self, needed: int) -> None:
        """Drop groups until the budget holds: `needed` last of all."""
        while self.held_bytes > self._budget_bytes and self._trees:
            others = [slot for slot in self._trees if slot != needed]
            oldest = min(others, key=lambda slot: int(self._groups[slot, LAST_USED]), default=needed)
            self.evicted_groups += 1
            self._drop(oldest)

    def _slot(self, group_id: str) -> int:
        slot = self._slots.get(group_id)
        if slot is not None:
            return slot
        tree = GroupTree(FIRST_TOKENS)
        slot = self._free_slots.pop() if self._free_slots else len(self._names)
        if slot == len(self._groups):
            self._groups = np.concatenate((self._groups, np.zeros_like(self._groups)))
        self._groups[slot] = tree.view
        self._trees[slot] = tree
        self._names[slot] = group_id
        self._slots[group_id] = slot
        self._handles[group_id] = {}
        self.held_bytes += tree.held_bytes
        self._groups[slot, LAST_USED] = self._now
        self._keep_budget(slot)
        return slot

    def _new_path(self, slot: int, weight: int) -> int:
        tree = self._trees[slot]
        if not self._free_paths:
            size = len(self._paths)
            self._free_paths = list(range(2 * size - 1, size - 1, -1))
            self._paths = np.concatenate((self._paths, np.full_like(self._paths, -1)))
        path = self._free_paths.pop()
        tree.paths += 1
        self._paths[path] = (slot, tree.start, -1, 0, tree.paths & PATH_MASK, weight, 0)
        return path

    def _take_prompt(self, slot: int, tree: GroupTree, prompt: IntArray) -> None:
        path = self._new_path(slot, UNIT)
        self._paths[path, NUMBER] = 0
        chosen, starts = np.array([path], np.int32), np.array([0, len(prompt)], np.int32)
        self._append(chosen, starts, np.ascontiguousarray(prompt, np.int32), np.zeros(2, np.int64))
        tree.start, tree.has_prompt = int(self._paths[path, STATE]), True
        self._release(path)

    def _drop(self, slot: int) -> None:
        group_id = self._names.pop(slot)
        self.held_bytes -= self._trees.pop(slot).held_bytes
        self._groups[slot] = 0
        del self._slots[group_id]
        del self._handles[group_id]
        for path in np.flatnonzero(self._paths[:, GROUP] == slot).tolist():
            self._paths[path, GROUP] = -1
            if not self._paths[path, FOLLOWED]:
                self._release(path)  # else whoever follows it closes it
        self._free_slots.append(slot)

    def _release(self, path: int) -> None:
        self._paths[path] = -1
        self._free_paths.append(path)
