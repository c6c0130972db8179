"""Our names of KV pages against SGLang's own code, and against what a real server writes."""

import asyncio
import os
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from seer_sgl.config import EngineConfig
from seer_sgl.engine.process import free_port
from seer_sgl.engine.server import LaunchedServer
from seer_sgl.kv.keys import Objects, mha_suffixes, mla_suffixes, namespace_seed, packed, page_digests
from seer_sgl.kv.pool import PoolAddress
from tests.integration.conftest import MODEL

PAGE = 16
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module", autouse=True)
def build_tools() -> Iterator[None]:
    """SGLang compiles its page hash on first use, with the `ninja` beside this Python."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{BIN}:{before}"
    yield
    os.environ["PATH"] = before


@pytest.mark.filterwarnings("ignore")
def test_digests_are_those_of_sglangs_own_code() -> None:
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from sglang.srt.mem_cache.utils import get_storage_hash_str, storage_namespace_seed

    source = random.Random(5)
    parts = [None, "", "a", "ab", "b", "ü\n", "x" * 300]
    for _ in range(300):
        extra_key, salt = source.choice(parts), source.choice(parts)
        page, vocabulary = source.choice([1, 4, 16, 64]), source.choice([2, 512, 200_000, 1 << 32])
        ids = [source.randrange(vocabulary) for _ in range(source.randrange(400))]
        whole = len(ids) // page * page
        # Its server takes an empty name for none; the code below that does so only with salts.
        key = RadixKey(array("q", ids[:whole]), extra_key=extra_key or None, cache_salt=salt)
        seed = namespace_seed(extra_key, salt)
        assert (seed.hex() or None) == storage_namespace_seed(extra_key or None, salt or None)
        ours = [digest.hex() for digest in page_digests(packed(ids), page, seed)]
        assert ours == get_storage_hash_str(key, None, page_size=page)
        if ours:  # going on from there
            more = [source.randrange(vocabulary) for _ in range(3 * page)]
            after = page_digests(packed(more), page, bytes.fromhex(ours[-1]))
            theirs = get_storage_hash_str(RadixKey(array("q", more)), ours[-1], page_size=page)
            assert [digest.hex() for digest in after] == theirs


def store_of(rank: int, ranks: int, stage: int, stages: int, **others: Any) -> Any:
    """A rank's store as SGLang sets it up, without one behind it."""
    from sglang.srt.mem_cache.storage.mooncake_store.mooncake_store import MooncakeStore

    made = MooncakeStore.__new__(MooncakeStore)
    shards = others.get("tp_lcm_size") or ranks
    parts = [rank * (shards // ranks) + part for part in range(shards // ranks)]
    named = [f"{part}_{stage}" if stages > 1 else f"{part}" for part in parts]
    made.should_split_heads = shards > ranks
    made.mha_suffix = named if made.should_split_heads else named[0]
    made.mla_suffix = f"{stage}" if stages > 1 else ""
    made.is_mla_backend, made.config_prefix = others.get("mla", False), "tag_small-model"
    buffers = 1 if made.is_mla_backend else 2 * len(parts)
    made.dcp_size, made.split_factor = 1, len(parts)
    pages = (list(range(3 * buffers)), [1] * 3 * buffers)
    made.mem_pool_host = SimpleNamespace(
        page_size=PAGE,
        kv_buffer=object(),
        get_page_buffer_meta=lambda indices: pages,
        get_split_heads_page_buffer_meta=lambda indices, factor: pages,
    )
    made.registered_pools = {}
    made.storage_config = SimpleNamespace(
        dcp_size=1,
        attn_cp_size=1,
        tp_size=ranks,
        pp_size=stages,
        tp_lcm_size=others.get("tp_lcm_size"),
    )
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ranks", "stages", "others"),
    [
        (1, 1, {}),
        (4, 1, {}),
        (2, 2, {}),
        (2, 1, {"tp_lcm_size": 8}),
        (2, 2, {"tp_lcm_size": 4}),
        (4, 1, {"mla": True}),
        (2, 3, {"mla": True}),
    ],
)
def test_objects_are_those_of_all_ranks_stores(ranks: int, stages: int, others: dict[str, Any]) -> None:
    from seer_sgl.engine.kvlayout import pool_layout

    stores = [store_of(r, ranks, s, stages, **others) for s in range(stages) for r in range(ranks)]
    digests = page_digests(packed(range(3 * PAGE)), PAGE, b"")
    hashes = [digest.hex() for digest in digests]
    written = {
        name
        for store in stores
        for name in store._batch_preprocess(store._tag_keys(hashes), range(3 * PAGE))[0]
    }
    scheduler = SimpleNamespace(
        spec_algorithm=SimpleNamespace(is_eagle=lambda: False),
        tree_cache=SimpleNamespace(cache_controller=SimpleNamespace(storage_backend=stores[0])),
    )
    told = pool_layout(scheduler)
    assert told is not None
    assert set(Objects(told["prefix"], tuple(told["suffixes"])).keys(digests)) == written
    expected = mla_suffixes(stages) if others.get("mla") else None
    assert tuple(told["suffixes"]) == (
        expected or mha_suffixes(others.get("tp_lcm_size", ranks), stages)
    )


@pytest.fixture
def master(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A store's master, and its metrics."""
    rpc, metrics = free_port(), free_port()
    argv = [str(BIN / "mooncake_master"), f"--rpc_port={rpc}", f"--metrics_port={metrics}"]
    with (tmp_path / "master.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{rpc}", f"http://127.0.0.1:{metrics}/get_all_keys"
    finally:
        process.kill()
        process.wait()


async def names_at(url: str) -> set[str]:
    async with httpx.AsyncClient() as http:
        return set((await http.get(url)).text.split())


REQUESTS: list[dict[str, Any]] = [
    {"input_ids": list(range(3, 50))},
    {"input_ids": list(range(3, 50)), "cache_salt": "e1"},
    {"input_ids": list(range(60, 97)), "extra_key": "tenant", "cache_salt": "ü"},
    {"input_ids": list(range(60, 80)), "extra_key": ""},
]


def test_a_servers_objects_are_those_that_we_name(master: tuple[str, str], tmp_path: Path) -> None:
    address, keys_url = master

    async def run() -> None:
        config = EngineConfig(name="named", model=MODEL, pool=PoolAddress(address), page_tokens=PAGE)
        server = LaunchedServer(config, True, tmp_path)
        try:
            info = await server.start()
            layout = info.facts["pool_layout"]
            objects = Objects(layout["prefix"], tuple(layout["suffixes"]))
            expected: set[str] = set()
            by_request: list[list[str]] = []
            for request in REQUESTS:
                sampling = {"max_new_tokens": 40, "temperature": 0, "ignore_eos": True}
                status, answer = await server.client.post(
                    "/generate", {**request, "sampling_params": sampling}
                )
                assert status == 200, answer
                ids = (request["input_ids"] + answer["output_ids"])[:-1]  # the last has no KV yet
                seed = namespace_seed(request.get("extra_key"), request.get("cache_salt"))
                by_request.append(objects.keys(page_digests(packed(ids), PAGE, seed)))
                expected |= set(by_request[-1])
            deadline_s = time.monotonic() + 20
            while not expected <= (written := await names_at(keys_url)):
                missing = [sum(name not in written for name in names) for names in by_request]
                assert time.monotonic() < deadline_s, f"objects of each request missing: {missing}"
                await asyncio.sleep(0.1)
        finally:
            await server.stop()
        warm_up = {name for name in written - expected if "warmup" in name}
        assert len(written - expected - warm_up) <= 2 * len(objects.suffixes), (
            "the server's own first request"
        )

    asyncio.run(run())
