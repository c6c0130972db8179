"""Whether a move waits for its KV, asked of `Moves` itself: by what was measured, and by what is known.

A request of 1,000 tokens of prompt has generated 1,000 in a chunk that ended at second 100 on `home`. It
could go to `other`, which holds none of it.
"""

from dataclasses import dataclass, field

import pytest

from seer_sgl.router.core.costs import TRIAL_AFTER
from seer_sgl.router.core.events import ChunkTiming
from seer_sgl.router.core.moves import Moves
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import ChunkId, GroupId, RequestId
from tests.unit.core.table import engine

END_S = 100.0
SLOW = ChunkTiming(computed_tokens=1_000, prefill_s=1.0)
"""A millisecond a token: 2 s for all."""


def an_engine(name: str) -> Engine:
    return Engine(engine(name), status="open")


@dataclass
class Move:
    """The request, the engines, and what is known of moves."""

    moves: Moves = field(default_factory=lambda: Moves(CoreSettings(settle_s=0.5)))
    home: Engine = field(default_factory=lambda: an_engine("home"))
    other: Engine = field(default_factory=lambda: an_engine("other"))
    request: Request = field(
        default_factory=lambda: Request(
            RequestId("g.0"), Group(GroupId("g"), 0, 9_999), 1, 1_000, 9_999, divisible=True
        )
    )

    def chunk(self, tokens: int, now_s: float) -> None:
        """One more chunk ends at home."""
        chunk = Chunk(ChunkId(1), self.request, self.home, tokens, 0, pool_life=self.moves.life)
        self.moves.ended(chunk, now_s)
        self.request.generated_tokens += tokens
        self.request.last_engine = self.home
        self.request.group.prompt_on.add(self.home)

    def busy(self, others: int) -> None:
        for number in range(others):
            self.other.chunks[ChunkId(number)] = Chunk(ChunkId(number), self.request, self.other, 1, 0)

    def plan(self, now_s: float) -> tuple[int, float]:
        return self.moves.plan(self.request, self.other, now_s)

    def ask(self, until_s: float, now_s: float) -> None:
        assert len(self.moves.ask(self.request, until_s, now_s)) == 1
        assert self.moves.ask(self.request, until_s, now_s) == [], "once is enough"


@pytest.fixture
def move() -> Move:
    move = Move()
    move.chunk(1_000, END_S)
    return move


def written_after(move: Move, seconds: float) -> None:
    """Writing 2,000 tokens takes so long, as many have shown."""
    move.moves.up = True
    for _ in range(50):
        move.moves.costs.written(2_000, seconds)


def test_until_computing_is_measured_it_waits_as_long_as_was_assumed(move: Move) -> None:
    assert move.plan(END_S) == (2_000, 100.5)
    assert move.plan(END_S + 0.2) == (2_000, 100.5)
    assert move.plan(END_S + 0.5) == (2_000, 0.0)


@pytest.mark.parametrize(
    ("prefill_s", "others", "waits"),
    [(0.24, 0, False), (0.26, 0, True), (0.02, 11, False), (0.02, 12, True)],
    ids=["computing is quicker", "waiting is quicker", "few others", "more others stand still"],
)
def test_it_waits_only_where_computing_again_costs_more(
    move: Move, prefill_s: float, others: int, waits: bool
) -> None:
    move.moves.costs.took(ChunkTiming(computed_tokens=1_000, prefill_s=prefill_s))
    move.busy(others)
    assert move.plan(END_S) == ((2_000, 100.5) if waits else (0, 0.0))


@pytest.mark.parametrize(("load_s", "waits"), [(1.4, True), (1.6, False)])
def test_what_loading_takes_counts_too(move: Move, load_s: float, waits: bool) -> None:
    move.moves.costs.took(SLOW)
    move.moves.costs.took(ChunkTiming(loaded_tokens=2_000, load_s=load_s))
    assert move.plan(END_S) == ((2_000, 100.5) if waits else (0, 0.0))


def test_it_waits_as_long_as_writing_takes_of_late(move: Move) -> None:
    move.moves.costs.took(SLOW)
    written_after(move, 1.5)
    assert move.plan(END_S) == pytest.approx((2_000, 101.55))
    assert move.plan(END_S + 1.5)[1] > END_S + 1.5
    assert move.plan(END_S + 1.6) == (2_000, 0.0), "it should be there by now"


