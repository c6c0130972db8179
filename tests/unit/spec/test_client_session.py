"""An engine and its draft servers without sockets: what is read, sent again, and left out."""

import numpy as np
import pytest

from seer_sgl.spec.sharing.answers import DraftServer
from seer_sgl.spec.sharing.exchange import exchange
from seer_sgl.spec.sharing.groups import WANTED, wire_name
from seer_sgl.spec.sharing.heads import AnswerHead, head_of
from seer_sgl.spec.sharing.logs import Batch
from seer_sgl.spec.sharing.messages import Answer, Call, answer_of, frames_of
from seer_sgl.spec.sharing.session import CALL_TOKENS, LEAVE_S, LOST_PAUSE_S, Session
from seer_sgl.spec.store import MIN_BUDGET_BYTES
from tests.unit.spec.engines import Clock, Engine, server, truth


def counter(engine: Engine, name: str) -> float:
    return engine.session.counters()[name]


def test_engines_read_each_other_and_not_themselves() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.generate("g", 1, 0, 5)
    b.generate("g", 2, 0, 3)
    b.generate("h", 1, 0, 3)
    for _ in range(3):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    assert a.has == {("g", 1): 5, ("g", 2): 3}, "a does not run h, and hears nothing of it"
    assert (a.read_tokens, b.read_tokens) == (3, 5)
    assert counter(a, "overlap_tokens") == counter(b, "overlap_tokens") == 0
    drafts.store.check()


def test_an_engine_without_work_is_silent() -> None:
    clock, a = Clock(), Engine()
    assert a.session.call(0, 0.0) is None
    a.session.register("g")
    a.talk(server(clock), clock)
    a.session.release("g", clock.now_s)
    assert a.session.call(0, 0.0) is None


def test_a_request_that_moves_on_is_whole_everywhere() -> None:
    clock, engines = Clock(), [Engine() for _ in range(3)]
    a, b, c = engines
    drafts = server(clock)
    c.session.register("g")
    c.talk(drafts, clock, 2)
    a.generate("g", 1, 0, 700)
    b.resume("g", 1, 700)
    b.generate("g", 1, 700, 705)
    b.talk(drafts, clock, 2)  # before a: its tokens leave a gap
    assert drafts.store.statistics().troubles["gap"] == 1
    for _ in range(3):
        for engine in engines:
            engine.talk(drafts, clock)
    assert [engine.has["g", 1] for engine in engines] == [705] * 3
    assert drafts.store.statistics().accepted_tokens == 705


def test_a_resumed_request_is_not_sent_again() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.generate("g", 1, 0, 700)
    a.talk(drafts, clock, 2)
    b.resume("g", 1, 700)
    b.generate("g", 1, 700, 705)
    b.talk(drafts, clock, 3)
    a.talk(drafts, clock)
    assert a.has["g", 1] == 705
    assert counter(b, "sent_tokens") == 5


def test_a_server_started_afresh_gets_everything_and_repeats_nothing() -> None:
    clock, a, b, late = Clock(), Engine(), Engine(), Engine()
    first = server(clock)
    for engine, request in ((a, 1), (b, 2)):
        engine.generate("g", request, 0, 600)
        engine.session.ended("g", request)
    for _ in range(3):
        a.talk(first, clock)
        b.talk(first, clock)
    second = server(clock)
    late.session.register("g")
    a.generate("g", 3, 0, 2)
    for _ in range(4):
        for engine in (a, b, late):
            engine.talk(second, clock)
    assert counter(a, "server_restarts") == 1
    assert late.has == a.has == b.has == {("g", 1): 600, ("g", 2): 600, ("g", 3): 2}
    assert a.read_tokens == 600, "what it had is left out"
    assert counter(a, "overlap_tokens") == 0


def test_a_lost_call_is_made_up_for() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.session.register("g")
    b.session.register("g")
    a.talk(drafts, clock)
    b.talk(drafts, clock)
    a.generate("g", 1, 0, 5)
    assert a.session.call(0, 0.0) is not None
    assert a.session.call(0, 0.0) is None, "one at a time"
    a.session.lost(0)
    a.talk(drafts, clock)
    b.talk(drafts, clock)
    assert b.has["g", 1] == 5
    assert counter(a, "lost_calls") == 1


