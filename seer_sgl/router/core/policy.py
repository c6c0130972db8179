"""Scheduling policies by name: a few plain functions and switches; the machine does the rest."""

from collections.abc import Callable

import msgspec

from seer_sgl.errors import StartError
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.estimates import Estimate, longest_likely
from seer_sgl.router.core.placement import Place, balanced_prefix, group_home, least_loaded
from seer_sgl.router.core.state import Request

Rank = Callable[[LengthContext, Request], float]
"""Requests with the smallest rank go first; ties by arrival."""


class Policy(msgspec.Struct, frozen=True):
    """How waiting work is ordered, cut and placed."""

    name: str
    place: Place
    rank: Rank
    """Of the first request of each group, as `within` orders them."""
    within: Callable[[Request], float]
    """Order within a group, smallest first. It must not change while the request waits."""
    divided: bool = True
    """Cut requests into chunks. Otherwise a request is one chunk, as long as it may get."""
    reserves: bool = True
    """Reserve the KV that a chunk may grow to, so that no engine ever has to preempt."""
    probes_first: bool = False
    """One request per group goes before all others, fewest generated tokens first."""
    pinned: bool = False
    """A group stays on the engine of its first dispatch."""
    guarded: bool = False
    """Other than by arrival: the longest waiting request is let through now and then."""
    learns: bool = False
    """The rank depends on what finished and running samples have shown."""


def by_arrival(_context: LengthContext, request: Request) -> float:
    """First come, first served: groups in the order of their arrival."""
    return request.group.seq


def seq_within(request: Request) -> float:
    """In the order of arrival."""
    return request.seq


def fewest_generated(request: Request) -> float:
    """The one with the longest way to go first."""
    return request.generated_tokens


def seer(estimate: Estimate = longest_likely, name: str = "seer") -> Policy:
    """Probes first, then what is estimated to take longest (the paper's PICK_SFS and PICK_LFS)."""
    return Policy(
        name,
        balanced_prefix,
        rank=lambda context, request: -estimate(context, request),
        within=fewest_generated,
        probes_first=True,
        guarded=True,
        learns=True,
    )


FIFO_GROUP = Policy(
    "fifo_group", group_home, by_arrival, seq_within, divided=False, reserves=False, pinned=True
)
"""What a trainer without a rollout engine does: a whole group sent to one engine at once."""

LEAST_LOADED = Policy(
    "least_loaded", least_loaded, by_arrival, seq_within, divided=False, reserves=False
)
"""What a stock router does: each request at once to the engine that runs fewest."""

DIVIDED = Policy("divided", balanced_prefix, by_arrival, seq_within)
"""Chunks and KV budgets, in order of arrival."""

POLICIES = {policy.name: policy for policy in (FIFO_GROUP, LEAST_LOADED, DIVIDED, seer())}


def policy_named(name: str, estimate: Estimate | None = None) -> Policy:
    """The policy of that name; where it uses a length estimate, with the given one.

    Raises:
        StartError: there is none; the message lists those there are.
    """
    if name not in POLICIES:
        raise StartError(f"no policy is called {name!r}; there are: {', '.join(POLICIES)}")
    if estimate is not None and POLICIES[name].probes_first:
        return seer(estimate, name)
    return POLICIES[name]
