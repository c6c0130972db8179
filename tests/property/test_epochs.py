"""Whatever happens in whatever order: no old KV under new weights, and no mixture of weights serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from seer_sgl.errors import SeerError
from seer_sgl.router.control.weights.making import Making
from seer_sgl.router.control.weights.sync import Sync
from seer_sgl.router.messages import Leave, Register
from seer_sgl.types import EngineId
from tests.property.clock import finished, run
from tests.property.engines import Engine
from tests.property.fleet import Fleet, judge_answer

NAMES = ["a", "b", "c"]
PATIENCE_S = 120.0

# ---- what may happen: plain tuples, so that a failing example reads well ----

engine = st.integers(0, 2)
port = st.one_of(st.none(), st.none(), engine)
"""The engine to whose port a call goes; None for all."""
version = st.sampled_from(["next", "next", "none", "back"])
mode = st.sampled_from(["abort", "retract", "in_place"])
together = st.booleans()
"""Whether what comes next does not wait for this."""
steps = st.one_of(
    *[st.tuples(st.just("requests"), st.integers(1, 5), st.integers(1, 25), st.booleans())] * 3,
    st.tuples(st.just("time"), st.sampled_from([0.001, 0.05, 0.3])),
    st.tuples(st.just("disk"), port, version, together),
    st.tuples(st.just("disk"), port, version, together),
    st.tuples(st.just("parts"), port, st.integers(1, 2), together),
    st.tuples(st.just("series"), mode, st.booleans(), st.integers(1, 3), version, together),
    st.tuples(st.just("session"), port, st.integers(0, 2), version, together),
    st.tuples(st.just("pause"), mode, together),
    st.tuples(st.just("continue")),
    st.tuples(st.just("rename"), port, together),
    st.tuples(st.just("adapter"), st.booleans(), st.sampled_from("xy"), together),
    st.tuples(st.just("fault"), engine, st.sampled_from(["refuse", "fail", "hang", "die"])),
    st.tuples(st.just("fault"), engine, st.sampled_from(["refuse", "fail", "hang", "die"])),
    st.tuples(st.just("crash"), engine),
    st.tuples(st.just("join"), engine),
    st.tuples(st.just("glitch"), engine),
    st.tuples(st.just("late"), st.integers(0, 50)),
)
stories = st.lists(steps, min_size=2, max_size=14)
delays = st.lists(st.sampled_from([0.0, 0.001, 0.03]), min_size=1, max_size=4)


class Story:
    """Turns steps into what clients, trainers and engines do."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.work: list[asyncio.Task[Any]] = []
        self.asked: dict[str, tuple[int, asyncio.Task[dict[str, Any]]]] = {}
        self.version = 0
        self.number = 0

    async def tell(self, step: tuple[Any, ...]) -> None:
        kind, *args = step
        act = getattr(self, f"_{kind}")
        if isinstance(args[-1] if args else None, bool) and kind != "requests":
            *args, beside = args
            task = asyncio.ensure_future(act(*args))
            self.work.append(task)
            if not beside:
                await asyncio.wait([task], timeout=5.0)
            await asyncio.sleep(0)
        else:
            await act(*args)

    # ---- clients ----

    async def _requests(self, count: int, tokens: int, divisible: bool) -> None:
        for _ in range(count):
            rid = f"r{len(self.asked)}"
            task = asyncio.ensure_future(self.fleet.generate(rid, tokens, divisible))
            self.asked[rid] = tokens, task

    async def _time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # ---- trainers ----

    def _named(self, how: str) -> dict[str, Any]:
        """Fields of an update. Weights of one version are the same, wherever they go."""
        self.number += 1
        if how == "none":
            return {"model_path": f"/unnamed/{self.number}"}
        if how == "next":
            self.version += 1
        number = self.version if how == "next" else self.version - 1
        return {"model_path": f"/v{number}", "weight_version": str(number)}

    async def _call(self, path: str, body: Any = None, only: str | None = None) -> bool:
        try:
            return (await self.fleet.control(path, body, only)).good
        except SeerError:
            return False

    def _only(self, place: int | None) -> str | None:
        return None if place is None else NAMES[place]

    async def _disk(self, place: int | None, how: str) -> None:
        await self._call("/update_weights_from_disk", self._named(how), self._only(place))

    async def _parts(self, place: int | None, count: int) -> None:
        """Parts of no series, each to all or to one."""
        self.number += 1
        self.version += place is not None
        series = self.number
        for number in range(count):
            body: dict[str, Any] = {"part": (series, number, 99)}
            path = "/update_weights_from_distributed"
            body |= {"names": [], "dtypes": [], "shapes": []}
            if place is not None:  # unnamed parts at two ports are taken for the same ones
                body["weight_version"] = str(self.version)
            await self._call(path, body, self._only(place))

    async def _series(self, how: str, ports: bool, parts: int, named: str) -> None:
        """A trainer that pauses, sends all parts to all or to each, and goes on."""
        fields = self._named(named)
        del fields["model_path"]
        self.number += 1
        targets = NAMES if ports else [None]
        each = [self._one_series(only, how, parts, self.number, fields) for only in targets]
        await asyncio.gather(*each)

    async def _one_series(
        self, only: str | None, how: str, parts: int, series: int, fields: dict[str, Any]
    ) -> None:
        if not await self._call("/pause_generation", {"mode": how}, only):
            return
        for number in range(parts):
            part = {"names": [f"{series}.{number}"], "dtypes": ["bfloat16"], "shapes": [[1]]}
            body = {**part, "part": (series, number, parts), **fields}
            path = "/update_weights_from_distributed"
            if not (await self._call(path, body, only) or await self._call(path, body, only)):
                break
        while not await self._call("/continue_generation", None, only):
            if only is not None and EngineGone.of(self.fleet, only):
                break
            await asyncio.sleep(0.1)

    async def _session(self, place: int | None, parts: int, named: str) -> None:
        only, fields = self._only(place), self._named(named)
        del fields["model_path"]
        self.number += 1
        if not await self._call("/begin_weight_update", None, only):
            return
        for number in range(parts):
            body = {"names": [], "dtypes": [], "shapes": [], "part": (self.number, number, parts)}
            await self._call("/update_weights_from_distributed", {**body, **fields}, only)
        await self._call("/end_weight_update", None, only)

    async def _pause(self, how: str) -> None:
        await self._call("/pause_generation", {"mode": how})

    async def _continue(self) -> None:
        await self._call("/continue_generation")

    async def _rename(self, place: int | None) -> None:
        self.version += 1
        body = {"new_version": f"{self.version}", "abort_all_requests": False}
        await self._call("/update_weight_version", body, self._only(place))

    async def _adapter(self, load: bool, name: str) -> None:
        path = "/load_lora_adapter" if load else "/unload_lora_adapter"
        await self._call(path, {"lora_name": name, "lora_path": f"/{name}"})

    # ---- engines ----

    def _engine(self, place: int) -> Engine:
        return self.fleet.engines[NAMES[place]]

    async def _fault(self, place: int, kind: str) -> None:
        self._engine(place).faults.append(kind)

    async def _crash(self, place: int) -> None:
        if self._engine(place).alive:
            self.fleet.crash(self._engine(place))

    async def _join(self, place: int) -> None:
        self.fleet.join(NAMES[place])

    async def _glitch(self, place: int) -> None:
        if self._engine(place).alive:
            self.fleet.lose_sight(self._engine(place))

    async def _late(self, number: int) -> None:
        """An old message comes once more."""
        heard = [kept for kept in self.fleet.kept if not isinstance(kept[1], Register | Leave)]
        if heard:
            self.fleet.heard(*heard[number % len(heard)])

    # ---- the end ----

    async def heal(self) -> None:
        """A trainer that does all as it should: everything goes on."""
        await asyncio.sleep(5.0)
        for each in self.fleet.engines.values():
            each.faults.clear()
        for name in NAMES:
            if not self.fleet.engines[name].alive:
                self.fleet.join(name)
        await asyncio.sleep(1.0)
        for _ in range(len(self.work) + 1):  # one caller may wait for what another has paused
            await self._call("/end_weight_update")
            await self._call("/continue_generation")
            if self.work:
                await asyncio.wait(self.work, timeout=5.0)
        for task in self.work:
            await finished(task, PATIENCE_S)
        await self._call("/end_weight_update")
        assert await self._call("/continue_generation")
        self.version += 1
        update = {"model_path": f"/v{self.version}", "weight_version": str(self.version)}
        assert await self._call("/update_weights_from_disk", update)
        await asyncio.sleep(1.0)
        for name in "xy":
            await self._call("/unload_lora_adapter", {"lora_name": name})
        await asyncio.sleep(1.0)

    async def judge(self) -> None:
        fleet = self.fleet
        quarantine = {m.engine_id: m.quarantine for m in fleet.roster.members.values() if m.quarantine}
        assert quarantine == {}, "a whole update brings all back"
        assert len(fleet.roster.members) == len(NAMES)
        assert not fleet.dispatcher.paused
        for rid, (tokens, task) in self.asked.items():
            judge_answer(fleet, rid, await finished(task, PATIENCE_S), tokens)
        for each in fleet.engines.values():
            assert each.weights == fleet.engines["a"].weights
        fleet.core.check()
        assert not fleet.dispatcher.on_their_way


