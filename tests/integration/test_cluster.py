"""`seer-sgl serve` as a user runs it: a rollout from the command line, an engine killed half-way."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from seer_sgl.smallmodel.problems import prompts
from tests.integration.conftest import Cluster


def write_prompts(path: Path, count: int) -> Path:
    lines = [json.dumps({"group_id": f"g{i}", "text": t}) for i, t in enumerate(prompts(count, seed=5))]
    path.write_text("\n".join(lines))
    return path


def samples_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rollout(cluster: Cluster, directory: Path, groups: int) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "seer_sgl_cli", "rollout", "--url", cluster.url, "--group-size", "4"]
    argv += ["--output", str(directory / "samples.jsonl"), "--json", str(directory / "report.json")]
    argv += [str(write_prompts(directory / "prompts.jsonl", groups)), "--max-new-tokens", "600"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def assert_complete(directory: Path, groups: int) -> dict[str, Any]:
    """Every sample once, none with an error; the report."""
    samples = samples_of(directory / "samples.jsonl")
    expected = {(f"g{group}", sample) for group in range(groups) for sample in range(4)}
    assert sorted((s["group_id"], s["sample"]) for s in samples) == sorted(expected)
    assert all(sample["status"] == 200 for sample in samples)
    for sample in samples:
        chunks = sample["meta_info"]["seer"]["chunks"]
        assert sum(chunk["new_tokens"] for chunk in chunks) == len(sample["output_ids"])
        assert sample["meta_info"]["finish_reason"]["type"] in ("stop", "length")
    report: dict[str, Any] = json.loads((directory / "report.json").read_text())
    return report


def test_a_rollout_from_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    done = rollout(cluster, tmp_path, groups=4)
    assert done.returncode == 0, done.stderr
    report = assert_complete(tmp_path, groups=4)
    assert (report["groups"], report["samples"], report["failed"]) == (4, 16, 0)
    assert report["retractions"] == 0
    assert report["chunks"] > 16
    assert "retractions" in done.stdout


def test_the_plugin_is_proved_in_the_running_servers(cluster: Cluster) -> None:
    for url in cluster.server_urls():
        state = httpx.get(f"{url}/server_info", timeout=30).json()["internal_states"][0]
        assert state["seer_sgl"]["platform"] == "SeerCpuPlatform"


def test_an_engine_killed_in_mid_rollout_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    victim = cluster.engines()[0]
    killed_at: list[float] = []

    def kill_when_busy() -> None:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            load = next(w["chunks"] for w in cluster.engines() if w["id"] == victim["id"])
            if load >= 4:
                listening_on(cluster, urlsplit(victim["url"]).port).kill()
                killed_at.append(time.monotonic())
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    done = rollout(cluster, tmp_path, groups=10)
    killer.join()
    assert killed_at, "the engine was never busy"
    assert done.returncode == 0, done.stderr
    report = assert_complete(tmp_path, groups=10)
    assert report["failed"] == 0
    assert victim["id"] in cluster.log.read_text()

    cluster.wait_for_engines(2)
    back = next(worker for worker in cluster.engines() if worker["id"] == victim["id"])
    assert back["url"] != victim["url"], "another server under the same name"
    assert httpx.get(back["url"] + "/health_generate", timeout=30).status_code == 200
    answer = httpx.post(f"{cluster.url}/generate", json={"input_ids": [5]}, timeout=60)
    assert answer.status_code == 200


def test_a_killed_draft_server_costs_drafts_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    victim = draft_server(cluster)
    killer = threading.Timer(2.0, victim.kill)
    killer.start()
    done = rollout(cluster, tmp_path, groups=6)
    killer.join()
    assert not victim.is_running()
    assert done.returncode == 0, done.stderr
    assert assert_complete(tmp_path, groups=6)["failed"] == 0

    wait_until(lambda: "} 1.0" in draft_server_up(cluster))
    assert draft_server(cluster).pid != victim.pid
    before = sibling_tokens(cluster)
    done = rollout(cluster, tmp_path, groups=6)
    assert done.returncode == 0, done.stderr
    assert_complete(tmp_path, groups=6)
    assert sibling_tokens(cluster) > before, "engines hear of siblings again"


def draft_server(cluster: Cluster) -> psutil.Process:
    return next(child for child in cluster.family() if "seer_sgl.spec.server" in child.cmdline())


def draft_server_up(cluster: Cluster) -> str:
    """The line of the router's metrics that says so."""
    lines = httpx.get(f"{cluster.url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("seer_draft_server_up{"))


def sibling_tokens(cluster: Cluster) -> int:
    """Tokens that engines took in from other engines."""
    states = [httpx.get(f"{url}/server_info", timeout=30).json() for url in cluster.server_urls()]
    counted = [state["internal_states"][0]["seer_sgl"]["speculation"] for state in states]
    return sum(counters["sibling_tokens"] for counters in counted)


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def listening_on(cluster: Cluster, port: int | None) -> psutil.Process:
    """The SGLang server process that owns the port."""
    for process in cluster.family():
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                return process
    raise AssertionError(f"nobody listens on {port}")
