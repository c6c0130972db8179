"""Two nodes: network namespaces with one cable between them, and one address to join by."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seer_sgl.engine.process import free_port
from seer_sgl.smallmodel.problems import prompts

HEAD, NODE = "10.77.0.1", "10.77.0.2"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that reach each other at HEAD and NODE, and nothing else."""
    head, node = f"seer-head-{os.getpid()}", f"seer-node-{os.getpid()}"
    ip("netns", "add", head)
    ip("netns", "add", node)
    try:
        ip("link", "add", "seer-a", "netns", head, "type", "veth", "peer", "seer-b", "netns", node)
        for name, link, address in ((head, "seer-a", HEAD), (node, "seer-b", NODE)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield head, node
    finally:
        ip("netns", "delete", head)
        ip("netns", "delete", node)


def command(namespace: str, *args: str) -> list[str]:
    # Each node thinks that all cores are its own; as threads wait by spinning, two of them would crawl.
    one_thread = ("env", "OMP_NUM_THREADS=1")
    return [*inside(namespace), *one_thread, sys.executable, "-m", "seer_sgl_cli", *args]


def test_a_node_joins_and_chunks_move_between_the_nodes(
    two_nodes: tuple[str, str], tmp_path: Path
) -> None:
    head, node = two_nodes
    port, agent_port = str(free_port()), str(free_port())
    few_slots = ("--engines", "1", "--max-running", "4")
    serve = command(head, "serve", "--host", HEAD, "--port", port, "--agent-port", agent_port)
    serve += [*few_slots, "--chunk-tokens", "64", "--pull-margin-tokens", "0", "--no-batches"]
    serve += ["--log-dir", str(tmp_path / "head")]
    join = command(node, "join", f"{HEAD}:{agent_port}", "--name", "second", *few_slots)
    join += ["--log-dir", str(tmp_path / "node")]
    with (tmp_path / "log").open("wb") as log:
        children = [subprocess.Popen(serve, stdout=log, stderr=log)]
        try:
            wait_for(head, port, 1, tmp_path)
            children.append(subprocess.Popen(join, stdout=log, stderr=log))
            wait_for(head, port, 2, tmp_path)
            report = roll_out(head, port, tmp_path)
        finally:
            for child in reversed(children):
                child.send_signal(signal.SIGTERM)
                child.wait(60)
    assert (report["samples"], report["failed"], report["retractions"]) == (32, 0, 0)
    assert report["moved_chunks"] > 0
    assert report["prefix_found_share"] > 0.9, report


def wait_for(head: str, port: str, engines: int, directory: Path) -> None:
    """Ask /health from inside the namespace until so many engines are there."""
    ask = (
        "import httpx, time\n"
        f"url = 'http://{HEAD}:{port}/health'\n"
        "deadline = time.monotonic() + 200\n"
        "while time.monotonic() < deadline:\n"
        "    try:\n"
        f"        if httpx.get(url).json().get('engines') == {engines}: raise SystemExit(0)\n"
        "    except httpx.TransportError: pass\n"
        "    time.sleep(0.3)\n"
        "raise SystemExit(1)\n"
    )
    asked = subprocess.run([*inside(head), sys.executable, "-c", ask], check=False)
    logs = "\n".join(path.read_text()[-3000:] for path in directory.rglob("*.log"))
    assert asked.returncode == 0, (directory / "log").read_text() + logs


def roll_out(head: str, port: str, directory: Path) -> dict[str, float]:
    path = directory / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in prompts(8, seed=6)))
    argv = command(head, "rollout", str(path), "--url", f"http://{HEAD}:{port}", "--group-size", "4")
    argv += ["--output", str(directory / "samples.jsonl"), "--json", str(directory / "report.json")]
    argv += ["--max-new-tokens", "400"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, float] = json.loads((directory / "report.json").read_text())
    return report
