"""What the keeper's client of the store costs, by the thousand pages."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.kv_store import Part, running_store
from bench.report import Row
from seer_sgl.kv.client import StoreAddress, StoreClient
from seer_sgl.kv.keys import Objects, PageChain, mha_suffixes, namespace_seed, packed
from seer_sgl.kv.ledger import Outcome
from seer_sgl.kv.pool import LEASE_MS

PAGES = 1000
PAGE_TOKENS = 16
OBJECT_BYTES = 32 << 10
"""Of the small model: 4,096 bytes a token, half of them keys."""
LEASE_MARGIN_S = 0.5


def measure_client(scratch: Path) -> list[Row]:
    """Time of each call for 1,000 pages, an object of keys and one of values each."""
    part = Part("client", 2 * PAGES, OBJECT_BYTES)
    with (
        running_store(part.objects * part.object_bytes, scratch / "client") as store,
        # Mooncake's native threads stay for as long as their process.
        ProcessPoolExecutor(1, get_context("spawn")) as apart,
    ):
        store.put(part)
        return apart.submit(_costs, store.master, part.keys).result()


def _costs(master: str, keys: list[str]) -> list[Row]:
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    client = StoreClient(StoreAddress(master))
    rows = [_row("names of pages from token ids", *_timed(_names))]
    rows.append(_row("ask which are there", *_timed(lambda: sum(client.exists(keys)))))
    rows.append(_row("ask again", *_timed(lambda: sum(client.exists(keys)))))
    rows.append(_row("remove, all leased", *_timed(lambda: _leased(client, keys))))
    time.sleep(LEASE_MS / 1000 + LEASE_MARGIN_S)
    rows.append(_row("remove", *_timed(lambda: _removed(client, keys))))
    rows.append(_row("ask, none there", *_timed(lambda: sum(client.exists(keys)))))
    return rows


def _row(call: str, seconds: float, counted: int) -> Row:
    return {
        "table": f"the keeper's client, {PAGES:,} pages of two objects",
        "call": call,
        "ms": 1000 * seconds,
        "objects": counted,
    }


def _timed(call: Callable[[], int]) -> tuple[float, int]:
    begun_s = time.perf_counter()
    counted = call()
    return time.perf_counter() - begun_s, counted


def _names() -> int:
    chain = PageChain(namespace_seed(None, "a salt"), PAGE_TOKENS)
    digests = chain.extend(packed(range(PAGES * PAGE_TOKENS)))
    return len(Objects("model", mha_suffixes(1)).keys(digests))


def _leased(client: StoreClient, keys: list[str]) -> int:
    return client.release(keys).count(Outcome.LEASED)


def _removed(client: StoreClient, keys: list[str]) -> int:
    return client.release(keys).count(Outcome.REMOVED)
