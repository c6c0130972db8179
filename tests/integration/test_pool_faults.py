"""What becomes of a rollout whose KV pool fails in the middle of it: slower, never wrong, never lost.

One head in this process, with its master, its keeper and two real servers; every chunk goes to the other
engine, so that each needs the pool. What a fault cost stands in the report that a rollout ends with.
"""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from seer_sgl.config import RouterConfig
from seer_sgl.engine.kept import KeptChild
from seer_sgl.engine.process import free_port
from seer_sgl.head import Head, HeadConfig, running_head
from seer_sgl.kv.pool import PREFETCH_BASE_S, PREFETCH_PER_KI_TOKEN_S, PoolSettings
from seer_sgl.rollout.client import Prompt, Rollout, SampleResult, run_rollout
from seer_sgl.rollout.report import Report, chunks_of, report_on
from seer_sgl.testing.policies import MOVE_WHERE_POSSIBLE
from tests.integration.conftest import CHUNK_TOKENS, GREEDY, MODEL, START_TIMEOUT_S

PAGE_TOKENS = 16
SAMPLES = 24
SEGMENT_BYTES = 64 << 20
LONGEST_WAIT_S = PREFETCH_BASE_S + PREFETCH_PER_KI_TOKEN_S + 2.0
"""What a chunk of less than 1,024 tokens may wait, and what a busy scheduler takes to notice."""

Fault = Callable[[], Awaitable[None]]


class World:
    """The head, and rollouts through it, on one loop that stands still between tests."""

    def __init__(self, runner: asyncio.Runner, head: Head, url: str) -> None:
        self._runner, self.head, self.url = runner, head, url
        self._salts = 0

    def rollout(self, fault: Fault | None = None, samples: int = SAMPLES) -> list[SampleResult]:
        """Greedy samples under a salt of their own; the fault strikes when a third of the chunks ran."""
        return self._runner.run(self._rollout(fault, samples))

    def wait_for_engines(self) -> None:
        self._runner.run(self._two_engines())

    async def _two_engines(self) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while self.core.statistics().engines < 2:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.1)

    async def _rollout(self, fault: Fault | None, samples: int) -> list[SampleResult]:
        self._salts += 1
        texts = GREEDY["text"][:samples]
        rollout = Rollout(
            url=self.url,
            prompts=[Prompt(f"{self._salts}-{at}", text) for at, text in enumerate(texts)],
            group_size=1,
            sampling=GREEDY["sampling_params"],
            extra={"cache_salt": str(self._salts)},
        )
        begun = self.core.statistics().chunks
        results: list[SampleResult] = []

        async def run() -> None:
            async for result in run_rollout(rollout):
                results.append(result)

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            running = group.create_task(run())
            if fault is not None:
                while self.core.statistics().chunks < begun + 2 * samples:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert not running.done()
                await fault()
        self.core.check()
        return results

    @property
    def core(self) -> Any:
        return self.head.service.core

    def kept(self, name: str) -> KeptChild:
        return next(kept for kept in self.head._kept if kept.child.name == name)

    @property
    def master(self) -> int:
        """The pid of the master that is there now."""
        return self.kept("mooncake_master").child.pid

    def scheduler(self, engine: str) -> psutil.Process:
        """The process in which that engine's memory lies that it lends to the pool."""
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "sglang::scheduler" in " ".join(child.cmdline()) and engine in _log_of(child):
                    return child
        raise AssertionError(f"no scheduler of {engine}")


def _log_of(process: psutil.Process) -> str:
    """The file that its output goes to."""
    return os.readlink(f"/proc/{process.pid}/fd/2")