def test_it_does_not_wait_for_longer_than_computing_takes(move: Move) -> None:
    written_after(move, 1.5)
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=1.51))
    assert move.plan(END_S) == pytest.approx((2_000, 101.51))


def test_a_pool_that_is_not_measured_is_tried_out(move: Move) -> None:
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=0.01))
    move.moves.up = True
    assert move.plan(END_S) == (2_000, 100.5)


def test_what_never_pays_is_tried_now_and_then(move: Move) -> None:
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=0.1))
    written_after(move, 1.5)
    plans = [move.plan(END_S) for _ in range(TRIAL_AFTER)]
    assert plans[:-1] == [(0, 0.0)] * (TRIAL_AFTER - 1)
    assert plans[-1] == pytest.approx((2_000, 100.1))


def test_only_what_the_last_chunk_left_is_waited_for(move: Move) -> None:
    """The tail of 400 tokens is too short for the pool, and what was there before is pulled."""
    move.chunk(400, 200.0)
    assert move.plan(200.0) == (2_000, 0.0)
    assert move.plan(200.5) == (2_400, 0.0)


def test_a_long_tail_is_weighed_and_the_rest_is_pulled(move: Move) -> None:
    move.chunk(600, 200.0)
    assert move.plan(200.0) == (2_600, 200.5)
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=1.0))
    assert move.plan(200.0) == (2_000, 0.0), "2,600 tokens would take longer, 600 do not"


def test_what_came_too_soon_after_another_chunk_is_not_counted_on(move: Move) -> None:
    move.chunk(600, END_S + 0.4)
    assert move.plan(END_S + 0.4) == pytest.approx((2_600, END_S + 0.9))


def test_an_answer_tells_what_is_there(move: Move) -> None:
    move.ask(100.5, END_S)
    assert not move.moves.found(None, 5, 100.1)
    assert move.moves.found(move.request, 1_200, 100.5)
    assert not move.moves.found(move.request, 1_999, 100.5), "it was answered"
    assert move.plan(100.5) == (1_200, 0.0)
    assert move.moves.costs.found_share < 1
    move.chunk(600, 110.0)
    assert move.plan(110.0) == (2_600, 110.5), "the next chunk's is another question"
    move.ask(110.5, 110.0)
    assert move.moves.found(move.request, 2_599, 110.2)
    assert move.plan(110.2) == (2_600, 0.0)


@pytest.mark.parametrize(("answered_s", "taken_s"), [(103.02, 1.0), (104.5, 4.5)])
def test_an_answer_at_once_does_not_tell_how_long_it_took(
    move: Move, answered_s: float, taken_s: float
) -> None:
    move.moves.costs.written(2_000, 1.0)
    move.ask(105.0, 103.0)
    assert move.moves.found(move.request, 2_000, answered_s)
    assert move.moves.costs.write.at(2_000) == pytest.approx((1.0 + taken_s) / 2)


def test_what_a_look_up_missed_is_not_taken_for_written_later(move: Move) -> None:
    move.ask(100.5, END_S)
    move.moves.found(move.request, 1_200, 100.5)
    move.chunk(100, 110.0)
    assert move.request.settled_tokens == 1_200
    assert move.plan(120.0) == (1_200, 0.0)
    elsewhere = Chunk(ChunkId(9), move.request, move.other, 100, 0, pool_life=move.moves.life)
    move.moves.ended(elsewhere, 120.0)
    assert move.request.settled_tokens == 2_100, "another engine computed it again"


def test_an_answer_before_the_patience_is_over_tells_nothing_of_writing(move: Move) -> None:
    """Nobody could look."""
    move.moves.up = True
    move.ask(100.5, END_S)
    assert move.moves.found(move.request, 0, 100.01)
    assert move.plan(100.01) == (0, 0.0)
    assert move.moves.costs.found_share == 1


def test_a_pool_that_never_has_it_is_tried_no_longer(move: Move) -> None:
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=0.4))
    move.moves.up = True
    move.ask(100.5, END_S)
    move.moves.found(move.request, 0, 100.5)
    move.chunk(600, 110.0)
    assert move.plan(110.0) == (0, 0.0)


