"""Which server gets a request that runs whole: the idlest, or the one that knows its prompt."""

from collections import Counter

import pytest

from seer_sgl.router.choice import SLACK, chosen
from seer_sgl.router.core import policy_named
from seer_sgl.types import EngineId
from tests.unit.mock_worker import MockWorker
from tests.unit.router.conftest import Cluster, cluster, run

A, B, C = EngineId("a"), EngineId("b"), EngineId("c")


def test_without_a_key_the_idlest_by_turns() -> None:
    idle = [(A, 0), (B, 0), (C, 0)]
    assert [chosen(idle, turn) for turn in range(4)] == [A, B, C, A]
    assert [chosen([(A, 1), (B, 0), (C, 0)], turn) for turn in range(3)] == [B, C, B]


def test_a_key_stays_until_its_engine_has_much_more_to_do() -> None:
    keys = [b"key-%d" % number for number in range(300)]
    idle = [(A, 0), (B, 0), (C, 0)]
    homes = {key: chosen(idle, 0, key) for key in keys}
    assert min(Counter(homes.values()).values()) > 60, "spread over all of them"
    assert homes == {key: chosen(list(reversed(idle)), 5, key) for key in keys}
    busy = [(A, SLACK), (B, 0), (C, 0)]
    assert homes == {key: chosen(busy, 0, key) for key in keys}
    busier = [(A, SLACK + 1), (B, 0), (C, 0)]
    moved = {key: chosen(busier, 0, key) for key in keys}
    assert A not in moved.values()
    assert all(moved[key] == home for key, home in homes.items() if home != A)


@pytest.mark.parametrize(
    ("policy", "sessions", "servers"),
    [("least_loaded", False, 2), ("seer", False, 1), ("seer", True, 2)],
)
def test_servers_without_our_plugin(policy: str, sessions: bool, servers: int) -> None:
    async def ask(it: Cluster, number: int) -> str:
        headers = {"X-SMG-Routing-Key": f"session-{number}"} if sessions else {}
        body = {"model": "m", "prompt": "the same one", "max_tokens": 1}
        answer = await it.http.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        who: str = answer.headers["x-worker-id"]
        return who

    async def scenario() -> None:
        with MockWorker("one") as one, MockWorker("two") as two:
            async with cluster(policy=policy_named(policy)) as it:
                for worker in (one, two):
                    await it.http.post("/workers", json={"url": worker.url})
                assert len({await ask(it, number) for number in range(8)}) == servers

    run(scenario())
