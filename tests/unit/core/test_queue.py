"""The queue of waiting requests against a list that is searched."""

import sys
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.router.core.context import LengthContext
from seer_sgl.router.core.placement import least_loaded
from seer_sgl.router.core.policy import Policy
from seer_sgl.router.core.queue import ReadyQueue
from seer_sgl.router.core.state import Group, Request
from seer_sgl.types import GroupId, RequestId


class Pair:
    """A queue and its model, told the same. All that waits is in `waiting`, the longest first."""

    def __init__(self, groups: int, probes: bool, guarded: bool) -> None:
        self.context = LengthContext()
        self.sign = 1
        self.scores = dict.fromkeys(range(groups), 0)
        policy = Policy(
            "table",
            least_loaded,
            rank=lambda _context, request: self.rank(request),
            within=lambda request: -request.generated_tokens % 10,
            probes_first=probes,
            guarded=guarded,
        )
        self.policy = policy
        self.queue = ReadyQueue(policy, self.context)
        self.groups = [Group(GroupId(str(n)), n, 100) for n in range(groups)]
        self.waiting: list[Request] = []
        self.away: list[Request] = []
        self.count = 0

    def rank(self, request: Request) -> float:
        """May change with the group's score, with what is common, and with the key of the first."""
        score = self.scores[int(request.group.group_id)]
        return self.sign * score + 3 * self.policy.within(request)

    # ---- the model ----

    def next(self) -> Request | None:
        waiting = self.waiting
        probes = [r for r in waiting if r.is_probe] if self.policy.probes_first else []
        if probes:
            return min(probes, key=lambda r: (r.generated_tokens, r.seq))
        by_group = [[r for r in waiting if r.group is group] for group in self.groups]
        firsts = [min(rs, key=lambda r: (self.policy.within(r), r.seq)) for rs in by_group if rs]
        return min(firsts, key=lambda r: (self.rank(r), r.group.seq), default=None)

    def check(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.least_need_tokens <= min(
            (r.need_tokens for r in self.waiting), default=sys.maxsize
        )
        for group in self.groups:
            listed = [r for r in self.waiting if r.group is group and r.place == "group"]
            assert group.waiting_count == len(listed)
            first = min(listed, key=lambda r: (self.policy.within(r), r.seq), default=None)
            assert self.queue.first_of(group) is first

    # ---- what may happen ----

    def new(self, which: int, generated: int, need: int) -> None:
        self.count += 1
        group = self.groups[which % len(self.groups)]
        name = RequestId(str(self.count))
        request = Request(name, group, self.count, 1, 100, True, generated, need_tokens=need)
        if group.probe is None:
            group.probe, request.is_probe = request, True
        self._push(request)

    def back(self, which: int, brought: int, need: int) -> None:
        """A chunk of one that was popped has ended; with 0 it has failed."""
        if self.away:
            request = self.away.pop(which % len(self.away))
            request.generated_tokens += brought
            request.need_tokens, request.turn = need, 0
            self._push(request)

    def _push(self, request: Request) -> None:
        self.queue.push(request)
        self.waiting.append(request)

    def round(self, tries: list[tuple[bool, bool]]) -> None:
        """Take requests, some as the oldest; those that are not kept come back with their turns."""
        blocked: list[tuple[int, Request]] = []
        before = list(self.waiting)
        for wanted, kept in tries:
            oldest = wanted and self.policy.guarded
            expected = self.next() if not oldest else (self.waiting[0] if self.waiting else None)
            request = self.queue.pop_oldest() if oldest else self.queue.pop()
            assert request is expected
            if request is None:
                break
            assert request.place == "nowhere"
            self.waiting.remove(request)
            if kept:
                request.place = "in_flight"
                self.away.append(request)
            else:
                blocked.append((before.index(request), request))
            self.check()
        for _, request in blocked:
            self.queue.push(request)
            self.waiting.append(request)
        self.waiting.sort(key=before.index)

    def drop(self, which: int) -> None:
        """One that waits is cancelled; its group's next one becomes the probe."""
        if not self.waiting:
            return
        request = self.waiting.pop(which % len(self.waiting))
        self.queue.discard(request)
        request.turn = 0
        group = request.group
        if group.probe is not request:
            return
        group.probe = heir = self.queue.first_of(group)
        if heir is not None:
            self.queue.discard(heir)
            heir.is_probe = True
            self.queue.push(heir)

    def score(self, which: int, score: int) -> None:
        group = self.groups[which % len(self.groups)]
        self.scores[group.seq] = score
        self.queue.rerank(group)

    def common(self) -> None:
        self.sign = -self.sign
        self.context.edition += 1

    def tell(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])
        self.check()

    def drain(self) -> None:
        while self.waiting:
            expected = self.next()
            assert self.queue.pop() is expected
            assert expected is not None
            self.waiting.remove(expected)
        assert self.queue.pop() is None
        assert not self.policy.guarded or self.queue.pop_oldest() is None
        assert not len(self.queue)


