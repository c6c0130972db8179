"""Moves KV between two Mooncake clients as SGLang does, and says how long it takes.

Three processes: `mooncake_master`, a writer that lends a segment, and a reader without one. Both put and
get with registered buffers and without a copy, in batches of pages as SGLang's HiCache does, so what
is measured is the store, not a wrapper of it. Prefixes longer than the window go through it in parts:
put, get, checked, removed.
"""

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from seer_sgl.engine.process import free_port
from seer_sgl.kv.pool import PEER_TO_PEER, PoolSettings, master_settings

LOCAL_BUFFER_BYTES = 16 << 20
CALL_OBJECTS = 256
"""Of one call to the store: SGLang moves 128 pages at a time. With some thousands a TCP client's queue
overflows, and the call fails after a minute."""
START_S = 20.0
ANSWER_S = 120.0


class Layout(msgspec.Struct, frozen=True):
    """How a model's KV lies in the store."""

    token_bytes: int
    """KV of one token, over all layers and devices."""
    page_tokens: int
    ranks: int
    """Devices, each of which stores its part of a page as an object of keys and one of values."""

    @property
    def objects_per_page(self) -> int:
        return 2 * self.ranks

    @property
    def object_bytes(self) -> int:
        return self.token_bytes * self.page_tokens // self.objects_per_page

    @property
    def page_bytes(self) -> int:
        return self.token_bytes * self.page_tokens


class Part(msgspec.Struct, frozen=True):
    """Objects of one window."""

    name: str
    objects: int
    object_bytes: int

    @property
    def keys(self) -> list[str]:
        return [f"{self.name}-{number}" for number in range(self.objects)]

    @property
    def sizes(self) -> list[int]:
        return [self.object_bytes] * self.objects


class Moved(msgspec.Struct, frozen=True):
    """One prefix from one client to the other."""

    tokens: int
    bytes: int
    put_s: float
    get_s: float
    parts: int
    wrong: int
    """Objects that did not arrive as they were sent."""


def parts_of(tokens: int, layout: Layout, window_bytes: int, name: str) -> list[Part]:
    """A prefix cut into windows of whole pages; at least one page each."""
    pages = -(-tokens // layout.page_tokens)
    window_pages = max(1, window_bytes // layout.page_bytes)
    counts = [min(window_pages, pages - first) for first in range(0, pages, window_pages)]
    return [
        Part(f"{name}-{number}", count * layout.objects_per_page, layout.object_bytes)
        for number, count in enumerate(counts)
    ]


class Store:
    """A master, a writer and a reader."""

    def __init__(self, master: str, writer: Connection, reader: Connection, window_bytes: int) -> None:
        self.master = master
        self._writer, self._reader = writer, reader
        self._window_bytes = window_bytes

    def put(self, part: Part) -> float:
        """Write objects; seconds that it took.

        Raises:
            RuntimeError: the store refused some.
        """
        return float(_ask(self._writer, "put", part))

    def move(self, tokens: int, layout: Layout, name: str) -> Moved:
        """Send a prefix, part by part.

        Raises:
            RuntimeError: a client refused, or did not answer.
        """
        put_s = get_s = 0.0
        wrong = 0
        parts = parts_of(tokens, layout, self._window_bytes, name)
        for part in parts:
            put_s += self.put(part)
            took_s, bad = _ask(self._reader, "get", part)
            get_s, wrong = get_s + took_s, wrong + bad
            _ask(self._writer, "remove", part)
        sent = sum(part.objects * part.object_bytes for part in parts)
        return Moved(tokens, sent, put_s, get_s, len(parts), wrong)


@contextlib.contextmanager
def running_store(window_bytes: int, folder: Path) -> Iterator[Store]:
    """A store that can hold one window."""
    with running_master(folder) as (master, _):
        # Room for what the allocator loses between objects.
        segment_bytes = window_bytes + max(window_bytes // 8, 64 << 20)
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as stack:
            ends = [
                stack.enter_context(_client(context, master, segment, window_bytes))
                for segment in (segment_bytes, 0)
            ]
            yield Store(master, ends[0], ends[1], window_bytes)


@contextlib.contextmanager
def running_master(folder: Path) -> Iterator[tuple[str, str]]:
    """A `mooncake_master` as the head of a cluster starts it, its log in `folder`; yields its address
    and the URL of its metrics.

    Raises:
        RuntimeError: it does not come up.
    """
    port, metrics_port = free_port(), free_port()
    flags = master_settings(PoolSettings(), "127.0.0.1", port, metrics_port)
    program = Path(sys.executable).with_name("mooncake_master")
    argv = [str(program), *(f"--{name}={value}" for name, value in flags.items())]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mooncake_master.log").open("wb") as log:
        master = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        _wait_for_port(port, master)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}"
    finally:
        master.kill()
        master.wait()


def _wait_for_port(port: int, master: "subprocess.Popen[bytes]") -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and master.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"mooncake_master does not listen on port {port} after {START_S:g} s")


@contextlib.contextmanager
def _client(context: Any, master: str, segment_bytes: int, buffer_bytes: int) -> Iterator[Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, master, segment_bytes, buffer_bytes), daemon=True
    )
    process.start()
    theirs.close()
    try:
        _answer(ours)
        yield ours
    finally:
        ours.close()
        process.join(5.0)
        if process.is_alive():
            process.kill()


