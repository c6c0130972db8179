"""The suffix tree of one group: an automaton's arrays, grown as tokens come, every byte accounted."""

import numpy as np

from seer_sgl.spec.automaton import (
    EDGES,
    MAX_EDGES,
    STATES,
    STATES_PER_TOKEN,
    IntArray,
    new_arrays,
    rebuild,
    table_size,
)

GROWTH = 1.2
"""Arrays grow by a fifth: memory held stays close to what is used, and copies stay rare."""
FIRST_TOKENS = 512
VIEW_FIELDS = 8
"""Addresses of states, edges, table and sizes; rows of states and edges; slots of the table; and when
the group was used last, in steps of the forest."""
LAST_USED = 7


class GroupTree:
    """One automaton's memory.

    Attributes:
        view: int64 [VIEW_FIELDS], what kernels need to find the arrays.
        paths: how many paths were opened.
        start: the state in which new paths begin: the end of the prompt.
    """

    def __init__(self, tokens: int = FIRST_TOKENS) -> None:
        self._states, self._edges, self._table, self._sizes = new_arrays(max(tokens, FIRST_TOKENS))
        self.view = np.zeros(VIEW_FIELDS, np.int64)
        self.paths = 0
        self.start = 0
        self.has_prompt = False
        self._look()

    @property
    def held_bytes(self) -> int:
        """All memory of this tree's arrays, used or not."""
        arrays = (self._states, self._edges, self._table, self._sizes)
        return sum(array.nbytes for array in arrays)

    def arrays(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """`states, edges, table, sizes` as `automaton` describes them."""
        return self._states, self._edges, self._table, self._sizes

    def make_room(self, edges: int) -> bool:
        """Grow what has no room for one token that needs this many further edges; False at the limit."""
        states_used, edges_used = int(self._sizes[STATES]), int(self._sizes[EDGES])
        states_needed, edges_needed = states_used + STATES_PER_TOKEN, edges_used + edges
        if edges_needed > MAX_EDGES:
            return False
        if states_needed > len(self._states):
            _grow(self._states, states_needed)
        if edges_needed > len(self._edges):
            _grow(self._edges, edges_needed)
            slots = table_size(len(self._edges))
            if slots > self._table.size:
                self._table = np.zeros(slots, np.int32)
                rebuild(self._edges, self._table, edges_used)
        self._look()
        return True

    def _look(self) -> None:
        arrays = (self._states, self._edges, self._table, self._sizes)
        self.view[:4] = [array.ctypes.data for array in arrays]
        self.view[4:7] = len(self._states), len(self._edges), self._table.size


def _grow(array: IntArray, rows: int) -> None:
    """Make room for `rows`, and a fifth more than before, in place: large blocks move without a copy."""
    array.resize((max(rows, int(len(array) * GROWTH)), array.shape[1]), refcheck=False)