few, tokens = st.integers(0, 9), st.integers(0, 30)
steps = st.one_of(
    *[st.tuples(st.just("new"), few, st.sampled_from([0, 0, 3, 12]), st.integers(1, 50))] * 2,
    st.tuples(st.just("back"), few, tokens, st.integers(1, 50)),
    st.tuples(st.just("round"), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=5)),
    st.tuples(st.just("drop"), few),
    st.tuples(st.just("score"), few, st.integers(-9, 9)),
    st.tuples(st.just("common")),
)


@settings(max_examples=250, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(steps, min_size=10, max_size=60))
def test_the_queue_gives_what_a_search_through_all_gives(
    probes: bool, guarded: bool, told: list[tuple[Any, ...]]
) -> None:
    pair = Pair(4, probes, guarded)
    for step in told:
        pair.tell(step)
    pair.drain()


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("drops", [0.0, 0.3])
def test_under_constant_load_no_list_grows(guarded: bool, drops: float) -> None:
    """Some 60 wait all the time, in groups that stay, and those with most tokens never get a turn."""
    random, pair = Random(3), Pair(6, probes=True, guarded=guarded)
    queue, most = pair.queue, 0
    for number in range(6_000):
        if number % 10 == 0:
            for group in pair.groups:  # groups that come get probes, as those that go leave theirs
                group.probe = None
        while len(pair.waiting) < 60:
            pair.new(random.randrange(6), random.choice([0, 5, 9_000]), 1)
        if random.random() < drops:
            pair.drop(random.randrange(60))
        elif guarded and random.random() < 0.05:
            pair.round([(True, True)])
        else:
            request = queue.pop()
            assert request is not None
            pair.waiting.remove(request)
        pair.away.clear()
        pair.score(random.randrange(6), random.randrange(99))
        if number % 50 == 0:
            pair.common()
        entries = len(queue._probes) + len(queue._groups) + len(queue._turns)
        most = max(most, entries + sum(len(group.waiting) for group in pair.groups))
    assert most < 20 * 60 + 4 * 64


def test_what_is_cancelled_while_nothing_runs_leaves_no_trace() -> None:
    """With no room nothing is popped, and clients come and go."""
    pair = Pair(3, probes=True, guarded=True)
    for number in range(3_000):
        pair.new(number, 0, 1)
        pair.drop(0)
    queue = pair.queue
    entries = len(queue._probes) + len(queue._groups) + len(queue._turns)
    assert entries + sum(len(group.waiting) for group in pair.groups) < 300


def test_what_is_ranked_again_and_again_while_nothing_runs_leaves_no_trace() -> None:
    pair = Pair(3, probes=False, guarded=False)
    for number in range(3):
        pair.new(number, 0, 1)
    for number in range(3_000):
        pair.score(number, number)
    assert len(pair.queue._groups) < 100
    pair.drain()


def test_the_least_need_starts_anew_when_all_have_gone() -> None:
    pair = Pair(2, probes=False, guarded=False)
    pair.new(0, 0, 5)
    pair.new(0, 0, 90)
    pair.drop(0)
    assert pair.queue.least_need_tokens <= 90
    pair.drop(0)
    pair.new(0, 0, 70)
    assert pair.queue.least_need_tokens == 70