def test_what_waits_for_an_answer_waits_on_wherever_it_would_go(move: Move) -> None:
    move.ask(100.5, END_S)
    move.moves.costs.took(ChunkTiming(computed_tokens=2_000, prefill_s=0.01))
    assert move.plan(100.1) == (2_000, 100.5)
    assert move.plan(100.5) == (2_000, 0.0)


@pytest.mark.parametrize(("up", "now_s", "pulled"), [(None, 200.1, 2_600), (True, 200.1, 2_000)])
def test_no_kv_comes_from_an_engine_that_is_gone(
    move: Move, up: bool | None, now_s: float, pulled: int
) -> None:
    """Where nobody can look, it may have come in time; else only what was there before is counted on."""
    move.chunk(600, 200.0)
    move.moves.up, move.home.status = up, "gone"
    assert move.plan(now_s) == (pulled, 0.0)
    assert move.plan(200.5) == (2_600, 0.0)


@pytest.mark.parametrize("up", [True, False, None])
def test_an_engine_that_has_nearly_all_pulls_nothing(move: Move, up: bool | None) -> None:
    move.moves.up = up
    assert move.moves.plan(move.request, move.home, END_S) == (0, 0.0)


def test_a_chunk_that_saw_the_pool_lose_all_leaves_nothing_there(move: Move) -> None:
    groups = [move.request.group]
    chunk = Chunk(ChunkId(9), move.request, move.home, 50, 0, pool_life=move.moves.life)
    move.moves.state(False, [move.request], groups)
    move.moves.state(True, [move.request], groups)
    move.moves.ended(chunk, 200.0)
    assert (move.request.in_pool, move.request.pooled_tokens) == (False, 0)
    elsewhere = Chunk(ChunkId(10), move.request, move.other, 50, 0, pool_life=move.moves.life)
    move.moves.ended(elsewhere, 300.0)
    assert move.request.in_pool, "another engine computed all of it, and wrote it"


def test_a_prompt_that_an_engine_had_before_is_not_written_again(move: Move) -> None:
    group = move.request.group
    group.prompt_on.add(move.other)
    move.moves.state(False, [move.request], [group])
    move.moves.state(True, [move.request], [group])
    move.moves.ended(Chunk(ChunkId(9), move.request, move.other, 5, 0, pool_life=move.moves.life), 200.0)
    assert not move.request.in_pool
    third = an_engine("third")
    move.moves.ended(Chunk(ChunkId(9), move.request, third, 5, 0, pool_life=move.moves.life), 300.0)
    assert move.request.in_pool
    assert group.prompt_in_pool


def test_that_nobody_could_look_tells_nothing_of_the_pool(move: Move) -> None:
    move.chunk(600, 200.0)
    before = move.request.settled_tokens
    move.ask(200.5, 200.0)
    assert move.moves.found(move.request, None, 200.5)
    assert move.plan(200.5) == (before, 0.0), "what was there before is pulled"
    assert (move.moves.costs.found_share, move.moves.costs.write.count) == (1.0, 0)
    assert move.moves.up is None


def test_of_a_page_that_is_not_full_nothing_can_be_found(move: Move) -> None:
    move.home = Engine(engine("home", page=4_096), status="open")
    move.chunk(600, 200.0)
    move.ask(200.5, 200.0)
    assert move.moves.found(move.request, 0, 200.1)
    assert move.plan(200.1) == (0, 0.0)
    assert not move.moves.costs.write.count


def test_what_was_freed_is_not_counted_on_until_it_is_computed_again(move: Move) -> None:
    request = move.request
    request.begun_tokens, request.begun_on = 900, move.other
    move.moves.began(request, held_in_pool=False)
    request.last_engine, request.group.prompt_on = None, set()
    assert request.pooled_tokens == 0
    move.moves.ended(Chunk(ChunkId(1), request, move.other, 9, 0, pool_life=move.moves.life), 200.0)
    assert not request.in_pool, "it had that already, and does not write it again"
    request.last_engine = move.other
    move.moves.ended(Chunk(ChunkId(2), request, move.home, 9, 0, pool_life=move.moves.life), 300.0)
    assert request.in_pool
