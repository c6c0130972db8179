"""Servers that somebody else runs: what they say, when they are there, and when they are gone."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from seer_sgl.engine import attached
from seer_sgl.engine.attached import AttachedClient, AttachedServer
from seer_sgl.engine.described import UNKNOWN_KV_TOKENS, EngineInfo, info_of, load_of
from seer_sgl.engine.plugin import PROOF_KEY
from seer_sgl.errors import EngineUnreachable
from seer_sgl.types import EngineId, EngineSpec
from tests.unit.mock_worker import MockWorker

E = EngineId("e")
PROOF = {"version": "1", "vocab_size": 512, "front": True}
SERVER: dict[str, Any] = {
    "max_total_num_tokens": 65536,
    "page_size": 16,
    "version": "0.5.23",
    "tp_size": 2,
    "api_key": "secret",
    "internal_states": [{"effective_max_running_requests_per_dp": 8, PROOF_KEY: PROOF}],
}
MODEL = {"served_model_name": "small", "weight_version": "w7", "model_path": "/m"}
MODELS = {"data": [{"id": "small", "max_model_len": 4096}]}


class Worker(MockWorker):
    """Answers of some paths may be set."""

    def __init__(self, **answers: tuple[int, Any]) -> None:
        super().__init__("w")
        self.answers = {f"/{path}": answer for path, answer in answers.items()}
        self.asked: list[str] = []

    def get(self, path: str) -> tuple[int, Any]:
        self.asked.append(path)
        return self.answers.get(path) or super().get(path)


def test_a_whole_description() -> None:
    info = info_of(E, SERVER, MODEL, MODELS)
    spec = EngineSpec(E, 65536, 16, 8, 4096, vocab_size=512)
    assert info == EngineInfo(spec, "small", "0.5.23", "w7", PROOF, info.facts)
    assert info.says_what_it_holds
    assert (info.facts["tp_size"], info.facts["front"]) == (2, True)
    assert "api_key" not in info.facts


@pytest.mark.parametrize(
    "server",
    [{}, {"internal_states": []}, {"internal_states": [None], "page_size": "big"}, {"page_size": 0}],
)
def test_a_server_that_says_little_is_unlimited(server: dict[str, Any]) -> None:
    info = info_of(E, server, {}, {"data": []})
    assert not info.says_what_it_holds
    assert (info.spec.kv_capacity_tokens, info.spec.page_tokens) == (UNKNOWN_KV_TOKENS, 1)
    assert info.spec.longest_request_tokens > 1_000_000
    assert (info.model, info.weight_version, info.plugin) == ("unknown", "default", None)


@pytest.mark.parametrize(
    ("answer", "load"),
    [
        (
            {
                "loads": [
                    {"num_running_reqs": 3, "num_waiting_reqs": 1, "num_used_tokens": 100},
                    {"num_running_reqs": 2, "num_waiting_reqs": 0},
                ]
            },
            (5, 1, 100),
        ),
        ({"loads": []}, (0, 0, 0)),
        ({"load": 3}, None),
        ([], None),
        (None, None),
    ],
)
def test_loads(answer: Any, load: Any) -> None:
    assert load_of(answer) == load


def ask(worker: MockWorker, question: Callable[[AttachedClient], Any], key: str = "") -> Any:
    async def scenario() -> Any:
        client = AttachedClient(worker.url, key)
        try:
            return await question(client)
        finally:
            await client.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answers", "healthy"),
    [
        ({}, True),
        ({"health_generate": (404, {})}, True),
        ({"health_generate": (404, {}), "health": (500, {})}, False),
        ({"health_generate": (503, {})}, False),
    ],
)
def test_health(answers: dict[str, Any], healthy: bool) -> None:
    with Worker(**answers) as worker:
        assert ask(worker, lambda client: client.healthy()) is healthy


def test_the_older_names_of_what_a_server_says() -> None:
    with Worker(get_server_info=(200, SERVER), get_model_info=(200, MODEL)) as worker:
        info = ask(worker, lambda client: client.info(E))
    assert (info.spec.kv_capacity_tokens, info.model) == (65536, "small")


def test_a_server_that_fails_now_is_not_taken_for_unlimited() -> None:
    with Worker(server_info=(500, {})) as worker, pytest.raises(EngineUnreachable, match="500"):
        ask(worker, lambda client: client.info(E))


def test_a_server_without_loads_is_alive_while_it_says_so() -> None:
    async def twice(client: AttachedClient) -> list[Any]:
        return [await client.load(), await client.load()]

    with Worker() as worker:
        assert ask(worker, twice) == [(0, 0, 0)] * 2
        assert isinstance(worker, Worker)
        assert worker.asked.count("/v1/loads") == 1, "asked once, it is not asked again"
    with Worker(health=(503, {})) as worker, pytest.raises(EngineUnreachable):
        ask(worker, AttachedClient.load)


def test_the_key_goes_with_every_request() -> None:
    with MockWorker("w", key="secret") as worker:
        for key, status in (("secret", 200), ("", 401), ("other", 401)):
            answer = ask(worker, lambda client: client.post("/generate", {"input_ids": [3]}), key)
            assert answer[0] == status


def test_a_server_is_waited_for_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "POLL_S", 0.01)
    monkeypatch.setattr(attached, "CONFIRM_S", 0.01)

    async def scenario() -> None:
        worker = Worker()
        worker.start()
        worker.end()  # its port is known now
        server = AttachedServer("e", worker.url)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0.1)
        assert not starting.done()
        worker.start()
        assert (await starting).spec.engine_id == "e"
        ending = asyncio.create_task(server.wait_ended())
        worker.answers["/health"] = (503, {})
        with pytest.raises(EngineUnreachable):
            await server.client.load()
        worker.answers.clear()
        await asyncio.sleep(0.1)
        assert not ending.done(), "one miss is none"
        worker.end()
        with pytest.raises(EngineUnreachable):
            await server.client.load()
        assert f"{worker.url} does not answer" in (await ending).what
        await server.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert threading.active_count() < 10
