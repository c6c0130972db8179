"""The ZeroMQ sockets between router and agents: frames in and out, nothing decided."""

import asyncio
import logging
from collections.abc import Callable

import zmq

from seer_sgl.errors import StartError
from seer_sgl.router.messages import (
    AgentMessage,
    Message,
    ProtocolError,
    Refused,
    decode_from_agent,
    encode,
)

log = logging.getLogger(__name__)

OnMessage = Callable[[bytes, AgentMessage], None]
_MOST_AT_ONCE = 256
"""Deliveries that are taken in before other work of the loop has its turn."""


class Pump:
    """Moves frames between a socket and the event loop without a future or a task for each of them.

    What is sent to one peer within a turn of the loop leaves as one delivery of several frames.

    Args:
        socket: a ROUTER or DEALER without a high-water mark, so that it takes every frame at once.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._socket = socket
        self._take: Callable[[list[bytes]], None] | None = None
        self._out: dict[bytes | None, list[bytes]] = {}
        self._ended: asyncio.Future[None] | None = None

    def send(self, peer: bytes | None, frame: bytes) -> None:
        """Queue a frame. `peer`: None on a DEALER."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self.flush)
        self._out.setdefault(peer, []).append(frame)

    def flush(self) -> None:
        """Send what is queued. A peer that is gone is noticed by its silence, not here."""
        out, self._out = self._out, {}
        if not out or self._socket.closed:
            return
        for peer, frames in out.items():
            try:
                self._socket.send_multipart(frames if peer is None else [peer, *frames], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                self.lost(frames, error)
        self._read()  # the socket's descriptor does not tell again of what arrived while it sent

    def lost(self, frames: list[bytes], error: zmq.ZMQError) -> None:
        """A delivery could not leave."""
        log.warning("a message did not leave: %s (%d)", error, len(frames))

    async def run(self, take: Callable[[list[bytes]], None]) -> None:
        """Take deliveries in until cancelled, or until `take` raises: that is raised.

        Args:
            take: called with each delivery; a ROUTER's begins with the peer.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        # Not longer than this runs: sockets and contexts in a cycle of references are freed in any
        # order, and a context that goes first waits for its sockets for ever.
        self._take = take
        descriptor = self._socket.FD
        loop.add_reader(descriptor, self._read)
        loop.call_soon(self._read)
        try:
            await self._ended
        finally:
            loop.remove_reader(descriptor)
            self._ended = self._take = None

    def _read(self) -> None:
        take = self._take
        if take is None or self._ended is None or self._ended.done() or self._socket.closed:
            return
        try:
            for _ in range(_MOST_AT_ONCE):
                take(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return
        except Exception as error:
            self._ended.set_exception(error)
            return
        asyncio.get_running_loop().call_soon(self._read)


class AgentLink:
    """Where engine agents dial in. A peer is known by its socket identity (bytes)."""

    def __init__(self, host: str, port: int) -> None:
        """Bind.

        Raises:
            StartError: the port is taken, or is not ours to take.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Nothing may be dropped: a lost chunk would keep its client waiting for ever. What is queued
        # is bounded by the engines' request slots, not by a count of messages.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._pump = Pump(self._socket)
        self._socket.setsockopt(zmq.IPV6, int(":" in host))
        place = f"[{host}]" if ":" in host else host
        try:
            self._socket.bind(f"tcp://{place}:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise StartError(
                f"cannot listen for engines on {host}:{port}: {error}. Is another router running? "
                "Choose another port with --agent-port."
            ) from None

    def send(self, peer: bytes, message: Message) -> None:
        """Queue a message. A peer that is gone is noticed by its silence, not here."""
        self._pump.send(peer, encode(message))

    async def receive_forever(self, on_message: OnMessage) -> None:
        """Hand every message on, in order. Refuses peers of another protocol version."""

        def take(delivery: list[bytes]) -> None:
            peer, *frames = delivery
            for frame in frames:
                try:
                    message = decode_from_agent(frame)
                except ProtocolError as error:
                    log.warning("refused a peer: %s", error)
                    self.send(peer, Refused(str(error)))
                    continue
                on_message(peer, message)

        await self._pump.run(take)

    def close(self) -> None:
        self._context.destroy(linger=0)
