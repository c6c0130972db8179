"""The pool's keeper: frees KV the moment nobody needs it, and knows what is there. A process of its own.

    python -m seer_sgl.kv.keeper --listen tcp://127.0.0.1:30003 --master 127.0.0.1:50051

The store's native code, and whatever it waits for, never touches a router. It ends by a signal, and by
nothing that a peer or the store does.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import zmq

from seer_sgl.errors import StartError
from seer_sgl.kv.client import StoreAddress, StoreClient, room
from seer_sgl.kv.keeping import Keeping, Replies
from seer_sgl.kv.ledger import LedgerSettings
from seer_sgl.kv.messages import MessageError, decode_from_router, encode
from seer_sgl.kv.pool import client_bounds

log = logging.getLogger(__name__)

PEER_DELIVERIES = 1000
"""Queued from and to one router; what is too much to it is lost, and it opens requests anew."""
MAX_FRAME_BYTES = 256 << 20
_MOST_AT_ONCE = 256
"""Deliveries that are taken in before other work has its turn."""


def serve(keeping: Keeping, socket: zmq.Socket[bytes], keep_on: Callable[[], bool]) -> None:
    """Keep the pool until `keep_on` says no."""
    while keep_on():
        wait_s = keeping.wait_s(time.monotonic())
        if socket.poll(int(wait_s * 1000) + (wait_s > 0)):
            _take_in(keeping, socket)
        _send(socket, keeping.work(time.monotonic()))


def _take_in(keeping: Keeping, socket: zmq.Socket[bytes]) -> None:
    for _ in range(_MOST_AT_ONCE):
        try:
            router, *frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        for frame in frames:
            try:
                message = decode_from_router(frame)
            except MessageError as error:
                log.warning("%s. Do router and keeper come from the same version?", error)
                continue
            _send(socket, keeping.take(router, message, time.monotonic()))


def _send(socket: zmq.Socket[bytes], replies: Replies) -> None:
    for router, message in replies:
        try:  # without waiting: a router that is gone, or does not read, asks again
            socket.send_multipart([router, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            continue


def bound_socket(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The ROUTER socket that routers dial.

    Raises:
        StartError: the address is none, or taken.
    """
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, PEER_DELIVERIES)
    socket.setsockopt(zmq.RCVHWM, PEER_DELIVERIES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise StartError(f"cannot listen for routers on {address}: {error}. Is it taken?") from None
    return socket


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    usual = LedgerSettings()
    parser = argparse.ArgumentParser(
        description="Free KV in a Mooncake store as soon as nobody needs it."
    )
    parser.add_argument("--listen", required=True, help="tcp://HOST:PORT that routers dial")
    parser.add_argument("--master", required=True, help="the store's master, as SGLang is told it")
    parser.add_argument("--metadata", default="P2PHANDSHAKE", help="the store's metadata server")
    parser.add_argument("--protocol", default="tcp", help="tcp or rdma")
    parser.add_argument("--device", default="", help="RDMA devices")
    parser.add_argument(
        "--local-host", default="127.0.0.1", help="this machine, as the store's nodes reach it"
    )
    parser.add_argument(
        "--metrics", default="", help="HOST:PORT of the master's metrics; tells how full it is"
    )
    parser.add_argument(
        "--linger-s", type=float, default=usual.linger_s, help="a group's prompt, after its end"
    )
    parser.add_argument("--kept-s", type=float, default=usual.kept_s, help="aborted requests")
    parser.add_argument(
        "--silent-s", type=float, default=usual.silent_s, help="of a router that is gone"
    )
    parser.add_argument(
        "--high", type=float, default=usual.high, help="share of the pool at which it gets tight"
    )
    parser.add_argument("--low", type=float, default=usual.low, help="share that is aimed at then")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    args = _arguments(argv)
    os.environ.update(client_bounds(os.environ))  # Mooncake reads them where it is loaded
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    stopped: list[int] = []

    def listen_to_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: stopped.append(number))

    address = StoreAddress(args.master, args.metadata, args.protocol, args.device, args.local_host)

    def connect() -> StoreClient:
        client = StoreClient(address)
        listen_to_signals()  # Mooncake has put its own in their place
        return client

    listen_to_signals()
    settings = LedgerSettings(
        linger_s=args.linger_s, kept_s=args.kept_s, silent_s=args.silent_s, high=args.high, low=args.low
    )
    ask_room = (lambda: room(args.metrics)) if args.metrics else (lambda: None)
    keeping = Keeping(connect, ask_room, settings, time.monotonic())
    with zmq.Context() as context:
        try:
            with bound_socket(context, args.listen) as socket:
                log.info("keeping the KV pool of %s, listening on %s", args.master, args.listen)
                serve(keeping, socket, lambda: not stopped)
        except StartError as error:
            log.error("%s", error)
            return 2
    keeping.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
