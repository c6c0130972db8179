"""Two queues: requests that somebody waits for, and those that are to be done some time (batches).

The second ones run where the first ones leave room. They do not starve: where the policy has a guard,
its turns go to the request that has waited longest, whichever it is.
"""

import sys
from itertools import count

from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.queue import ReadyQueue
from seer_sgl.router.core.state import Group, Request


class ClassedQueue:
    """As a `ReadyQueue`; the requests of a group are all of one class."""

    def __init__(self, policy: Policy, context: LengthContext) -> None:
        turns = count(1)
        self._online = ReadyQueue(policy, context, turns)
        self._background = ReadyQueue(policy, context, turns)

    def __len__(self) -> int:
        return len(self._online) + len(self._background)

    @property
    def least_need_tokens(self) -> int:
        """No waiting request needs less KV."""
        least = self._online.least_need_tokens if len(self._online) else sys.maxsize
        return min(least, self._background.least_need_tokens) if len(self._background) else least

    def push(self, request: Request) -> None:
        """Add a request that is in no place."""
        self._of(request.group).push(request)

    def pop(self) -> Request | None:
        """Take the next request, or None when none waits."""
        return self._online.pop() or self._background.pop()

    def pop_oldest(self) -> Request | None:
        """Take the request that has waited longest. Only where the policy is guarded."""
        found, other = self._online.pop_oldest(), self._background.pop_oldest()
        if found is None or other is None:
            return found or other
        if other.turn < found.turn:
            found, other = other, found
        self.push(other)
        return found

    def discard(self, request: Request) -> None:
        """Take one waiting request out of turn."""
        self._of(request.group).discard(request)

    def first_of(self, group: Group) -> Request | None:
        """The group's request that would come next, left where it is."""
        return self._of(group).first_of(group)

    def rerank(self, group: Group) -> None:
        """Take notice that what is known of the group has changed."""
        self._of(group).rerank(group)

    def _of(self, group: Group) -> ReadyQueue:
        return self._background if group.background else self._online
