"""What SGLang and Mooncake are told of the pool."""

import json

import pytest

from seer_sgl.errors import StartError
from seer_sgl.kv.pool import (
    CLIENT_BOUNDS,
    PEER_TO_PEER,
    PoolAddress,
    PoolSettings,
    client_bounds,
    hicache_args,
    master_settings,
    parsed_flags,
)


def test_environment_of_an_engine() -> None:
    pool = PoolAddress("10.0.0.1:5", "http://10.0.0.1:6/metadata", "rdma", "mlx5_0")
    assert pool.environment("10.0.0.7", 1 << 20) == {
        "MOONCAKE_MASTER": "10.0.0.1:5",
        "MOONCAKE_TE_META_DATA_SERVER": "http://10.0.0.1:6/metadata",
        "MOONCAKE_PROTOCOL": "rdma",
        "MOONCAKE_DEVICE": "mlx5_0",
        "MOONCAKE_LOCAL_HOSTNAME": "10.0.0.7",
        "MOONCAKE_GLOBAL_SEGMENT_SIZE": "1048576",
    }
    by_default = PoolAddress("m:1").environment("h", 1)
    assert by_default["MOONCAKE_PROTOCOL"] == "tcp"
    assert by_default["MOONCAKE_TE_META_DATA_SERVER"] == PEER_TO_PEER
    assert by_default["MOONCAKE_DEVICE"] == ""


def test_a_clients_calls_are_bounded_unless_the_user_bounds_them() -> None:
    assert client_bounds({"PATH": "/"}) == CLIENT_BOUNDS
    theirs = client_bounds({"MC_RPC_TIMEOUT_MS": "9"})
    assert theirs == {**CLIENT_BOUNDS, "MC_RPC_TIMEOUT_MS": "9"}


def test_hicache_writes_through_and_waits_for_what_is_there_but_not_for_ever() -> None:
    switch, *pairs = hicache_args(page_tokens=32)
    settings = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert switch == "--enable-hierarchical-cache"
    assert settings["--hicache-storage-backend"] == "mooncake"
    assert settings["--hicache-write-policy"] == "write_through"
    assert settings["--hicache-storage-prefetch-policy"] == "timeout"
    assert settings["--hicache-mem-layout"] == "page_first_direct"
    extra = json.loads(settings["--hicache-storage-backend-extra-config"])
    assert extra["prefetch_threshold"] == 32, "one page is worth fetching"


def test_master_listens_where_it_is_told() -> None:
    flags = master_settings(PoolSettings(), "10.0.0.1", 5, 7)
    assert (flags["rpc_address"], flags["rpc_port"]) == ("10.0.0.1", "5")
    assert (flags["metrics_host"], flags["metrics_port"]) == ("10.0.0.1", "7")
    assert "enable_http_metadata_server" not in flags


def test_the_users_flags_of_a_master_win_and_lead_to_it() -> None:
    given = parsed_flags(["enable_ha=true", "--etcd_endpoints=a:1;b:2", "client_ttl=99", "rpc_port=6"])
    settings = PoolSettings(master_flags=given)
    flags = master_settings(settings, "h", 5, 7)
    assert flags["etcd_endpoints"] == "a:1;b:2"
    assert (flags["client_ttl"], flags["rpc_port"]) == ("99", "6")
    assert settings.own_master("h", 5) == "h:6"
    elsewhere = PoolSettings(master_flags={"rpc_address": "10.0.0.9"})
    assert elsewhere.own_master("h", 5) == "10.0.0.9:5"


def test_master_and_clients_are_of_one_cluster() -> None:
    settings = PoolSettings("etcd://e:1", master_flags={"cluster_id": "c"})
    assert not settings.starts_master
    assert settings.address("h:5").environment("h", 1)["MC_STORE_CLUSTER_ID"] == "c"
    assert "MC_STORE_CLUSTER_ID" not in PoolSettings().address("h:5").environment("h", 1)


@pytest.mark.parametrize("flag", ["enable_ha", "=true", "--=1", ""])
def test_what_is_no_flag_of_a_master(flag: str) -> None:
    with pytest.raises(StartError, match="no flag of mooncake_master: write NAME=VALUE"):
        parsed_flags([flag])


def test_an_own_master_and_one_that_runs() -> None:
    own = PoolSettings(segment_bytes=7, device="d", protocol="rdma")
    own.check()
    assert own.starts_master
    assert own.address("h:5") == PoolAddress("h:5", PEER_TO_PEER, "rdma", "d", 7)
    theirs = PoolSettings("m:1", metadata="http://m:2/metadata")
    theirs.check()
    assert not theirs.starts_master
    assert theirs.address("h:5") == PoolAddress("m:1", "http://m:2/metadata")


def test_one_master_of_several() -> None:
    flags = {"enable_ha": "true", "etcd_endpoints": "e:1"}
    candidate = PoolSettings("etcd://e:1", master_flags=flags)
    candidate.check()
    assert candidate.starts_master
    assert candidate.highly_available
    assert candidate.address("h:5").master == "etcd://e:1"
    no_candidate = PoolSettings("etcd://e:1")
    no_candidate.check()
    assert not no_candidate.starts_master
    assert not no_candidate.highly_available


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (PoolSettings(master_flags={"enable_ha": "true"}), "which master leads: give --pool-master"),
        (PoolSettings("m:1", master_flags={"client_ttl": "1"}), "names one that runs: leave one"),
        (PoolSettings("m"), "'m' is no address; write HOST:PORT"),
        (PoolSettings("m:port"), "'m:port' is no address"),
        (PoolSettings(":1"), "':1' is no address"),
    ],
)
def test_settings_with_which_engines_would_find_no_master(
    settings: PoolSettings, complaint: str
) -> None:
    with pytest.raises(StartError, match=complaint):
        settings.check()
