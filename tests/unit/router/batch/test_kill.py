"""kill -9 of the router in the middle of a batch: every line once, nothing finished asked again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from seer_sgl.engine.process import free_port

LINES = 5000
PATIENCE_S = 120.0
ROOT = Path(__file__).resolve().parents[4]


def prompt(number: int) -> list[int]:
    return [2 + number % 200, 2 + number // 200, 7]


def input_lines() -> bytes:
    every = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/generate",
            "body": {"input_ids": prompt(number), "sampling_params": {"max_new_tokens": 4}},
        }
        for number in range(LINES)
    ]
    return b"\n".join(map(msgspec.json.encode, every))


@contextlib.contextmanager
def process(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [sys.executable, "-m", "tests.unit.router.batch.processes", *arguments]
    with subprocess.Popen(argv, cwd=ROOT) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_healthy(url: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the router does not come up")


def wait_batch(client: openai.OpenAI, batch_id: str, completed: int) -> openai.types.Batch:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        batch = client.batches.retrieve(batch_id)
        assert batch.request_counts is not None
        if batch.request_counts.completed >= completed:
            return batch
        time.sleep(0.01)
    raise AssertionError(f"no {completed} lines are done: {batch}")


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a file that a killed process has left."""
    *lines, _ = path.read_bytes().split(b"\n")
    return [msgspec.json.decode(line) for line in lines]


@pytest.mark.timeout(300)
def test_a_killed_router_goes_on_where_it_was(tmp_path: Path) -> None:
    http_port, agent_port, log = free_port(), free_port(), tmp_path / "asked"
    url = f"http://127.0.0.1:{http_port}"
    ours = ("router", str(http_port), str(agent_port), str(tmp_path / "data"))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with client, process("engine", str(agent_port), str(log), "0.002"):
        with process(*ours) as router:
            wait_healthy(url)
            file = client.files.create(file=("in.jsonl", input_lines()), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/generate",  # type: ignore[arg-type]  # ours, besides OpenAI's
                completion_window="24h",
            )
            counts = wait_batch(client, batch.id, LINES // 4).request_counts
            os.kill(router.pid, signal.SIGKILL)
            router.wait()

        files = [p for p in (tmp_path / "data" / "files").iterdir() if p.name != file.id]
        finished = {each["custom_id"] for path in files for each in whole_lines(path)}
        assert counts is not None
        assert counts.completed <= len(finished) < LINES

        with process(*ours):
            wait_healthy(url)
            wait_batch(client, batch.id, LINES)
            while (batch := client.batches.retrieve(batch.id)).status != "completed":
                time.sleep(0.01)
            assert batch.output_file_id is not None
            output = client.files.content(batch.output_file_id).read().splitlines()
            again = client.batches.retrieve(batch.id)

    answered = Counter(msgspec.json.decode(line)["custom_id"] for line in output)
    asked = Counter(tuple(msgspec.json.decode(line)) for line in log.read_bytes().splitlines())
    # Some of what is wrong: pytest takes minutes to show the difference of long lists.
    assert [n for n in range(LINES) if answered[f"c{n}"] != 1][:9] == []
    assert [n for n in range(LINES) if not asked[tuple(prompt(n))]][:9] == []
    assert [n for n in range(LINES) if f"c{n}" in finished and asked[tuple(prompt(n))] != 1][:9] == []
    assert len(output) == LINES
    assert again.request_counts is not None
    assert (again.request_counts.completed, again.request_counts.failed) == (LINES, 0)
    assert (again.error_file_id, again.in_progress_at) == (None, batch.in_progress_at)
