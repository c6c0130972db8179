"""A listening port for each engine, for clients that want to speak to every server by itself."""

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from seer_sgl.errors import StartError
from seer_sgl.types import EngineId

log = logging.getLogger(__name__)

TRIED_PORTS = 1000


class EnginePorts:
    """Opens a port when an engine joins for the first time. It stays the engine's: a server that is
    started again is found where it was, and meanwhile the port says that it is not here.

    Args:
        first: the first port; further engines get the next ones.
        listen: a listening socket on a port. Raises StartError where the port is taken.
        app: what an engine's port serves.
        server: a server for an application.
    """

    def __init__(
        self,
        first: int,
        listen: Callable[[int], socket.socket],
        app: Callable[[EngineId], ASGIApp],
        server: Callable[[ASGIApp], uvicorn.Server],
    ) -> None:
        self.numbers: dict[EngineId, int] = {}
        """Every engine's port, in the order of their coming."""
        self._next = first
        self._last = min(first + TRIED_PORTS, 65536)
        self._listen = listen
        self._app = app
        self._server = server
        self._running: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    def urls(self, host: str) -> dict[EngineId, str]:
        """Every engine's port as a URL.

        Args:
            host: the router's address as the client reaches it.
        """
        place = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return {engine: f"http://{place}:{port}" for engine, port in self.numbers.items()}

    def engine_joined(self, engine_id: EngineId) -> None:
        """Listen for an engine, where nothing does yet."""
        if engine_id in self.numbers:
            return
        listener = self._free_port()
        if listener is None:
            log.error("engine %s gets no port: none is free below %d", engine_id, self._last)
            return
        self.numbers[engine_id] = listener.getsockname()[1]
        server = self._server(self._app(engine_id))
        serving = asyncio.create_task(server.serve(sockets=[listener]), name=f"port of {engine_id}")
        self._running.append((server, serving))
        log.info("engine %s is on port %d", engine_id, self.numbers[engine_id])

    def _free_port(self) -> socket.socket | None:
        while self._next < self._last:
            self._next += 1
            try:
                return self._listen(self._next - 1)
            except StartError as error:
                log.warning("port %d is left out: %s", self._next - 1, error)
        return None

    async def close(self) -> None:
        """Stop listening."""
        for server, _ in self._running:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in self._running), return_exceptions=True)
