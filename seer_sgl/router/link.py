"""The ZeroMQ ROUTER socket: frames in and out, nothing decided."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

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


class AgentLink:
    """Where engine agents dial in. A peer is known by its socket identity (bytes)."""

    def __init__(self, host: str, port: int) -> None:
        """Bind.

        Raises:
            StartError: the port is taken, or is not ours to take.
        """
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Nothing may be dropped: a lost chunk would keep its client waiting for ever. What is queued
        # is bounded by the engines' request slots, not by a count of messages.
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise StartError(
                f"cannot listen for engines on {host}:{port}: {error}. Is another router running? "
                "Choose another port with --agent-port."
            ) from None

    def send(self, peer: bytes, message: Message) -> None:
        """Queue a message. A peer that is gone is noticed by its silence, not here."""
        sent = asyncio.ensure_future(self._socket.send_multipart([peer, encode(message)]))
        sent.add_done_callback(_note_unreachable)

    async def receive_forever(self, on_message: OnMessage) -> None:
        """Hand every message on, in order. Refuses peers of another protocol version."""
        while True:
            peer, frame = await self._socket.recv_multipart()
            try:
                message = decode_from_agent(frame)
            except ProtocolError as error:
                log.warning("refused a peer: %s", error)
                self.send(peer, Refused(str(error)))
                continue
            on_message(peer, message)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def _note_unreachable(sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.warning("a message did not leave: %s", error)