@pytest.fixture(scope="module")
def world(
    plain_answers: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    del plain_answers  # only so that the plain server is over
    directory = tmp_path_factory.mktemp("faults")
    with asyncio.Runner() as runner:
        router = RouterConfig(
            http_port=free_port(),
            agent_port=free_port(),
            chunk_tokens=CHUNK_TOKENS,
            pull_margin_tokens=0,
            model=MODEL,
        )
        config = HeadConfig(
            router, 2, directory, pool_settings=PoolSettings(segment_bytes=SEGMENT_BYTES)
        )
        holder = Holder(config)
        head = runner.run(holder.enter())
        yield World(runner, head, f"http://127.0.0.1:{router.http_port}")
        family = psutil.Process().children(recursive=True)
        runner.run(holder.leave())
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"left behind: {alive}"


class Holder:
    """Enters and leaves a head in one task, as its task groups want it."""

    def __init__(self, config: HeadConfig) -> None:
        self._config = config
        self._over = asyncio.Event()

    async def enter(self) -> Head:
        up: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(up))
        await asyncio.wait((up, self._task), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            await self._task
        return up.result()

    async def leave(self) -> None:
        self._over.set()
        await self._task

    async def _hold(self, up: "asyncio.Future[Head]") -> None:
        async with running_head(self._config, lambda _: None, MOVE_WHERE_POSSIBLE) as head:
            up.set_result(head)
            await self._over.wait()


def assert_right(results: list[SampleResult], plain: list[dict[str, Any]]) -> Report:
    """Every sample is there, and is what a plain server says; what it took."""
    by_prompt = {int(result.group_id.partition("-")[2]): result for result in results}
    assert len(results) == len(by_prompt)
    for at, result in by_prompt.items():
        assert result.status == 200, result.error
        assert result.output_ids == plain[at]["output_ids"]
        assert result.text == plain[at]["text"]
    report = report_on(results, PAGE_TOKENS)
    assert report.failed == 0
    return report


def waits_s(results: list[SampleResult]) -> list[float]:
    """How long each chunk waited for its prefix, on its engine."""
    return [chunk["pool_wait_s"] for result in results for chunk in chunks_of(result)]


def first_moves_share(results: list[SampleResult]) -> float:
    """Of what second chunks could find, which are the first ones on their engine: the pool's share."""
    seconds = [chunks_of(result)[1] for result in results]
    assert all(chunk["came_from"] for chunk in seconds)
    findable = sum((chunk["input_tokens"] - 1) // PAGE_TOKENS * PAGE_TOKENS for chunk in seconds)
    return float(sum(chunk["pool_tokens"] for chunk in seconds) / findable)


def told(name: str, results: list[SampleResult], report: Report) -> None:
    """For whoever reads the log of a run."""
    print(
        f"\n{name}: {report.seconds:.1f} s, {report.moved_chunks} moved chunks found "
        f"{report.prefix_found_share:.3f} of their prefix, {report.pool_share:.3f} in the pool, "
        f"{report.computed_again_tokens} tokens computed again, waits of {report.pool_wait_s:.1f} s in "
        f"sum, {max(waits_s(results)):.2f} s at most"
    )


def test_without_a_fault_nothing_is_computed_again(
    world: World, plain_answers: list[dict[str, Any]]
) -> None:
    results = world.rollout()
    report = assert_right(results, plain_answers)
    told("no fault", results, report)
    assert report.moved_chunks >= 4 * SAMPLES
    assert max(waits_s(results)) < PREFETCH_BASE_S, "no wait came to its deadline"
    assert report.prefix_found_share is not None
    assert report.prefix_found_share >= 0.85, "the rest was cheaper to compute than to wait for"


def test_a_killed_master_is_there_again_and_costs_computation_only(
    world: World, plain_answers: list[dict[str, Any]]
) -> None:
    before = world.master

    async def kill() -> None:
        os.kill(before, signal.SIGKILL)

    results = world.rollout(kill)
    report = assert_right(results, plain_answers)
    told("master killed", results, report)
    assert world.master != before
    assert report.computed_again_tokens > 0, "it forgot all pages"
    assert max(waits_s(results)) < LONGEST_WAIT_S

    after = world.rollout(samples=8)
    told("after that", after, assert_right(after, plain_answers))
    assert first_moves_share(after) >= 0.5, "the same servers use the new master"


def test_a_master_that_hangs_holds_no_chunk_up_for_long(
    world: World, plain_answers: list[dict[str, Any]]
) -> None:
    async def hang() -> None:
        os.kill(world.master, signal.SIGSTOP)
        await asyncio.sleep(5.0)
        os.kill(world.master, signal.SIGCONT)

    results = world.rollout(hang)
    told("master hangs for 5 s", results, assert_right(results, plain_answers))
    assert max(waits_s(results)) < LONGEST_WAIT_S


def test_a_slow_master(world: World, plain_answers: list[dict[str, Any]]) -> None:
    """It answers nothing for 0.3 s, again and again."""

    async def stutter() -> None:
        until_s = time.monotonic() + 5.0
        while time.monotonic() < until_s:
            os.kill(world.master, signal.SIGSTOP)
            await asyncio.sleep(0.3)
            os.kill(world.master, signal.SIGCONT)
            await asyncio.sleep(0.1)

    results = world.rollout(stutter)
    told("slow master", results, assert_right(results, plain_answers))
    assert max(waits_s(results)) < LONGEST_WAIT_S


def test_a_store_that_is_full(world: World, plain_answers: list[dict[str, Any]]) -> None:
    with Filler(world.head) as filler:
        results = world.rollout(filler.fill)
        report = assert_right(results, plain_answers)
        told("store full", results, report)
        assert report.computed_again_tokens > 0


class Filler:
    """A client of the store that fills it with what is never evicted."""

    def __init__(self, head: Head) -> None:
        mooncake = pytest.importorskip("mooncake.store")
        pool = head.service._config.pool
        assert pool is not None
        self._store = mooncake.MooncakeDistributedStore()
        assert not self._store.setup("127.0.0.1", pool.metadata, 0, 16 << 20, "tcp", "", pool.master)
        self._pinned = mooncake.ReplicateConfig()
        self._pinned.with_hard_pin = True
        self._names: list[str] = []

    async def fill(self) -> None:
        """Take all room, large pieces first; what is in the way is evicted meanwhile."""
        for size_bytes in (1 << 20, 1 << 20, 64 << 10, 64 << 10):
            while await asyncio.to_thread(self._put, size_bytes):
                pass
            await asyncio.sleep(0.1)
        assert not self._put(1 << 20), "it is full"

    def _put(self, size_bytes: int) -> bool:
        name = f"filler-{len(self._names)}"
        stored: bool = self._store.put(name, bytes(size_bytes), self._pinned) == 0
        if stored:
            self._names.append(name)
        return stored

    def __enter__(self) -> "Filler":
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            self._store.remove(name, True)
        self._store.close()


def test_a_killed_keeper(world: World, plain_answers: list[dict[str, Any]]) -> None:
    before = world.kept("pool keeper").child.pid

    async def kill() -> None:
        os.kill(before, signal.SIGKILL)

    results = world.rollout(kill, samples=8)
    told("keeper killed", results, assert_right(results, plain_answers))
    assert world.kept("pool keeper").child.pid != before


def test_memory_that_hangs(world: World, plain_answers: list[dict[str, Any]]) -> None:
    """The process that lends it stands still, as on a host that is cut off; the master gives it up."""
    victim = world.scheduler("head-0")

    async def freeze() -> None:
        victim.suspend()
        await asyncio.sleep(8.0)
        victim.resume()

    results = world.rollout(freeze)
    told("memory of an engine hangs for 8 s", results, assert_right(results, plain_answers))
    others = [c for r in results for c in chunks_of(r) if c["engine"] == "head-1"]
    assert max(chunk["pool_wait_s"] for chunk in others) < LONGEST_WAIT_S
    assert world.core.statistics().engines == 2


def test_memory_that_is_gone(world: World, plain_answers: list[dict[str, Any]]) -> None:
    """`kill -9` of the process that lends it: the engine dies with it, and is started again."""
    victim = world.scheduler("head-0")

    async def kill() -> None:
        victim.kill()

    results = world.rollout(kill)
    report = assert_right(results, plain_answers)
    told("memory of an engine is gone", results, report)
    assert max(waits_s(results)) < LONGEST_WAIT_S
    world.wait_for_engines()
    after = world.rollout(samples=8)
    told("after that", after, assert_right(after, plain_answers))
    assert first_moves_share(after) >= 0.5, "the new server works with the pool"
