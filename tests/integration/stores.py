"""A store with its master and its keeper, and hands on what is in it. No SGLang."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.kv.keys import Objects, mha_suffixes, namespace_seed, packed, page_digests

pytest.importorskip("mooncake")

PAGE = 4
PAGE_BYTES = 1000
OBJECTS = Objects("model", mha_suffixes(2))
LEASE_S = 1.5
BIN = Path(sys.executable).parent


class World:
    """A master, a keeper, and a client that lends memory to the store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rpc, self.metrics, self.listen = free_port(), free_port(), free_port()
        self.master: subprocess.Popen[bytes] | None = None
        self.keeper: subprocess.Popen[bytes] | None = None
        self.store: Any = None

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.listen}"

    def start_master(self) -> None:
        self.master = self._start(
            str(BIN / "mooncake_master"),
            "--rpc_address=127.0.0.1",
            f"--rpc_port={self.rpc}",
            "--metrics_host=127.0.0.1",
            f"--metrics_port={self.metrics}",
            f"--default_kv_lease_ttl={int(LEASE_S * 1000)}",
        )
        until(lambda: self.keys() is not None)

    def start_keeper(self, *options: str) -> None:
        self.keeper = self._start(
            sys.executable,
            *("-m", "seer_sgl.kv.keeper", "--listen", self.address),
            *("--master", f"127.0.0.1:{self.rpc}", "--metrics", f"127.0.0.1:{self.metrics}"),
            *("--linger-s", "1", *options),
        )

    def join_store(self) -> None:
        from mooncake.store import MooncakeDistributedStore

        self.store = MooncakeDistributedStore()
        segment, buffer = 64 << 20, 16 << 20
        where = f"127.0.0.1:{self.rpc}"
        assert not self.store.setup("127.0.0.1", "P2PHANDSHAKE", segment, buffer, "tcp", "", where)

    def _start(self, *argv: str) -> "subprocess.Popen[bytes]":
        with (self.directory / f"{Path(argv[0]).name}.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def keys(self) -> set[str] | None:
        """All names in the store; None while its master is away."""
        try:
            said = httpx.get(f"http://127.0.0.1:{self.metrics}/get_all_keys", timeout=2).text
        except httpx.TransportError:
            return None
        return set(said.split())

    def are_gone(self, names: set[str]) -> bool:
        keys = self.keys()
        return keys is not None and not names & keys

    def write(self, ids: list[int], salt: str = "", pages: slice = slice(None)) -> set[str]:
        """Put pages of a request into the store as two ranks of a server do; their names."""
        names = OBJECTS.keys(pages_of(ids, salt)[pages])
        for name in names:
            assert self.store.put(name, b"x" * PAGE_BYTES) == 0
        return set(names)

    def end(self) -> None:
        if self.store is not None:
            self.store.close()
        for process in (self.keeper, self.master):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def pages_of(ids: list[int], salt: str = "") -> list[bytes]:
    return page_digests(packed(ids), PAGE, namespace_seed(None, salt))


def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        made.start_master()
        made.join_store()
        yield made
    finally:
        made.end()
