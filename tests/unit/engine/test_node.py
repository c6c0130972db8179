"""A node that joins a head: what it asks, what it starts, and what it says when it cannot."""

import os
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.config import CPU_SEGMENT_BYTES
from seer_sgl.engine import node
from seer_sgl.engine.node import NodeConfig, run_node
from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.kv.pool import PoolAddress
from seer_sgl.router.messages import Head
from seer_sgl.spec.settings import DraftSettings
from tests.unit.router.conftest import run

POOL = PoolAddress("h:1")


def config(head: str, **changes: Any) -> NodeConfig:
    settings: dict[str, Any] = {"name": "n", "engines": 2, "log_dir": Path("/nowhere")}
    return NodeConfig(head=head, ask_timeout_s=0.2, **{**settings, **changes})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model path that passes, on a machine where everything is installed."""
    monkeypatch.setattr(node, "check_sglang_installed", lambda: None)
    monkeypatch.setattr(node, "missing_for_pool", lambda: "")
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (
            f"127.0.0.1:{free_port()}",
            r"no head answers at .* within 0\.2 s\. Is `seer-sgl serve` running",
        ),
        ("nonsense", "'nonsense' is no address: .*write HOST:PORT"),
        ("127.0.0.1:port", "is no address"),
    ],
)
def test_a_head_that_is_not_there(address: str, complaint: str) -> None:
    async def scenario() -> None:
        with pytest.raises(StartError, match=complaint):
            await run_node(config(address))

    run(scenario())


def test_engines_are_like_the_heads_own(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "runs_on_cpu", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    head = Head(model, POOL, ["--dtype", "auto"])
    first, second = node._engine_configs(
        config("127.0.0.1:5", kv_tokens=99, engine_args=("--dtype", "half")), head
    )
    assert (first.name, second.name) == ("n-0", "n-1")
    assert (first.model, first.pool) == (model, POOL)
    assert (first.threads, first.kv_tokens, first.local_host) == (4, 99, "127.0.0.1")
    assert first.extra_args == ("--dtype", "auto", "--dtype", "half"), "this node's flags win"


def test_memory_that_engines_lend(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the node says, else what the head says, else what the machine has."""

    def lent(told: PoolAddress | None, **changes: Any) -> int:
        return node._engine_configs(config("127.0.0.1:5", **changes), Head(model, told, []))[
            0
        ].segment_bytes

    told = PoolAddress("h:1", segment_bytes=5)
    assert lent(told, segment_bytes=3) == 3
    assert lent(told) == 5
    monkeypatch.setattr(node, "runs_on_cpu", lambda: True)
    assert lent(POOL) == CPU_SEGMENT_BYTES
    monkeypatch.setattr(node, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(node, "CONTAINER_MEMORY", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("16000\n")
    assert lent(POOL) == 1000, "an eighth, over two engines"
    (tmp_path / "memory.max").write_text("max\n")
    assert lent(POOL) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16


def test_a_node_may_have_a_model_path_of_its_own(model: str) -> None:
    (only,) = node._engine_configs(config("127.0.0.1:5", model=model, engines=1), Head("/x", None, []))
    assert only.model == model
    with pytest.raises(StartError, match="does not exist: /no/model"):
        node._engine_configs(config("127.0.0.1:5"), Head("/no/model", None, []))


def test_missing_packages_stop_a_node_that_needs_them(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "missing_for_pool", lambda: "apt-get install x")
    node._engine_configs(config("127.0.0.1:5"), Head(model, None, []))
    with pytest.raises(StartError, match="apt-get install x"):
        node._engine_configs(config("127.0.0.1:5"), Head(model, POOL, []))


def test_a_node_without_engines_is_told_so() -> None:
    async def scenario() -> None:
        with pytest.raises(StartError, match="brings no engine"):
            await run_node(config("127.0.0.1:5", engines=0))

    run(scenario())


def test_engines_draft_as_the_head_says_under_their_own_names(model: str) -> None:
    head = Head(model, None, [], DraftSettings(servers=("tcp://h:1",), max_nodes=7))
    engines = node._engine_configs(config("127.0.0.1:5"), head)
    assert [engine.draft for engine in engines] == [
        DraftSettings(servers=("tcp://h:1",), max_nodes=7, engine=f"n-{index}") for index in range(2)
    ]


def test_a_node_may_decline_to_draft(model: str) -> None:
    for head, speculate in (
        (Head(model, None, []), True),
        (Head(model, None, [], DraftSettings()), False),
    ):
        settings = config("127.0.0.1:5", speculate=speculate, engines=1)
        (only,) = node._engine_configs(settings, head)
        assert only.draft is None