def test_a_group_that_the_server_gave_up_comes_back() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.generate("g", 1, 0, 5)
    b.generate("g", 2, 0, 5)
    for _ in range(2):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    drafts.store.expire(1e9)
    a.generate("g", 1, 5, 6)
    a.talk(drafts, clock)
    b.talk(drafts, clock)
    assert a.session.call(0, clock.now_s) is None, "not at once: many would come together"
    clock.now_s = LOST_PAUSE_S
    for _ in range(3):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    assert a.has == b.has == {("g", 1): 6, ("g", 2): 5}
    assert counter(a, "lost_groups") == 1


def test_a_group_left_and_taken_up_again_is_read_from_its_beginning() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.generate("g", 1, 0, 5)
    b.generate("g", 2, 0, 4)
    for _ in range(3):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    a.session.release("g", clock.now_s)
    a.has.clear()
    a.session.register("g")
    a.talk(drafts, clock, 2)
    assert a.has == {("g", 1): 5, ("g", 2): 4}, "its own tokens too: it has forgotten them"


def test_the_last_tokens_of_a_group_that_is_left_get_through() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    for engine in (a, b):
        engine.session.register("g")
        engine.talk(drafts, clock)
    a.generate("g", 1, 0, 5)
    a.session.release("g", clock.now_s)
    a.talk(drafts, clock, 2)
    b.talk(drafts, clock)
    assert b.has == {("g", 1): 5}
    assert counter(a, "groups") == 0


def test_a_group_that_is_left_does_not_wait_for_a_dead_server() -> None:
    clock, a = Clock(), Engine()
    drafts = server(clock)
    a.session.register("g")
    a.talk(drafts, clock)
    a.generate("g", 1, 0, 5)
    a.session.release("g", clock.now_s)
    assert a.session.call(0, LEAVE_S) is None
    assert (counter(a, "groups"), counter(a, "dropped_tokens")) == (0, 5)


def test_bad_tokens_mute_their_request_alone() -> None:
    clock, a, b = Clock(), Engine(vocab_size=10), Engine()
    drafts = server(clock)
    b.session.register("g")
    for tokens in ([3, 10], [-1], [2**31 - 1]):
        a.session.append_one("g", 1, 0, tokens)
    a.session.append_one("g", 2, 0, [2**40])
    a.session.append_one("g", 3, 0, [1, 9])
    a.session.append_one("g", -1, 0, [1])
    a.session.append_one("g", 2**31, 0, [1])
    a.talk(drafts, clock, 2)
    assert drafts.store.statistics().accepted_tokens == 2
    assert (counter(a, "bad_tokens"), counter(a, "bad_requests")) == (1, 3)


def test_tokens_of_a_foreign_vocabulary_do_not_reach_the_sink() -> None:
    clock, a, b = Clock(), Engine(), Engine(vocab_size=10)
    drafts = server(clock)
    a.session.append_one("g", 1, 0, [10])
    a.session.append_one("h", 1, 0, [10])
    a.talk(drafts, clock, 2)
    for group in "gh":
        b.session.register(group)
    assert exchange(b.session, drafts) is None
    assert exchange(b.session, drafts) is None
    assert counter(b, "unreadable_records") == 2


def test_a_gap_of_the_engines_own_mutes_its_request() -> None:
    clock, a = Clock(), Engine()
    drafts = server(clock)
    a.session.append_one("g", 1, 0, [1])
    a.session.append_one("g", 1, 2, [3])
    a.session.append_one("g", 2, 7, [3])
    a.talk(drafts, clock, 3)
    assert drafts.store.statistics().accepted_tokens == 0, (
        "the second began late, and the server says so"
    )
    assert (counter(a, "gaps"), counter(a, "refused_updates")) == (1, 1)
    assert len(a.session.call(0, 0.0).updates) == 0  # type: ignore[union-attr]


def test_batches_that_do_not_fit_together_are_a_bug_of_the_caller() -> None:
    session = Session(1, MIN_BUDGET_BYTES, 0, 1.0)
    log = session.open("g", 1)
    good = Batch(*(np.array(a, np.int32) for a in ([log], [0], [0, 1], [5])))
    for field, value in (("prevs", []), ("starts", [0, 2]), ("starts", [-1, 1]), ("starts", [1, 0])):
        with pytest.raises(ValueError, match="do not fit together"):
            session.append(good._replace(**{field: np.array(value, np.int32)}))
    session.append(Batch(*(array.astype(np.int64) for array in good)))  # type: ignore[arg-type]
    assert session.counters()["appended_tokens"] == 1


