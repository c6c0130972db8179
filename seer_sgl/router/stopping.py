"""The end of the router, for those who wait for something else meanwhile."""

import asyncio
from collections.abc import Callable


class Stopping(asyncio.Event):
    """Set when the router ends. Whoever cannot wait for it leaves a callback in `then`."""

    def __init__(self) -> None:
        super().__init__()
        self.then: set[Callable[[], None]] = set()

    def set(self) -> None:
        super().set()
        for callback in list(self.then):
            callback()
