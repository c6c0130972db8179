"""Scheduling policies by name: a few plain functions and switches; the machine does the rest."""

from collections.abc import Callable

import msgspec

from seer_sgl.errors import StartError
from seer_sgl.router.core.context import estimated_tokens
from seer_sgl.router.core.placement import Place, balanced_prefix, group_home
from seer_sgl.router.core.state import Group, Request


class Policy(msgspec.Struct, frozen=True):
    """How waiting work is ordered, cut and placed."""

    name: str
    rank: Callable[[Group], int]
    """Groups with the smallest rank go first; ties by arrival."""
    place: Place
    divided: bool = True
    """Cut requests into chunks. Otherwise a request is one chunk, as long as it may get."""
    reserves: bool = True
    """Reserve the KV that a chunk may grow to, so that no engine ever has to preempt."""
    probes_first: bool = False
    """One request per group goes before all others, fewest generated tokens first."""
    pinned: bool = False
    """A group stays on the engine of its first dispatch."""


def arrival_order(group: Group) -> int:
    """First come, first served."""
    return group.seq


def longest_estimate_first(group: Group) -> int:
    """The paper's PICK_LFS: the group that is expected to take longest."""
    return -estimated_tokens(group)


def chunk_budget(policy: Policy, request: Request, chunk_tokens: int) -> int:
    """How many tokens the request's next chunk may bring."""
    if not policy.divided or not request.divisible:
        return request.remaining_tokens
    return min(chunk_tokens, request.remaining_tokens)


FIFO_GROUP = Policy("fifo_group", arrival_order, group_home, divided=False, reserves=False, pinned=True)
"""What a trainer without a rollout engine does: a whole group sent to one engine at once."""

DIVIDED = Policy("divided", arrival_order, balanced_prefix)
"""Chunks and KV budgets, in order of arrival."""

SEER = Policy("seer", longest_estimate_first, balanced_prefix, probes_first=True)
"""Probes first, then the group with the longest estimate."""

POLICIES = {policy.name: policy for policy in (FIFO_GROUP, DIVIDED, SEER)}


def policy_named(name: str) -> Policy:
    """The policy of that name.

    Raises:
        StartError: there is none; the message lists those there are.
    """
    if name not in POLICIES:
        raise StartError(f"no policy is called {name!r}; there are: {', '.join(POLICIES)}")
    return POLICIES[name]
