"""Children are never left behind, and their last words are kept."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seer_sgl.engine.process import Child, free_port

SLEEPER = ["sleep", "60"]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has buried does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


def wait_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 5.0
    while alive(pid):
        assert time.monotonic() < deadline_s, f"process {pid} was left behind"
        time.sleep(0.005)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


async def words(child: Child) -> list[str]:
    """The words that it has written, once there are some."""
    async with asyncio.timeout(5.0):
        while not child.log_tail().endswith(("ready", "\nready")):  # noqa: ASYNC110 - a log calls nobody
            await asyncio.sleep(0.005)
    return child.log_tail().split()


def test_a_failure_shows_where_the_log_is_and_how_it_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        log = tmp_path / "logs" / "it.log"
        child = Child("a thing", shell("seq 100; echo $WORD >&2; exit 3"), log)
        assert not child.ended
        await child.start({"WORD": "last"})
        assert await child.wait() == 3
        assert child.ended
        failure = child.failure("ended with status 3")
        assert failure.what == f"a thing ended with status 3; its log: {log}"
        assert failure.log_tail.splitlines() == [*map(str, range(90, 101)), "last"]
        assert child.log_tail(lines=2) == "100\nlast"
        await child.stop()

    asyncio.run(scenario())


def test_a_child_that_never_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        child = Child("a thing", ["/no/such/program"], tmp_path / "it.log")
        assert child.log_tail() == ""
        with pytest.raises(FileNotFoundError):
            await child.start()
        await child.stop()

    asyncio.run(scenario())


def test_stop_ends_what_the_child_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = "sleep 60 & echo $!; trap '' TERM; echo ready; wait; sleep 60"
        child = Child("a family", shell(script), tmp_path / "it.log")
        await child.start()
        grandchild = int((await words(child))[0])
        assert alive(grandchild)
        await child.stop(grace_s=0.05)
        assert await child.wait() == -signal.SIGKILL, "it does not listen to SIGTERM"
        wait_gone(grandchild)

    asyncio.run(scenario())


def test_stop_ends_what_a_child_left_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        child = Child("an orphanage", shell("sleep 60 & echo $!; echo ready"), tmp_path / "it.log")
        await child.start()
        orphan = int((await words(child))[0])
        assert await child.wait() == 0
        assert alive(orphan)
        await child.stop()
        wait_gone(orphan)

    asyncio.run(scenario())


def test_stop_lets_a_child_end_in_order_if_there_is_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        child = Child("a polite one", shell(script), tmp_path / "it.log")
        await child.start()
        await words(child)
        began_s = time.monotonic()
        await child.stop(grace_s=5.0)
        assert time.monotonic() - began_s < 4.0
        assert await child.wait() == 5
        assert child.log_tail().endswith("bye")

    asyncio.run(scenario())


PARENT = """
import asyncio, pathlib, sys
from seer_sgl.engine.process import Child

async def main():
    child = Child("it", ["sleep", "60"], pathlib.Path(sys.argv[1]))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_child_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "it.log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        assert os.getpgid(child) == child, "a Ctrl-C at the terminal must not reach it"
        parent.kill()
    wait_gone(child)


def test_a_free_port_is_free() -> None:
    assert 1024 <= free_port() <= 65_535
