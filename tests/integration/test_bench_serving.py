"""SGLang's own load test, unmodified, against a router: every request succeeds, with all its tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MODEL, Cluster

REQUESTS = 24
INPUT_TOKENS = 48
OUTPUT_TOKENS = 160
"""Two chunks and a half."""


def bench_serving(cluster: Cluster, directory: Path, *options: str) -> dict[str, Any]:
    """What `python -m sglang.bench_serving` found."""
    found = directory / "found.jsonl"
    argv = ["--base-url", cluster.url, "--tokenizer", MODEL, "--dataset-name", "random-ids"]
    argv += ["--num-prompts", str(REQUESTS), "--random-range-ratio", "1.0", "--seed", "3"]
    argv += ["--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)]
    argv += ["--output-file", str(found), "--output-details", "--disable-tqdm", *options]
    ran = subprocess.run(
        [sys.executable, "-m", "sglang.bench_serving", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        cwd=directory,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result: dict[str, Any] = json.loads(found.read_text().splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "options",
    [
        ("--backend", "sglang"),
        ("--backend", "sglang", "--disable-stream", "--return-logprob"),
        ("--backend", "sglang", "--flush-cache", "--max-concurrency", "6"),
        ("--backend", "sglang-oai"),
        ("--backend", "sglang-oai-chat"),
    ],
    ids=" ".join,
)
def test_every_request_succeeds(cluster: Cluster, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = bench_serving(cluster, tmp_path, *options)
    assert result["completed"] == REQUESTS
    assert not any(result["errors"])
    assert result["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS
    assert result["request_throughput"] > 0
    assert result["server_info"]["internal_states"]
    if "--disable-stream" not in options:
        assert all(first > 0 for first in result["ttfts"]), "the answers streamed"
        assert max(len(gaps) for gaps in result["itls"]) > 4
    engines = httpx.get(f"{cluster.url}/engines").json()["engines"]
    assert sum(engine["chunks"] for engine in engines) == 0, "nothing is left"
