"""Kernels over many requests of many groups in one call: a step of an engine costs one dispatch.

`groups`: int64 [groups, VIEW_FIELDS], see `tree`. `paths`: int32 [paths, PATH_FIELDS], one row each.
"""

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from seer_sgl.spec.automaton import (
    EDGE_FIELDS,
    STATE_FIELDS,
    extend,
)
from seer_sgl.spec.compiled import inlined, kernel
from seer_sgl.spec.drafting import FRONTIER_FIELDS, OFFERS, draft_chain, draft_tree, near_miss
from seer_sgl.spec.scoring import CANDIDATE_FIELDS, CANDIDATES
from seer_sgl.spec.tree import LAST_USED

GROUP, STATE, OTHER, COUNT, NUMBER, WEIGHT, FOLLOWED = range(7)
"""A path's group (-1 once that is gone), its state, its near miss (`drafting.near_miss`), tokens so far,
number within the group, weight of its tokens, and whether drafts are asked for it here."""
PATH_FIELDS = 7


@intrinsic  # type: ignore[untyped-decorator]
def _at(typing_context: Any, address: Any) -> Any:
    """A pointer to int32 from its address."""
    signature = types.CPointer(types.int32)(types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return signature, generate


@inlined
def _arrays(groups: Any, group: Any) -> Any:
    states = carray(_at(groups[group, 0]), (groups[group, 4], STATE_FIELDS))
    edges = carray(_at(groups[group, 1]), (groups[group, 5], EDGE_FIELDS))
    table = carray(_at(groups[group, 2]), (groups[group, 6],))
    sizes = carray(_at(groups[group, 3]), (2,))
    return states, edges, table, sizes


@kernel
def append_batch(groups: Any, paths: Any, chosen: Any, starts: Any, tokens: Any, progress: Any) -> Any:
    """Append `tokens[starts[i]:starts[i + 1]]` to the path `chosen[i]`, for each i.

    `progress[0]` tokens are done already, and are left out. Tokens of paths without a group are dropped.

    Returns:
        -1 when all is done, else a group that needs room for `progress[1]` further edges at least, and
        for the states of a token. Call again then.
    """
    for i in range(chosen.size):
        path = chosen[i]
        group = paths[path, GROUP]
        if group < 0 or starts[i + 1] <= progress[0]:
            continue
        states, edges, table, sizes = _arrays(groups, group)
        state = np.int64(paths[path, STATE])
        other = np.int64(paths[path, OTHER])
        for at in range(max(starts[i], progress[0]), starts[i + 1]):
            token = tokens[at]
            after = extend(
                states, edges, table, sizes, state, token, paths[path, WEIGHT], paths[path, NUMBER]
            )
            if after < 0:
                progress[0] = at
                progress[1] = -1 - after
                paths[path, STATE] = state
                paths[path, OTHER] = other
                return np.int64(group)
            if paths[path, FOLLOWED]:
                other = near_miss(states, edges, table, state, other, token)
            state = after
            paths[path, COUNT] += 1
        paths[path, STATE] = state
        paths[path, OTHER] = other
    return -1


@kernel
def draft_batch(
    groups: Any, paths: Any, chosen: Any, nodes: Any, max_depth: Any, chains: Any, now: Any,
    starts: Any, tokens: Any, parents: Any, depths: Any, confidences: Any,
) -> None:  # fmt: skip
    """Draft up to `nodes[i]` nodes for the path `chosen[i]`, as a chain or a tree, one after another.

    `starts`, int32 [requests + 1], gets where each one's nodes lie in the four arrays of nodes.
    """
    most = 1
    for i in range(chosen.size):
        most = max(most, nodes[i])
    likely = np.empty(CANDIDATES, np.float64)
    rows = np.empty((CANDIDATES, CANDIDATE_FIELDS), np.int32)
    chance = np.empty(OFFERS, np.float64)
    frontier = np.empty((OFFERS, FRONTIER_FIELDS), np.int32)
    order = np.empty(OFFERS + most, np.int32)
    others = np.empty(most, np.int64)
    starts[0] = 0
    for i in range(chosen.size):
        path = chosen[i]
        group = paths[path, GROUP]
        at = starts[i]
        n = 0
        if group >= 0 and nodes[i] > 0:
            groups[group, LAST_USED] = now
            states, edges, table, _ = _arrays(groups, group)
            state, other = np.int64(paths[path, STATE]), np.int64(paths[path, OTHER])
            number = paths[path, NUMBER]
            if chains:
                n = draft_chain(
                    states, edges, table, state, other, number, min(nodes[i], max_depth), likely, rows,
                    tokens[at:], parents[at:], depths[at:], confidences[at:],
                )  # fmt: skip
            else:
                n = draft_tree(
                    states, edges, table, state, other, number, nodes[i], max_depth, likely, rows,
                    chance, frontier, order, others,
                    tokens[at:], parents[at:], depths[at:], confidences[at:],
                )  # fmt: skip
        starts[i + 1] = at + n
