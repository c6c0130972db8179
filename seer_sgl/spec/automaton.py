"""A suffix automaton over many paths, grown token by token: a group's suffix tree, compressed.

Every state stands for a set of contexts that were followed by the same tokens; its link leads to the
longest shorter context that was seen in more places. Blumer et al., "The smallest automaton recognizing
the subwords of a text" (1985), extended to several texts by starting each at a state of its own.

Counts lie on edges and follow PPM's update exclusion: a token is counted in the longest context that had
seen it and in the longer ones, which had not. So an edge of a short context counts the distinct longer
contexts that led there, which predicts better than raw frequency, and appending stays amortised O(1).

Arrays of one automaton, all int32:
    states[n, 8]: LENGTH of its longest context, LINK, its first edge (TOKEN, TARGET, USE), TOTAL of its
        edges' counts, MORE (newest further edge + 1 and the number of edges), BEST (0 first edge, else
        further edge + 1).
    edges[m, 5]: further edges: SOURCE, EDGE_TOKEN, EDGE_TARGET, EDGE_USE, NEXT of the same source.
    table[2**k]: open addressing, (source, token) to further edge + 1; 0 is free.
    sizes[2]: states and further edges in use.
USE packs a count with the path that took the edge last, `count << PATH_BITS | path`; MORE packs an edge
with a degree that stops at MAX_DEGREE, `(edge + 1) << DEGREE_BITS | degree`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from seer_sgl.spec.compiled import inlined, kernel

IntArray = npt.NDArray[np.int32]

LENGTH, LINK, TOKEN, TARGET, USE, TOTAL, MORE, BEST = range(8)
STATE_FIELDS = 8
SOURCE, EDGE_TOKEN, EDGE_TARGET, EDGE_USE, NEXT = range(5)
EDGE_FIELDS = 5
STATES, EDGES = range(2)

PATH_BITS = 12
PATH_MASK = (1 << PATH_BITS) - 1
MAX_COUNT = (1 << (31 - PATH_BITS)) - 16
"""Where a count stops to grow, so that it keeps its sign."""
STATES_PER_TOKEN = 2
"""A token adds a state, and at most one clone."""
DEGREE_BITS = 8
MAX_DEGREE = (1 << DEGREE_BITS) - 1
MAX_EDGES = 1 << (31 - DEGREE_BITS)
"""Further edges of one automaton: some fifteen million tokens."""
ROOT = 0
UNIT = 4
"""What a token counts that was said in this epoch; one of the last epoch may count less."""


@inlined
def _slot(source: Any, token: Any, mask: Any) -> Any:
    mixed = np.uint64(source) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(token) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    return np.int64(mixed & np.uint64(mask))


@inlined
def find(states: Any, edges: Any, table: Any, state: Any, token: Any) -> Any:
    """The edge of `state` by `token`: 0 its first one, further edge + 1, or -1."""
    if states[state, TARGET] < 0:
        return -1
    if states[state, TOKEN] == token:
        return 0
    if states[state, MORE] <= MAX_DEGREE:
        return -1
    mask = table.size - 1
    slot = _slot(state, token, mask)
    found = -1
    while table[slot] != 0:
        edge = table[slot] - 1
        if edges[edge, SOURCE] == state and edges[edge, EDGE_TOKEN] == token:
            found = edge + 1
            break
        slot = (slot + 1) & mask
    return found


@inlined
def newest_further(states: Any, state: Any) -> Any:
    """A state's newest further edge, -1 if it has none."""
    return (states[state, MORE] >> DEGREE_BITS) - 1


@inlined
def target_of(states: Any, edges: Any, state: Any, edge: Any) -> Any:
    """Where an edge that `find` gave leads."""
    return states[state, TARGET] if edge == 0 else edges[edge - 1, EDGE_TARGET]


@inlined
def use_of(states: Any, edges: Any, state: Any, edge: Any) -> Any:
    """An edge's USE."""
    return states[state, USE] if edge == 0 else edges[edge - 1, EDGE_USE]


@inlined
def token_of(states: Any, edges: Any, state: Any, edge: Any) -> Any:
    """An edge's token."""
    return states[state, TOKEN] if edge == 0 else edges[edge - 1, EDGE_TOKEN]


@kernel
def rebuild(edges: Any, table: Any, count: int) -> None:
    """Fill an empty, larger `table` with `count` further edges."""
    mask = table.size - 1
    for edge in range(count):
        slot = _slot(edges[edge, SOURCE], edges[edge, EDGE_TOKEN], mask)
        while table[slot] != 0:
            slot = (slot + 1) & mask
        table[slot] = edge + 1


@kernel
def _add_edge(
    states: Any, edges: Any, table: Any, sizes: Any, source: Any, token: Any, target: Any, use: Any
) -> None:
    states[source, TOTAL] += use >> PATH_BITS
    more = states[source, MORE]
    degree = min((more & MAX_DEGREE) + 1, MAX_DEGREE)
    states[source, MORE] = more >> DEGREE_BITS << DEGREE_BITS | degree
    if states[source, TARGET] < 0:
        states[source, TOKEN] = token
        states[source, TARGET] = target
        states[source, USE] = use
        return
    edge = sizes[EDGES]
    sizes[EDGES] += 1
    edges[edge, SOURCE] = source
    edges[edge, EDGE_TOKEN] = token
    edges[edge, EDGE_TARGET] = target
    edges[edge, EDGE_USE] = use
    edges[edge, NEXT] = (more >> DEGREE_BITS) - 1
    states[source, MORE] = (edge + 1) << DEGREE_BITS | degree
    best = use_of(states, edges, source, states[source, BEST])
    if use >> PATH_BITS >= best >> PATH_BITS:
        states[source, BEST] = edge + 1
    mask = table.size - 1
    slot = _slot(source, token, mask)
    while table[slot] != 0:
        slot = (slot + 1) & mask
    table[slot] = edge + 1


