"""What may come next, and how likely: contexts of several lengths vote, own words count more.

Interpolation as in PPM (Cleary and Witten, 1984; the blended form of Bunton, 1997): the longest context
that was followed by anything answers first, and hands on to the next shorter one the share
`d / (n + d)`, d = ESCAPE * distinct tokens of n counted. What the request itself said last in a context
weighs more, and so does what a sibling said whose text differs in one token.

Rows of candidates, float64 [CANDIDATES] and int32 [CANDIDATES, 3]: likelihood; TOKEN, TARGET, FLAG.
"""

from typing import Any

import numpy as np

from seer_sgl.spec.automaton import (
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_USE,
    LINK,
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
)
from seer_sgl.spec.compiled import inlined, kernel

CANDIDATES = 96
PER_CONTEXT = 64
"""Tokens of one context that are looked at, the newest further edges first."""
C_TOKEN, C_TARGET, C_FLAG = range(3)
CANDIDATE_FIELDS = 3

ESCAPE = 2.0 * UNIT
OWN = 2.7
"""How much more what the request itself did last in the same context counts."""
NEAR_MISS = 3.0
"""Likewise, at most, what followed the token that a sibling had in the place of the request's."""
NEGLIGIBLE = 0.02
"""A share handed on below this ends the search for shorter contexts."""


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
        rows[n, C_FLAG] = own
        n += 1
    return n


@inlined
def _vote_context(
    states: Any,
    edges: Any,
    state: Any,
    carried: Any,
    last: Any,
    path: Any,
    likely: Any,
    rows: Any,
    n: Any,
) -> Any:
    """One context's votes: how many candidates there are then, and the share that it hands on."""
    distinct = 1
    edge = states[state, MORE]
    while edge >= 0 and distinct < PER_CONTEXT:
        distinct += 1
        edge = edges[edge, NEXT]
    total = states[state, TOTAL]
    escape = 0.0 if last else ESCAPE * distinct / (total + ESCAPE * distinct)
    unit = carried * (1.0 - escape) / total
    use = states[state, USE]
    own = np.int32((use & PATH_MASK) == path)
    share = unit * (use >> PATH_BITS)
    n = _vote(likely, rows, n, states[state, TOKEN], states[state, TARGET], own, share)
    edge = states[state, MORE]
    for _ in range(distinct - 1):
        use = edges[edge, EDGE_USE]
        own = np.int32((use & PATH_MASK) == path)
        share = unit * (use >> PATH_BITS)
        n = _vote(likely, rows, n, edges[edge, EDGE_TOKEN], edges[edge, EDGE_TARGET], own, share)
        edge = edges[edge, NEXT]
    return n, carried * escape


@inlined
def _favour_near_miss(states: Any, edges: Any, other: Any, likely: Any, rows: Any, n: Any) -> None:
    """Raise what was seen after the text with one token replaced."""
    total = states[other, TOTAL]
    edge = -1
    for _ in range(4):
        if edge < 0:
            token, use = states[other, TOKEN], states[other, USE]
            edge = states[other, MORE]
        else:
            token, use = edges[edge, EDGE_TOKEN], edges[edge, EDGE_USE]
            edge = edges[edge, NEXT]
        for at in range(n):
            if rows[at, C_TOKEN] == token:
                likely[at] *= 1.0 + NEAR_MISS * (use >> PATH_BITS) / total
        if edge < 0:
            break


@kernel
def score(
    states: Any, edges: Any, state: Any, other: Any, contexts: Any, path: Any, likely: Any, rows: Any
) -> int:
    """Fill the candidate rows with what may follow `state`; how many. Likelihoods sum to one.

    Args:
        other: the state that the text would be in with its last odd token replaced, -1 if there is none.
        contexts: how many contexts vote, the longest first.
    """
    n = 0
    carried = 1.0
    while state > ROOT and states[state, TARGET] < 0:
        state = states[state, LINK]
    while state > ROOT and contexts > 0 and carried > NEGLIGIBLE:
        contexts -= 1
        shorter = states[state, LINK]
        last = contexts == 0 or shorter <= ROOT
        n, carried = _vote_context(states, edges, state, carried, last, path, likely, rows, n)
        state = shorter
    for at in range(n):
        if rows[at, C_FLAG] == 1:
            likely[at] *= OWN
    if other >= 0 and states[other, TARGET] >= 0:
        _favour_near_miss(states, edges, other, likely, rows, n)
    total = 0.0
    for at in range(n):
        total += likely[at]
    for at in range(n):
        likely[at] /= total
    return n
