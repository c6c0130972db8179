"""Waiting requests in the order of a policy: two heaps, O(log n) per push and pop.

Probes are ordered by generated tokens, groups by the rank of their first request, requests within a
group as the policy says. Entries are never searched: one that no longer holds is recognised when it
comes up, and dropped.
"""

import sys
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.state import Group, Request

WAITING = ("probes", "group")


class ReadyQueue:
    """Requests that could run now.

    Args:
        turns: numbers by which requests that began to wait are told apart; rising.
    """

    def __init__(
        self, policy: Policy, context: LengthContext, turns: Iterator[int] | None = None
    ) -> None:
        self._policy, self._context = policy, context
        self._probes: list[tuple[float, int, Request]] = []
        self._groups: list[tuple[float, int, int, Group]] = []
        self._turns: deque[tuple[int, Request]] = deque()
        """By when they began to wait; kept only where the policy's order is another."""
        self._numbers = turns or count(1)
        self._count = 0
        self._edition = context.edition
        self.least_need_tokens = sys.maxsize
        """No waiting request needs less KV: where there is less room, there is no use in looking."""

    def __len__(self) -> int:
        return self._count

    def push(self, request: Request) -> None:
        """Add a request that is in no place. One that was popped and comes back keeps its turn."""
        if not self._count:
            self.least_need_tokens = sys.maxsize
        self._count += 1
        self.least_need_tokens = min(self.least_need_tokens, request.need_tokens)
        if self._policy.guarded and not request.turn:
            self._take_turn(request)
        if request.is_probe and self._policy.probes_first:
            request.place = "probes"
            entry: tuple[str, float] = ("probes", request.generated_tokens)
            if request.listed != entry:
                request.listed = entry
                heappush(self._probes, (request.generated_tokens, request.seq, request))
                if len(self._probes) > 4 * self._count + 64:
                    self._drop_void_probes()
            return
        request.place = "group"
        group, key = request.group, self._policy.within(request)
        group.waiting_count += 1
        entry = ("group", key)
        if request.listed != entry:
            request.listed = entry
            heappush(group.waiting, (key, request.seq, request))
        self._list(group)

    def pop(self) -> Request | None:
        """Take the next request, or None when none waits."""
        while self._probes:
            key, _, request = heappop(self._probes)
            if request.listed == ("probes", key):
                request.listed = None
                if request.place == "probes":
                    return self._taken(request)
        if self._edition != self._context.edition:
            self._relist()
        while self._groups:
            _, _, entry, group = self._groups[0]
            first = self.first_of(group) if entry == group.entry else None
            if first is None:
                heappop(self._groups)
                if entry == group.entry:
                    group.listed_rank = None
                continue
            heappop(group.waiting)
            first.listed = None
            group.waiting_count -= 1
            self._taken(first)
            self._list(group)
            return first
        return None

    def pop_oldest(self) -> Request | None:
        """Take the request that has waited longest. Only where the policy is guarded."""
        tried: list[tuple[int, Request]] = []  # taken in this round, and may come back with their turns
        found = None
        while self._turns and found is None:
            turn, request = self._turns[0]
            if request.turn == turn and request.place in WAITING:
                found = request
                self.discard(request)
            elif request.turn == turn and request.place == "nowhere":
                tried.append(self._turns.popleft())
            else:
                self._turns.popleft()
        self._turns.extendleft(reversed(tried))
        return found

    def discard(self, request: Request) -> None:
        """Take one waiting request out of turn."""
        in_group = request.place == "group"
        self._taken(request)
        if in_group:
            request.group.waiting_count -= 1
            self._list(request.group)

    def first_of(self, group: Group) -> Request | None:
        """The group's request that would come next, left where it is."""
        waiting = group.waiting
        while waiting:
            key, _, request = waiting[0]
            if request.listed == ("group", key):
                if request.place == "group":
                    return request
                request.listed = None
            heappop(waiting)
        return None

    def rerank(self, group: Group) -> None:
        """Take notice that what is known of the group has changed."""
        group.listed_key = None
        self._list(group)

    def _list(self, group: Group) -> None:
        """See to it that the group is listed under its rank, if one of its requests waits.

        The rank depends on the request only through its key, so it is worked out for a new key only.
        """
        first = self.first_of(group)
        if first is None:
            return
        key = group.waiting[0][0]
        if key == group.listed_key and group.listed_rank is not None:
            return
        group.listed_key = key
        rank = self._policy.rank(self._context, first)
        if rank == group.listed_rank:
            return
        group.entry += 1
        group.listed_rank = rank
        heappush(self._groups, (rank, group.seq, group.entry, group))
        if len(self._groups) > 4 * self._count + 64:
            self._groups = [entry for entry in self._groups if entry[2] == entry[3].entry]
            heapify(self._groups)

    def _relist(self) -> None:
        """Rank all groups anew: what is common to them has changed."""
        self._edition = self._context.edition
        listed, self._groups = self._groups, []
        for _, _, entry, group in listed:
            if entry == group.entry:
                group.listed_rank = None
                self._context.refresh(group)
                self.rerank(group)

    def _drop_void_probes(self) -> None:
        """Those that were cancelled would stay for as long as others come before them."""
        listed, self._probes = self._probes, []
        for entry in listed:
            key, _, request = entry
            if request.listed == ("probes", key):
                if request.place == "probes":
                    self._probes.append(entry)
                else:
                    request.listed = None
        heapify(self._probes)

    def _take_turn(self, request: Request) -> None:
        request.turn = next(self._numbers)
        self._turns.append((request.turn, request))
        if len(self._turns) > 4 * self._count + 64:
            self._turns = deque(
                (turn, waiting)
                for turn, waiting in self._turns
                if waiting.turn == turn and (waiting.place in WAITING or waiting is request)
            )

    def _taken(self, request: Request) -> Request:
        request.place = "nowhere"
        self._count -= 1
        return request
