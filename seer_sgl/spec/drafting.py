"""Drafts out of an automaton: a chain, or the most likely nodes of the tree of continuations.

Nodes of one draft, in the order in which they are worth verifying: int32 tokens, parents (-1 the root)
and depths (1 below the root), float32 confidences.
"""

from typing import Any

import numpy as np

from seer_sgl.spec.automaton import (
    BEST,
    PATH_BITS,
    ROOT,
    TOTAL,
    seen_context,
    strict,
    target_of,
    token_of,
    use_of,
)
from seer_sgl.spec.compiled import inlined, kernel
from seer_sgl.spec.scoring import C_TARGET, C_TOKEN, ESCAPE, score

VOTED_STEPS = 3
"""Steps of a chain that are voted on; what follows takes the longest context's word."""
LEAST_LIKELY = 0.01
"""Nodes below this are left out; they cost a row each and bring nothing."""
CHAIN_FLOOR = 0.1
"""The best of all candidates is hardly less likely than this."""
OFFERS = 1024
"""Nodes that one tree draft weighs at most."""
F_TOKEN, F_TARGET, F_PARENT, F_DEPTH = range(4)
FRONTIER_FIELDS = 4


@kernel
def draft_chain(
    states: Any, edges: Any, table: Any, state: Any, other: Any, path: Any, length: Any,
    likely: Any, rows: Any, tokens: Any, parents: Any, depths: Any, confidences: Any,
) -> int:  # fmt: skip
    """The most likely continuation, up to `length` tokens; how many there are. Arrays as below."""
    n = 0
    confidence = 1.0
    while n < length:
        if n < VOTED_STEPS:
            found = score(states, edges, state, other, CHAIN_FLOOR, path, likely, rows)
            if found == 0:
                break
            best = 0
            for at in range(1, found):
                if likely[at] > likely[best]:
                    best = at
            token = rows[best, C_TOKEN]
            state = rows[best, C_TARGET]
            confidence *= likely[best]
            other = strict(states, edges, table, other, token)
        else:
            state = seen_context(states, state)
            if state <= ROOT:
                break
            edge = states[state, BEST]
            token = token_of(states, edges, state, edge)
            confidence *= (use_of(states, edges, state, edge) >> PATH_BITS) / (
                states[state, TOTAL] + ESCAPE
            )
            state = target_of(states, edges, state, edge)
        tokens[n] = token
        parents[n] = n - 1
        depths[n] = n + 1
        confidences[n] = confidence
        n += 1
    return n


@inlined
def _offer(chance: Any, order: Any, head: Any, tail: Any, room: Any, slot: Any) -> Any:
    """Insert `slot` into `order[head:tail]`, kept by falling chance and cut to `room`; the new tail.

    A slot that falls off is not reused: slots are as many as offers can be.
    """
    if tail - head >= room:
        if chance[order[tail - 1]] >= chance[slot]:
            return tail
        tail -= 1
    at = tail
    while at > head and chance[order[at - 1]] < chance[slot]:
        order[at] = order[at - 1]
        at -= 1
    order[at] = slot
    return tail + 1


@kernel
def draft_tree(
    states: Any, edges: Any, table: Any, state: Any, other: Any, path: Any, nodes: Any, max_depth: Any,
    likely: Any, rows: Any, chance: Any, frontier: Any, order: Any, others: Any,
    tokens: Any, parents: Any, depths: Any, confidences: Any,
) -> int:  # fmt: skip
    """The `nodes` most likely nodes, best first, none deeper than `max_depth`; how many there are.

    Args:
        state, other, path: the text's state, its `near_miss`, and the number of its path.
        likely, rows: of `score`. chance, frontier: nodes on offer, OFFERS rows. order: OFFERS + nodes
            of these by chance. others: near misses of drafted nodes.
        tokens, parents, depths, confidences: get the draft.
    """
    n, offers, head, tail, node, depth = 0, 0, 0, 0, -1, 0
    root_other = other
    confidence = 1.0
    while True:
        if depth < max_depth:
            least = LEAST_LIKELY
            if tail - head >= nodes - n:
                least = max(least, chance[order[tail - 1]])
            found = score(states, edges, state, other, least / confidence, path, likely, rows)
            for at in range(found):
                reach = confidence * likely[at]
                if reach >= least and offers < chance.size:
                    chance[offers] = reach
                    frontier[offers, F_TOKEN] = rows[at, C_TOKEN]
                    frontier[offers, F_TARGET] = rows[at, C_TARGET]
                    frontier[offers, F_PARENT] = node
                    frontier[offers, F_DEPTH] = depth + 1
                    tail = _offer(chance, order, head, tail, nodes - n, offers)
                    offers += 1
        if head == tail or n >= nodes:
            break
        slot = order[head]
        head += 1
        parent, depth = frontier[slot, F_PARENT], frontier[slot, F_DEPTH]
        state, confidence = frontier[slot, F_TARGET], chance[slot]
        before = root_other if parent < 0 else others[parent]
        other = strict(states, edges, table, before, frontier[slot, F_TOKEN])
        tokens[n] = frontier[slot, F_TOKEN]
        parents[n], depths[n], confidences[n], others[n] = parent, depth, confidence, other
        node = n
        n += 1
    return n


@inlined
def near_miss(states: Any, edges: Any, table: Any, state: Any, other: Any, token: Any) -> Any:
    """Where the text with its last odd token replaced stands, once `token` was appended to `state`.

    If the best guess at `state` was another token, that guess replaces this one.
    """
    context = seen_context(states, state)
    after = np.int64(-1)
    best = states[context, BEST]
    if context > ROOT and token_of(states, edges, context, best) != token:
        after = np.int64(target_of(states, edges, context, best))
    else:
        after = np.int64(strict(states, edges, table, other, token))
    return after