def _ask(end: Connection, what: str, part: Part) -> Any:
    end.send((what, part))
    return _answer(end)


def _answer(end: Connection) -> Any:
    if not end.poll(ANSWER_S):
        raise RuntimeError(f"a store client did not answer within {ANSWER_S:g} s")
    try:
        said = end.recv()
    except EOFError:
        raise RuntimeError("a store client ended; see its message above") from None
    if isinstance(said, str):
        raise RuntimeError(said)
    return said


# ---- inside the clients ----


def _serve(end: Connection, master: str, segment_bytes: int, buffer_bytes: int) -> None:
    """A store client: what the other end asks, until it hangs up. Ends the process."""
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")  # it tells every start at length
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    code = store.setup("127.0.0.1", PEER_TO_PEER, segment_bytes, LOCAL_BUFFER_BYTES, "tcp", "", master)
    memory = mmap.mmap(-1, buffer_bytes)
    buffer = np.frombuffer(memory, np.uint8)
    buffer[:] = 0  # the first touch of a page is not the store's cost
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    code = code or store.register_buffer(address, buffer_bytes)
    end.send(f"a store client cannot start: Mooncake's code {code}" if code else 0.0)
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, part = end.recv()
            end.send(_ACTS[what](store, buffer, address, part))
    os._exit(0)  # its native threads may wait for a master that is gone


def _put(store: Any, buffer: Any, address: int, part: Part) -> float | str:
    for number, row in enumerate(_rows(buffer, part)):
        row[:] = pattern(part.name, number, part.object_bytes)
    took_s = 0.0
    for keys, pointers, sizes in _calls(part, address):
        begun_s = time.perf_counter()
        # As SGLang does: ask what is there, then put the rest.
        there = store.batch_is_exist(keys)
        codes = store.batch_put_from(keys, pointers, sizes)
        took_s += time.perf_counter() - begun_s
        if any(there) or any(codes):
            return f"the store had {sum(there)} of {len(keys)} objects, and answered {set(codes)}"
    return took_s


def _get(store: Any, buffer: Any, address: int, part: Part) -> tuple[float, int] | str:
    rows = _rows(buffer, part)
    rows[:] = 0
    took_s = 0.0
    for keys, pointers, sizes in _calls(part, address):
        begun_s = time.perf_counter()
        there = store.batch_is_exist(keys)
        got = store.batch_get_into(keys, pointers, sizes)
        took_s += time.perf_counter() - begun_s
        if set(there) != {1} or got != sizes:
            return f"the store had {sum(there)} of {len(keys)} objects, and answered {set(got)}"
    expected = (pattern(part.name, number, part.object_bytes) for number in range(part.objects))
    return took_s, sum(not np.array_equal(row, want) for row, want in zip(rows, expected, strict=True))


def _remove(store: Any, buffer: Any, address: int, part: Part) -> float | str:
    # By force: the reader is done, and leases only protect readers that nobody knows of.
    codes = store.batch_remove(part.keys, True)
    return 0.0 if not any(codes) else f"the store kept objects of {part.name}: {set(codes)}"


def _rows(buffer: Any, part: Part) -> Any:
    """The buffer's beginning, an object a row."""
    return buffer[: part.objects * part.object_bytes].reshape(part.objects, part.object_bytes)


def _calls(part: Part, address: int) -> Iterator[tuple[list[str], list[int], list[int]]]:
    """Keys, addresses and sizes of each call to the store."""
    pointers = [address + number * part.object_bytes for number in range(part.objects)]
    for first in range(0, part.objects, CALL_OBJECTS):
        chosen = slice(first, first + CALL_OBJECTS)
        yield part.keys[chosen], pointers[chosen], part.sizes[chosen]


_ACTS: dict[str, Callable[[Any, Any, int, Part], Any]] = {"put": _put, "get": _get, "remove": _remove}


def pattern(name: str, number: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Bytes that no other object has: a ramp that starts elsewhere in each, and a stamp at both ends."""
    start = number % 251
    row = _ramp(size + 251)[start : start + size].copy()
    stamp = np.frombuffer(f"{name}/{number}".encode()[:size], np.uint8)
    row[: len(stamp)] = stamp
    row[size - len(stamp) :] = stamp
    return row


@cache
def _ramp(size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Counts up to 250, again and again: no power of two, so that no block looks like the next."""
    return (np.arange(size) % 251).astype(np.uint8)