def test_when_memory_is_short_ended_requests_are_forgotten_first() -> None:
    clock, a, b = Clock(), Engine(budget_bytes=MIN_BUDGET_BYTES), Engine()
    drafts = server(clock)
    tokens_of_half = MIN_BUDGET_BYTES // 8 - 1024
    a.generate("g", 1, 0, tokens_of_half)
    a.generate("g", 2, 0, tokens_of_half // 2)
    a.session.ended("g", 2)
    a.generate("g", 3, 0, tokens_of_half)
    b.session.register("g")
    for _ in range(4):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    assert set(b.has) == {("g", 1), ("g", 3)}
    assert counter(a, "dropped_tokens") == tokens_of_half // 2


def test_a_call_has_a_limit() -> None:
    clock, a = Clock(), Engine(budget_bytes=1 << 23)
    drafts = server(clock)
    a.session.register("g")
    a.talk(drafts, clock)
    a.generate("g", 1, 0, CALL_TOKENS + 10)
    first = a.session.call(0, 0.0)
    assert first is not None
    assert len(first.tokens) == CALL_TOKENS
    a.session.lost(0)
    a.talk(drafts, clock, 2)
    assert drafts.store.statistics().accepted_tokens == CALL_TOKENS + 10


def test_an_answer_to_another_call_is_refused() -> None:
    clock, a = Clock(), Engine()
    a.session.register("g")
    a.talk(server(clock), clock)
    none = np.empty((0, 3), np.int32)
    assert a.session.call(0, 0.0) is not None
    instance = a.session._instances[0]
    row = np.zeros((1, 3), np.int32)
    for registered, troubles, results in ((row, none, row), (none, row, row), (none, none, none)):
        answer = Answer(AnswerHead(instance=instance), registered, troubles, results, none.ravel())
        with pytest.raises(ValueError, match=r"answered|was not sent"):
            a.session.answered(0, answer, 0.0)


def test_groups_are_spread_over_servers_by_name_alone() -> None:
    clock, engines = Clock(), [Session(3, 1 << 22, 0, 60.0) for _ in range(2)]
    servers = [server(clock) for _ in range(3)]
    for index, session in enumerate(engines):
        for number in range(60):
            session.append_one(f"group {number}", index, 0, truth("g", index, 0, 2))
    for _ in range(3):
        for session in engines:
            for number, drafts in enumerate(servers):
                exchange(session, drafts, number=number)
    assert sum(drafts.store.statistics().groups for drafts in servers) == 60
    assert all(drafts.store.statistics().groups > 10 for drafts in servers)
    assert engines[0].counters()["received_tokens"] == 120


@pytest.mark.parametrize("name", ["", "g", "ü" * 100, "x" * 5000, "\ud800", "a\0b"])
def test_any_text_names_a_group(name: str) -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    a.generate(name, 1, 0, 2)
    b.session.register(name)
    for _ in range(2):
        a.talk(drafts, clock)
        b.talk(drafts, clock)
    assert b.has == {(name, 1): 2}
    assert len(wire_name(name).encode()) <= 1024


def test_an_answer_is_not_taken_for_another_group_or_request_of_the_same_number() -> None:
    clock, a, b = Clock(), Engine(), Engine()
    drafts = server(clock)
    b.session.register("h")
    b.talk(drafts, clock, 2)
    first = a.session.register("g")
    call = a.session.call(0, 0.0)
    assert call is not None
    a.session.release("g", 0.0)
    assert a.session.register("h") == first
    a.generate("h", 1, 0, 3)
    late(a.session, drafts, call)
    a.check()
    a.talk(drafts, clock, 2)
    b.talk(drafts, clock)
    assert b.has == {("h", 1): 3}, "g's place on the server is not h's"
    a.generate("h", 1, 3, 5)
    call = a.session.call(0, 0.0)
    assert call is not None
    a.session.groups.states[first] = WANTED
    a.session.release("h", 0.0)
    a.has.clear()
    assert a.session.register("h") == first
    a.generate("h", 2, 0, 9)
    late(a.session, drafts, call)
    a.check()
    a.talk(drafts, clock, 2)
    b.talk(drafts, clock)
    assert b.has == {("h", 1): 5, ("h", 2): 9}, "that request 1 got through says nothing of request 2"


def late(session: Session, drafts: DraftServer, call: Call) -> None:
    """The answer to a call, much having happened meanwhile."""
    frames = drafts.answer([bytes(frame) for frame in frames_of(call)])
    assert frames is not None
    plain = [bytes(frame) for frame in frames]
    head = head_of(plain)
    assert isinstance(head, AnswerHead)
    session.answered(0, answer_of(head, plain), 0.0)
