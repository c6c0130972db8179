"""SGLang's command line and environment."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from seer_sgl.config import CPU_KV_TOKENS, CPU_MAX_RUNNING, EngineConfig
from seer_sgl.engine.argv import server_argv, server_environment
from seer_sgl.kv.pool import CLIENT_BOUNDS, PoolAddress

POOL = PoolAddress("h:1", segment_bytes=7)


def config(**changes: Any) -> EngineConfig:
    return EngineConfig(**{"name": "e", "model": "/m", **changes})


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_engine() -> None:
    for on_cpu in (True, False):
        argv = server_argv(config(page_tokens=32), 4321, on_cpu)
        assert argv[:3] == [sys.executable, "-m", "sglang.launch_server"]
        assert value_of(argv, "--model-path") == "/m"
        assert (value_of(argv, "--host"), value_of(argv, "--port")) == ("127.0.0.1", "4321")
        assert value_of(argv, "--page-size") == "32"
        assert {
            "--skip-server-warmup",
            "--sleep-on-idle",
            "--enable-cache-report",
            "--enable-metrics",
        } <= set(argv)
        assert "--incremental-streaming-output" in argv
        flags = [word for word in argv if word.startswith("--")]
        assert len(flags) == len(set(flags)), "a flag is given twice"


def test_a_cpu_engine_has_bounds_and_a_gpu_engine_takes_what_there_is() -> None:
    on_cpu, on_gpu = server_argv(config(), 1, True), server_argv(config(), 1, False)
    assert value_of(on_cpu, "--device") == "cpu"
    assert value_of(on_cpu, "--attention-backend") == "torch_native"
    assert value_of(on_cpu, "--dtype") == "float32"
    assert value_of(on_cpu, "--max-total-tokens") == str(CPU_KV_TOKENS)
    assert value_of(on_cpu, "--max-running-requests") == str(CPU_MAX_RUNNING)
    of_a_cpu = {"--device", "--attention-backend", "--dtype", "--disable-overlap-schedule"}
    assert of_a_cpu.isdisjoint(on_gpu)
    assert {"--max-total-tokens", "--max-running-requests"}.isdisjoint(on_gpu)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_users_bounds_win(on_cpu: bool) -> None:
    argv = server_argv(config(kv_tokens=999, max_running_requests=3), 1, on_cpu)
    assert value_of(argv, "--max-total-tokens") == "999"
    assert value_of(argv, "--max-running-requests") == "3"


def test_the_pool_is_on_only_where_there_is_one() -> None:
    flag = "--hicache-storage-backend"
    assert flag not in server_argv(config(), 1, True)
    assert value_of(server_argv(config(pool=POOL), 1, True), flag) == "mooncake"


def test_the_users_flags_come_last() -> None:
    extra = ("--dtype", "bfloat16")
    argv = server_argv(config(extra_args=extra, pool=POOL), 1, True)
    assert tuple(argv[-2:]) == extra
    assert argv.index("--dtype") < len(argv) - 2, "ours is there as well, and loses"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"HF_HUB_OFFLINE": "1"}),
        ({"model": "owner/name"}, {}),
        ({"model": "owner/name", "threads": 3}, {"OMP_NUM_THREADS": "3"}),
        (
            {"pool": POOL, "local_host": "10.0.0.7", "segment_bytes": 64},
            {
                "HF_HUB_OFFLINE": "1",
                "SGLANG_HOST_IP": "10.0.0.7",
                **POOL.environment("10.0.0.7", 64),
                **CLIENT_BOUNDS,
            },
        ),
    ],
)
def test_environment(
    changes: dict[str, Any], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    environment = server_environment(config(**changes))
    assert environment.pop("OMP_WAIT_POLICY") == "passive"
    scripts, *rest = environment.pop("PATH").split(os.pathsep)
    assert scripts == str(Path(sys.executable).parent)
    assert rest == os.environ["PATH"].split(os.pathsep)
    assert environment == expected


def test_the_users_own_thread_count_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in server_environment(config(threads=3))
