"""Engines and draft servers under anything: what is read is true and comes once; nothing ends them."""

import random
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seer_sgl.spec.sharing.heads import AnswerHead, Rejected, Statistics, encode, head_of
from seer_sgl.spec.sharing.messages import answer_of
from seer_sgl.spec.sharing.session import LOST_PAUSE_S
from seer_sgl.spec.store import MIN_BUDGET_BYTES
from tests.unit.spec.engines import Clock, Engine, server

GROUPS = ("g", "h", "i")
ENGINES = 3


class World:
    """Requests that move between engines, a server that is replaced, calls that get lost."""

    def __init__(self, seed: int, budget_bytes: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.budget_bytes = budget_bytes
        self.server = server(self.clock, budget_bytes)
        self.engines = [Engine() for _ in range(ENGINES)]
        self.lengths: dict[tuple[str, int], int] = {}
        self.homes: dict[tuple[str, int], int] = {}
        for engine in self.engines:
            for group in GROUPS:
                engine.session.register(group)

    def step(self) -> None:
        """Something happens."""
        pick = self.random.random()
        if pick < 0.5:
            self.generate()
        elif pick < 0.9:
            self.random.choice(self.engines).talk(self.server, self.clock)
        elif pick < 0.95:
            engine = self.random.choice(self.engines)
            engine.session.call(0, self.clock.now_s)
            engine.session.lost(0)
        elif pick < 0.97:
            self.server = server(self.clock, self.budget_bytes)
        elif pick < 0.98:
            self.server.store.expire(1e9)
        else:
            engine = self.random.choice(self.engines)
            if engine.session.call(0, self.clock.now_s):  # its answer comes after it was given up
                engine.session.lost(0)
            group = self.random.choice(GROUPS)
            if not any(self.homes[key] == self.engines.index(engine) for key in self.homes):
                engine.session.release(group, self.clock.now_s)
                engine.session.register(group)
                engine.has = {key: n for key, n in engine.has.items() if key[0] != group}
        self.clock.now_s += self.random.choice((0.0, 0.05, LOST_PAUSE_S))

    def generate(self) -> None:
        key = self.random.choice(GROUPS), self.random.randrange(4)
        length = self.lengths.get(key, 0)
        home = self.homes.get(key)
        if home is None or self.random.random() < 0.1:
            home = self.homes[key] = self.random.randrange(ENGINES)
            self.engines[home].resume(*key, length)
        count = self.random.choice((1, 3, 700))
        self.engines[home].generate(*key, length, length + count)
        self.lengths[key] = length + count

    def settle(self) -> None:
        """Everything gets through."""
        for _ in range(12):
            for engine in self.engines:
                engine.talk(self.server, self.clock)
            self.clock.now_s += LOST_PAUSE_S


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_every_engine_reads_all_that_is_true_once_and_in_order(seed: int) -> None:
    world = World(seed, 1 << 24)
    for _ in range(120):
        world.step()
        world.server.store.check()
    world.settle()
    for engine in world.engines:
        assert engine.has == world.lengths
    assert world.server.counters()["crashes"] == 0


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_too_little_memory_loses_tokens_and_tells_no_lies(seed: int) -> None:
    world = World(seed, MIN_BUDGET_BYTES)
    for _ in range(120):
        world.step()  # every engine checks what it reads
        world.server.store.check()
    assert world.server.counters()["crashes"] == 0


FRAME = st.binary(max_size=100) | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(
    lambda numbers: b"".join(number.to_bytes(4, "little", signed=True) for number in numbers)
)
SMALL = st.integers(-2, 4)
ROW = st.tuples(*[SMALL] * 6).map(list)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head that is nearly right."""
    fields = {
        "protocol": draw(st.sampled_from([1, 1, 1, 2, "x"])),
        "type": draw(st.sampled_from(["CallHead", "CallHead", "AskStatistics", "AnswerHead", "No"])),
        "instance": draw(st.sampled_from(["right", "wrong", 3])),
        "ttl_s": draw(st.floats(allow_nan=True) | st.just(1.0)),
        "vocab_size": draw(st.integers(-1, 2**31)),
        "names": draw(st.lists(st.text(max_size=3), max_size=3)),
    }
    return msgspec.msgpack.encode(fields)


@given(calls=st.lists(st.tuples(heads() | FRAME, st.lists(FRAME, max_size=5)), max_size=8))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_no_frames_end_a_server(calls: list[tuple[bytes, list[bytes]]]) -> None:
    drafts = server(Clock(), MIN_BUDGET_BYTES)
    drafts.instance = "right"
    for head, frames in calls:
        answer = drafts.answer([head, *frames])
        assert answer is not None
        assert isinstance(head_of([bytes(answer[0])]), AnswerHead | Rejected | Statistics)
        drafts.store.check()
    assert drafts.counters()["crashes"] == 0


@given(rows=st.lists(ROW, max_size=12), tokens=st.lists(SMALL, max_size=40), fetches=st.lists(ROW))
@settings(max_examples=200)
def test_no_numbers_end_a_server(
    rows: list[list[int]], tokens: list[int], fetches: list[list[int]]
) -> None:
    drafts = server(Clock(), MIN_BUDGET_BYTES)
    for name in "abc":
        drafts.store.register_group(name, 1.0, 4, 0.0)
    left = list(tokens)
    for row in rows:
        row[5] = min(abs(row[5]), len(left))
        left = left[row[5] :]
    used = tokens[: len(tokens) - len(left)]
    tables: list[Any] = [rows, used, [[*fetch[:4], 0] for fetch in fetches], []]
    head = msgspec.msgpack.encode(
        {"protocol": 1, "type": "CallHead", "instance": drafts.instance}
        | {"ttl_s": 1.0, "vocab_size": 4, "names": []}
    )
    answer = drafts.answer([head, *(_int32(table) for table in tables)])
    assert answer is not None
    assert isinstance(head_of([bytes(answer[0])]), AnswerHead)
    drafts.store.check()
    assert drafts.counters()["crashes"] == 0


def _int32(table: list[int] | list[list[int]]) -> bytes:
    numbers = [n for row in table for n in (row if isinstance(row, list) else [row])]
    return b"".join(number.to_bytes(4, "little", signed=True) for number in numbers)


@given(frames=st.lists(FRAME, min_size=4, max_size=4))
@settings(max_examples=100)
def test_no_answer_harms_an_engine(frames: list[bytes]) -> None:
    clock, engine = Clock(), Engine(vocab_size=100)
    drafts = server(clock)
    engine.generate("g", 1, 0, 0)
    engine.talk(drafts, clock, 2)
    call = engine.session.call(0, clock.now_s)
    assert call is not None
    head = AnswerHead(instance=drafts.instance)
    try:
        answer = answer_of(head, [encode(head), *frames])
        records = engine.session.answered(0, answer, clock.now_s)
    except ValueError:
        engine.session.lost(0)
        records = None
    if records is not None:
        assert all(0 <= token < 100 for token in records.tokens.tolist())
    engine.check()
