"""The pool's keeper as a process, a real store and its master, and the router's line to it.

No SGLang here: a plain client of the store writes what servers would, under the same names.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil

from seer_sgl.router.pool import PoolKeeper, Reopened
from seer_sgl.types import RequestId
from tests.integration.stores import OBJECTS, PAGE, PAGE_BYTES, World, until, world

__all__ = ["world"]  # the fixture


async def soon(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come true"
        await asyncio.sleep(0.05)


class Line:
    """The router's end."""

    def __init__(self, address: str) -> None:
        self.pool = PoolKeeper(address)
        self.found: list[tuple[str, int | None]] = []
        self.states: list[bool | None] = []
        self.live: dict[RequestId, Reopened] = {}

    @asynccontextmanager
    async def running(self) -> "AsyncIterator[Line]":
        self.pool.layout(OBJECTS.prefix, OBJECTS.suffixes, PAGE)
        running = asyncio.create_task(
            self.pool.run(
                lambda request, tokens: self.found.append((request, tokens)),
                self.states.append,
                self.live.get,
            )
        )
        try:
            await soon(lambda: self.pool.usage.up)
            yield self
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self.pool.close()

    def open(self, name: str, ids: list[int], group: str = "g") -> None:
        self.pool.opened(RequestId(name), group, None, "", ids)

    def grow(self, name: str, ids: list[int]) -> None:
        self.pool.grew(RequestId(name), ids)

    def close(self, name: str, finished: bool = True) -> None:
        self.pool.closed(RequestId(name), [], finished)

    def over(self, group: str = "g") -> None:
        self.pool.group_over(group)

    async def look_up(self, name: str, tokens: int, patience_s: float) -> tuple[int | None, float]:
        """What is found, and after how many seconds."""
        began_s = time.monotonic()
        self.found.clear()
        self.pool.look_up(RequestId(name), tokens, patience_s)
        await soon(lambda: self.found)
        ((request, found),) = self.found
        assert request == name
        return found, time.monotonic() - began_s


PROMPT = list(range(100, 108))
ONE, OTHER = [1] * 9, [2] * 9
"""Two pages of prompt; two more of each answer, and a token that has no KV yet."""


def test_pages_go_with_their_last_holder(world: World) -> None:
    async def run() -> None:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT)
            line.open("other", PROMPT)
            line.grow("one", ONE)
            line.grow("other", OTHER)
            prompt = world.write(PROMPT)
            one, other = world.write(PROMPT + ONE) - prompt, world.write(PROMPT + OTHER) - prompt
            stranger = world.write([7] * 8)
            line.close("one")
            await soon(lambda: world.are_gone(one))
            assert prompt | other | stranger <= (world.keys() or set())
            late = world.write(PROMPT + ONE, pages=slice(3, 4))
            await soon(lambda: world.are_gone(late))
            line.close("other")
            await soon(lambda: world.are_gone(other))
            assert prompt <= (world.keys() or set()), "more of the group may come"
            line.over()
            await soon(lambda: world.are_gone(prompt | other))
            assert stranger <= (world.keys() or set())
            await soon(lambda: line.pool.usage.released_pages == 7)
            usage = line.pool.usage
            assert (usage.kept_pages, usage.late_pages) == (0, 1)
            assert usage.used_bytes == len(stranger) * PAGE_BYTES
            assert (usage.capacity_bytes, usage.errors) == (64 << 20, 0)

    world.start_keeper()
    asyncio.run(run())


def test_aborted_pages_stay_until_their_time(world: World) -> None:
    async def run() -> None:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT)
            pages = world.write(PROMPT)
            line.close("one", finished=False)
            line.over()
            await asyncio.sleep(2.5)
            assert pages <= (world.keys() or set())
            await soon(lambda: world.are_gone(pages))

    world.start_keeper("--kept-s", "4")
    asyncio.run(run())


def test_a_page_that_is_read_goes_when_its_lease_is_over(world: World) -> None:
    async def run() -> None:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT, group="alone")
            pages = world.write(PROMPT)
            line.close("one")
            line.over("alone")
            deadline_s = time.monotonic() + 2.5
            while time.monotonic() < deadline_s:  # somebody keeps reading over the first removals
                assert all(world.store.batch_is_exist(sorted(pages)))
                await asyncio.sleep(0.1)
            await soon(lambda: world.are_gone(pages))
            await soon(lambda: line.pool.usage.released_pages)
            assert line.pool.usage.errors == 0

    world.start_keeper()
    asyncio.run(run())


def test_an_epoch_takes_all_pages_with_it(world: World) -> None:
    async def run() -> None:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT)
            line.open("two", PROMPT + ONE)
            pages = world.write(PROMPT + ONE)
            line.pool.epoch_changed()
            await soon(lambda: world.are_gone(pages))
            line.grow("one", OTHER)  # a chunk of the old epoch that ends after it
            late = world.write(PROMPT + OTHER)
            await soon(lambda: world.are_gone(late))

    world.start_keeper()
    asyncio.run(run())


