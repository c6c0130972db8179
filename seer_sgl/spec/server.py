"""A draft server: the store behind a ZeroMQ socket, in a process of its own.

    python -m seer_sgl.spec.server --host 127.0.0.1 --port 30002 --budget-bytes 1073741824

It ends by a signal, and by nothing that a peer sends.
"""

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable

import zmq

from seer_sgl.spec.sharing.answers import DraftServer
from seer_sgl.spec.sharing.exchange import warm_up
from seer_sgl.spec.sharing.heads import Frames
from seer_sgl.spec.sharing.messages import MAX_FRAME_BYTES
from seer_sgl.spec.store import DraftStore

log = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 1 << 30
PEER_MESSAGES = 16
"""Messages queued from and to one peer; an engine that keeps to the protocol has one under way."""
EXPIRY_S = 1.0
"""How often groups are looked through for those that nobody reads any more."""


def serve(server: DraftServer, socket: zmq.Socket[bytes], keep_on: Callable[[], bool]) -> None:
    """Answer until `keep_on` says no."""
    expiry_s = time.monotonic() + EXPIRY_S
    while keep_on():
        left_s = expiry_s - time.monotonic()
        if left_s <= 0:
            server.expire()
            expiry_s = time.monotonic() + EXPIRY_S
        elif socket.poll(int(left_s * 1000) + 1):
            peer, *frames = socket.recv_multipart()
            answer = server.answer(frames)
            if answer is not None:
                # Without waiting: what a peer does not take is lost, and its engine asks again.
                send_lossy(socket, [peer, *answer])


def send_lossy(socket: zmq.Socket[bytes], frames: Frames) -> bool:
    """Send without waiting; False where it could not be."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
    except zmq.ZMQError:
        return False
    return True


def bound_socket(context: zmq.Context[zmq.Socket[bytes]], host: str, port: int) -> zmq.Socket[bytes]:
    """The ROUTER socket that engines dial.

    Raises:
        zmq.ZMQError: the port is taken, or is not ours to take.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, PEER_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, PEER_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.IPV6, ":" in host)
    try:
        socket.bind(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
    except zmq.ZMQError:
        socket.close()
        raise
    return socket


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Hold what engines generate, for siblings' drafts.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--budget-bytes", type=int, default=DEFAULT_BUDGET_BYTES)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    try:
        store = DraftStore(args.budget_bytes)
        context = zmq.Context()
        socket = bound_socket(context, args.host, args.port)
    except (ValueError, zmq.ZMQError) as error:
        log.error("cannot serve drafts on %s:%d: %s", args.host, args.port, error)
        return 2
    warm_up()
    server = DraftServer(store)
    log.info("drafts on %s:%d, at most %d bytes", args.host, args.port, args.budget_bytes)
    try:
        serve(server, socket, lambda: not stopped)
    finally:
        socket.close()
        context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main())
