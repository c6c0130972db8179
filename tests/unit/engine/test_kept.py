"""A child that is kept: started again when it ends, gone when it is stopped."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from seer_sgl.engine import kept
from seer_sgl.engine.kept import KeptChild
from seer_sgl.errors import ChildFailedError
from tests.unit.engine.test_process import SLEEPER, shell, wait_gone


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "RESTART_PAUSE_S", 0.01)


def test_it_is_started_again_whenever_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        it = KeptChild("a thing", SLEEPER, tmp_path / "it.log")
        await it.start()
        first = it.child.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(5.0):
            while it.child.pid == first:  # noqa: ASYNC110 - nobody is told of a restart
                await asyncio.sleep(0.005)
        second = it.child.pid
        await it.stop()
        wait_gone(second)
        await asyncio.sleep(0.05)
        assert it.child.pid == second, "stopped for good"

    asyncio.run(scenario())
    assert (
        f"a thing ended with status -9; it is started again in 0.01 s. Its log: {tmp_path}"
        in caplog.text
    )


def test_one_that_ends_at_once_is_started_ever_more_slowly(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = tmp_path / "it.log"
        it = KeptChild("a thing", shell("echo again"), log)
        await it.start()
        await asyncio.sleep(0.5)
        await it.stop()
        assert 3 <= len(log.read_text().splitlines()) <= 6  # after 0.01, 0.02, 0.04, ... s

    asyncio.run(scenario())


def test_it_is_kept_only_if_it_comes_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        it = KeptChild("a thing", shell("echo wrong flag; exit 3"), tmp_path / "it.log")
        with pytest.raises(ChildFailedError, match=r"a thing ended with status 3[\s\S]*wrong flag"):
            await it.start(asyncio.sleep(5.0))
        await asyncio.sleep(0.1)
        assert (tmp_path / "it.log").read_text() == "wrong flag\n", "once"
        await it.stop()

    asyncio.run(scenario())


def test_it_has_its_environment_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = tmp_path / "it.log"
        it = KeptChild("a thing", shell("echo $SEER_TEST; sleep 0.05"), log, {"SEER_TEST": "seen"})
        await it.start(asyncio.sleep(0.0))
        async with asyncio.timeout(5.0):
            while log.read_text().count("seen\n") < 2:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.005)
        await it.stop()

    asyncio.run(scenario())
