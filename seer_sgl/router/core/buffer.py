"""The request buffer: every live request and group, and which of them wait (the paper's name)."""

import sys
from itertools import count
from math import log

from seer_sgl.errors import IllegalEventError
from seer_sgl.router.core.chunks import chunk_plan_named
from seer_sgl.router.core.classes import ClassedQueue
from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.events import Submitted
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import GroupId, RequestId


class RequestBuffer:
    """Requests from their arrival until they are delivered; a group lives as long as one of its own."""

    def __init__(
        self, policy: Policy, settings: CoreSettings, context: LengthContext | None = None
    ) -> None:
        self.groups: dict[GroupId, Group] = {}
        self.requests: dict[RequestId, Request] = {}
        self._policy, self._chunk_tokens = policy, settings.chunk_tokens
        self._chunk_plan = chunk_plan_named(settings.chunk_plan)
        self.context = context or LengthContext()
        self.queue = ClassedQueue(policy, self.context)
        self.parked: dict[RequestId, Request] = {}
        """Requests that no present engine could hold; trying them again and again would cost every
        decision."""
        self.epoch = 0
        """Rises with the weights: KV of chunks of an earlier one is of no use."""
        self._seq = count()

    def forget_kv(self) -> None:
        """The weights have changed: nobody holds a prefix of anything. O(n)."""
        self.epoch += 1
        for request in self.requests.values():
            request.last_engine = request.begun_on = None
            request.begun_tokens = request.settled_tokens = request.asked_tokens = 0
            request.found_tokens, request.in_pool, request.lacks = None, True, False
        for group in self.groups.values():
            group.prompt_on.clear()
            group.prompt_in_pool = True

    def add(self, event: Submitted, now_s: float, begun_on: Engine | None = None) -> Request:
        """Let a new request wait. `begun_on`: the engine that holds the beginning of its prompt.

        Raises:
            IllegalEventError: its id is taken, or it has no prompt or asks for no token.
        """
        if event.request_id in self.requests:
            raise IllegalEventError(f"request {event.request_id!r} is already here")
        if event.prompt_tokens < 1 or event.max_new_tokens < 1:
            raise IllegalEventError(
                f"request {event.request_id!r} has {event.prompt_tokens} prompt tokens and asks for "
                f"{event.max_new_tokens}; both must be at least 1"
            )
        group = self.groups.get(event.group_id)
        if group is None:
            group = Group(event.group_id, next(self._seq), event.max_new_tokens, event.background)
            group.prompt_key = event.prompt_key
            self.context.recall(group)
            self.groups[event.group_id] = group
        request = Request(
            request_id=event.request_id,
            group=group,
            seq=next(self._seq),
            prompt_tokens=event.prompt_tokens,
            max_new_tokens=event.max_new_tokens,
            divisible=event.divisible,
            shared_tokens=sys.maxsize if event.shared_tokens is None else event.shared_tokens,
            begun_tokens=event.held_tokens,
            begun_on=begun_on,
        )
        group.live += 1
        if event.max_new_tokens > group.max_new_tokens:
            group.max_new_tokens = event.max_new_tokens
            self.queue.rerank(group)
        self.requests[event.request_id] = request
        self.wait(request, now_s)
        return request

    def wait(self, request: Request, now_s: float) -> None:
        """Put a request that is nowhere into the queue. The first one of a group becomes its probe."""
        group = request.group
        if self._policy.probes_first and group.probe is None and not group.finished_tokens:
            group.probe, request.is_probe = request, True
        request.ready_since_s, request.turn = now_s, 0
        request.budget_tokens = request.remaining_tokens
        if self._policy.divided and request.divisible:
            planned = self._chunk_plan(request, self._chunk_tokens)
            request.budget_tokens = min(planned, request.remaining_tokens)
        request.need_tokens = request.held_tokens + request.budget_tokens
        self.queue.push(request)

    def park(self, request: Request) -> None:
        """Set a request that is nowhere aside until `unpark`."""
        request.place = "parked"
        self.parked[request.request_id] = request

    def unpark(self) -> None:
        """Let all parked requests wait again: an engine has joined."""
        parked, self.parked = self.parked, {}
        for request in parked.values():
            request.place, request.turn = "nowhere", 0
            self.queue.push(request)

    def take(self, request: Request) -> None:
        """Take a request that is not in flight out of its place."""
        if self.parked.pop(request.request_id, None) is None:
            self.queue.discard(request)
        request.place = "nowhere"

    def record(self, chunk: Chunk, new_tokens: int, ended: bool) -> bool:
        """Note what a chunk brought. True where the sample is complete."""
        request = chunk.request
        group = request.group
        request.failures = 0
        request.generated_tokens += new_tokens
        if chunk.epoch == self.epoch:
            request.last_engine = chunk.engine
            group.prompt_on.add(chunk.engine)
        group.longest_tokens = max(group.longest_tokens, request.generated_tokens)
        complete = ended or request.remaining_tokens <= 0
        _count_underway(request, 0 if complete else request.generated_tokens)
        if complete and not request.cancelled:
            group.finished_tokens = max(group.finished_tokens, request.generated_tokens)
            group.finished_count += 1
            length = log(max(1, request.generated_tokens))
            group.finished_log_sum += length
            group.finished_log_squares += length * length
        if self._policy.learns:
            self.context.learn(group)
            group.listed_key = None
            if complete or request.is_probe or request.cancelled:
                self.queue.rerank(group)  # otherwise it is in a moment, when this request waits there
        return complete

    def forget(self, request: Request) -> None:
        """Drop a request that is in no place any more.

        A probe that was lost before it told anything leaves its part to the next one that waits.
        """
        group = request.group
        del self.requests[request.request_id]
        request.turn = 0
        _count_underway(request, 0)
        group.live -= 1
        if not group.live:
            del self.groups[group.group_id]
            self.context.remember(group)
        if group.probe is not request:
            return
        group.probe = None
        heir = None if group.finished_tokens else self.queue.first_of(group)
        if heir is not None:
            self.queue.discard(heir)
            group.probe, heir.is_probe = heir, True
            self.queue.push(heir)


def _count_underway(request: Request, tokens: int) -> None:
    """Count an unfinished sample under so many tokens in its group, and no longer under fewer."""
    underway, before = request.group.underway, request.counted_tokens
    request.counted_tokens = tokens
    if before:
        underway[before] -= 1
        if not underway[before]:
            del underway[before]
    if tokens:
        underway[tokens] = underway.get(tokens, 0) + 1
