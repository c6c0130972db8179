"""What SGLang and Mooncake are told of the pool."""

import json

from seer_sgl.kv.pool import PoolAddress, hicache_args, master_args


def test_environment_of_an_engine() -> None:
    pool = PoolAddress("10.0.0.1:5", "http://10.0.0.1:6/metadata", "rdma")
    assert pool.environment("10.0.0.7", 1 << 20) == {
        "MOONCAKE_MASTER": "10.0.0.1:5",
        "MOONCAKE_TE_META_DATA_SERVER": "http://10.0.0.1:6/metadata",
        "MOONCAKE_PROTOCOL": "rdma",
        "MOONCAKE_LOCAL_HOSTNAME": "10.0.0.7",
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": "1048576",
    }
    assert PoolAddress("m:1", "u").environment("h", 1)["MOONCAKE_PROTOCOL"] == "tcp"


def test_hicache_writes_through_and_waits_for_what_is_there() -> None:
    switch, *pairs = hicache_args(page_tokens=32)
    settings = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert switch == "--enable-hierarchical-cache"
    assert settings["--hicache-storage-backend"] == "mooncake"
    assert settings["--hicache-write-policy"] == "write_through"
    assert settings["--hicache-storage-prefetch-policy"] == "wait_complete"
    assert settings["--hicache-mem-layout"] == "page_first_direct"
    extra = json.loads(settings["--hicache-storage-backend-extra-config"])
    assert extra["prefetch_threshold"] == 32, "one page is worth fetching"


def test_master_listens_where_it_is_told() -> None:
    program, *flags = master_args("10.0.0.1", 5, 6, 7)
    settings = dict(flag.removeprefix("--").split("=") for flag in flags)
    assert program == "mooncake_master"
    assert (settings["rpc_address"], settings["rpc_port"]) == ("10.0.0.1", "5")
    assert settings["enable_http_metadata_server"] == "true"
    assert settings["http_metadata_server_host"] == "10.0.0.1"
    assert settings["http_metadata_server_port"] == "6"
    assert settings["metrics_port"] == "7"
