"""The client of the store against a real one."""

import time
from pathlib import Path

import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.kv.client import PoolUnreachable, Room, StoreAddress, StoreClient, room
from seer_sgl.kv.ledger import Outcome
from tests.integration.stores import LEASE_S, World, until, world

__all__ = ["world"]  # the fixture

REMOVED, ABSENT, LEASED, FAILED = Outcome.REMOVED, Outcome.ABSENT, Outcome.LEASED, Outcome.FAILED


def client_of(world: World) -> StoreClient:
    return StoreClient(StoreAddress(f"127.0.0.1:{world.rpc}"))


def put(world: World, *keys: str) -> None:
    for key in keys:
        assert world.store.put(key, b"x" * 5000) == 0


def test_objects_are_found_and_removed(world: World) -> None:
    client = client_of(world)
    try:
        put(world, "a", "b", "c")
        assert client.release(["a", "nothing"]) == [REMOVED, ABSENT]
        assert client.exists(["a", "b"]) == [False, True]
        assert client.release(["b", "c"]) == [LEASED, REMOVED], "who asks keeps it for a while"
        time.sleep(LEASE_S + 0.5)
        assert client.release(["b"]) == [REMOVED]
        many = [f"{number}" for number in range(2500)]
        put(world, many[0], many[-1])
        found = client.exists(many)
        assert [at for at, there in enumerate(found) if there] == [0, 2499]
    finally:
        client.close()


def test_objects_are_brought_near(world: World) -> None:
    client, other = client_of(world), World(world.directory)
    other.rpc = world.rpc
    try:
        put(world, "a", "b")
        assert client.prefetch(["a", "nothing"]) == 1
        assert client.release(["a", "b"]) == [LEASED, REMOVED]
        other.join_store()
        assert client.prefetch(["a", "nothing"], segment=other.store.get_hostname()) == 1
        until(lambda: len(world.store.get_replica_desc("a")) == 2)
    finally:
        other.end()
        client.close()


def test_a_dead_master_is_named(world: World) -> None:
    client = client_of(world)
    try:
        metrics = f"127.0.0.1:{world.metrics}"
        put(world, "a")
        until(lambda: room(metrics) == Room(5000, 64 << 20))
        assert world.master is not None
        world.master.kill()
        world.master.wait()
        with pytest.raises(PoolUnreachable, match=f"127.0.0.1:{world.rpc}"):
            client.exists(["a"])
        assert client.release(["a", "b"]) == [FAILED, FAILED]
        assert room(metrics) is None
    finally:
        client.close()


def test_where_no_master_is_there_is_no_client(tmp_path: Path) -> None:
    address = StoreAddress(f"127.0.0.1:{free_port()}")
    with pytest.raises(PoolUnreachable, match=f"{address.master}.*Is it running"):
        StoreClient(address)
