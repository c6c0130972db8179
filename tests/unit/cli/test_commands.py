"""What a user sees when something is missing: one clear line, and the exit code that belongs to it."""

import json
import socket
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli import options, serve
from cli.main import app
from seer_sgl.config import TRIED_SGLANG, RouterConfig
from seer_sgl.engine import libraries, node
from seer_sgl.engine.node import NodeConfig
from seer_sgl.engine.process import free_port
from seer_sgl.head import HeadConfig
from seer_sgl.kv.pool import PoolSettings
from seer_sgl.spec.settings import DraftSettings


def command(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_one_line(result: Result, *words: str, code: int = 2) -> None:
    """The last line says it all, and nothing of ours is shown."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("error: "), result.output
    for word in words:
        assert word in last, last


@pytest.fixture(autouse=True)
def _everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: TRIED_SGLANG[0])
    monkeypatch.setattr(libraries, "missing_libraries", list)
    monkeypatch.setattr(libraries, "missing_build_tools", list)


def test_a_missing_model_path() -> None:
    path = "/no/such/folder/" + "x" * 100
    assert_one_line(command("serve", "--model", path), f"the model path does not exist: {path}")


@pytest.mark.parametrize("taken", ["--port", "--agent-port"])
def test_a_taken_port(taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--port": free_port(), "--agent-port": free_port(), taken: port}
        options = [word for pair in ports.items() for word in pair]
        result = command("serve", "--engines", 0, "--no-pool", *options)
    assert_one_line(result, f"127.0.0.1:{port}", f"with {taken}.")


def test_an_unknown_policy() -> None:
    result = command("serve", "--engines", 0, "--no-pool", "--policy", "fast")
    assert_one_line(result, "'fast'", "fifo_group, least_loaded, divided, seer")


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--estimate", "finished, longest, remaining, likely"),
        ("--chunk-plan", "constant, short_probe, short_first, growing"),
    ],
)
def test_an_unknown_name(option: str, names: str) -> None:
    assert_one_line(command("serve", "--engines", 0, "--no-pool", option, "fast"), "'fast'", names)


def test_another_sglang_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.4.1")
    assert_one_line(command("serve"), "SGLang 0.4.1 is installed", f"sglang=={TRIED_SGLANG[-1]}")


def test_missing_system_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "missing_libraries", lambda: ["libibverbs1"])
    assert_one_line(command("serve", "--engines", 0), "apt-get install -y libibverbs1")


class HastyConfig(NodeConfig, frozen=True):
    """Asks for a moment only."""

    ask_timeout_s: float = 0.1


@pytest.mark.parametrize(
    ("head", "says"),
    [(f"127.0.0.1:{free_port()}", "no head answers at 127.0.0.1:"), ("nonsense", "write HOST:PORT")],
)
def test_join_without_a_head(head: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "NodeConfig", HastyConfig)
    assert_one_line(command("join", head), says)


def test_join_without_an_engine() -> None:
    assert_one_line(command("join", "127.0.0.1:1", "--engines", 0), "--engines", "--attach")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (None, "No such file"),
        ("", "holds no prompt"),
        ("not json\n", "line 1"),
        ('{"text": "a"}\n\n[1]\n', "line 3"),
        ('{"text": 5}\n', "line 1"),
        ('{"input_ids": ["a"]}\n', "line 1"),
    ],
)
def test_prompts_that_are_none(lines: str | None, says: str, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    if lines is not None:
        prompts.write_text(lines, encoding="utf-8")
    result = command("rollout", prompts, "--output", tmp_path / "out.jsonl")
    assert_one_line(result, str(prompts), says)
    assert not (tmp_path / "out.jsonl").exists()


def test_rollout_without_a_router(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"text": "a"}), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    result = command("rollout", prompts, "--output", tmp_path / "out.jsonl", "--url", url)
    assert_one_line(result, f"no router answers at {url}", code=1)


@pytest.mark.parametrize(
    "option", [("--port", 0), ("--chunk-tokens", 0), ("--engines", -1), ("--heat", 1)]
)
def test_options_out_of_range(option: tuple[str, int]) -> None:
    result = command("serve", *option)
    assert result.exit_code == 2
    assert option[0] in result.output


def test_doctor_says_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = command("doctor")
    assert healthy.exit_code == 0, healthy.output
    assert all(line.startswith("ok ") for line in healthy.output.splitlines())
    assert f"SGLang {TRIED_SGLANG[0]}" in healthy.output

    monkeypatch.setattr(libraries, "missing_libraries", lambda: ["libibverbs1"])
    monkeypatch.setattr(metadata, "version", lambda _: "0.4.1")
    ill = command("doctor")
    assert ill.exit_code == 1
    missing = [line for line in ill.output.splitlines() if line.startswith("MISSING")]
    assert [line.split()[1] for line in missing] == ["SGLang,", "system"]
    assert f"pip install sglang=={TRIED_SGLANG[-1]}" in ill.output
    assert "libibverbs1" in ill.output


def served(monkeypatch: pytest.MonkeyPatch, *args: object) -> HeadConfig:
    """What `serve` with these arguments would start."""
    found = []

    async def note(config: HeadConfig) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr(serve, "_serve", note)
    result = command("serve", *args)
    assert result.exit_code == 0, result.output
    (config,) = found
    return config


def test_options_of_serve_reach_the_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = served(
        monkeypatch,
        *("--host", "::1", "--port", 5, "--agent-port", 6, "--engine-ports", 7, "--prometheus-port", 8),
        *(
            "--policy",
            "divided",
            "--estimate",
            "longest",
            "--chunk-tokens",
            9,
            "--chunk-plan",
            "growing",
        ),
        *("--pull-margin-tokens", 10, "--group-size", 11, "--group-window-s", 12.5, "--no-speculate"),
        *("--data-dir", tmp_path, "--log-dir", tmp_path, "--draft-shards", 3, "--draft-mib", 2),
        *("--engines", 4, "--no-pool", "--no-kv-release", "--update-timeout-s", 14, "--kv-tokens", 13),
        *("--model", "/m", "--", "--tp-size", "2"),
    )
    assert head.router == RouterConfig(
        host="::1",
        http_port=5,
        agent_port=6,
        engine_ports=7,
        prometheus_port=8,
        policy="divided",
        estimate="longest",
        chunk_tokens=9,
        chunk_plan="growing",
        pull_margin_tokens=10,
        group_size=11,
        group_window_s=12.5,
        data_dir=tmp_path,
        update_timeout_s=14.0,
        model="/m",
        engine_args=("--tp-size", "2"),
    )
    assert not head.pool_settings.release
    assert (head.engines, head.pool, head.attach, head.log_dir) == (4, False, (), tmp_path / "5")
    assert (head.draft_shards, head.draft_budget_bytes) == (3, 2 << 20)
    assert head.node_args == ("--page-tokens", "16", "--kv-tokens", "13")


def test_the_pool_as_serve_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    head = served(
        monkeypatch,
        *("--pool-mib", 64, "--pool-master", "etcd://e:1", "--pool-metadata", "http://m:2/metadata"),
        *("--pool-protocol", "rdma", "--pool-device", "mlx5_0"),
        *("--pool-arg", "enable_ha=true", "--pool-arg", "etcd_endpoints=e:1"),
    )
    assert head.pool_settings == PoolSettings(
        master="etcd://e:1",
        metadata="http://m:2/metadata",
        protocol="rdma",
        device="mlx5_0",
        segment_bytes=64 << 20,
        master_flags={"enable_ha": "true", "etcd_endpoints": "e:1"},
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pool-arg", "enable_ha"), ("'enable_ha'", "NAME=VALUE")),
        (("--pool-arg", "enable_ha=true"), ("--pool-master", "etcd://HOST:PORT")),
        (("--pool-master", "here"), ("'here'", "HOST:PORT")),
        (("--pool-master", "h:1", "--pool-arg", "client_ttl=9"), ("leave one of them out",)),
    ],
)
def test_a_pool_that_cannot_be(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line(command("serve", "--engines", 0, "--no-batches", *options), *words)


def test_defaults_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    head = served(monkeypatch)
    assert (head.engines, head.pool, head.router.policy) == (2, True, "seer")
    assert head.router.data_dir == options.DATA_DIR / "30000"
    assert head.pool_settings == PoolSettings()
    assert head.router.draft == DraftSettings()
    attached = served(monkeypatch, "--attach", "http://a:1", "--attach", "http://b:1", "--no-batches")
    assert (attached.engines, attached.pool) == (0, False)
    assert attached.attach == ("http://a:1", "http://b:1")
    assert attached.router.data_dir is None
    assert attached.router.draft is None
    both = served(monkeypatch, "--attach", "http://a:1", "--engines", 1, "--pool", "--speculate")
    assert (both.engines, both.pool, both.router.draft) == (1, True, DraftSettings())


def test_what_is_no_server_is_not_attached() -> None:
    assert_one_line(command("serve", "--no-batches", "--attach", "grpc://a:1"), "grpc://a:1", "HTTP")
