"""`python -m sglang_router.launch_router`: the stock router's command, which starts seer-sgl's."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path

from seer_sgl.errors import SeerError
from seer_sgl.head import HeadConfig, running_head
from seer_sgl.loop import run_on_loop

from .router_args import RouterArgs
from .translation import LEVELS, planned

log = logging.getLogger("router")

STOCK = "sglang-router"


def parse_router_args(args: list[str]) -> RouterArgs:
    """The command line as `RouterArgs`."""
    parser = argparse.ArgumentParser(
        prog="sglang_router.launch_router",
        description="seer-sgl's router, with the arguments of the stock SGLang router.",
    )
    RouterArgs.add_cli_args(parser)
    return RouterArgs.from_cli_args(parser.parse_args(args))


def launch_router(args: RouterArgs | argparse.Namespace) -> None:
    """Serve until a signal ends the process, or for ever outside the main thread.

    Raises:
        StartError: arguments that are not supported, or a port that is taken.
    """
    given = args if isinstance(args, RouterArgs) else RouterArgs.from_cli_args(args)
    plan = planned(given)
    _log_as_told(given)
    for note in plan.notes:
        log.info(note)
    _look_for_the_stock_router()
    run_on_loop(_until_signal(plan.head))


async def _until_signal(config: HeadConfig) -> None:
    task = asyncio.create_task(_serve(config))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _serve(config: HeadConfig) -> None:
    async with running_head(config, log.info) as head:
        await head.wait_failed()


def _log_as_told(args: RouterArgs) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if args.log_dir:
        folder = Path(args.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "router.log"))
    level = LEVELS.get(args.log_level or "info", logging.INFO)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)


def _look_for_the_stock_router() -> None:
    """Two packages of one name: which of them runs is a matter of their order of installation."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version(STOCK)
        log.warning("%s %s is installed, too; this is seer-sgl's router", STOCK, version)


def main() -> None:
    """The command. Exit codes: 2 cannot start, 1 failed later, 0 ended by a signal."""
    args = parse_router_args(sys.argv[1:])
    try:
        launch_router(args)
    except SeerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
