"""What engines are told for their drafts, and what the draft servers' counts look like."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from seer_sgl.engine.process import free_port
from seer_sgl.router import drafts
from seer_sgl.router import messages as m
from seer_sgl.router.core.policy import POLICIES
from seer_sgl.spec.settings import DraftSettings
from seer_sgl.spec.sharing.heads import AskStatistics, Statistics, encode, head_of
from seer_sgl.testing.engine import FakeServer
from tests.unit.router.conftest import cluster, prompts, run, server, until
from tests.unit.router.test_service_wire import heard, raw_peer


def tags(engine: FakeServer) -> list[dict[str, Any]]:
    return [body["sampling_params"]["custom_params"]["seer"] for body in engine.bodies]


def test_every_chunk_says_whose_it_is() -> None:
    async def scenario() -> None:
        engine, (prompt,) = server(), prompts(1, tokens_at_least=50)
        async with cluster(engine, policy=POLICIES["divided"], chunk_tokens=20) as it:
            await it.generate(prompt, group_id="g", sampling_params={"max_new_tokens": 50})
        assert [(tag["group"], tag["done"]) for tag in tags(engine)] == [("g", 0), ("g", 20), ("g", 40)]
        assert len({tag["request"] for tag in tags(engine)}) == 1

    run(scenario())


def test_siblings_differ_and_one_is_the_probe() -> None:
    async def scenario() -> None:
        engine = server()
        async with cluster(engine, policy=POLICIES["seer"]) as it:
            await it.post({"input_ids": [5, 6], "sampling_params": {"n": 3, "max_new_tokens": 4}})
        assert sorted(tag["request"] for tag in tags(engine)) == [0, 1, 2]
        assert len({tag["group"] for tag in tags(engine)}) == 1
        assert [tag["probe"] for tag in tags(engine)] == [True, False, False]

    run(scenario())


def test_a_clients_own_parameters_stay() -> None:
    async def scenario() -> None:
        engine = server()
        async with cluster(engine) as it:
            params = {"max_new_tokens": 4, "custom_params": {"mine": [1]}}
            await it.generate([5], sampling_params=params)
        assert engine.bodies[0]["sampling_params"]["custom_params"]["mine"] == [1]
        assert tags(engine)[0]["done"] == 0

    run(scenario())


def test_joining_nodes_are_told_how_to_draft() -> None:
    async def scenario() -> None:
        settings = DraftSettings(servers=("tcp://h:1",))
        async with cluster(draft=settings) as it, raw_peer(it.head) as peer:
            await peer.send(m.encode(m.AskHead()))
            head = await heard(peer)
            assert isinstance(head, m.Head)
            assert head.draft == settings

    run(scenario())


class DraftServer:
    """Answers a router's questions with what a test wants."""

    def __init__(self, port: int, counters: dict[str, float] | None) -> None:
        self._counters = counters
        self._port = port
        self._thread = threading.Thread(target=self._serve)
        self._stopped = threading.Event()
        self._thread.start()

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"tcp://127.0.0.1:{self._port}")
            while not self._stopped.is_set():
                if socket.poll(20):
                    peer, *frames = socket.recv_multipart()
                    assert isinstance(head_of(frames), AskStatistics)
                    answer = (
                        b"x" if self._counters is None else encode(Statistics(counters=self._counters))
                    )
                    socket.send_multipart([peer, answer])

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A draft server that works, one that talks nonsense, and one that is away."""
    monkeypatch.setattr(drafts, "ASK_S", 0.05)
    ports = [free_port() for _ in range(3)]
    good = {"groups": 3.0, "accepted_tokens": 9.0, "refused_gap": 2.0, "of_a_later_version": 1.0}
    servers = [DraftServer(ports[0], good), DraftServer(ports[1], None)]
    yield ports
    for each in servers:
        each.stop()


def test_the_draft_servers_counts_are_metrics(ports: list[int]) -> None:
    addresses = tuple(f"tcp://127.0.0.1:{port}" for port in ports)

    async def scenario() -> None:
        async with cluster(draft=DraftSettings(servers=addresses)) as it:
            await until(lambda: it.service.drafts.counters)
            await asyncio.sleep(0.2)
            lines = (await it.http.get("/metrics")).text.splitlines()
        label = f'server="{addresses[0]}"'
        for line in (
            f"seer_draft_server_up{{{label}}} 1.0",
            f'seer_draft_server_up{{server="{addresses[1]}"}} 0.0',
            f'seer_draft_server_up{{server="{addresses[2]}"}} 0.0',
            f"seer_draft_groups{{{label}}} 3.0",
            f"seer_draft_accepted_tokens_total{{{label}}} 9.0",
            f'seer_draft_refused_updates_total{{reason="gap",{label}}} 2.0',
        ):
            assert line in lines

    run(scenario())


def test_without_drafts_there_are_no_such_metrics() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            assert "seer_draft" not in (await it.http.get("/metrics")).text

    run(scenario())
