"""Waiting requests in the order of a policy: two heaps, O(log n) per push and pop.

Probes are ordered by generated tokens, groups by the policy's rank, requests within a group by arrival.
Entries are never searched: one that no longer holds is recognised when it comes up, and dropped.
"""

from heapq import heappop, heappush

from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.state import Group, Request


class ReadyQueue:
    """Requests that could run now."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._probes: list[tuple[int, int, Request]] = []
        self._groups: list[tuple[int, int, int, Group]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, request: Request) -> None:
        """Add a request that is in no place."""
        self._count += 1
        if request.is_probe and self._policy.probes_first:
            request.place = "probes"
            heappush(self._probes, (request.generated_tokens, request.seq, request))
            return
        request.place = "group"
        group = request.group
        heappush(group.waiting, (request.seq, request))
        group.waiting_count += 1
        self.reorder(group)

    def pop(self) -> Request | None:
        """Take the next request, or None when none waits."""
        while self._probes:
            request = heappop(self._probes)[2]
            if request.place == "probes":
                return self._taken(request)
        while self._groups:
            _, _, entry, group = self._groups[0]
            if entry != group.entry or not group.waiting_count:
                heappop(self._groups)
                if entry == group.entry:
                    group.listed_rank = None
                continue
            request = heappop(group.waiting)[1]
            if request.place == "group":
                group.waiting_count -= 1
                return self._taken(request)
        return None

    def discard(self, request: Request) -> None:
        """Take one waiting request out of turn."""
        if request.place == "group":
            request.group.waiting_count -= 1
        self._taken(request)

    def first_of(self, group: Group) -> Request | None:
        """The group's request that would come next, left where it is."""
        while group.waiting:
            request = group.waiting[0][1]
            if request.place == "group":
                return request
            heappop(group.waiting)
        return None

    def reorder(self, group: Group) -> None:
        """Take notice that the group's rank may have changed."""
        if not group.waiting_count:
            return
        rank = self._policy.rank(group)
        if rank == group.listed_rank:
            return
        group.entry += 1
        group.listed_rank = rank
        heappush(self._groups, (rank, group.seq, group.entry, group))

    def _taken(self, request: Request) -> Request:
        request.place = "nowhere"
        self._count -= 1
        return request
