"""What may come next, and how likely: contexts of several lengths vote, own words count more.

Interpolation as in PPM (Cleary and Witten, 1984; the blended form of Bunton, 1997): the longest context
that was followed by anything answers first, and hands on to the next shorter one the share
`d / (n + d)`, d = ESCAPE * distinct tokens of n counted. What the request itself said last in a context
weighs more, and so does what a sibling said whose text differs in one token.

Rows of candidates, float64 [CANDIDATES] and int32 [CANDIDATES, 3]: likelihood; TOKEN, TARGET, OWN.
"""

from typing import Any

import numpy as np

from seer_sgl.spec.automaton import (
    BEST,
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_USE,
    LINK,
    MAX_DEGREE,
    MORE,
    NEXT,
    PATH_BITS,
    PATH_MASK,
    ROOT,
    TARGET,
    TOKEN,
    TOTAL,
    UNIT,
    USE,
    newest_further,
    use_of,
)
from seer_sgl.spec.compiled import inlined

CANDIDATES = 96
PER_CONTEXT = 64
"""Tokens of one context that are looked at, the newest further edges first."""
C_TOKEN, C_TARGET, C_OWN = range(3)
CANDIDATE_FIELDS = 3

ESCAPE = 2.0 * UNIT
OWN = 2.7
"""How much more what the request itself did last in the same context counts."""
NEAR_MISS = 3.0
"""Likewise, at most, what followed the token that a sibling had in the place of the request's."""
CONTEXTS = 3
"""Contexts that vote, the longest first; shorter ones hardly change a vote."""
SPARED = 0.6
"""Votes below this share of what is worth looking for are not counted: few candidates need two."""


@inlined
def _vote(likely: Any, rows: Any, n: Any, token: Any, target: Any, own: Any, share: Any) -> Any:
    """Add a share to a candidate; how many there are then."""
    at = 0
    while at < n and rows[at, C_TOKEN] != token:
        at += 1
    if at < n:
        likely[at] += share
    elif n < CANDIDATES:
        likely[n] = share
        rows[n, C_TOKEN] = token
        rows[n, C_TARGET] = target
        rows[n, C_OWN] = own
        n += 1
    return n


@inlined
def _vote_context(
    states: Any,
    edges: Any,
    state: Any,
    unit: Any,
    floor: Any,
    path: Any,
    likely: Any,
    rows: Any,
    n: Any,
) -> Any:
    """One context's votes, `unit` for each count. Those below `floor` are spared."""
    best = use_of(states, edges, state, states[state, BEST]) >> PATH_BITS
    if unit * best < floor:
        return n
    edge = newest_further(states, state)
    for _ in range(PER_CONTEXT - 1):
        if edge < 0:
            break
        use = edges[edge, EDGE_USE]
        share = unit * (use >> PATH_BITS)
        if share >= floor:
            own = np.int32((use & PATH_MASK) == path)
            n = _vote(likely, rows, n, edges[edge, EDGE_TOKEN], edges[edge, EDGE_TARGET], own, share)
        edge = edges[edge, NEXT]
    use = states[state, USE]
    share = unit * (use >> PATH_BITS)
    if share >= floor:
        own = np.int32((use & PATH_MASK) == path)
        n = _vote(likely, rows, n, states[state, TOKEN], states[state, TARGET], own, share)
    return n


@inlined
def _favour_near_miss(states: Any, edges: Any, other: Any, likely: Any, rows: Any, n: Any) -> None:
    """Raise what was seen after the text with one token replaced."""
    unit = NEAR_MISS / states[other, TOTAL]
    token, use = states[other, TOKEN], states[other, USE]
    edge = newest_further(states, other)
    for _ in range(4):
        for at in range(n):
            if rows[at, C_TOKEN] == token:
                likely[at] *= 1.0 + unit * (use >> PATH_BITS)
        if edge < 0:
            break
        token, use = edges[edge, EDGE_TOKEN], edges[edge, EDGE_USE]
        edge = edges[edge, NEXT]


@inlined
def score(
    states: Any,
    edges: Any,
    state: Any,
    other: Any,
    floor: Any,
    path: Any,
    likely: Any,
    rows: Any,
) -> int:
    """Fill the candidate rows with what may follow `state`; how many. Likelihoods sum to one at most.

    Args:
        other: the state that the text would be in with its last odd token replaced, -1 if there is none.
        floor: a likelihood that is not worth looking for.
    """
    n = 0
    left = CONTEXTS
    carried = 1.0
    floor *= SPARED
    while state > ROOT and states[state, TARGET] < 0:
        state = states[state, LINK]
    while state > ROOT and left > 0 and carried >= floor:
        left -= 1
        shorter = states[state, LINK]
        escape = 0.0
        if left > 0 and shorter > ROOT:
            distinct = ESCAPE * (states[state, MORE] & MAX_DEGREE)
            escape = distinct / (states[state, TOTAL] + distinct)
        unit = carried * (1.0 - escape) / states[state, TOTAL]
        n = _vote_context(states, edges, state, unit, floor, path, likely, rows, n)
        carried *= escape
        state = shorter
    raised = 0.0
    for at in range(n):
        if rows[at, C_OWN] == 1:
            raised += (OWN - 1.0) * likely[at]
            likely[at] *= OWN
    if other >= 0 and states[other, TARGET] >= 0:
        _favour_near_miss(states, edges, other, likely, rows, n)
        raised = -1.0
        for at in range(n):
            raised += likely[at]
        raised = max(0.0, raised)
    scale = 1.0 / (1.0 + raised)
    for at in range(n):
        likely[at] *= scale
    return n