def test_look_up_answers_when_pages_come_or_patience_ends(world: World) -> None:
    async def run() -> None:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT)
            line.grow("one", ONE)
            world.write(PROMPT + ONE, pages=slice(0, 3))
            tokens, took_s = await line.look_up("one", 17, patience_s=0.6)
            assert tokens == 12
            assert took_s >= 0.6
            answer = asyncio.create_task(line.look_up("one", 17, patience_s=20))
            await asyncio.sleep(0.3)
            assert not answer.done()
            world.write(PROMPT + ONE, pages=slice(3, 4))
            tokens, took_s = await answer
            assert tokens == 16
            assert took_s < 10
            assert (await line.look_up("one", 12, patience_s=20))[0] == 12
            assert (await line.look_up("nobody", 12, patience_s=20))[0] is None

    world.start_keeper()
    asyncio.run(run())


def test_the_master_may_be_killed(world: World) -> None:
    async def run() -> None:
        line = Line(world.address)
        async with line.running():
            line.open("one", PROMPT)
            world.write(PROMPT)
            assert world.master is not None
            world.master.kill()
            world.master.wait()
            assert (await line.look_up("one", 8, patience_s=30))[0] is None
            line.close("one")
            await soon(lambda: not line.pool.usage.up)
            await asyncio.to_thread(world.start_master)
            await soon(lambda: line.pool.usage.up)
            assert line.states[0] is line.states[-1] is True
            assert set(line.states[1:-1]) & {False, None}, "it was told that it was down, or unknown"
            await soon(lambda: not world.store.put("a", b"a"))  # it has its segment again
            line.open("two", PROMPT)
            pages = world.write(PROMPT)
            assert (await line.look_up("two", 8, patience_s=30))[0] == 4, "its last token has no KV"
            line.close("two")
            line.over()
            await soon(lambda: world.are_gone(pages))
            assert world.keeper is not None
            assert world.keeper.poll() is None

    world.start_keeper()
    asyncio.run(run())


def test_the_master_may_hang(world: World) -> None:
    async def run() -> None:
        line = Line(world.address)
        async with line.running():
            line.open("one", PROMPT)
            pages = world.write(PROMPT)
            assert world.master is not None
            os.kill(world.master.pid, signal.SIGSTOP)
            tokens, took_s = await line.look_up("one", 8, patience_s=0.5)
            assert tokens is None
            assert took_s < 5, "the store's client gives up by itself"
            await soon(lambda: not line.pool.usage.up)
            line.close("one")
            line.over()
            os.kill(world.master.pid, signal.SIGCONT)
            await soon(lambda: line.pool.usage.up)
            await soon(lambda: world.are_gone(pages))

    world.start_keeper()
    asyncio.run(run())


def test_a_keeper_that_starts_anew_learns_what_is_live(world: World) -> None:
    async def run() -> None:
        line = Line(world.address)
        async with line.running():
            line.open("one", PROMPT)
            pages = world.write(PROMPT + ONE)
            assert world.keeper is not None
            world.keeper.kill()
            world.keeper.wait()
            line.pool.look_up(RequestId("one"), 8, 1.0)
            await soon(lambda: not line.pool.usage.up)
            assert not line.found, "there is nobody to answer"
            world.start_keeper()
            await soon(lambda: line.pool.usage.up)
            line.live[RequestId("one")] = Reopened("g", None, "", PROMPT + ONE)
            line.grow("one", ONE)
            await soon(lambda: line.pool.usage.kept_pages == 4)
            line.close("one")
            line.over()
            await soon(lambda: world.are_gone(pages))

    world.start_keeper()
    asyncio.run(run())


def test_a_router_that_falls_silent_leaves_nothing(world: World) -> None:
    async def run() -> set[str]:
        async with Line(world.address).running() as line:
            line.open("one", PROMPT)
            pages = world.write(PROMPT)
            await soon(lambda: line.pool.usage.kept_pages == 2)
            return pages

    world.start_keeper("--silent-s", "3")
    pages = asyncio.run(run())
    assert pages <= (world.keys() or set())
    until(lambda: world.are_gone(pages))


def test_it_waits_for_a_store_and_costs_next_to_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.start_keeper()
        assert world.keeper is not None
        time.sleep(2)
        assert world.keeper.poll() is None
        world.start_master()

        async def run() -> None:
            async with Line(world.address).running():
                process = psutil.Process(world.keeper.pid)  # type: ignore[union-attr]
                before_s = sum(process.cpu_times()[:2])
                await asyncio.sleep(4)
                assert sum(process.cpu_times()[:2]) - before_s < 0.4
                assert process.memory_info().rss < 200 << 20

        asyncio.run(run())
        world.keeper.terminate()
        assert world.keeper.wait(10) == 0
    finally:
        world.end()


@contextmanager
def taken_port() -> Iterator[int]:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_named() -> None:
    with taken_port() as port:
        argv = ["--listen", f"tcp://127.0.0.1:{port}", "--master", "127.0.0.1:1"]
        ran = subprocess.run(
            [sys.executable, "-m", "seer_sgl.kv.keeper", *argv],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
    assert ran.returncode == 2
    assert f"127.0.0.1:{port}" in ran.stderr
    assert "Traceback" not in ran.stderr
