"""A child process that is started again whenever it ends: what others can do without for a moment."""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from seer_sgl.engine.process import Child

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A child that lived so long is started again at once; one that ends early, ever more slowly."""


class KeptChild:
    """A child that is there most of the time, until `stop`."""

    def __init__(
        self, name: str, argv: list[str], log_path: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.child = Child(name, argv, log_path)
        self._environment = environment
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, ready: Coroutine[Any, Any, None] | None = None) -> None:
        """Start it, wait until it is ready, and watch it from now on.

        Raises:
            ChildFailedError: it ended before it was ready. One that never comes up is not kept.
        """
        await self.child.start(self._environment)
        if ready is not None:
            await self._wait_ready(ready)
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.child.name}")

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.child.stop(grace_s)

    async def _wait_ready(self, ready: Coroutine[Any, Any, None]) -> None:
        getting_ready = asyncio.create_task(ready)
        ended = asyncio.create_task(self.child.wait())
        try:
            await asyncio.wait((getting_ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise self.child.failure(f"ended with status {ended.result()}")
            getting_ready.result()
        finally:
            getting_ready.cancel()
            ended.cancel()

    async def _keep(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), RESTART_PAUSE_S
        while True:
            began_s = loop.time()
            status = await self.child.wait()
            if loop.time() - began_s > STEADY_S:
                pause_s = RESTART_PAUSE_S
            log.warning(
                "%s ended with status %d; it is started again in %g s. Its log: %s",
                self.child.name,
                status,
                pause_s,
                self.child.log_path,
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            await self.child.start(self._environment)