class EngineGone:
    """Whether a trainer need not wait for an engine."""

    @staticmethod
    def of(fleet: Fleet, name: str) -> bool:
        return name not in fleet.roster.members


async def told(story: list[tuple[Any, ...]], fleet: Fleet) -> Fleet:
    catching_up = asyncio.ensure_future(fleet.plane.catch_up_forever())
    for name in NAMES:
        fleet.join(name)
    await asyncio.sleep(0.2)
    it = Story(fleet)
    for number, step in enumerate(story):
        await it.tell(("requests", 1, 14, number % 3 > 0))
        await it.tell(step)
        assert not fleet.wrong, fleet.wrong
    await it.heal()
    await it.judge()
    assert not fleet.wrong, fleet.wrong
    catching_up.cancel()
    return fleet


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories, delays)
@example([("disk", 0, "next", False), ("time", 0.3), ("disk", 1, "next", False)], [0.001])
@example([("fault", 1, "hang"), ("disk", None, "next", True), ("time", 0.3), ("crash", 0)], [0.03])
@example([("series", "in_place", True, 2, "none", True), ("glitch", 1), ("join", 2)], [0.0, 0.03])
def test_no_old_kv_and_no_mixture(story: list[tuple[Any, ...]], delays_s: list[float]) -> None:
    run(_told(story, delays_s))