@inlined
def _new_state(states: Any, sizes: Any, length: Any, link: Any) -> Any:
    state = sizes[STATES]
    sizes[STATES] += 1
    states[state, LENGTH] = length
    states[state, LINK] = link
    states[state, TOKEN] = 0
    states[state, TARGET] = -1
    states[state, USE] = 0
    states[state, TOTAL] = 0
    states[state, MORE] = 0
    states[state, BEST] = 0
    return state


@kernel
def _split(states: Any, edges: Any, table: Any, sizes: Any, source: Any, token: Any, target: Any) -> Any:
    """Give the contexts of `source` + `token` a state apart from that of `target`'s longer ones."""
    clone = _new_state(states, sizes, states[source, LENGTH] + 1, states[target, LINK])
    best = token_of(states, edges, target, states[target, BEST])
    if states[target, TARGET] >= 0:
        onto, after, use = states[target, TOKEN], states[target, TARGET], states[target, USE]
        _add_edge(states, edges, table, sizes, clone, onto, after, use)
    edge = newest_further(states, target)
    while edge >= 0:
        onto, after, use = edges[edge, EDGE_TOKEN], edges[edge, EDGE_TARGET], edges[edge, EDGE_USE]
        _add_edge(states, edges, table, sizes, clone, onto, after, use)
        edge = edges[edge, NEXT]
    if newest_further(states, clone) >= 0:
        states[clone, BEST] = find(states, edges, table, clone, best)
    states[target, LINK] = clone
    while source >= 0:
        edge = find(states, edges, table, source, token)
        if edge < 0 or target_of(states, edges, source, edge) != target:
            break
        if edge == 0:
            states[source, TARGET] = clone
        else:
            edges[edge - 1, EDGE_TARGET] = clone
        source = states[source, LINK]
    return clone


@inlined
def _count(states: Any, edges: Any, state: Any, edge: Any, weight: Any, path: Any) -> None:
    use = use_of(states, edges, state, edge)
    count = min((use >> PATH_BITS) + weight, MAX_COUNT)
    use = count << PATH_BITS | path
    if edge == 0:
        states[state, USE] = use
    else:
        edges[edge - 1, EDGE_USE] = use
    states[state, TOTAL] = min(states[state, TOTAL] + weight, MAX_COUNT)
    best = states[state, BEST]
    if edge != best and count >= use_of(states, edges, state, best) >> PATH_BITS:
        states[state, BEST] = edge


@inlined
def _further_edges(states: Any, edges: Any, state: Any) -> Any:
    count = 0
    edge = newest_further(states, state)
    while edge >= 0:
        count += 1
        edge = edges[edge, NEXT]
    return count


@kernel
def extend(
    states: Any, edges: Any, table: Any, sizes: Any, last: Any, token: Any, weight: Any, path: Any
) -> Any:
    """Append one token to the path that ends in `last`; the state in which it ends then.

    Nothing is changed where the arrays have no room for it. Then `-1 - n` comes back: there must be room
    for two states and n further edges.
    """
    needed = 0
    edge = np.int64(-1)
    stop = np.int64(last)
    while stop >= 0:
        edge = np.int64(find(states, edges, table, stop, token))
        if edge >= 0:
            break
        needed += states[stop, TARGET] >= 0
        stop = np.int64(states[stop, LINK])
    target = np.int64(-1)
    split = False
    if stop >= 0:
        target = np.int64(target_of(states, edges, stop, edge))
        split = states[target, LENGTH] != states[stop, LENGTH] + 1
        if split:
            needed += _further_edges(states, edges, target)
    if sizes[STATES] + STATES_PER_TOKEN > states.shape[0] or sizes[EDGES] + needed > edges.shape[0]:
        return np.int64(-1 - needed)

    end = np.int64(-1)
    if stop != last:
        end = np.int64(_new_state(states, sizes, states[last, LENGTH] + 1, ROOT))
        state = np.int64(last)
        while state != stop:
            _add_edge(states, edges, table, sizes, state, token, end, weight << PATH_BITS | path)
            state = np.int64(states[state, LINK])
    if stop >= 0:
        _count(states, edges, stop, edge, weight, path)
        if split:
            target = np.int64(_split(states, edges, table, sizes, stop, token, target))
        if end >= 0:
            states[end, LINK] = target
    return end if end >= 0 else target


@inlined
def strict(states: Any, edges: Any, table: Any, state: Any, token: Any) -> Any:
    """The state after `token`, or -1 where `state` is -1 or has not seen it."""
    after = -1
    if state >= 0:
        edge = find(states, edges, table, state, token)
        if edge >= 0:
            after = target_of(states, edges, state, edge)
    return after


@inlined
def seen_context(states: Any, state: Any) -> Any:
    """The longest context of `state` that was followed by anything; the root if none was."""
    while state > ROOT and states[state, TARGET] < 0:
        state = states[state, LINK]
    return state


def new_arrays(tokens: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """`states, edges, table, sizes` of an empty automaton with room for about `tokens`."""
    states = np.empty((STATES_PER_TOKEN * tokens + 2, STATE_FIELDS), np.int32)
    states[ROOT] = (0, -1, 0, -1, 0, 0, 0, 0)
    edges = np.empty((tokens, EDGE_FIELDS), np.int32)
    return states, edges, np.zeros(table_size(tokens), np.int32), np.array([1, 0], np.int32)


def table_size(edges: int) -> int:
    """Slots for so many further edges: a power of two, at most three quarters full."""
    return 1 << max(4, int(edges * 4 / 3).bit_length())
