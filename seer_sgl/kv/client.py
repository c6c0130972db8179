"""The Mooncake store as the keeper uses it: asked and told, without memory of its own in the pool.

The only file that imports `mooncake`. All calls block; against a dead master they return within
milliseconds, against one that hangs only after the library's own timeouts.
"""

import http.client
import logging
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seer_sgl.errors import SeerError, StartError
from seer_sgl.kv.ledger import Outcome

log = logging.getLogger(__name__)

KEYS_AT_ONCE = 1000
"""A call of so many takes some 2 ms."""
READ_AT_ONCE = 256
"""Of more than some 2,000 in one call over TCP the store rejects some, and waits a minute for them."""
LOCAL_BUFFER_BYTES = 1 << 20
METRICS_TIMEOUT_S = 0.5
CONNECT_TIMEOUT_S = 1.0
_REMOVED = {0: Outcome.REMOVED, -704: Outcome.ABSENT, -706: Outcome.LEASED}
"""Mooncake's codes: done, not there, leased (0.3.13)."""


class PoolUnreachable(SeerError):
    """The store's master did not answer, or refused."""


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store is, and how this process is reached in it."""

    master: str
    metadata: str = "P2PHANDSHAKE"
    protocol: str = "tcp"
    device: str = ""
    """RDMA devices; empty lets Mooncake choose."""
    local_host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Room:
    """How full the store is."""

    used_bytes: int
    capacity_bytes: int


class StoreClient:
    """A client that lends no memory.

    Raises:
        StartError: Mooncake is not installed here.
        PoolUnreachable: there is no master at this address.
    """

    def __init__(self, address: StoreAddress, buffer_bytes: int = LOCAL_BUFFER_BYTES) -> None:
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise StartError(
                f"the KV pool needs Mooncake, which does not load here: {error}. "
                "Install seer-sgl[cpu] or seer-sgl[cuda]; `seer-sgl join` names missing system packages."
            ) from None
        self._address = address
        _check_that_it_listens(address.master)
        self._store: Any = MooncakeDistributedStore()
        code = self._store.setup(
            address.local_host,
            address.metadata,
            0,
            buffer_bytes,
            address.protocol,
            address.device,
            address.master,
        )
        if code:
            raise PoolUnreachable(
                f"cannot reach the KV pool's master at {address.master} (metadata {address.metadata}): "
                f"Mooncake's code {code}. Is it running?"
            )

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Which objects are there. Those that are cannot be removed for the length of a lease.

        Raises:
            PoolUnreachable: the master does not answer.
        """
        found: list[bool] = []
        for some in _batches(keys):
            codes = self._store.batch_is_exist(some)
            self._check(codes, lambda code: code in (0, 1), "look for")
            found += [code == 1 for code in codes]
        return found

    def release(self, keys: Sequence[str]) -> list[Outcome]:
        """Remove objects that nobody reads; what came of each. None is taken from a reader.

        Where nothing of one call could be removed nor looked at, the rest is not tried: a master that
        hangs holds up every call.
        """
        outcomes: list[Outcome] = []
        for some in _batches(keys):
            codes = self._store.batch_remove(some)
            outcomes += [_REMOVED.get(code, Outcome.FAILED) for code in codes]
            if not any(code in _REMOVED for code in codes):
                break
        return outcomes + [Outcome.FAILED] * (len(keys) - len(outcomes))

    def prefetch(self, keys: Sequence[str], segment: str = "") -> int:
        """Bring objects near before they are wanted; how many of them are.

        Args:
            segment: copy them into this segment (`host:port` of a client, as the master lists it). The
                copying itself goes on after the call. Empty: read them, so that they stay for a lease.
        """
        near = 0
        for some in _batches(keys, READ_AT_ONCE):
            if segment:
                near += sum(not self._store.create_copy_task(key, [segment])[1] for key in some)
            else:
                near += sum(bool(data) for data in self._store.get_batch(some))
        return near

    def close(self) -> None:
        """Leave the store."""
        self._store.close()

    def _check(self, codes: Sequence[int], fine: Any, what: str) -> None:
        bad = [code for code in codes if not fine(code)]
        if bad:
            raise PoolUnreachable(
                f"cannot {what} {len(codes)} objects in the KV pool of {self._address.master}: "
                f"Mooncake's code {bad[0]}"
            )


def _check_that_it_listens(master: str) -> None:
    """Where that can be told. Mooncake itself tries for a minute and a half."""
    host, _, port = master.rpartition(":")
    if "://" in master or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise PoolUnreachable(
            f"cannot reach the KV pool's master at {master}: {error}. Is it running?"
        ) from None


def room(metrics: str) -> Room | None:
    """How full the store is, as its master's metrics port says; None where it does not.

    Args:
        metrics: `host:port`.
    """
    try:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
            values = dict(_gauges(answer.read().decode()))
        return Room(int(values["master_allocated_bytes"]), int(values["master_total_capacity_bytes"]))
    except (OSError, http.client.HTTPException, ArithmeticError, ValueError, KeyError):
        return None


def _gauges(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith("master_") and "{" not in name:
            yield name, float(value)


def _batches(keys: Sequence[str], most: int = KEYS_AT_ONCE) -> Iterator[list[str]]:
    return (list(keys[at : at + most]) for at in range(0, len(keys), most))
