"""Runs a command: Ctrl-C and SIGTERM end it in order, errors become one clear message."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterator
from typing import Any

import typer
from rich.console import Console

from seer_sgl.errors import ChildFailedError, SeerError, StartError
from seer_sgl.loop import run_on_loop

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """A line for the user, apart from what the command prints as its result."""
    console.print(line, markup=False, soft_wrap=True)


def run_until_signal(work: Coroutine[Any, Any, int], exact_clock: bool = False) -> None:
    """Run to the end, or until a signal; exit with the work's status.

    Exit codes: 2 cannot start, 1 a child failed, 130 ended by a signal.

    Args:
        exact_clock: on asyncio's own loop. uvloop's clock counts whole milliseconds.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with errors_reported():
        status = (asyncio.run if exact_clock else run_on_loop)(_cancelled_by_signal(work))
    raise typer.Exit(status)


@contextlib.contextmanager
def errors_reported() -> Iterator[None]:
    """What a command's work raises on purpose becomes its message and exit code."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise typer.Exit(_report(_first_of_ours(group))) from None
    except SeerError as error:
        raise typer.Exit(_report(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _cancelled_by_signal(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return 130


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> SeerError:
    ours, others = group.split(SeerError)
    if ours is None or others is not None:
        raise group
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SeerError)
    return error


def _report(error: SeerError) -> int:
    if isinstance(error, ChildFailedError):
        say(f"error: {error.what}")
        if error.log_tail:
            say(error.log_tail)
        return 1
    say(f"error: {error}")
    return 2 if isinstance(error, StartError) else 1