async def _told(story: list[tuple[Any, ...]], delays_s: list[float], salted: bool = True) -> None:
    fleet = await told(story, Fleet(salted, delays_s))
    assert fleet.dispatched, "nothing ran: this shows nothing"


# ---- the judges can fail ----

UPDATE = [("disk", None, "next", False), ("time", 0.3)]
ONE_FAILS = [("fault", 1, "fail"), ("disk", None, "next", False), ("time", 0.3)]
ONE_PORT = [("disk", 1, "next", False), ("time", 0.3)]
LATE = [("disk", None, "none", False), ("parts", None, 1, False), ("join", 1), ("time", 0.3)]


@pytest.mark.parametrize("story", [UPDATE, ONE_FAILS, ONE_PORT, LATE])
def test_the_stories_that_follow_end_well(story: list[tuple[Any, ...]]) -> None:
    run(_told(story, [0.001]))


def test_without_salts_old_kv_is_found_under_new_weights() -> None:
    with pytest.raises(AssertionError, match="under the salt of"):
        run(_told(UPDATE, [0.001], salted=False))


@pytest.mark.parametrize("story", [ONE_FAILS, ONE_PORT, LATE])
def test_with_no_account_of_engines_a_mixture_serves(
    monkeypatch: pytest.MonkeyPatch, story: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr(Sync, "out_of_step", lambda self: {})
    with pytest.raises(AssertionError, match=r"serves|mixture"):
        run(_told(story, [0.001]))


def test_without_a_hold_requests_run_into_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Making, "quiet", _no_quiet)
    story = [("fault", 0, "hang"), ("disk", None, "next", True), ("time", 0.05), ("time", 0.05)]
    with pytest.raises(AssertionError, match="serves"):
        run(_told(story, [0.001]))


@contextlib.asynccontextmanager
async def _no_quiet(
    making: Making, fields: dict[str, Any], engines: list[EngineId]
) -> AsyncIterator[None]:
    yield
