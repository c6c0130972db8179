"""The fleet's indexes against a look at every engine, over many changes."""

from random import Random

import pytest

from seer_sgl.router.core.buffer import RequestBuffer
from seer_sgl.router.core.check import check_state
from seer_sgl.router.core.fleet import LOOKS, Fleet
from seer_sgl.router.core.policy import DIVIDED
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import ChunkId, EngineId, GroupId, RequestId
from tests.unit.core.table import engine

SOMEBODY = Request(RequestId("g.0"), Group(GroupId("g"), 0, 1), 1, 1, 1, divisible=True)


class Churn:
    """Chunks and engines that come and go at random."""

    def __init__(self, seed: int, engines: int) -> None:
        self.random = Random(seed)
        self.fleet = Fleet(draft_tokens=7)
        self.most = engines
        self.chunks: dict[ChunkId, Chunk] = {}
        self.count = 0

    def change(self) -> None:
        engines = list(self.fleet.engines.values())
        if len(engines) < self.most and self.random.random() < 0.3:
            self._join()
        elif self.chunks and self.random.random() < 0.45:
            self._release(self.random.choice(list(self.chunks.values())))
        elif engines and self.random.random() < 0.02:
            gone = self.random.choice(engines)
            for chunk in list(gone.chunks.values()):
                self._release(chunk)
            self.fleet.leave(gone)
        elif engines:
            self._take(self.random.choice(engines), self.random.randrange(1, 900))

    def _join(self) -> None:
        self.count += 1
        kv, page = self.random.randrange(500, 2_000), self.random.choice([1, 16, 64])
        self.fleet.join(engine(f"e{self.count}", kv, page, slots=self.random.randrange(2, 9)))

    def _take(self, it: Engine, tokens: int) -> None:
        if it.fits(tokens):
            self.count += 1
            chunk = Chunk(ChunkId(self.count), SOMEBODY, it, 1, it.reservation_for(tokens))
            self.chunks[chunk.chunk_id] = chunk
            self.fleet.take(chunk)

    def _release(self, chunk: Chunk) -> None:
        del self.chunks[chunk.chunk_id]
        self.fleet.release(chunk)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_fleet_finds_is_what_a_look_at_every_engine_finds(seed: int) -> None:
    churn = Churn(seed, engines=3 * LOOKS)
    fleet = churn.fleet
    for _ in range(1_500):
        churn.change()
        engines = list(fleet.engines.values())
        assert fleet.room_tokens() == max((e.room_now() for e in engines), default=0)
        need = churn.random.randrange(1, 2_100)
        assert fleet.could_hold(need) == any(e.could_hold(need) for e in engines)
        able = [e for e in engines if e.fits(need)]
        first = sorted(engines, key=lambda e: (e.load, e.number))[:LOOKS]
        expected = next((e for e in first if e.fits(need)), None)
        if expected is None and able:
            expected = min(able, key=lambda e: (-e.room_tokens, len(e.chunks), e.number))
        assert fleet.least_loaded(need) is expected
    buffer = RequestBuffer(DIVIDED, CoreSettings())
    for chunk in list(churn.chunks.values()):
        churn.chunks.pop(chunk.chunk_id)
        fleet.release(chunk)
    check_state(fleet, {}, buffer, reserves=True)


@pytest.mark.parametrize(("page", "draft"), [(1, 0), (1, 7), (16, 0), (16, 7), (64, 100)])
def test_room_is_the_longest_request_whose_reservation_is_free(page: int, draft: int) -> None:
    fleet = Fleet(draft_tokens=draft)
    fleet.join(engine("a", kv=300, page=page))
    (it,) = fleet.engines.values()
    for number in range(4):
        free = [n for n in range(1, 301) if n <= it.capacity_tokens]
        free = [n for n in free if it.reservation_for(n) <= it.free_tokens]
        assert it.room_tokens == max(free, default=0)
        if it.fits(30):
            reserved = it.reservation_for(30)
            fleet.take(Chunk(ChunkId(number), SOMEBODY, it, 1, reserved))


def test_the_held_engine_is_the_roomiest_that_could_hold_it_and_is_found_by_nobody() -> None:
    fleet = Fleet()
    for name, kv in (("small", 500), ("large", 1_000), ("spare", 100)):
        fleet.join(engine(name, kv=kv))
    large = fleet.engines[EngineId("large")]
    fleet.take(Chunk(ChunkId(1), SOMEBODY, large, 1, 600))
    fleet.hold_for(800)
    assert fleet.held is large, "small has more room, and is too small"
    assert fleet.least_loaded(300) is fleet.engines[EngineId("small")]
    fleet.let_go()
    assert fleet.held is None
    fleet.leave(fleet.engines[EngineId("small")])
    assert fleet.least_loaded(300) is large
